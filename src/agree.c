/*
 * agree.c: the application's own writes of managed tables are changes, too.
 *
 * Runs in the application's backends, as triggers that accord.manage()
 * attaches: before a row is written, to see whether the write would lose by
 * the policy; after it was, to stamp it. Enabled for writes of origin only:
 * rows that come by logical replication were stamped where they were made.
 *
 * The application has seen what it writes over, and its clock is past all
 * that was received. So under most policies it wins (restamp.c), and a write
 * costs one row of row_state and one of change_log. Under the others (rank,
 * owner, first, max, min, state, ...) the policy says what becomes of a write
 * that would lose: it raises, the winner is kept, or it overrides, with a
 * reason.
 *
 * Invariants
 *   - What resolve.c writes is not stamped here: it knows the row it is
 *     writing (accord_store_writing()), in C, where no user can say so.
 *   - What the table holds after a write is what its registers say: what the
 *     row got in spite of the policy is an override.
 *
 * On failure the statement raises and the transaction decides.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "agree_private.h"
#include "clock.h"
#include "compat.h"
#include "guc.h"
#include "kept.h"
#include "ledger.h"
#include "partition.h"
#include "restamp.h"
#include "store.h"

PG_FUNCTION_INFO_V1(accord_agree_before);
PG_FUNCTION_INFO_V1(accord_agree_after);
PG_FUNCTION_INFO_V1(accord_agree_truncate);

/*
 * What a custom function made of a write before it was written: the row holds
 * its result, and after the write the change itself has to be known. Kept for
 * the transaction.
 */
typedef struct Reduced
{
	Oid			relid;
	char	   *key;
	int			column;
	Jsonb	   *change;			/* what the application wrote */
	Jsonb	   *result;			/* what the row holds instead */
} Reduced;

static List *reduced = NIL;

static void
forget_reduced(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		reduced = NIL;			/* its memory was the transaction's */
}

static Jsonb *
copy_value(Jsonb *value)
{
	return value == NULL ? NULL :
		(Jsonb *) PG_DETOAST_DATUM_COPY(JsonbPGetDatum(value));
}

static void
note_reduced(const AccordManaged *managed, const char *key, int column,
			 Jsonb *change, Jsonb *result)
{
	static bool registered = false;
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Reduced    *note = palloc(sizeof(Reduced));

	if (!registered)
		RegisterXactCallback(forget_reduced, NULL);
	registered = true;
	note->relid = managed->relid;
	note->key = pstrdup(key);
	note->column = column;
	note->change = copy_value(change);
	note->result = copy_value(result);
	reduced = lappend(reduced, note);
	MemoryContextSwitchTo(old);
}

/*
 * What was written of which this is the result; itself when nothing was.
 * Taken off the list when is_last.
 */
static Jsonb *
unreduced(const AccordManaged *managed, const char *key, int column,
		  Jsonb *result, bool is_last)
{
	ListCell   *lc;

	foreach(lc, reduced)
	{
		Reduced    *note = lfirst(lc);

		if (note->relid != managed->relid || note->column != column ||
			strcmp(note->key, key) != 0 ||
			!accord_value_equal(note->result, result))
			continue;
		if (is_last)
			reduced = foreach_delete_current(reduced, lc);
		return note->change;
	}
	return result;
}

static AccordIncoming
local_change(const AccordStamp *stamp, Jsonb *value, Jsonb *base,
			 bool has_base)
{
	AccordIncoming in;

	memset(&in, 0, sizeof(in));
	in.stamp = *stamp;
	in.value = in.raw = value;
	in.base = base;
	in.has_base = has_base;
	in.creates = !has_base;
	in.is_local = true;
	in.op = has_base ? "update" : "insert";
	return in;
}

/* ---- before: would it lose? ---------------------------------------------- */

static bool
is_override(const AccordPolicy *policy)
{
	return accord_override || policy->on_local == ACCORD_LOCAL_OVERRIDE;
}

static void
require_reason(const AccordColumn *column)
{
	if (accord_reason == NULL || accord_reason[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION),
				 errmsg("overriding the policy of column \"%s\" needs a "
						"reason", column->name),
				 errhint("SET LOCAL accord.reason = 'why'.")));
}

static void
refuse(const AccordManaged *managed, const AccordColumn *column,
	   const AccordVerdict *verdict, const AccordRegister *r)
{
	const char *by = r->won.source == NULL ? "the application" : r->won.source;

	ereport(ERROR,
			(errcode(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION),
			 errmsg("column \"%s\" of table %s cannot be changed: by its "
					"policy \"%s\" what %s said stands", column->name,
					managed->name, verdict->rule, by),
			 errhint("Set accord.override and accord.reason to change it all "
					 "the same, or set on_local in its policy.")));
}

/* A write of which nothing comes to be in the row is a change all the same. */
static void
log_refused(const AccordEntity *entity, const AccordColumn *column,
			Jsonb *value, const AccordStamp *stamp, const char *key)
{
	AccordRowChange change;
	Jsonb	   *objects[2];

	for (int i = 0; i < 2; i++)
	{
		AccordBuild build;

		accord_build_begin(&build);
		accord_build_object(&build);
		accord_build_key(&build, column->name);
		accord_build_value(&build, i == 0 ? value :
						   entity->values[column - entity->managed->columns]);
		accord_build_end_object(&build);
		objects[i] = accord_build_done(&build);
	}
	memset(&change, 0, sizeof(change));
	change.op = ACCORD_CHANGE_UPDATE;
	change.stamp = *stamp;
	change.changes = objects[0];
	accord_ledger_change(entity->managed, key, &change, objects[1]);
}

/*
 * What the policy makes of a new value: false, the value may be written; else
 * what is to be written instead.
 */
static bool
judge_column(AccordEntity *entity, int i, Jsonb *value, bool is_insert,
			 const AccordStamp *stamp, const char *key, Jsonb **instead)
{
	AccordColumn *column = &entity->managed->columns[i];
	AccordRegister r = entity->registers[i];
	Jsonb	   *result = entity->values[i];
	AccordIncoming in = local_change(stamp, value, result, !is_insert);
	AccordConflict conflict;

	conflict.column = i;
	accord_merge_column(entity->managed, i, &r, &result, &in,
						&conflict.verdict);
	if (accord_value_equal(result, value))
		return false;
	*instead = result;
	/* merged with what is there, such as a set */
	if (conflict.verdict.took && !conflict.verdict.conflict)
	{
		if (column->policy->strategy == ACCORD_CUSTOM)
			note_reduced(entity->managed, key, i, value, result);
		return true;
	}
	if (is_override(column->policy))
	{
		require_reason(column);
		return false;
	}
	if (!is_insert && column->policy->on_local == ACCORD_LOCAL_RAISE)
		refuse(entity->managed, column, &conflict.verdict,
			   &entity->registers[i]);
	if (!conflict.verdict.conflict)
	{
		conflict.verdict.conflict = true;
		conflict.verdict.winner = result;
		conflict.verdict.winner_stamp = r.won;
		conflict.verdict.loser = value;
		conflict.verdict.loser_stamp = *stamp;
	}
	accord_ledger_conflict(entity->managed, key, &conflict);
	log_refused(entity, column, value, stamp, key);
	return true;
}

/* The row as its registers know it, for a write of the application's. */
static AccordEntity *
take_up(AccordManaged *managed, const AccordKept *kept, Jsonb *old_image)
{
	AccordEntity *entity = accord_register_new(managed);

	accord_register_read(entity, kept->state);
	accord_register_set_row(entity, old_image != NULL ? old_image :
							kept->values);
	return entity;
}

/* The same of a row that is locked now. */
static AccordEntity *
lock_entity(AccordManaged *managed, const char *key, Jsonb *old_image,
			AccordKept *kept)
{
	accord_kept_lock(managed, key, kept);
	return take_up(managed, kept, old_image);
}

static HeapTuple
judge_row(const AccordAgreeTable *table, HeapTuple old_tuple,
		  HeapTuple new_tuple)
{
	AccordManaged *managed = table->managed;
	bool		changed[MaxTupleAttributeNumber];
	bool	   *replaced = palloc0(managed->natts * sizeof(bool));
	AccordAgreeRow old_row;
	AccordAgreeRow new_row;
	AccordKept	kept;
	AccordEntity *entity;
	AccordStamp stamp;
	Jsonb	   *image;
	bool		is_insert = old_tuple == NULL;
	bool		modified = false;

	accord_agree_row(table, new_tuple, &new_row);
	if (accord_store_writing(managed->relid, new_row.key))
		return new_tuple;
	memset(changed, true, sizeof(changed));
	if (!is_insert)
	{
		accord_agree_row(table, old_tuple, &old_row);
		/* to another key: an insert, and judged when it is stamped */
		if (strcmp(old_row.key, new_row.key) != 0 ||
			accord_agree_changed(&old_row, &new_row, changed) == 0)
			return new_tuple;
	}
	/* the row may come to nothing, and is stamped at the statement's end */
	accord_kept_hold(managed, new_row.key, &kept);
	entity = take_up(managed, &kept,
					 is_insert ? NULL : accord_agree_image(&old_row, NULL));
	/* a row that is there already: the insert fails, or becomes an update */
	if (is_insert && accord_register_alive(entity))
		return new_tuple;
	stamp = accord_register_stamp(accord_clock_next(), NULL, NULL, NULL);
	image = accord_agree_image(&new_row, NULL);
	for (int i = 0; i < managed->n_columns; i++)
	{
		AccordColumn *column = &managed->columns[i];
		Jsonb	   *instead;

		if (column->is_key || column->is_generated ||
			!changed[column->image_index] ||
			!judge_column(entity, i, accord_agree_column(image, column),
						  is_insert,
						  &stamp, new_row.key, &instead))
			continue;
		new_row.values[column->index] =
			accord_policy_datum(column, instead,
								&new_row.nulls[column->index]);
		replaced[column->index] = modified = true;
	}
	return modified ?
		accord_agree_replace(table, new_tuple, &new_row, replaced) :
		new_tuple;
}

/* false: it is not managed */
static bool
find_table(FunctionCallInfo fcinfo, AccordAgreeTable *table)
{
	TriggerData *data = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR,
			 "a trigger function of pg_accord was not called by a trigger");
	table->rel = data->tg_relation;
	table->managed = accord_partition_managed(table->rel, &table->columns);
	return table->managed != NULL;
}

static void
get_table(FunctionCallInfo fcinfo, AccordAgreeTable *table)
{
	/* raises by the name of the table at hand */
	if (!find_table(fcinfo, table))
		(void) accord_policy_require(RelationGetRelid(table->rel));
}

Datum
accord_agree_before(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	bool		is_insert = TRIGGER_FIRED_BY_INSERT(data->tg_event);
	HeapTuple	tuple = is_insert ? data->tg_trigtuple : data->tg_newtuple;
	AccordAgreeTable table;

	get_table(fcinfo, &table);
	if (table.managed->can_lose)
		tuple =
			judge_row(&table, is_insert ? NULL : data->tg_trigtuple, tuple);
	return PointerGetDatum(tuple);
}

/* ---- after: stamp it ----------------------------------------------------- */

static void
log_local(AccordManaged *managed, const char *key, AccordChangeOp op,
		  const AccordStamp *stamp, Jsonb *changes, Jsonb *before)
{
	AccordRowChange change;

	memset(&change, 0, sizeof(change));
	change.op = op;
	change.stamp = *stamp;
	change.changes = changes;
	change.is_override = accord_override;
	accord_ledger_change(managed, key, &change, before);
}

/* The columns of an image, as the application wrote them. */
static Jsonb *
given_of(const AccordAgreeRow *row, Jsonb *image)
{
	AccordManaged *managed = row->managed;
	AccordValueScan scan;
	AccordBuild build;

	if (reduced == NIL)
		return image;
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_value_scan(&scan, image);
	while (accord_value_next(&scan))
	{
		int			column = accord_policy_column(managed, scan.name);

		accord_build_key(&build, scan.name);
		accord_build_value(&build, unreduced(managed, row->key, column,
											 scan.value, false));
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/*
 * The application gave this value, and it is in the row: merged where that
 * gives it, else it is an override, of which the old winner is the loser.
 */
static void
settle_column(AccordEntity *entity, int i, Jsonb *value, bool is_insert,
			  const AccordStamp *stamp, const char *key)
{
	AccordRegister r = entity->registers[i];
	Jsonb	   *result = entity->values[i];
	Jsonb	   *given = unreduced(entity->managed, key, i, value, true);
	AccordIncoming in = local_change(stamp, given, result, !is_insert);
	AccordConflict conflict;

	accord_merge_column(entity->managed, i, &r, &result, &in,
						&conflict.verdict);
	if (!accord_value_equal(result, value))
	{
		in.value = in.raw = value;
		conflict.column = i;
		conflict.verdict.rule = "override";
		conflict.verdict.held = false;
		conflict.verdict.winner = value;
		conflict.verdict.winner_stamp = *stamp;
		conflict.verdict.loser = entity->values[i];
		conflict.verdict.loser_stamp = entity->registers[i].won;
		accord_ledger_conflict(entity->managed, key, &conflict);
		r = entity->registers[i];
		result = entity->values[i];
		in.is_override = true;
		accord_merge_column(entity->managed, i, &r, &result, &in,
							&conflict.verdict);
	}
	entity->registers[i] = r;
	entity->values[i] = value;
}

/* Where a write can lose, what is kept is merged, not replaced. */
static void
settle_row(const AccordAgreeRow *row, Jsonb *old_image, const bool *changed,
		   const AccordStamp *stamp)
{
	AccordManaged *managed = row->managed;
	bool		is_insert = old_image == NULL;
	Jsonb	   *image = accord_agree_image(row, NULL);
	AccordKept	kept;
	AccordEntity *entity = lock_entity(managed, row->key, old_image, &kept);

	for (int i = 0; i < managed->n_columns; i++)
	{
		const AccordColumn *column = &managed->columns[i];

		if (column->is_key || column->is_generated ||
			(changed != NULL && !changed[column->image_index]))
			continue;
		settle_column(entity, i, accord_agree_column(image, column), is_insert,
					  stamp,
					  row->key);
	}
	if (is_insert)
		entity->life.insert = *stamp;
	else if (!entity->life.inserted)
		entity->life.insert = accord_register_stamp(ACCORD_CLOCK_NONE, NULL,
													NULL, NULL);
	entity->life.inserted = true;
	accord_kept_store(managed, row->key, &kept, accord_register_write(entity),
					  NULL);
}

static void
stamp_insert(const AccordAgreeRow *row, const AccordStamp *stamp)
{
	AccordManaged *managed = row->managed;
	Jsonb	   *image = accord_agree_image(row, NULL);
	Jsonb	   *given = given_of(row, image);

	if (managed->can_lose)
		settle_row(row, NULL, NULL, stamp);
	else
		accord_restamp_insert(managed, row->key, stamp->clock, image);
	log_local(managed, row->key, ACCORD_CHANGE_INSERT, stamp, given, NULL);
}

static void
stamp_delete(const AccordAgreeRow *row, const AccordStamp *stamp)
{
	Jsonb	   *image = accord_agree_image(row, NULL);
	AccordKept	kept;
	AccordEntity *entity = lock_entity(row->managed, row->key, image, &kept);
	AccordLife *life = &entity->life;

	if (!life->inserted)
	{
		life->inserted = true;
		life->insert = accord_register_stamp(ACCORD_CLOCK_NONE, NULL, NULL,
											 NULL);
	}
	if (!life->deleted)
		life->seen = ACCORD_CLOCK_NONE;
	life->deleted = true;
	life->remove = *stamp;
	life->seen = Max(life->seen, stamp->clock);
	accord_kept_store(row->managed, row->key, &kept,
					  accord_register_write(entity), image);
	log_local(row->managed, row->key, ACCORD_CHANGE_DELETE, stamp, NULL,
			  image);
}

static void
stamp_update(const AccordAgreeRow *old_row, const AccordAgreeRow *new_row,
			 const AccordStamp *stamp)
{
	AccordManaged *managed = old_row->managed;
	bool		changed[MaxTupleAttributeNumber];
	Jsonb	   *before;
	Jsonb	   *given;

	if (strcmp(old_row->key, new_row->key) != 0)
	{
		stamp_delete(old_row, stamp);
		stamp_insert(new_row, stamp);
		return;
	}
	if (accord_agree_changed(old_row, new_row, changed) == 0)
		return;
	before = accord_agree_image(old_row, changed);
	given = given_of(new_row, accord_agree_image(new_row, changed));
	if (managed->can_lose)
		settle_row(new_row, accord_agree_image(old_row, NULL), changed, stamp);
	else
		accord_restamp_update(managed, new_row->key, stamp, before);
	log_local(managed, new_row->key, ACCORD_CHANGE_UPDATE, stamp, given,
			  before);
}

/*
 * What resolve.c writes is stamped; who tells of the change asks by the
 * partition's name.
 */
static void
pass_on_stamp(const AccordAgreeTable *table)
{
	TimestampTz stamp = accord_clock_published(table->managed->relid);

	if (stamp != 0 && RelationGetRelid(table->rel) != table->managed->relid)
		accord_clock_publish(RelationGetRelid(table->rel), stamp);
}

Datum
accord_agree_after(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	AccordStamp stamp;
	AccordAgreeTable table;
	AccordAgreeRow row;
	AccordAgreeRow new_row;

	get_table(fcinfo, &table);
	accord_agree_row(&table, data->tg_trigtuple, &row);
	if (accord_store_writing(table.managed->relid, row.key))
	{
		pass_on_stamp(&table);
		return PointerGetDatum(NULL);
	}
	stamp = accord_register_stamp(accord_clock_next(), NULL, NULL, NULL);
	accord_clock_publish(RelationGetRelid(table.rel), stamp.clock);
	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		stamp_insert(&row, &stamp);
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		stamp_delete(&row, &stamp);
	else
	{
		accord_agree_row(&table, data->tg_newtuple, &new_row);
		stamp_update(&row, &new_row, &stamp);
	}
	return PointerGetDatum(NULL);
}

/*
 * BEFORE TRUNCATE: every row is deleted, as far as what is kept goes. The
 * table is locked exclusively by now, so the latest snapshot sees all of them.
 */
Datum
accord_agree_truncate(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	AccordStamp stamp;
	AccordAgreeTable table;
	TableScanDesc scan;
	TupleTableSlot *slot;
	MemoryContext per_row;

	if (!find_table(fcinfo, &table) ||
		data->tg_relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		return PointerGetDatum(NULL);	/* detached; its partitions have some */
	stamp = accord_register_stamp(accord_clock_next(), NULL, NULL, NULL);
	per_row = AllocSetContextCreate(CurrentMemoryContext, "truncated row",
									ALLOCSET_DEFAULT_SIZES);
	PushActiveSnapshot(GetLatestSnapshot());
	slot = table_slot_create(table.rel, NULL);
	scan = accord_table_beginscan(table.rel, GetActiveSnapshot());
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(per_row);
		bool		must_free;
		AccordAgreeRow row;

		CHECK_FOR_INTERRUPTS();
		accord_agree_row(&table,
						 ExecFetchSlotHeapTuple(slot, false, &must_free),
						 &row);
		stamp_delete(&row, &stamp);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	PopActiveSnapshot();
	MemoryContextDelete(per_row);
	return PointerGetDatum(NULL);
}
