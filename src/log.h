/*
 * log.h: exports of log.c (append) and logread.c (read)
 *
 * Layer 4: the commit-ordered log.
 */
#ifndef ACCORD_LOG_H
#define ACCORD_LOG_H

#include "accord.h"
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "utils/uuid.h"
#include "nodes/execnodes.h"

/*
 * Appends an event to the current transaction. values and nulls are indexed by
 * column number - 1; topic, op and what the author knows are given, the rest
 * (tx_id, ord, slot, event_id, occurred_at when null, recorded_at) is filled
 * in here. The caller has checked the values. Raises when the library was not
 * preloaded. Returns false, appending nothing, when idempotency_key is known
 * with the same content; raises when it is known with another.
 */
extern bool accord_log_append(Datum *values, bool *nulls);

/* The current transaction's number; 0: it has no events yet. */
extern int64 accord_log_tx_id(void);

/*
 * How many events of captured tables this process has appended; and the last
 * one since there were so many: false when there was none, or it was another
 * table's.
 */
extern int64 accord_log_captured(void);
extern bool accord_log_captured_since(int64 count, int table_id,
									  pg_uuid_t *event_id);

/* Raises the clear error when there is no shared memory to keep order in. */
extern void accord_log_require_preload(void);

/*
 * The number of the current transaction among those that write events, and
 * the slot that its events lie in; 0: it has written none.
 */
extern int64 accord_log_current_tx(int *slot);

/* The current transaction's tx_id, 0 when it has written no event; and the ord
 * of its last one. */
extern int64 accord_log_transaction(int *last_ord);

/*
 * For transactions that are committed in two phases. The current one is about
 * to be prepared under that name; one that was committed is given its place by
 * its row of accord.prepared, in the current transaction, which has published
 * a floor and drawn seq.
 */
extern void accord_log_preparing(const char *gid);
extern void accord_log_place_prepared(Datum *values, bool *nulls, int64 seq);

/* Runs an UPDATE or a TRUNCATE of logs that their guard would refuse. */
extern void accord_log_run_unguarded(const char *query, int nargs, Oid *types,
									 Datum *values);

/*
 * The highest commit number below which nothing is still to become visible.
 * Take the snapshot afterwards.
 */
extern int64 accord_log_safe_seq(void);

/*
 * A place in the log: everything up to event ord of transaction seq has been
 * read. ACCORD_ORD_ALL: that transaction's events all.
 */
typedef struct AccordPoint
{
	int64		seq;
	int			ord;
} AccordPoint;

#define ACCORD_ORD_ALL PG_INT32_MAX

static inline int
accord_point_compare(AccordPoint a, AccordPoint b)
{
	if (a.seq != b.seq)
		return a.seq < b.seq ? -1 : 1;
	return (a.ord > b.ord) - (a.ord < b.ord);
}

/*
 * Reading: what lies after a point, up to the end of transaction upto, in
 * commit order, each transaction's events in order, under the active snapshot.
 */
typedef struct AccordLogReader AccordLogReader;

/* One commit; strings and tuple live until the next one is read. */
typedef struct AccordCommit
{
	int64		seq;
	int64		tx_id;
	TimestampTz committed_at;
	int			slot;
	int			events;
	TupleTableSlot *row;		/* of commit_log */
} AccordCommit;

extern AccordLogReader *accord_log_open(AccordPoint after, int64 upto);
extern bool accord_log_next_commit(AccordLogReader *reader,
								   AccordCommit *commit);

/* The next event of that commit: a slot of event_log, or NULL. */
extern TupleTableSlot *accord_log_next_event(AccordLogReader *reader);
extern void accord_log_close(AccordLogReader *reader);

/* Adds an event to a function's result, as accord.read() returns it. */
extern void accord_log_emit(ReturnSetInfo *result, const AccordCommit *commit,
							TupleTableSlot *event);

/*
 * One event by its place; NULL when it is not there (any more). The slot
 * lives until the next call or the reader's end. Opened with
 * accord_log_open() of an empty range when nothing else is to be read.
 */
extern TupleTableSlot *accord_log_event(AccordLogReader *reader, int slot,
										int64 tx_id, int ord);

/* One commit row by its number; false when it is not there (any more). */
extern bool accord_log_commit(AccordLogReader *reader, int64 seq,
							  AccordCommit *commit);

/* The same, and has accord_log_next_event() give that commit's events. */
extern bool accord_log_seek(AccordLogReader *reader, int64 seq,
							AccordCommit *commit);

#endif							/* ACCORD_LOG_H */
