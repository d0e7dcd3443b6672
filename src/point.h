/*
 * point.h: exports of point.c
 *
 * Layer 4: places in the commit order, found without an index of their own.
 */
#ifndef ACCORD_POINT_H
#define ACCORD_POINT_H

#include "datatype/timestamp.h"
#include "access/htup.h"

/*
 * The last commit, in commit order, that is not later than a time; 0 when all
 * that are kept are later. Under the active snapshot.
 */
extern int64 accord_point_at(TimestampTz time);

/*
 * The commit row of a transaction whose events lie in a slot, as a tuple of
 * commit_log in the current context, or NULL: it has not committed (or is not
 * visible to the active snapshot, or not kept any more).
 */
extern HeapTuple accord_point_commit(int slot, int64 tx_id);

/*
 * Its number; PG_INT64_MAX when it has not committed. One that has is never
 * taken for one that has not while its slot is kept.
 */
extern int64 accord_point_seq(int slot, int64 tx_id);

/* The oldest commit that is kept; 0 when there is none. */
extern int64 accord_point_oldest(void);

#endif							/* ACCORD_POINT_H */
