/*
 * resolve.h: exports of resolve.c
 *
 * Layer 5: a change from outside is merged into a managed row.
 */
#ifndef ACCORD_RESOLVE_H
#define ACCORD_RESOLVE_H

#include "datatype/timestamp.h"
#include "merge.h"

typedef struct AccordChange
{
	Oid			relid;			/* a managed table */
	Jsonb	   *key;			/* object of its key columns; or NULL */
	const char *key_text;		/* ... then their accord.row_key() */
	AccordChangeOp op;
	Jsonb	   *changes;		/* object of columns; NULL with a delete */
	Jsonb	   *base;			/* what its author saw in them; or NULL */
	const char *source;			/* NULL: the application */
	const char *event_id;		/* the sender's; NULL: none */
	TimestampTz occurred_at;	/* 0: now */
	const char *revision;		/* a decimal; NULL: none */
	int64		skew_us;		/* how far ahead of our clock it may be */
	bool		refuse_ahead;	/* what is further ahead is refused, not
								 * counted as made now plus skew */
	bool		is_override;	/* a person decided */
} AccordChange;

typedef struct AccordResolved
{
	Jsonb	   *applied;		/* object of the columns that took effect,
								 * with their values now */
	Jsonb	   *lost;			/* object of those that did not, with the
								 * values that stand instead */
	Jsonb	   *row;			/* as it is now; NULL: not in its table */
	Jsonb	   *before;			/* as it was; NULL: not in its table */
	bool		is_lost;		/* a change of the row as a whole that did not
								 * come to be: of one that stays deleted, a
								 * delete of one that stays */
	int			conflicts;		/* rows written to conflict_log */
	TimestampTz clock;			/* of its stamp */
	bool		clamped;
} AccordResolved;

#define ACCORD_DEFAULT_SKEW_US (5 * USECS_PER_MINUTE)

/*
 * Applies a change: locks the row and what is kept of it, merges, writes the
 * table (as its owner), what is kept, and the logs. The same set of changes
 * gives the same, in any order and repeated; the caller need not, but should,
 * keep repetitions away. Needs a transaction with an active snapshot.
 */
extern void accord_resolve(const AccordChange *change,
						   AccordResolved *result);

/*
 * Whether the table is managed: others can be written without being merged,
 * but not by this.
 */
extern bool accord_resolve_manages(Oid relid);

/*
 * An object of columns with each value in its column's form, without the key
 * and what is generated; raises what is wrong with it. NULL gives NULL.
 */
extern Jsonb *accord_resolve_normalize(AccordManaged *managed, Jsonb *object);

#endif							/* ACCORD_RESOLVE_H */
