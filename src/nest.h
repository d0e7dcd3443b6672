/*
 * nest.h: exports of nest.c
 *
 * Layer 5: changes of rows that are made by triggers of other changes.
 */
#ifndef ACCORD_NEST_H
#define ACCORD_NEST_H

#include "executor/tuptable.h"
#include "utils/rel.h"

/* Whether triggers of the table, other than ours, may change its rows. */
extern bool accord_nest_possible(Relation rel);

/*
 * Whether the change of old_row comes before that by which it became what it
 * was: then it is told of with that, and is to be passed over now. NULL: it
 * does not.
 */
extern bool accord_nest_is_early(Relation rel, TupleTableSlot *old_row);

/*
 * What has become of new_row by changes that were passed over: itself, or
 * another slot for the caller to drop, or NULL when it is gone.
 */
extern TupleTableSlot *accord_nest_latest(Relation rel,
										  TupleTableSlot *new_row);

/* The outermost statement has ended: all of its changes were told of. */
extern void accord_nest_forget(void);

#endif							/* ACCORD_NEST_H */
