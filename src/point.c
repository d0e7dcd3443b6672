/*
 * point.c: places in the commit order, found by time and by transaction.
 *
 * Runs in any backend that reads history. Neither committed_at nor tx_id has
 * an index that finds one row fast, and none is wanted on the path of every
 * commit. But commit_log is in the order of its numbers, and its times follow
 * them but for what passes between drawing a number and reading the clock; so
 * a binary search by time over the primary key comes next to the place, and a
 * few rows read from there find it. Who asks for many places, such as those of
 * a row's events, asks one reader: it remembers what it has looked at.
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
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "log.h"
#include "point.h"
#include "seek.h"

#define JITTER (1 * USECS_PER_SEC)
#define NEAR 32					/* commits before a place that are looked at */
#define PROBES 8192				/* of a slot's commits that are remembered */

PG_FUNCTION_INFO_V1(accord_seq_at);
PG_FUNCTION_INFO_V1(accord_seq_of);
PG_FUNCTION_INFO_V1(accord_oldest_seq);

/* A commit that was looked at. */
typedef struct Probe
{
	int64		seq;
	TimestampTz at;
} Probe;

/* A partition of a log, read through its primary key, either way. */
typedef struct Part
{
	Relation	heap;			/* NULL: not opened (yet) */
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *row;
	int64		last;			/* of commit_log; 0: it is empty */
	Probe	   *probes;			/* of commit_log: from the first to the last */
	int			n_probes;
	int			room;
} Part;

struct AccordPointReader
{
	Part		commits[ACCORD_LOG_SLOTS];
	Part		events[ACCORD_LOG_SLOTS];
};

static void
open_part(Part *part, const char *table, int slot)
{
	part->heap = table_open(accord_db_slot_relid(table, slot),
							AccessShareLock);
	part->index = accord_seek_primary_key(part->heap);
	part->scan = accord_index_beginscan(part->heap, part->index,
										GetActiveSnapshot(), 1);
	part->row = table_slot_create(part->heap, NULL);
}

static void
close_part(Part *part)
{
	if (part->heap == NULL)
		return;
	ExecDropSingleTupleTableSlot(part->row);
	index_endscan(part->scan);
	index_close(part->index, NoLock);
	table_close(part->heap, NoLock);
}

static int64
column_int64(Part *part, int column)
{
	bool		isnull;

	return DatumGetInt64(slot_getattr(part->row, column, &isnull));
}

static bool
next_row(Part *part, bool down)
{
	return index_getnext_slot(part->scan, down ? BackwardScanDirection :
							  ForwardScanDirection, part->row);
}

/* Begins to read the commits whose numbers compare so with this one. */
static void
seek_compared(Part *part, StrategyNumber strategy, RegProcedure compare,
			  int64 seq)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, strategy, compare, Int64GetDatum(seq));
	index_rescan(part->scan, &key, 1, NULL, 0);
}

/* Begins to read commits from a number on, or down from it. */
static void
seek_commit(Part *part, int64 seq, bool down)
{
	if (down)
		seek_compared(part, BTLessEqualStrategyNumber, F_INT8LE, seq);
	else
		seek_compared(part, BTGreaterEqualStrategyNumber, F_INT8GE, seq);
}

/*
 * The first commit from a number on (down: the last up to it); 0 when there is
 * none, else also its time. There is nearly always one of that number, which
 * the index finds without looking at all that follow on its page.
 */
static int64
find_commit(Part *part, int64 seq, bool down, TimestampTz *time)
{
	seek_compared(part, BTEqualStrategyNumber, F_INT8EQ, seq);
	if (!next_row(part, down))
	{
		seek_commit(part, seq, down);
		if (!next_row(part, down))
			return 0;
	}
	*time = column_int64(part, ACCORD_COMMIT_COMMITTED_AT);
	return column_int64(part, ACCORD_COMMIT_SEQ);
}

/* Remembers what was looked at, before the probe of that place. */
static void
remember(Part *part, int place, int64 seq, TimestampTz at)
{
	if (part->n_probes == PROBES)
		return;
	if (part->n_probes == part->room)
	{
		part->room = Max(64, 2 * part->room);
		part->probes = part->probes == NULL ?
			palloc(part->room * sizeof(Probe)) :
			repalloc(part->probes, part->room * sizeof(Probe));
	}
	memmove(&part->probes[place + 1], &part->probes[place],
			(part->n_probes - place) * sizeof(Probe));
	part->probes[place].seq = seq;
	part->probes[place].at = at;
	part->n_probes++;
}

/* The commits of a slot; NULL when there are none. */
static Part *
commits_of(AccordPointReader *reader, int slot)
{
	Part	   *part = &reader->commits[slot];

	if (part->heap == NULL)
	{
		TimestampTz at;
		int64		first;

		open_part(part, "commit_log", slot);
		first = find_commit(part, 0, false, &at);
		if (first > 0)
		{
			remember(part, 0, first, at);
			part->last = find_commit(part, PG_INT64_MAX, true, &at);
			remember(part, 1, part->last, at);
		}
	}
	return part->last > 0 ? part : NULL;
}

AccordPointReader *
accord_point_open(void)
{
	return palloc0(sizeof(AccordPointReader));
}

void
accord_point_close(AccordPointReader *reader)
{
	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		close_part(&reader->commits[i]);
		close_part(&reader->events[i]);
	}
	pfree(reader);
}

/*
 * A commit that is not later than a time while the next one is: the last of
 * its kind where times follow numbers, else near it. 0: all are later.
 */
static int64
search_time(Part *part, TimestampTz time)
{
	int			below = 0;		/* the probe that is not later */
	int			above = part->n_probes - 1; /* ... that is */
	int64		low;
	int64		high;

	if (part->probes[below].at > time)
		return 0;
	if (part->probes[above].at <= time)
		return part->last;
	while (above - below > 1)
	{
		int			middle = below + (above - below) / 2;

		if (part->probes[middle].at > time)
			above = middle;
		else
			below = middle;
	}
	low = part->probes[below].seq;
	high = part->probes[above].seq;
	/* low is not later, and what comes from high on is */
	while (high - low > 1)
	{
		TimestampTz at;
		int64		middle = low + (high - low) / 2;
		int64		seq = find_commit(part, middle, false, &at);

		if (seq > 0 && seq < high)
			remember(part, below + 1, seq, at);
		if (seq == 0 || seq >= high || at > time)
			high = middle;
		else
		{
			low = seq;
			below++;
		}
	}
	return low;
}

/* The last commit of a slot that is not later than a time. */
static int64
last_before(Part *part, TimestampTz time)
{
	int64		last = search_time(part, time);

	seek_commit(part, last, false);
	while (next_row(part, false))
	{
		TimestampTz at = column_int64(part, ACCORD_COMMIT_COMMITTED_AT);

		if (at <= time)
			last = column_int64(part, ACCORD_COMMIT_SEQ);
		else if (at > time + JITTER)
			break;
	}
	return last;
}

int64
accord_point_at(TimestampTz time)
{
	AccordPointReader *reader = accord_point_open();
	int64		last = 0;

	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		Part	   *part = commits_of(reader, i);

		if (part != NULL)
			last = Max(last, last_before(part, time));
	}
	accord_point_close(reader);
	return last;
}

int64
accord_point_oldest(void)
{
	AccordPointReader *reader = accord_point_open();
	int64		oldest = 0;

	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		Part	   *part = commits_of(reader, i);

		if (part != NULL && (oldest == 0 || part->probes[0].seq < oldest))
			oldest = part->probes[0].seq;
	}
	accord_point_close(reader);
	return oldest;
}

/* When a transaction wrote its last event; false: it has none. */
static bool
last_written(AccordPointReader *reader, int slot, int64 tx_id,
			 TimestampTz *time)
{
	Part	   *part = &reader->events[slot];
	ScanKeyData key;

	if (part->heap == NULL)
		open_part(part, "event_log", slot);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(tx_id));
	index_rescan(part->scan, &key, 1, NULL, 0);
	if (!next_row(part, true))
		return false;
	*time = column_int64(part, ACCORD_EVENT_RECORDED_AT);
	return true;
}

/*
 * Reads from a number on, or down from it, until the transaction is found:
 * so many commits at most.
 */
static bool
scan_for(Part *part, int64 seq, bool down, int64 tx_id, int64 limit)
{
	seek_commit(part, seq, down);
	while (limit-- > 0 && next_row(part, down))
	{
		CHECK_FOR_INTERRUPTS();
		if (column_int64(part, ACCORD_COMMIT_TX_ID) == tx_id)
			return true;
	}
	return false;
}

/* Whether the commit that was found last is the one. */
static bool
is_at(Part *part, int64 tx_id)
{
	return !TTS_EMPTY(part->row) &&
		column_int64(part, ACCORD_COMMIT_TX_ID) == tx_id;
}

/*
 * It committed after it had written, so what is looked for comes next after
 * that time, or not much later: tried with the time that is known of one of
 * its events, then with that of its last event, then everywhere.
 */
TupleTableSlot *
accord_point_commit(AccordPointReader *reader, int slot, int64 tx_id,
					TimestampTz written)
{
	Part	   *part;
	int64		near;
	int			own_slot;

	if (tx_id == accord_log_current_tx(&own_slot) ||
		(part = commits_of(reader, slot)) == NULL)
		return NULL;
	if (is_at(part, tx_id))
		return part->row;
	if (written != 0)
	{
		near = search_time(part, written);
		if (scan_for(part, near, false, tx_id, 3 * NEAR) ||
			scan_for(part, near - NEAR, false, tx_id, NEAR))
			return part->row;
	}
	if (!last_written(reader, slot, tx_id, &written))
		return NULL;
	near = search_time(part, written) - NEAR;
	if (scan_for(part, near, false, tx_id, PG_INT64_MAX) ||
		scan_for(part, near, true, tx_id, PG_INT64_MAX))
		return part->row;
	return NULL;
}

int64
accord_point_seq(AccordPointReader *reader, int slot, int64 tx_id,
				 TimestampTz written)
{
	TupleTableSlot *commit = accord_point_commit(reader, slot, tx_id, written);
	bool		isnull;

	if (commit == NULL)
		return PG_INT64_MAX;
	return DatumGetInt64(slot_getattr(commit, ACCORD_COMMIT_SEQ, &isnull));
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
	AccordPointReader *reader = accord_point_open();
	int64		seq = accord_point_seq(reader, PG_GETARG_INT16(0),
									   PG_GETARG_INT64(1), 0);

	accord_point_close(reader);
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
