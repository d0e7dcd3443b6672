/*
 * db.c: the database as workers and hot paths use it.
 *
 * Runs in every process. The hot paths (an event's insert, a settled batch)
 * go to heap and indexes directly: no executor, no plan that statistics could
 * spoil, no catalogue look-up per row beyond the relation cache.
 *
 * Invariants: OIDs are cached by name and forgotten whenever the relation
 * cache says that one of them changed, so that DROP EXTENSION followed by
 * CREATE EXTENSION is noticed by long sessions. Nothing here takes a lock
 * stronger than RowExclusive.
 *
 * On failure everything raises as PostgreSQL does; the cache survives errors.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "storage/bufmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "invalidation.h"

typedef struct RelidEntry
{
	char		name[NAMEDATALEN];	/* hash key */
	Oid			relid;
} RelidEntry;

static HTAB *relids = NULL;
static bool changed = true;		/* since accord_db_changed() */

void
accord_db_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
accord_db_commit(void)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
}

void
accord_db_abort(void)
{
	AbortCurrentTransaction();
}

void
accord_db_worker(BackgroundWorker *worker, const char *type,
				 const char *entry, Oid database)
{
	memset(worker, 0, sizeof(*worker));
	strlcpy(worker->bgw_name, type, BGW_MAXLEN);
	strlcpy(worker->bgw_type, type, BGW_MAXLEN);
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, "pg_accord",
			sizeof(worker->bgw_library_name));
	strlcpy(worker->bgw_function_name, entry,
			sizeof(worker->bgw_function_name));
	worker->bgw_main_arg = ObjectIdGetDatum(database);
	worker->bgw_notify_pid = MyProcPid;
}

void
accord_db_set_session(void)
{
	static const char *const settings[][2] = {
		{"role", "none"},
		{"session_replication_role", "origin"},
		{"standard_conforming_strings", "on"},
		{"search_path", "pg_catalog, pg_temp"},
		{"synchronous_commit", "local"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"row_security", "off"},
		{"jit", "off"}
	};

	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
						PGC_S_OVERRIDE);
}

/* Relation cache callback: forget all OIDs when one of ours changed. */
static void
forget_relids(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	RelidEntry *entry;
	bool		ours = !OidIsValid(relid);

	if (relids == NULL || hash_get_num_entries(relids) == 0)
		return;
	if (!ours)
	{
		hash_seq_init(&scan, relids);
		while (!ours && (entry = hash_seq_search(&scan)) != NULL)
			ours = entry->relid == relid;
		if (ours)
			hash_seq_term(&scan);
	}
	if (!ours)
		return;
	changed = true;
	hash_seq_init(&scan, relids);
	while ((entry = hash_seq_search(&scan)) != NULL)
		hash_search(relids, entry->name, HASH_REMOVE, NULL);
}

bool
accord_db_changed(void)
{
	bool		was = changed;

	changed = false;
	return was;
}

static void
create_relid_cache(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = sizeof(RelidEntry);
	ctl.hcxt = TopMemoryContext;
	relids = hash_create("pg_accord relations", 128, &ctl,
						 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	accord_invalidation_heed(forget_relids, (Datum) 0);
}

Oid
accord_db_relid_if_any(const char *name)
{
	RelidEntry *entry;
	Oid			relid;

	if (relids == NULL)
		create_relid_cache();
	entry = hash_search(relids, name, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->relid;

	relid = get_relname_relid(name, get_namespace_oid(ACCORD_SCHEMA, true));
	if (!OidIsValid(relid))
		return InvalidOid;
	entry = hash_search(relids, name, HASH_ENTER, NULL);
	entry->relid = relid;
	return relid;
}

Oid
accord_db_relid(const char *name)
{
	Oid			relid = accord_db_relid_if_any(name);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", ACCORD_SCHEMA,
						name),
				 errhint("Run CREATE EXTENSION %s in this database.",
						 ACCORD_EXTENSION)));
	return relid;
}

Oid
accord_db_slot_relid(const char *table, int slot)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "%s_%d", table, slot);
	return accord_db_relid(name);
}

Oid
accord_db_owner(void)
{
	Relation	rel = relation_open(accord_db_relid("event_log"),
									AccessShareLock);
	Oid			owner = rel->rd_rel->relowner;

	relation_close(rel, NoLock);
	return owner;
}

AccordDbUser
accord_db_become(Oid role)
{
	AccordDbUser before;

	GetUserIdAndSecContext(&before.user, &before.context);
	SetUserIdAndSecContext(role, before.context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
	return before;
}

void
accord_db_be_again(AccordDbUser before)
{
	SetUserIdAndSecContext(before.user, before.context);
}

bool
accord_db_installed(void)
{
	return OidIsValid(get_extension_oid(ACCORD_EXTENSION, true));
}

/*
 * Reads the sequence's only tuple under a share lock on its page, which is
 * what orders this read against a concurrent nextval().
 */
int64
accord_db_sequence_last(Oid sequence)
{
	Relation	rel = relation_open(sequence, AccessShareLock);
	Buffer		buffer = ReadBuffer(rel, 0);
	Page		page;
	ItemId		item;
	Form_pg_sequence_data data;
	int64		last;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	data = (Form_pg_sequence_data)
		((char *) PageGetItem(page, item) +
		 ((HeapTupleHeader) PageGetItem(page, item))->t_hoff);
	last = data->is_called ? data->last_value : data->last_value - 1;
	UnlockReleaseBuffer(buffer);
	relation_close(rel, NoLock);
	return last;
}

int64
accord_db_sequence_next(Oid sequence)
{
	return nextval_internal(sequence, false);
}

void
accord_db_sequence_set(Oid sequence, int64 value)
{
	DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence),
						Int64GetDatum(value));
}

void
accord_db_pin_plan(SPIPlanPtr plan)
{
	int			level = NewGUCNestLevel();
	CachedPlan *planned;

	(void) set_config_option("enable_seqscan", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	planned = SPI_plan_get_cached_plan(plan);
	if (planned != NULL)
		ReleaseCachedPlan(planned, CurrentResourceOwner);
	AtEOXact_GUC(true, level);
}

AttrNumber
accord_db_required_column(const IndexInfo *info)
{
	NullTest   *test;

	if (info->ii_Expressions != NIL || list_length(info->ii_Predicate) != 1)
		return 0;
	test = linitial(info->ii_Predicate);
	if (!IsA(test, NullTest) || test->nulltesttype != IS_NOT_NULL ||
		!IsA(test->arg, Var))
		return 0;
	return ((Var *) test->arg)->varattno;
}

/* One index's entries for n rows; estate: of an index over expressions. */
static void
insert_entries(Relation rel, Relation index, IndexInfo *info, EState *estate,
			   TupleTableSlot **slots, int n, bool unchanged)
{
	AttrNumber	required = accord_db_required_column(info);
	ExprState  *predicate = estate == NULL ? NULL :
	ExecPrepareQual(info->ii_Predicate, estate);

	for (int i = 0; i < n; i++)
	{
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		if (required > 0 && slot_attisnull(slots[i], required))
			continue;
		if (estate != NULL)
		{
			ExprContext *context = GetPerTupleExprContext(estate);

			ResetExprContext(context);
			context->ecxt_scantuple = slots[i];
			if (!ExecQual(predicate, context))
				continue;
		}
		FormIndexDatum(info, slots[i], estate, values, nulls);
		index_insert(index, values, nulls, &slots[i]->tts_tid, rel,
					 info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
					 unchanged, info);
	}
}

/*
 * Our own indexes are over plain columns, of all rows or of those in which one
 * is not null; an operator's may be anything.
 */
void
accord_db_index(Relation rel, TupleTableSlot **slots, int n, bool unchanged,
				bool summarizing)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), RowExclusiveLock);
		IndexInfo  *info = BuildIndexInfo(index);
		EState	   *estate = NULL;

		if (info->ii_Expressions != NIL ||
			(info->ii_Predicate != NIL && accord_db_required_column(info) == 0))
			estate = CreateExecutorState();
		if (info->ii_ReadyForInserts &&
			(!summarizing || accord_index_summarizes(index)))
			insert_entries(rel, index, info, estate, slots, n, unchanged);
		if (estate != NULL)
			FreeExecutorState(estate);
		accord_index_insert_cleanup(index, info);
		index_close(index, NoLock);
	}
	list_free(indexes);
}

/*
 * A log grows at its end. What its rows leave free in its pages is not for
 * smaller rows to come: once the table was vacuumed, each would go to another
 * old page, a whole page of WAL after a checkpoint, and make the ranges of
 * the BRIN indexes meaningless.
 */
void
accord_db_insert(Relation rel, HeapTuple *tuples, int n)
{
	int			options = TABLE_INSERT_SKIP_FSM;
	TupleTableSlot **slots = palloc(n * sizeof(TupleTableSlot *));
	CommandId	cid = GetCurrentCommandId(true);
	TupleDesc	desc = RelationGetDescr(rel);

	/*
	 * Of a copy nobody counts who uses it; of the table's own descriptor, the
	 * transaction's resource owner would search all slots for each of them.
	 */
	if (n > 1)
		desc = CreateTupleDescCopy(desc);
	for (int i = 0; i < n; i++)
	{
		slots[i] = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
		ExecStoreHeapTuple(tuples[i], slots[i], false);
		slots[i]->tts_tableOid = RelationGetRelid(rel);
	}
	if (n == 1)
		table_tuple_insert(rel, slots[0], cid, options, NULL);
	else
		table_multi_insert(rel, slots, n, cid, options, NULL);
	accord_db_index(rel, slots, n, false, false);

	for (int i = 0; i < n; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	if (n > 1)
		FreeTupleDesc(desc);
	pfree(slots);
}
