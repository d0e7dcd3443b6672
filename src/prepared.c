/*
 * prepared.c: transactions committed in two phases.
 *
 * Runs in the backend that says COMMIT PREPARED, and in dispatcher 0.
 *
 * PREPARE TRANSACTION (log.c) leaves, as a part of the transaction, one row in
 * accord.prepared: all that its row of commit_log will hold but the number and
 * the time. COMMIT PREPARED draws the number before the transaction commits,
 * and the statement's own transaction, right after it, moves the row.
 *
 * Invariants
 *   - The number is drawn, under a floor, while the prepared transaction still
 *     holds its locks: whoever waits for one of them has a higher number. The
 *     floor stands until the place is durable and visible, so no reader passes
 *     it by.
 *   - A row of accord.prepared that is visible is of a transaction without a
 *     place. A session that is placing one holds the lock of placing in share
 *     mode; who places what was left behind needs it alone.
 *
 * On failure: before the transaction has committed, it stays prepared, and the
 * number is not used. Afterwards it has committed, and its events have no place
 * yet: dispatcher 0 sees to that at once, or when it starts. Only then may
 * somebody who waited for the transaction have a lower number than it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "db.h"
#include "log.h"
#include "prepared.h"
#include "shmem.h"

/* What the transaction of this statement is about to place. */
static struct
{
	int64		seq;			/* its number */
	List	   *rows;			/* of its name: HeapTuple; one at most commits */
}			placing;

static bool callback_registered = false;

static void
at_transaction_event(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	/* whether it has committed is for others to find out */
	if (event == XACT_EVENT_ABORT && placing.rows != NIL)
		accord_shmem_unplaced_add();
	placing.rows = NIL;
}

/* The lock of placing: an object of the table that no SQL statement locks. */
static bool
lock_placing(Oid relid, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, relid, 0, 1);
	return LockAcquire(&tag, mode, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* The rows of that name of transactions that have not ended. */
static List *
find_rows(Relation table, const char *gid)
{
	List	   *rows = NIL;
	SnapshotData snapshot;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

	InitDirtySnapshot(snapshot);
	ScanKeyInit(&key, ACCORD_PREPARED_GID, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(gid));
	key.sk_collation = C_COLLATION_OID;
	scan = systable_beginscan(table, accord_db_relid("prepared_gid"), true,
							  &snapshot, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
		if (TransactionIdIsValid(snapshot.xmin))
		{
			MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

			rows = lappend(rows, heap_copytuple(tuple));
			MemoryContextSwitchTo(old);
		}
	systable_endscan(scan);
	return rows;
}

/* Whether a prepared transaction keeps a relation locked against us. */
static bool
is_locked_by_prepared(Oid relid)
{
	LOCKTAG		tag;
	VirtualTransactionId *holder;
	bool		have_more;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	for (holder = GetLockConflicts(&tag, AccessShareLock, NULL);
		 VirtualTransactionIdIsValid(*holder); holder++)
		if (VirtualTransactionIdIsRecoveredPreparedXact(*holder) ||
			TransactionIdIsValid(TwoPhaseGetXidByVirtualXID(*holder,
															&have_more)))
			return true;
	return false;
}

/*
 * Locks accord.prepared, unless a prepared transaction has it: most likely this
 * one, which drops the extension, and would be waited for for ever.
 */
static bool
lock_prepared(Oid relid)
{
	if (ConditionalLockRelationOid(relid, AccessShareLock))
		return true;
	if (is_locked_by_prepared(relid))
		return false;
	LockRelationOid(relid, AccessShareLock);
	return true;
}

void
accord_prepared_before(const char *gid)
{
	Oid			relid;
	Oid			sequence;
	Relation	table;

	if (!accord_shmem_ready())
		return;
	relid = accord_db_relid_if_any("prepared");
	sequence = accord_db_relid_if_any("commit_seq");
	if (!OidIsValid(relid) || !OidIsValid(sequence))
		return;
	if (!callback_registered)
		RegisterXactCallback(at_transaction_event, NULL);
	callback_registered = true;

	if (!lock_prepared(relid))
		return;
	table = try_table_open(relid, NoLock);
	if (table == NULL)
		return;					/* dropped meanwhile */
	placing.rows = find_rows(table, gid);
	table_close(table, AccessShareLock);
	if (placing.rows == NIL)
		return;
	(void) lock_placing(relid, ShareLock, true);
	accord_shmem_floor_publish(accord_db_sequence_last(sequence) + 1);
	placing.seq = accord_db_sequence_next(sequence);
	accord_shmem_floor_publish(placing.seq);
}

/* The row becomes one of commit_log. */
static void
place(Relation table, HeapTuple row, int64 seq)
{
	Datum		values[ACCORD_PREPARED_COLUMNS];
	bool		nulls[ACCORD_PREPARED_COLUMNS];

	heap_deform_tuple(row, RelationGetDescr(table), values, nulls);
	accord_log_place_prepared(values, nulls, seq);
	simple_heap_delete(table, &row->t_self);
}

void
accord_prepared_after(void)
{
	Relation	table;
	ListCell   *cell;

	if (placing.rows == NIL)
		return;
	table = table_open(accord_db_relid("prepared"), RowExclusiveLock);
	PushActiveSnapshot(GetTransactionSnapshot());	/* toasting wants one */
	foreach(cell, placing.rows)
	{
		HeapTuple	row = lfirst(cell);

		/* another of the same name was about to be refused for it */
		if (TransactionIdDidCommit(HeapTupleHeaderGetXmin(row->t_data)))
			place(table, row, placing.seq);
	}
	PopActiveSnapshot();
	table_close(table, NoLock);
}

bool
accord_prepared_incomplete(void)
{
	static bool asked = false;
	static uint32 seen = 0;
	uint32		count = accord_shmem_unplaced();
	bool		news = !asked || count != seen;

	asked = true;
	seen = count;
	return news;
}

int
accord_prepared_complete(void)
{
	Oid			relid = accord_db_relid("prepared");
	Oid			sequence = accord_db_relid("commit_seq");
	Relation	table;
	SysScanDesc scan;
	HeapTuple	row;
	int			n = 0;

	if (!lock_placing(relid, ExclusiveLock, false))
		return -1;
	table = table_open(relid, RowExclusiveLock);
	scan = systable_beginscan(table, InvalidOid, false, GetActiveSnapshot(), 0,
							  NULL);
	while ((row = systable_getnext(scan)) != NULL)
	{
		int64		seq;

		if (n++ == 0)
			accord_shmem_floor_publish(accord_db_sequence_last(sequence) + 1);
		seq = accord_db_sequence_next(sequence);
		place(table, row, seq);
	}
	systable_endscan(scan);
	table_close(table, NoLock);
	if (n > 0)
		ereport(LOG,
				(errmsg_plural("%d prepared transaction has got its place in "
							   "the log late",
							   "%d prepared transactions have got their place "
							   "in the log late", n, n),
				 errdetail("Something failed between COMMIT PREPARED and the "
						   "log.")));
	return n;
}
