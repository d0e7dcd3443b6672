/*
 * target.h: exports of target.c
 *
 * Layer 5: a message's change, written into a table of the application.
 */
#ifndef ACCORD_TARGET_H
#define ACCORD_TARGET_H

#include "message.h"
#include "source.h"

typedef enum AccordReceived
{
	ACCORD_RECEIVED_APPLIED,	/* all of it */
	ACCORD_RECEIVED_PARTLY,		/* some columns lost */
	ACCORD_RECEIVED_LOST,		/* all of them did */
	ACCORD_RECEIVED_IGNORED		/* there was nothing to do */
} AccordReceived;

/* What became of a change; palloc'd by the caller's context. */
typedef struct AccordApplied
{
	AccordReceived status;
	const char *op;				/* insert, update, delete of the row; NULL:
								 * none */
	text	   *key;			/* as events name the row */
	Jsonb	   *row;			/* as it stands; NULL: there is none */
	Jsonb	   *before;			/* old values of the changed columns; of a
								 * deleted row all */
	Jsonb	   *applied;		/* columns that took effect; NULL: those given */
	Jsonb	   *lost;			/* columns that did not, with what stands; or
								 * NULL */
	bool		clamped;		/* its time was too far ahead */
} AccordApplied;

/*
 * Writes the change that a message makes to its target, as the current user
 * and with accord.source set, so that triggers see where it comes from.
 */
extern void accord_target_apply(const AccordMessage *message,
								const AccordSource *source,
								AccordApplied *applied);

/*
 * How events about a table's rows are made: by its own trigger where it is
 * captured, else by whoever changes them.
 */
typedef struct AccordTargetEvents
{
	int			table_id;		/* of accord.captured; 0: not captured */
	char	   *topic;
	char	   *account;		/* the column that names it; NULL: none */
} AccordTargetEvents;

/* palloc'd strings. */
extern AccordTargetEvents accord_target_events(Oid relid);

#endif							/* ACCORD_TARGET_H */
