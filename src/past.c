/*
 * past.c: a captured table as it was.
 *
 * Runs in any backend that calls accord.as_of(). The past is computed
 * backwards from the present, which needs no more of the log than what came
 * after the point: a row that was changed since was, at the point, what the
 * first of those changes found; a row that was not is what it is.
 *
 * Invariants
 *   - Rows and log are read under one snapshot, taken after the safe number
 *     (logread.c), and the point is not beyond that. A row's change and its
 *     event become visible together; so whatever the snapshot shows of later
 *     commits, and of our own transaction, is undone, and what is left is
 *     exactly the commits up to the point: a state that existed.
 *   - "First" is by (seq, ord). The events of a row have one order: who
 *     changes it waits for the commit of who changed it before, and numbers
 *     are drawn before locks are released.
 *   - Memory is about 100 bytes for every row changed since the point; rows
 *     themselves go to a tuplestore, which spills to disk.
 *
 * Locks: AccessShare on the table and on the partitions of the log, until the
 * transaction ends.
 *
 * On failure everything is released with the transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "accord.h"
#include "db.h"
#include "history.h"
#include "log.h"
#include "past_table.h"
#include "seek.h"


#define FETCH_ROWS 1000			/* of the present, at a time */

/* A row that was changed after the point, by the first change. */
typedef struct Touched
{
	char	   *key;
	int64		seq;
	int32		ord;
	uint32		hash;
	ItemPointerData tid;		/* of the event */
	int16		slot;
	char		status;			/* simplehash's */
	char		op;				/* its first letter */
} Touched;

static inline uint32
hash_key(const char *key)
{
	return hash_bytes((const unsigned char *) key, strlen(key));
}

#define SH_PREFIX touched
#define SH_ELEMENT_TYPE Touched
#define SH_KEY_TYPE char *
#define SH_KEY key
#define SH_HASH_KEY(tb, key) hash_key(key)
#define SH_EQUAL(tb, a, b) (strcmp((a), (b)) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) ((a)->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* A transaction that committed after the point. */
typedef struct LaterCommit
{
	int64		tx_id;
	int64		seq;
} LaterCommit;

/* What of one slot of the log came after the point. */
typedef struct Later
{
	int			slot;
	Relation	events;
	LaterCommit *commits;		/* by tx_id */
	int			n;
	int			room;
	int			hint;			/* where the last one was found */
	bool		all;			/* every commit in the slot is later */
	int64		own_tx;			/* ours, if its events lie here */
	TupleTableSlot *row;		/* the event that is looked at */
} Later;

typedef struct Past
{
	AccordPastTable table;
	touched_hash *touched;
	ReturnSetInfo *result;
} Past;

PG_FUNCTION_INFO_V1(accord_as_of);

/* ---- what came later ----------------------------------------------------- */

static void
add_commit(Later *later, int64 tx_id, int64 seq)
{
	if (later->n == later->room)
	{
		later->room = Max(1024, 2 * later->room);
		later->commits = later->commits == NULL ?
			palloc_extended(later->room * sizeof(LaterCommit),
							MCXT_ALLOC_HUGE) :
			repalloc_huge(later->commits, later->room * sizeof(LaterCommit));
	}
	later->commits[later->n].tx_id = tx_id;
	later->commits[later->n++].seq = seq;
}

static int
compare_commits(const void *a, const void *b)
{
	const LaterCommit *left = a;
	const LaterCommit *right = b;

	return (left->tx_id > right->tx_id) - (left->tx_id < right->tx_id);
}

/* All of a slot's commits, to begin with: tells which are later, and whether
 * that is all of them. */
static void
collect_commits(Later *later, int64 after)
{
	Relation	heap = table_open(accord_db_slot_relid("commit_log",
													   later->slot),
								  AccessShareLock);
	TupleDesc	desc = RelationGetDescr(heap);
	Relation	index;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		sorted = true;

	index = accord_seek_primary_key(heap);
	ScanKeyInit(&key, ACCORD_COMMIT_SEQ, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(after));
	scan = systable_beginscan_ordered(heap, index, GetActiveSnapshot(), 1,
									  &key);
	later->all = systable_getnext_ordered(scan, BackwardScanDirection) == NULL;
	systable_endscan_ordered(scan);

	ScanKeyInit(&key, ACCORD_COMMIT_SEQ, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	scan = systable_beginscan(heap, RelationGetRelid(index), !later->all,
							  GetActiveSnapshot(), 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		add_commit(later, accord_past_int64(tuple, ACCORD_COMMIT_TX_ID, desc),
				   accord_past_int64(tuple, ACCORD_COMMIT_SEQ, desc));
		if (later->n > 1 && later->commits[later->n - 1].tx_id <
			later->commits[later->n - 2].tx_id)
			sorted = false;
	}
	systable_endscan(scan);
	index_close(index, NoLock);
	table_close(heap, NoLock);
	if (!sorted)
		qsort(later->commits, later->n, sizeof(LaterCommit), compare_commits);
}

/*
 * The number of a transaction that committed after the point; 0: it did not.
 * Transactions are asked for nearly in their order.
 */
static int64
later_seq(Later *later, int64 tx_id)
{
	int			low = 0;
	int			high = later->n;

	if (tx_id == later->own_tx)
		return PG_INT64_MAX;
	if (later->hint < later->n)
	{
		LaterCommit *at = &later->commits[later->hint];

		if (at->tx_id == tx_id)
			return at->seq;
		if (at->tx_id < tx_id)
		{
			low = later->hint + 1;
			if (low < high && later->commits[low].tx_id >= tx_id)
				high = low + 1;
		}
		else
			high = later->hint;
	}
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (later->commits[middle].tx_id < tx_id)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == later->n)
		return 0;
	later->hint = low;
	return later->commits[low].tx_id == tx_id ? later->commits[low].seq : 0;
}

/* Notes a row as changed, if it is by an event of our table that is later. */
static void
note_event(Past *past, Later *later, HeapTuple event)
{
	TupleTableSlot *row = later->row;
	int64		seq;
	bool		found;
	char		buffer[ACCORD_MAX_KEY + 1];
	Touched    *touched;
	int32		ord;

	ExecStoreHeapTuple(event, row, false);
	slot_getsomeattrs(row, ACCORD_EVENT_OP);
#define VALUE(column) (row->tts_values[(column) - 1])
#define ISNULL(column) (row->tts_isnull[(column) - 1])
	if (ISNULL(ACCORD_EVENT_TABLE_ID) || ISNULL(ACCORD_EVENT_KEY) ||
		DatumGetInt32(VALUE(ACCORD_EVENT_TABLE_ID)) != past->table.id)
		return;
	seq = later_seq(later, DatumGetInt64(VALUE(ACCORD_EVENT_TX_ID)));
	if (seq == 0 || accord_past_letter(VALUE(ACCORD_EVENT_OP)) == ACCORD_PAST_EVENT)
		return;
	ord = DatumGetInt32(VALUE(ACCORD_EVENT_ORD));
	text_to_cstring_buffer(DatumGetTextPP(VALUE(ACCORD_EVENT_KEY)), buffer,
						   sizeof(buffer));
	touched = touched_insert(past->touched, buffer, &found);
	if (!found)
		touched->key = MemoryContextStrdup(past->touched->ctx, buffer);
	else if (touched->seq < seq || (touched->seq == seq && touched->ord < ord))
		return;
	touched->seq = seq;
	touched->ord = ord;
	touched->tid = event->t_self;
	touched->slot = later->slot;
	touched->op = accord_past_letter(VALUE(ACCORD_EVENT_OP));
	if (touched->op == ACCORD_PAST_INSERT)
	{
		slot_getsomeattrs(row, ACCORD_EVENT_BEFORE);
		touched->op = accord_past_insert_kind(ISNULL(ACCORD_EVENT_BEFORE),
											  VALUE(ACCORD_EVENT_BEFORE));
	}
#undef ISNULL
#undef VALUE
}

/*
 * The table's own events, by its index; false when they are so many that
 * reading all of the slot is better.
 */
static bool
read_by_table(Past *past, Later *later)
{
	uint64		left = 2 * (uint64) RelationGetNumberOfBlocks(later->events);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	event;

	ScanKeyInit(&key, ACCORD_EVENT_TABLE_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(past->table.id));
	scan = systable_beginscan(later->events,
							  accord_history_index(later->slot), true,
							  GetActiveSnapshot(), 1, &key);
	while ((event = systable_getnext(scan)) != NULL && left-- > 0)
	{
		CHECK_FOR_INTERRUPTS();
		note_event(past, later, event);
	}
	systable_endscan(scan);
	return event == NULL;
}

/* From the first transaction on that committed later, or all of them. */
static void
read_by_transaction(Past *past, Later *later)
{
	int64		first = later->n > 0 ? later->commits[0].tx_id : PG_INT64_MAX;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	event;

	if (later->own_tx != 0)
		first = Min(first, later->own_tx);
	list_free(RelationGetIndexList(later->events)); /* sets rd_pkindex */
	ScanKeyInit(&key, ACCORD_EVENT_TX_ID, BTGreaterEqualStrategyNumber,
				F_INT8GE, Int64GetDatum(first));
	scan = systable_beginscan(later->events, later->events->rd_pkindex,
							  !later->all, GetActiveSnapshot(), 1, &key);
	while ((event = systable_getnext(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		note_event(past, later, event);
	}
	systable_endscan(scan);
}

/* Notes every row that was changed after the point. */
static void
read_later(Past *past)
{
	int			own_slot;
	int64		own_tx = accord_log_current_tx(&own_slot);

	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		Later		later = {.slot = i};

		collect_commits(&later, past->table.seq);
		later.own_tx = i == own_slot ? own_tx : 0;
		if (later.n == 0 && later.own_tx == 0)
			continue;
		later.events = table_open(accord_db_slot_relid("event_log", i),
								  AccessShareLock);
		later.row = MakeSingleTupleTableSlot(RelationGetDescr(later.events),
											 &TTSOpsHeapTuple);
		if (!read_by_table(past, &later))
			read_by_transaction(past, &later);
		ExecDropSingleTupleTableSlot(later.row);
		table_close(later.events, NoLock);
		if (later.commits != NULL)
			pfree(later.commits);
	}
}

/* ---- as_of() ------------------------------------------------------------- */

static int
compare_places(const void *a, const void *b)
{
	const Touched *left = *(Touched *const *) a;
	const Touched *right = *(Touched *const *) b;

	if (left->slot != right->slot)
		return left->slot < right->slot ? -1 : 1;
	return ItemPointerCompare(unconstify(ItemPointerData *, &left->tid),
							  unconstify(ItemPointerData *, &right->tid));
}

/* The rows that were changed since, and were there, in the log's order. */
static Touched **
list_touched(Past *past, int *n)
{
	Touched   **list = palloc_extended((past->touched->members + 1) *
									   sizeof(Touched *), MCXT_ALLOC_HUGE);
	touched_iterator iterator;
	Touched    *touched;

	*n = 0;
	touched_start_iterate(past->touched, &iterator);
	while ((touched = touched_iterate(past->touched, &iterator)) != NULL)
		if (touched->op != ACCORD_PAST_INSERT)
			list[(*n)++] = touched;
	qsort(list, *n, sizeof(Touched *), compare_places);
	return list;
}

/* Puts the rows out as they were before their first later change. */
static void
put_touched(Past *past, MemoryContext scratch)
{
	int			n;
	Touched   **list = list_touched(past, &n);
	Relation	events = NULL;
	TupleTableSlot *row = NULL;
	int			slot = -1;

	for (int i = 0; i < n; i++)
	{
		MemoryContext old;
		bool		should_free;

		CHECK_FOR_INTERRUPTS();
		if (list[i]->slot != slot)
		{
			if (row != NULL)
				ExecDropSingleTupleTableSlot(row);
			if (events != NULL)
				table_close(events, NoLock);
			slot = list[i]->slot;
			events = table_open(accord_db_slot_relid("event_log", slot),
								AccessShareLock);
			row = table_slot_create(events, NULL);
		}
		Assert(events != NULL && row != NULL);
		if (!table_tuple_fetch_row_version(events, &list[i]->tid,
										   GetActiveSnapshot(), row))
			elog(ERROR, "could not read an event of \"%s\" again",
				 RelationGetRelationName(events));
		old = MemoryContextSwitchTo(scratch);
		tuplestore_puttuple(past->result->setResult,
							accord_past_before(&past->table,
											   ExecFetchSlotHeapTuple(row, false,
																	  &should_free),
											   RelationGetDescr(events),
											   list[i]->op, list[i]->seq,
											   list[i]->ord));
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
	}
	if (row != NULL)
		ExecDropSingleTupleTableSlot(row);
	if (events != NULL)
		table_close(events, NoLock);
}

/* Puts a row of the present out, unless it was changed since the point. */
static void
put_present(Past *past, HeapTupleHeader row)
{
	Datum		values[MaxTupleAttributeNumber];
	bool		nulls[MaxTupleAttributeNumber];
	char	   *key;

	accord_past_deform(&past->table, row, values, nulls);
	if (past->touched->members > 0 &&
		(key = accord_past_key(&past->table, values, nulls)) != NULL &&
		touched_lookup(past->touched, key) != NULL)
		return;
	accord_past_hide(&past->table, nulls);
	tuplestore_putvalues(past->result->setResult, past->table.desc, values,
						 nulls);
}

/* The rows that are there now, under the active snapshot. */
static void
read_present(Past *past, MemoryContext scratch)
{
	AccordPastTable *table = &past->table;
	char	   *query = psprintf("SELECT (t.*)::%s FROM %s%s AS t WHERE %s",
								 table->name,
								 get_rel_relkind(table->relid) ==
								 RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
								 table->name,
								 table->condition ? table->condition : "true");
	Portal		portal = SPI_cursor_open_with_args(NULL, query, 0, NULL, NULL,
												   NULL, true,
												   CURSOR_OPT_NO_SCROLL);

	for (;;)
	{
		MemoryContext old;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(scratch);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;
			Datum		row = SPI_getbinval(SPI_tuptable->vals[i],
											SPI_tuptable->tupdesc, 1, &isnull);

			put_present(past, DatumGetHeapTupleHeader(row));
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
}

/* accord.as_of(NULL::table, point) */
Datum
accord_as_of(PG_FUNCTION_ARGS)
{
	Past	   *past = palloc0(sizeof(Past));
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord rows",
												  ALLOCSET_DEFAULT_SIZES);

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC | MAT_SRF_BLESS);
	past->result = (ReturnSetInfo *) fcinfo->resultinfo;
	past->touched = touched_create(AllocSetContextCreate(CurrentMemoryContext,
														 "pg_accord keys",
														 ALLOCSET_DEFAULT_SIZES),
								   1024, NULL);
	accord_past_begin(fcinfo, &past->table, 1);
	read_later(past);
	put_touched(past, scratch);
	read_present(past, scratch);
	accord_past_end();
	PG_RETURN_NULL();
}
