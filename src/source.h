/*
 * source.h: exports of source.c
 *
 * Layer 3: who may send us messages.
 */
#ifndef ACCORD_SOURCE_H
#define ACCORD_SOURCE_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

/* A row of accord.source, or the defaults of a channel that has none. */
typedef struct AccordSource
{
	char		name[NAMEDATALEN];	/* hash key */
	bool		enabled;
	int64		skew;			/* us */
	bool		refuse_ahead;	/* when_ahead = 'refuse' */
} AccordSource;

/*
 * Raises when there is neither a source nor a channel of that name, or it is
 * disabled.
 */
extern void accord_source_get(const char *name, AccordSource *source);

/* What only webhooks need; palloc'd, read anew each time. */
typedef struct AccordWebhookSource
{
	Jsonb	   *verify;			/* NULL: webhooks are refused */
	int64		tolerance;		/* us */
	Jsonb	   *mapping;		/* NULL: none */
	char	   *mapping_function;	/* NULL: none */
	Oid			owner;			/* InvalidOid: the role is gone */
	bool		polls;			/* feeds, when one was received */
	char	  **secrets;		/* values of those that verify names and that
								 * are stored */
	int			n_secrets;
} AccordWebhookSource;

/* Raises when there is no row of accord.source by that name. */
extern AccordWebhookSource *accord_source_webhook(const char *name);

/* Has the feeds polled, at commit, that a source's webhooks tell of. */
extern void accord_source_poll(const char *name);

#endif							/* ACCORD_SOURCE_H */
