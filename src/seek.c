/*
 * seek.c: rows found by an index, locked and written, without an executor.
 *
 * Runs in the application's backends, inside their transactions: for what is
 * read and written for each change of a managed row. A statement of one row
 * by its key costs ten times as much to start and to end as to run.
 *
 * Invariants
 *   - What is seen, waited for and raised is what SELECT ... FOR UPDATE and
 *     UPDATE would see, wait for and raise in a statement of their own, at
 *     every isolation level.
 *   - No permission is checked and no trigger fired: callers know that there
 *     is nothing to check or to fire.
 *
 * On failure everything raises as PostgreSQL does.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "nodes/lockoptions.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "seek.h"

Relation
accord_seek_primary_key(Relation heap)
{
	list_free(RelationGetIndexList(heap));	/* sets rd_pkindex */
	return index_open(heap->rd_pkindex, AccessShareLock);
}

bool
accord_seek_row(Relation heap, Relation index, ScanKey keys, int n,
				Snapshot snapshot, TupleTableSlot *row)
{
	IndexScanDesc scan = accord_index_beginscan(heap, index, snapshot, n);
	bool		found;

	index_rescan(scan, keys, n, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, row);
	index_endscan(scan);
	return found;
}

/* Sees what a statement that begins now would see. */
static void
push_snapshot(void)
{
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
}

bool
accord_seek_any(Relation heap, Relation index, ScanKey keys, int n,
				AccordSeekCallback callback, void *arg)
{
	TupleTableSlot *row = table_slot_create(heap, NULL);
	IndexScanDesc scan;
	bool		found = false;

	push_snapshot();
	scan = accord_index_beginscan(heap, index, GetActiveSnapshot(), n);
	index_rescan(scan, keys, n, NULL, 0);
	while (!found && index_getnext_slot(scan, ForwardScanDirection, row))
		found = callback(row, arg);
	index_endscan(scan);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(row);
	return found;
}

/* Whether a row that was waited for still has the keys. */
static bool
has_keys(Relation index, ScanKey keys, int n, TupleTableSlot *row)
{
	for (int i = 0; i < n; i++)
	{
		AttrNumber	column =
		index->rd_index->indkey.values[keys[i].sk_attno - 1];
		bool		isnull;
		Datum		value = slot_getattr(row, column, &isnull);

		if (isnull ||
			!DatumGetBool(FunctionCall2Coll(&keys[i].sk_func,
											keys[i].sk_collation, value,
											keys[i].sk_argument)))
			return false;
	}
	return true;
}

static void
raise_changed(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent %s", what),
			 errhint("Run the transaction again.")));
}

/* Locks the row in the slot; false: it is gone, or has other keys now. */
static bool
lock_row(Relation heap, Relation index, ScanKey keys, int n,
		 TupleTableSlot *row)
{
	ItemPointerData at = row->tts_tid;
	TM_FailureData failure;
	TM_Result	result;

	ExecClearTuple(row);
	result = table_tuple_lock(heap, &at, GetActiveSnapshot(), row,
							  GetCurrentCommandId(false), LockTupleExclusive,
							  LockWaitBlock, IsolationUsesXactSnapshot() ? 0 :
							  TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
	switch (result)
	{
		case TM_Ok:
			return !failure.traversed || has_keys(index, keys, n, row);
		case TM_SelfModified:
			break;
		case TM_Updated:
			raise_changed("update");
			break;
		case TM_Deleted:
			if (IsolationUsesXactSnapshot())
				raise_changed("delete");
			break;
		default:
			elog(ERROR, "could not lock a row of %s: %d",
				 RelationGetRelationName(heap), result);
	}
	ExecClearTuple(row);
	return false;
}

bool
accord_seek_locked(Relation heap, Relation index, ScanKey keys, int n,
				   TupleTableSlot *row)
{
	bool		found;

	push_snapshot();
	found = accord_seek_row(heap, index, keys, n, GetActiveSnapshot(), row) &&
		lock_row(heap, index, keys, n, row);
	PopActiveSnapshot();
	return found;
}

/* A row to be written; the values stay the caller's. */
static TupleTableSlot *
make_row(Relation heap, const Datum *values, const bool *nulls)
{
	TupleTableSlot *row = MakeSingleTupleTableSlot(RelationGetDescr(heap),
												   &TTSOpsVirtual);
	int			n = RelationGetDescr(heap)->natts;

	memcpy(row->tts_values, values, n * sizeof(Datum));
	memcpy(row->tts_isnull, nulls, n * sizeof(bool));
	row->tts_tableOid = RelationGetRelid(heap);
	return ExecStoreVirtualTuple(row);
}

void
accord_seek_insert(Relation heap, const Datum *values, const bool *nulls)
{
	TupleTableSlot *row = make_row(heap, values, nulls);

	table_tuple_insert(heap, row, GetCurrentCommandId(true), 0, NULL);
	accord_db_index(heap, &row, 1, false, false);
	ExecDropSingleTupleTableSlot(row);
}

void
accord_seek_update(Relation heap, ItemPointer at, const Datum *values,
				   const bool *nulls)
{
	TupleTableSlot *row = make_row(heap, values, nulls);
	AccordUpdatedIndexes indexes;

	simple_table_tuple_update(heap, at, row, GetActiveSnapshot(), &indexes);
	if (accord_updated_any(indexes))
		accord_db_index(heap, &row, 1, true,
						accord_updated_summarizing(indexes));
	ExecDropSingleTupleTableSlot(row);
}
