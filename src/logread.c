/*
 * logread.c: reading the commit-ordered log.
 *
 * Runs in dispatchers and in any backend that calls accord.read(). Everything
 * is read by index, in C: the log swings between empty and huge, and no
 * planner statistics shall ever decide how it is read.
 *
 * Invariants: the safe number is computed before the snapshot is taken, never
 * after (log.c says why). The ring's partitions are merged by commit number;
 * a transaction's events lie in the partition its commit row names.
 *
 * Locks: AccessShare on the partitions opened, until the transaction ends, as
 * any SELECT would hold.
 *
 * On failure the scans are released with the transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "log.h"
#include "seek.h"
#include "shmem.h"

/* One partition, read through its primary key. */
typedef struct PartScan
{
	Relation	heap;			/* NULL: not opened (yet) */
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *row;
	bool		loaded;			/* row holds the next one to be given */
	bool		ended;			/* there is no next one */
} PartScan;

struct AccordLogReader
{
	AccordPoint after;
	PartScan	commits[ACCORD_LOG_SLOTS];
	PartScan	events[ACCORD_LOG_SLOTS];
	PartScan   *current;		/* events of the last commit given */
};

PG_FUNCTION_INFO_V1(accord_safe_seq);
PG_FUNCTION_INFO_V1(accord_read);

int64
accord_log_safe_seq(void)
{
	int64		high;
	int64		floor;

	accord_log_require_preload();
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot read accord.event_log in commit order during "
						"recovery"),
				 errdetail("A standby does not know which commits are still "
						   "under way on the primary."),
				 errhint("Read on the primary server.")));
	high = accord_db_sequence_last(accord_db_relid("commit_seq"));
	floor = accord_shmem_floor_lowest();
	return Min(high, floor - 1);
}

/* Opens a partition and a scan of its primary key with room for nkeys. */
static void
open_part(PartScan *part, const char *table, int slot, int nkeys)
{
	part->heap = table_open(accord_db_slot_relid(table, slot),
							AccessShareLock);
	part->index = accord_seek_primary_key(part->heap);
	part->scan = accord_index_beginscan(part->heap, part->index,
										GetActiveSnapshot(), nkeys);
	part->row = table_slot_create(part->heap, NULL);
}

static void
close_part(PartScan *part)
{
	if (part->heap == NULL)
		return;
	ExecDropSingleTupleTableSlot(part->row);
	index_endscan(part->scan);
	index_close(part->index, NoLock);
	table_close(part->heap, NoLock);
	part->heap = NULL;
}

static void
seek(PartScan *part, ScanKey keys, int nkeys)
{
	index_rescan(part->scan, keys, nkeys, NULL, 0);
	part->loaded = false;
	part->ended = false;
}

/* A scan that is asked again after its end would begin anew. */
static bool
fetch_row(PartScan *part)
{
	part->loaded = !part->ended &&
		index_getnext_slot(part->scan, ForwardScanDirection, part->row);
	part->ended = !part->loaded;
	return part->loaded;
}

static int64
row_int64(TupleTableSlot *row, int column)
{
	bool		isnull;

	return DatumGetInt64(slot_getattr(row, column, &isnull));
}

/* Positions a partition of commit_log at the first commit after "after". */
static void
seek_commits(PartScan *part, int64 after, int64 upto)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(upto));
	seek(part, keys, 2);
	fetch_row(part);
}

AccordLogReader *
accord_log_open(AccordPoint after, int64 upto)
{
	AccordLogReader *reader = palloc0(sizeof(AccordLogReader));
	int64		last = after.ord == ACCORD_ORD_ALL ? after.seq : after.seq - 1;

	reader->after = after;
	if (last >= upto)
		return reader;
	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		PartScan   *part = &reader->commits[i];
		Relation	heap = table_open(accord_db_slot_relid("commit_log", i),
									  AccessShareLock);
		bool		empty = RelationGetNumberOfBlocks(heap) == 0;

		table_close(heap, NoLock);
		if (empty)
			continue;
		open_part(part, "commit_log", i, 2);
		seek_commits(part, last, upto);
	}
	return reader;
}

static void
fill_commit(AccordCommit *commit, TupleTableSlot *row)
{
	bool		isnull;

	slot_getsomeattrs(row, ACCORD_COMMIT_SLOT);
	commit->seq = row_int64(row, ACCORD_COMMIT_SEQ);
	commit->tx_id = row_int64(row, ACCORD_COMMIT_TX_ID);
	commit->committed_at = row_int64(row, ACCORD_COMMIT_COMMITTED_AT);
	commit->events = DatumGetInt32(slot_getattr(row, ACCORD_COMMIT_EVENTS,
												&isnull));
	commit->slot = DatumGetInt16(slot_getattr(row, ACCORD_COMMIT_SLOT,
											  &isnull));
	commit->row = row;
}

/* Positions a partition of event_log at a transaction's events from "ord". */
static PartScan *
seek_events(AccordLogReader *reader, int slot, int64 tx_id, int ord)
{
	PartScan   *part = &reader->events[slot];
	ScanKeyData keys[2];

	if (part->heap == NULL)
		open_part(part, "event_log", slot, 2);
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(tx_id));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT4GE,
				Int32GetDatum(ord));
	seek(part, keys, 2);
	return part;
}

bool
accord_log_next_commit(AccordLogReader *reader, AccordCommit *commit)
{
	PartScan   *lowest = NULL;
	int64		lowest_seq = 0;

	/* what was given last has been used by now */
	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		PartScan   *part = &reader->commits[i];
		int64		seq;

		if (part->heap == NULL)
			continue;
		if (!part->loaded && !fetch_row(part))
			continue;
		seq = row_int64(part->row, ACCORD_COMMIT_SEQ);
		if (lowest == NULL || seq < lowest_seq)
		{
			lowest = part;
			lowest_seq = seq;
		}
	}
	if (lowest == NULL)
		return false;
	fill_commit(commit, lowest->row);
	lowest->loaded = false;
	reader->current = seek_events(reader, commit->slot, commit->tx_id,
								  commit->seq == reader->after.seq ?
								  reader->after.ord + 1 : 0);
	return true;
}

TupleTableSlot *
accord_log_next_event(AccordLogReader *reader)
{
	if (reader->current == NULL || !fetch_row(reader->current))
		return NULL;
	return reader->current->row;
}

TupleTableSlot *
accord_log_event(AccordLogReader *reader, int slot, int64 tx_id, int ord)
{
	PartScan   *part;
	bool		isnull;

	if (slot < 0 || slot >= ACCORD_LOG_SLOTS)
		return NULL;
	part = seek_events(reader, slot, tx_id, ord);
	if (!fetch_row(part) ||
		DatumGetInt32(slot_getattr(part->row, ACCORD_EVENT_ORD,
								   &isnull)) != ord)
		return NULL;
	return part->row;
}

bool
accord_log_commit(AccordLogReader *reader, int64 seq, AccordCommit *commit)
{
	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		PartScan   *part = &reader->commits[i];

		if (part->heap == NULL)
			open_part(part, "commit_log", i, 2);
		seek_commits(part, seq - 1, seq);
		if (part->loaded)
		{
			fill_commit(commit, part->row);
			return true;
		}
	}
	return false;
}

bool
accord_log_seek(AccordLogReader *reader, int64 seq, AccordCommit *commit)
{
	reader->current = NULL;
	if (!accord_log_commit(reader, seq, commit))
		return false;
	reader->current = seek_events(reader, commit->slot, commit->tx_id, 0);
	return true;
}

void
accord_log_close(AccordLogReader *reader)
{
	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		close_part(&reader->commits[i]);
		close_part(&reader->events[i]);
	}
	pfree(reader);
}

Datum
accord_safe_seq(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(accord_log_safe_seq());
}

/* Output columns of accord.read() that come from the event, in order. */
static const AccordEventColumn read_columns[] = {
	ACCORD_EVENT_TX_ID, ACCORD_EVENT_ORD, ACCORD_EVENT_EVENT_ID,
	ACCORD_EVENT_TOPIC, ACCORD_EVENT_KEY, ACCORD_EVENT_OP,
	ACCORD_EVENT_PAYLOAD, ACCORD_EVENT_BEFORE, ACCORD_EVENT_SOURCE,
	ACCORD_EVENT_ACCOUNT, ACCORD_EVENT_OCCURRED_AT, ACCORD_EVENT_RECORDED_AT,
	ACCORD_EVENT_DELIVER_AT, ACCORD_EVENT_EXPIRES_AT, ACCORD_EVENT_PRIORITY,
	ACCORD_EVENT_CHANNELS, ACCORD_EVENT_IDEMPOTENCY_KEY, ACCORD_EVENT_HEADERS,
	ACCORD_EVENT_TABLE_ID
};
static const AccordCommitColumn read_commit_columns[] = {
	ACCORD_COMMIT_ACTOR, ACCORD_COMMIT_REASON, ACCORD_COMMIT_CORRELATION_ID
};

#define READ_COLUMNS \
	(2 + lengthof(read_columns) + lengthof(read_commit_columns))

void
accord_log_emit(ReturnSetInfo *result, const AccordCommit *commit,
				TupleTableSlot *event)
{
	Datum		values[READ_COLUMNS];
	bool		nulls[READ_COLUMNS] = {0};
	int			n = 0;

	values[n++] = Int64GetDatum(commit->seq);
	values[n++] = TimestampTzGetDatum(commit->committed_at);
	for (int i = 0; i < lengthof(read_columns); i++, n++)
		values[n] = slot_getattr(event, read_columns[i], &nulls[n]);
	for (int i = 0; i < lengthof(read_commit_columns); i++, n++)
		values[n] = slot_getattr(commit->row, read_commit_columns[i],
								 &nulls[n]);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * accord.read(after_seq, max): whole transactions, until at least max events
 * were returned. Its snapshot is its own, later than the calling statement's:
 * the safe number comes first.
 */
Datum
accord_read(PG_FUNCTION_ARGS)
{
	AccordPoint after = {PG_GETARG_INT64(0), ACCORD_ORD_ALL};
	int			max = PG_GETARG_INT32(1);
	AccordLogReader *reader;
	AccordCommit commit;
	int			n = 0;

	if (max < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max of accord.read() must be at least 1, not %d",
						max),
				 errhint("Give the number of events wanted at a time.")));
	InitMaterializedSRF(fcinfo, 0);
	{
		int64		safe = accord_log_safe_seq();

		/* an asynchronous commit that is read must not be undone by a crash */
		XLogFlush(accord_shmem_commit_lsn());
		PushActiveSnapshot(GetLatestSnapshot());
		reader = accord_log_open(after, safe);
	}
	while (n < max && accord_log_next_commit(reader, &commit))
	{
		TupleTableSlot *event;

		CHECK_FOR_INTERRUPTS();
		while ((event = accord_log_next_event(reader)) != NULL)
		{
			accord_log_emit((ReturnSetInfo *) fcinfo->resultinfo, &commit,
							event);
			n++;
		}
	}
	accord_log_close(reader);
	PopActiveSnapshot();
	PG_RETURN_NULL();
}
