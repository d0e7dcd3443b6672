/*
 * point.h: exports of point.c
 *
 * Layer 4: places in the commit order, found without an index of their own.
 */
#ifndef ACCORD_POINT_H
#define ACCORD_POINT_H

#include "datatype/timestamp.h"
#include "executor/tuptable.h"

/*
 * The last commit, in commit order, that is not later than a time; 0 when all
 * that are kept are later. Under the active snapshot.
 */
extern int64 accord_point_at(TimestampTz time);

/* Finds transactions; what it reads is under the snapshot active when opened. */
typedef struct AccordPointReader AccordPointReader;

extern AccordPointReader *accord_point_open(void);
extern void accord_point_close(AccordPointReader *reader);

/*
 * The commit row of a transaction whose events lie in a slot, as a row of
 * commit_log that lives until the next call; NULL: it has not committed (or is
 * not visible, or not kept any more). written: when it wrote one of its
 * events, or 0.
 */
extern TupleTableSlot *accord_point_commit(AccordPointReader *reader, int slot,
										   int64 tx_id, TimestampTz written);

/* Its number; PG_INT64_MAX when it has not committed. */
extern int64 accord_point_seq(AccordPointReader *reader, int slot,
							  int64 tx_id, TimestampTz written);

/* The oldest commit that is kept; 0 when there is none. */
extern int64 accord_point_oldest(void);

#endif							/* ACCORD_POINT_H */
