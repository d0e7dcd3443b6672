/*
 * remote.h: exports of remote.c
 *
 * Layer 5: what channels call our things.
 */
#ifndef ACCORD_REMOTE_H
#define ACCORD_REMOTE_H

#include "endpoint.h"

/* One thing of ours, as a channel has it. */
typedef struct AccordRemote
{
	const char *kind;
	const char *key;			/* NULL: the event has none */
	bool		known;			/* there is a row; the next three may be NULL */
	char	   *id;
	char	   *version;
	char	   *etag;
} AccordRemote;

/* What templates may name while a request is made. */
typedef struct AccordRemoteScope
{
	AccordRemote own;			/* remote.*; kind NULL: the route keeps none */
	AccordRemote *needs;		/* needs.KIND.* */
	int			n_needs;
	Jsonb	   *answer;			/* answer.*, of what was accepted; or NULL */
} AccordRemoteScope;

/* Looks it up in accord.remote_id; kind and key are given. In a transaction. */
extern void accord_remote_find(const char *channel, const char *account,
							   AccordRemote *remote);

/* From now on names are looked up here; NULL: nowhere. Kept by the caller. */
extern void accord_remote_enter(const AccordRemoteScope *scope);

/* Whether a variable is one of these; its value, NULL: not defined. */
extern bool accord_remote_variable(const char *name, JsonbValue **value);

/* Whether a name is one of these. */
extern bool accord_remote_owns(const char *name);

/*
 * Notes what an answer said of a thing, to be written with what is settled:
 * what is NULL stays as it was. forget: the channel has it no longer.
 */
extern void accord_remote_note(const AccordDelivery *delivery,
							   const AccordRemote *remote, bool forget);

/* Writes what was noted, in the transaction that settles; and afterwards: who
 * waits for one of these ids goes on. */
extern void accord_remote_write(void);
extern void accord_remote_written(AccordDesk *desk);

/* Lets all who wait look again, if rows were edited by hand. */
extern void accord_remote_heed(AccordDesk *desk);

#endif							/* ACCORD_REMOTE_H */
