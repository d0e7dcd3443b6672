/*
 * append.c: rows appended to a log one at a time, as cheaply as can be.
 *
 * Runs in the application's backends, for every event and every commit. Most
 * of what inserting a row costs beyond the row itself is finding out again
 * what is known: the table's OID, its indexes, what each is made of. That is
 * kept here, in a memory context per partition.
 *
 * Invariants
 *   - Nothing of a transaction is kept: no reference to a relation, so that
 *     the table can be altered or dropped by the transaction that wrote to it,
 *     and no buffer. Rows are in the table, and visible to the commands that
 *     follow, when the call returns.
 *   - A lock taken in a subtransaction goes with it: the lock manager is asked
 *     again whenever the subtransaction is another one.
 *   - What is kept is made anew after the relation cache said that the table,
 *     or one of its indexes, changed. That may be said whenever a lock is
 *     waited for, also in the middle of a row (its TOAST table, an index): from
 *     then on what an access method has kept for an index is not used.
 *
 * On failure everything raises as PostgreSQL does; what is kept survives.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "accord.h"
#include "append.h"
#include "compat.h"
#include "db.h"
#include "invalidation.h"

/*
 * Four logs and two stores of keys; a transaction that lasts may write to an
 * older slot of a log.
 */
#define MAX_TARGETS 12

typedef struct TargetIndex
{
	Oid			relid;
	IndexInfo  *info;
	AttrNumber	required;		/* only rows in which this is not null; 0: all */
	bool		locked;			/* since what the target was locked in began */
} TargetIndex;

typedef struct Target
{
	char		table[NAMEDATALEN];
	int			slot;
	bool		made;			/* what follows is there */
	bool		stale;			/* a relation changed since */
	Oid			relid;
	MemoryContext context;		/* holds what follows */
	TupleDesc	desc;
	TupleTableSlot *row;
	int			n_indexes;
	TargetIndex *indexes;
	bool		plain;			/* all indexes are over plain columns */
	TransactionId locked_by;	/* by whom the table is locked */
	SubTransactionId locked_in;
} Target;

static Target targets[MAX_TARGETS];
static int	n_targets = 0;

/* Relation cache callback. */
static void
mark_stale(Datum arg, Oid relid)
{
	for (int i = 0; i < n_targets; i++)
	{
		Target	   *target = &targets[i];
		bool		ours = !OidIsValid(relid) || target->relid == relid;

		for (int j = 0; target->made && !ours && j < target->n_indexes; j++)
			ours = target->indexes[j].relid == relid;
		if (ours)
			target->stale = true;
	}
}

/* Learns what the table's indexes are. */
static void
learn_indexes(Target *target, Relation heap)
{
	List	   *indexes = RelationGetIndexList(heap);
	ListCell   *lc;

	target->n_indexes = 0;
	target->plain = true;
	target->indexes = palloc((list_length(indexes) + 1) * sizeof(TargetIndex));
	foreach(lc, indexes)
	{
		TargetIndex *entry = &target->indexes[target->n_indexes++];
		Relation	index = index_open(lfirst_oid(lc), RowExclusiveLock);

		entry->relid = lfirst_oid(lc);
		entry->info = BuildIndexInfo(index);
		entry->required = accord_db_required_column(entry->info);
		/* what an access method keeps for its inserts */
		entry->info->ii_Context =
			AllocSetContextCreate(target->context, "pg_accord index",
								  ALLOCSET_SMALL_SIZES);
		if (entry->info->ii_Expressions != NIL ||
			!entry->info->ii_ReadyForInserts ||
			(entry->info->ii_Predicate != NIL && entry->required == 0))
			target->plain = false;
		index_close(index, NoLock);
	}
}

static void
make_target(Target *target)
{
	MemoryContext old;
	Relation	heap;

	if (target->context == NULL)
		target->context = AllocSetContextCreate(TopMemoryContext,
												"pg_accord append",
												ALLOCSET_SMALL_SIZES);
	target->made = false;
	target->stale = false;		/* may be set again meanwhile */
	target->locked_by = InvalidTransactionId;
	target->relid = accord_db_slot_relid(target->table, target->slot);
	heap = table_open(target->relid, RowExclusiveLock);
	MemoryContextReset(target->context);
	old = MemoryContextSwitchTo(target->context);
	target->desc = CreateTupleDescCopy(RelationGetDescr(heap));
	target->row = MakeSingleTupleTableSlot(target->desc, &TTSOpsHeapTuple);
	target->row->tts_tableOid = target->relid;
	learn_indexes(target, heap);
	MemoryContextSwitchTo(old);
	table_close(heap, NoLock);
	target->made = true;
}

static Target *
find_target(const char *table, int slot)
{
	static int	next = 0;		/* to be given up for another */
	Target	   *target = NULL;

	for (int i = 0; i < n_targets && target == NULL; i++)
		if (targets[i].slot == slot && strcmp(targets[i].table, table) == 0)
			target = &targets[i];
	if (target == NULL)
	{
		if (n_targets == 0)
			accord_invalidation_heed(mark_stale, (Datum) 0);
		if (n_targets < MAX_TARGETS)
			target = &targets[n_targets++];
		else
			target = &targets[next++ % MAX_TARGETS];
		strlcpy(target->table, table, NAMEDATALEN);
		target->slot = slot;
		target->made = false;
	}
	if (!target->made || target->stale)
		make_target(target);
	return target;
}

/* NoLock: the table is locked already. */
static LOCKMODE
mode_to_lock(const Target *target)
{
	if (TransactionIdIsValid(target->locked_by) &&
		target->locked_by == GetTopTransactionIdIfAny() &&
		target->locked_in == GetCurrentSubTransactionId())
		return NoLock;
	return RowExclusiveLock;
}

static void
forget_index_locks(Target *target)
{
	for (int i = 0; i < target->n_indexes; i++)
		target->indexes[i].locked = false;
}

/* An index that has no entry for this row is neither opened nor locked. */
static void
insert_entries(Target *target, Relation heap, const Datum *values,
			   const bool *nulls)
{
	for (int i = 0; i < target->n_indexes; i++)
	{
		TargetIndex *entry = &target->indexes[i];
		IndexInfo  *info = entry->info;
		Datum		entry_values[INDEX_MAX_KEYS];
		bool		entry_nulls[INDEX_MAX_KEYS];
		Relation	index;

		if (entry->required > 0 && nulls[entry->required - 1])
			continue;
		index = index_open(entry->relid,
						   entry->locked ? NoLock : RowExclusiveLock);
		entry->locked = true;
		/* what the access method keeps may point into what is gone now */
		if (target->stale)
			info = BuildIndexInfo(index);
		for (int k = 0; k < info->ii_NumIndexAttrs; k++)
		{
			int			at = info->ii_IndexAttrNumbers[k] - 1;

			entry_values[k] = values[at];
			entry_nulls[k] = nulls[at];
		}
		Assert(info != entry->info || !target->stale);
		index_insert(index, entry_values, entry_nulls,
					 &target->row->tts_tid, heap,
					 info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
					 false, info);
		accord_index_insert_cleanup(index, info);
		/* the other one is in the caller's context, and is the caller's */
		if (info == entry->info)
			accord_index_insert_forget(info);
		index_close(index, NoLock);
	}
}

void
accord_append_row(const char *table, int slot, Datum *values, bool *nulls)
{
	Target	   *target = find_target(table, slot);
	LOCKMODE	lock = mode_to_lock(target);
	Relation	heap = table_open(target->relid, lock);
	HeapTuple	tuple;

	/* Waiting for the lock may have told of a change. */
	if (target->stale || !target->plain)
	{
		tuple = heap_form_tuple(RelationGetDescr(heap), values, nulls);
		accord_db_insert(heap, &tuple, 1);
		table_close(heap, NoLock);
		heap_freetuple(tuple);
		return;
	}
	tuple = heap_form_tuple(target->desc, values, nulls);
	ExecStoreHeapTuple(tuple, target->row, false);
	table_tuple_insert(heap, target->row, GetCurrentCommandId(true),
					   TABLE_INSERT_SKIP_FSM, NULL);
	if (lock != NoLock)
		forget_index_locks(target);
	insert_entries(target, heap, values, nulls);
	ExecClearTuple(target->row);
	heap_freetuple(tuple);
	table_close(heap, NoLock);
	target->locked_by = GetTopTransactionIdIfAny();
	target->locked_in = GetCurrentSubTransactionId();
}
