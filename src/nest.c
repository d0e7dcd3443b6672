/*
 * nest.c: changes of rows that are made by triggers of other changes.
 *
 * Runs in the application's backends. A statement changes its rows first, and
 * has its triggers executed then, row by row. When the trigger of one row
 * changes another row of the same statement, the triggers of that second
 * change are executed at once: before that of the first change of the row.
 * Told in this order, the log would have the row as it was in between last.
 * So the second change is passed over, and told together with the first one
 * when its turn comes: from what the row was to what it is then.
 *
 * Invariants
 *   - A version of a row that this transaction made is early to be changed as
 *     long as its own event was not appended: told is the set of those whose
 *     was, in the outermost statement under way. Our trigger is the first of
 *     each row, by its name, so that what other triggers change comes later.
 *   - The sets are kept only for tables that have other row triggers AFTER,
 *     and until the outermost statement ends.
 *
 * Not covered: a query that changes rows of a table without such triggers, and
 * by a trigger of another table in the same WITH statement changes them again;
 * and rows that a nested change moves to another partition, whose first change
 * is told as what became of it. Both end with the row as it is.
 *
 * On failure the sets go with the transaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "fmgr.h"
#include "utils/combocid.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "nest.h"

typedef struct VersionKey
{
	Oid			relid;
	ItemPointerData tid;
} VersionKey;

/* A version of a row that a statement under way has made. */
typedef struct Version
{
	VersionKey	key;
	bool		told;			/* its event was appended */
	bool		passed_over;	/* a change of it was not */
} Version;

static HTAB *versions = NULL;
static MemoryContext versions_context;	/* of this transaction */
static CommandId first_command; /* that made any of them */

static void
forget_versions(void *arg)
{
	versions = NULL;
}

void
accord_nest_forget(void)
{
	if (versions != NULL)
		MemoryContextDelete(versions_context);
}

static void
create_versions(void)
{
	MemoryContextCallback *forget;
	HASHCTL		ctl;

	versions_context = AllocSetContextCreate(TopTransactionContext,
											 "pg_accord row versions",
											 ALLOCSET_DEFAULT_SIZES);
	forget = MemoryContextAllocZero(versions_context,
									sizeof(MemoryContextCallback));
	forget->func = forget_versions;
	MemoryContextRegisterResetCallback(versions_context, forget);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(VersionKey);
	ctl.entrysize = sizeof(Version);
	ctl.hcxt = versions_context;
	versions = hash_create("pg_accord row versions", 256, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	first_command = InvalidCommandId;
}

bool
accord_nest_possible(Relation rel)
{
	static const char prefix[] = ACCORD_CAPTURE_TRIGGER;

	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers;
		 i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (TRIGGER_FOR_ROW(trigger->tgtype) &&
			TRIGGER_FOR_AFTER(trigger->tgtype) && !trigger->tgisinternal &&
			strncmp(trigger->tgname, prefix, sizeof(prefix) - 1) != 0)
			return true;
	}
	return false;
}

/* The stored tuple of a slot; NULL: it is not one of a heap. */
static HeapTuple
stored_tuple(TupleTableSlot *row)
{
	bool		must_free;

	if (!TTS_IS_HEAPTUPLE(row) && !TTS_IS_BUFFERTUPLE(row))
		return NULL;
	return ExecFetchSlotHeapTuple(row, false, &must_free);
}

static Version *
find_version(Oid relid, ItemPointer tid)
{
	VersionKey	key;
	bool		found;
	Version    *version;

	if (versions == NULL)
		create_versions();
	memset(&key, 0, sizeof(key));
	key.relid = relid;
	key.tid = *tid;
	version = hash_search(versions, &key, HASH_ENTER, &found);
	if (!found)
		version->told = version->passed_over = false;
	return version;
}

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/* Did a statement that is still under way make this version? */
static bool
is_in_the_making(HeapTuple tuple)
{
	return versions != NULL && first_command != InvalidCommandId &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)) &&
		HeapTupleHeaderGetCmin(tuple->t_data) >= first_command;
}

bool
accord_nest_is_early(Relation rel, TupleTableSlot *old_row)
{
	HeapTuple	tuple = old_row == NULL ? NULL : stored_tuple(old_row);
	Version    *version;

	if (tuple == NULL || trigger_depth() < 2 || !is_in_the_making(tuple))
		return false;
	version = find_version(RelationGetRelid(rel), &tuple->t_self);
	if (version->told)
		return false;
	version->passed_over = true;
	return true;
}

/* Notes that the event of this version is going to be appended. */
static Version *
note_told(Relation rel, HeapTuple tuple)
{
	Version    *version = find_version(RelationGetRelid(rel), &tuple->t_self);
	CommandId	command = HeapTupleHeaderGetCmin(tuple->t_data);

	version->told = true;
	if (first_command == InvalidCommandId || command < first_command)
		first_command = command;
	return version;
}

TupleTableSlot *
accord_nest_latest(Relation rel, TupleTableSlot *new_row)
{
	HeapTuple	tuple = new_row == NULL ? NULL : stored_tuple(new_row);
	TupleTableSlot *latest;
	TableScanDesc scan;
	ItemPointerData tid;

	if (tuple == NULL || !note_told(rel, tuple)->passed_over)
		return new_row;
	tid = tuple->t_self;
	scan = table_beginscan_tid(rel, SnapshotSelf);
	table_tuple_get_latest_tid(scan, &tid);
	table_endscan(scan);
	latest = table_slot_create(rel, NULL);
	if (!table_tuple_fetch_row_version(rel, &tid, SnapshotSelf, latest))
	{
		ExecDropSingleTupleTableSlot(latest);
		return NULL;
	}
	note_told(rel, stored_tuple(latest));
	return latest;
}
