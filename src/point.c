/*
 * point.c: places in the commit order, found by time and by transaction.
 *
 * Runs in any backend that reads history. Neither committed_at nor tx_id has
 * an index that finds one row fast, and none is wanted on the path of every
 * commit. But commit_log is in the order of its numbers, and its times follow
 * them but for what passes between drawing a number and reading the clock; so
 * a binary search by time over the primary key comes next to the place, and a
 * few rows read from there find it.
 *
 * Invariants: a transaction is found wherever it is, by reading all of its
 * slot if need be. A time is exact unless a writer took more than JITTER from
 * drawing its number to reading the clock, or the clock was set back by more;
 * then it is one of the commits next to the turn of the clock.
 *
 * Locks: AccessShare on the partitions opened, until the transaction ends.
 *
 * On failure the scans are released with the transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/table.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "log.h"
#include "point.h"

#define JITTER (1 * USECS_PER_SEC)
#define NEAR 64					/* commits before a place that are looked at */

PG_FUNCTION_INFO_V1(accord_seq_at);
PG_FUNCTION_INFO_V1(accord_seq_of);
PG_FUNCTION_INFO_V1(accord_oldest_seq);

/* A partition of a log, and its primary key. */
typedef struct Part
{
	Relation	heap;
	Relation	index;
} Part;

static Part
open_part(const char *table, int slot)
{
	Part		part;

	part.heap = table_open(accord_db_slot_relid(table, slot),
						   AccessShareLock);
	list_free(RelationGetIndexList(part.heap)); /* sets rd_pkindex */
	part.index = index_open(part.heap->rd_pkindex, AccessShareLock);
	return part;
}

static void
close_part(Part part)
{
	index_close(part.index, NoLock);
	table_close(part.heap, NoLock);
}

static bool
is_empty(Part part)
{
	return RelationGetNumberOfBlocks(part.heap) == 0;
}

static int64
column_int64(Part part, HeapTuple tuple, int column)
{
	bool		isnull;

	return DatumGetInt64(heap_getattr(tuple, column,
									  RelationGetDescr(part.heap), &isnull));
}

/* Begins to read commits from a number on, or down from it. */
static SysScanDesc
begin_commits(Part part, int64 seq, bool down)
{
	ScanKeyData key;

	ScanKeyInit(&key, ACCORD_COMMIT_SEQ,
				down ? BTLessEqualStrategyNumber :
				BTGreaterEqualStrategyNumber,
				down ? F_INT8LE : F_INT8GE, Int64GetDatum(seq));
	return systable_beginscan_ordered(part.heap, part.index,
									  GetActiveSnapshot(), 1, &key);
}

/*
 * The first commit from a number on (down: the last up to it); 0 when there is
 * none, else also its time.
 */
static int64
find_commit(Part part, int64 seq, bool down, TimestampTz *time)
{
	SysScanDesc scan = begin_commits(part, seq, down);
	HeapTuple	tuple = systable_getnext_ordered(scan,
												 down ? BackwardScanDirection :
												 ForwardScanDirection);
	int64		found = 0;

	if (tuple != NULL)
	{
		found = column_int64(part, tuple, ACCORD_COMMIT_SEQ);
		*time = column_int64(part, tuple, ACCORD_COMMIT_COMMITTED_AT);
	}
	systable_endscan_ordered(scan);
	return found;
}

/*
 * A commit that is not later than a time while the next one is: the last of
 * its kind where times follow numbers, else near it. 0: all are later.
 */
static int64
search_time(Part part, TimestampTz time)
{
	TimestampTz at;
	int64		low = find_commit(part, 0, false, &at);
	int64		high;

	if (low == 0 || at > time)
		return 0;
	high = find_commit(part, PG_INT64_MAX, true, &at);
	if (at <= time)
		return high;
	/* low is not later, and what comes from high on is */
	while (high - low > 1)
	{
		int64		middle = low + (high - low) / 2;
		int64		seq = find_commit(part, middle, false, &at);

		if (seq >= high || at > time)
			high = middle;
		else
			low = seq;
	}
	return low;
}

/* The last commit of a partition that is not later than a time. */
static int64
last_before(Part part, TimestampTz time)
{
	int64		last = search_time(part, time);
	SysScanDesc scan = begin_commits(part, last, false);
	HeapTuple	tuple;

	while ((tuple = systable_getnext_ordered(scan,
											 ForwardScanDirection)) != NULL)
	{
		TimestampTz at = column_int64(part, tuple, ACCORD_COMMIT_COMMITTED_AT);

		if (at <= time)
			last = column_int64(part, tuple, ACCORD_COMMIT_SEQ);
		else if (at > time + JITTER)
			break;
	}
	systable_endscan_ordered(scan);
	return last;
}

int64
accord_point_at(TimestampTz time)
{
	int64		last = 0;

	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		Part		part = open_part("commit_log", i);

		if (!is_empty(part))
			last = Max(last, last_before(part, time));
		close_part(part);
	}
	return last;
}

int64
accord_point_oldest(void)
{
	int64		oldest = 0;

	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		Part		part = open_part("commit_log", i);
		TimestampTz at;
		int64		seq = is_empty(part) ? 0 :
		find_commit(part, 0, false, &at);

		if (seq > 0 && (oldest == 0 || seq < oldest))
			oldest = seq;
		close_part(part);
	}
	return oldest;
}

/* When a transaction wrote its last event; false: it has none. */
static bool
last_written(int slot, int64 tx_id, TimestampTz *time)
{
	Part		part = open_part("event_log", slot);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	ScanKeyInit(&key, ACCORD_EVENT_TX_ID, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(tx_id));
	scan = systable_beginscan_ordered(part.heap, part.index,
									  GetActiveSnapshot(), 1, &key);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	found = tuple != NULL;
	if (found)
		*time = column_int64(part, tuple, ACCORD_EVENT_RECORDED_AT);
	systable_endscan_ordered(scan);
	close_part(part);
	return found;
}

/* Reads from a number on, or down from it, until the transaction is found. */
static HeapTuple
scan_for(Part part, int64 seq, bool down, int64 tx_id)
{
	SysScanDesc scan = begin_commits(part, seq, down);
	HeapTuple	tuple;

	while ((tuple = systable_getnext_ordered(scan,
											 down ? BackwardScanDirection :
											 ForwardScanDirection)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (column_int64(part, tuple, ACCORD_COMMIT_TX_ID) == tx_id)
			break;
	}
	if (tuple != NULL)
		tuple = heap_copytuple(tuple);
	systable_endscan_ordered(scan);
	return tuple;
}

/*
 * It committed after it had written, so what is looked for comes next after
 * that time, or not much later.
 */
HeapTuple
accord_point_commit(int slot, int64 tx_id)
{
	Part		part;
	TimestampTz written;
	int64		near;
	HeapTuple	found;
	int			own_slot;

	if (tx_id == accord_log_current_tx(&own_slot) ||
		!last_written(slot, tx_id, &written))
		return NULL;
	part = open_part("commit_log", slot);
	near = Max(search_time(part, written) - NEAR, 0);
	found = scan_for(part, near, false, tx_id);
	if (found == NULL)
		found = scan_for(part, near, true, tx_id);
	close_part(part);
	return found;
}

int64
accord_point_seq(int slot, int64 tx_id)
{
	HeapTuple	commit = accord_point_commit(slot, tx_id);
	Part		part;
	int64		seq;

	if (commit == NULL)
		return PG_INT64_MAX;
	part = open_part("commit_log", slot);
	seq = column_int64(part, commit, ACCORD_COMMIT_SEQ);
	close_part(part);
	heap_freetuple(commit);
	return seq;
}

/* accord.seq_at(timestamptz) */
Datum
accord_seq_at(PG_FUNCTION_ARGS)
{
	int64		seq = accord_point_at(PG_GETARG_TIMESTAMPTZ(0));

	PG_RETURN_INT64(Min(seq, accord_log_safe_seq()));
}

/* accord.seq_of(slot, tx_id) */
Datum
accord_seq_of(PG_FUNCTION_ARGS)
{
	int64		seq = accord_point_seq(PG_GETARG_INT16(0), PG_GETARG_INT64(1));

	if (seq == PG_INT64_MAX)
		PG_RETURN_NULL();
	PG_RETURN_INT64(seq);
}

/* accord.oldest_seq() */
Datum
accord_oldest_seq(PG_FUNCTION_ARGS)
{
	int64		oldest = accord_point_oldest();

	if (oldest == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(oldest);
}
