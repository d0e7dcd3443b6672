/*
 * resolve.c: a change from outside is merged into a managed row.
 *
 * Runs in the backends of those who receive. One change at a time: the row is
 * locked, what is kept of it is locked, the change is merged in memory
 * (merge.c), and what became of it is written: the table, row_state,
 * conflict_log, change_log.
 *
 * Invariants
 *   - The row, once it is written, is what the registers say; both are
 *     written in one transaction, under both locks.
 *   - A row that is not in its table (deleted, or not inserted yet) has its
 *     values in row_state.kept.
 *   - The clock is past every change that was applied, so that the
 *     application's next write is later.
 *
 * On failure the statement raises and the transaction decides; nothing of the
 * change is left.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "clock.h"
#include "kept.h"
#include "ledger.h"
#include "resolve.h"
#include "store.h"

PG_FUNCTION_INFO_V1(accord_apply_change);
PG_FUNCTION_INFO_V1(accord_key_object);
PG_FUNCTION_INFO_V1(accord_row_now);

/* ---- what comes in ------------------------------------------------------- */

/* A column that may be changed; raises otherwise. -1: nothing to do. */
static int
writable_column(AccordManaged *managed, const char *name)
{
	int			column = accord_policy_column(managed, name);

	if (column < 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("change of table %s has a column \"%s\", which does "
						"not exist", managed->name, name),
				 errhint("Map what the source sends to columns of the "
						 "table.")));
	return managed->columns[column].is_key ||
		managed->columns[column].is_generated ? -1 : column;
}

/* Whether a value says what to do rather than what is. */
static bool
is_instruction(const AccordColumn *column, Jsonb *value)
{
	if (!accord_value_is_object(value))
		return false;
	return column->policy->strategy == ACCORD_COUNTER ||
		column->policy->strategy == ACCORD_CUSTOM ||
		column->policy->strategy == ACCORD_SET ||
		(column->policy->strategy == ACCORD_THREE_WAY &&
		 OidIsValid(column->element));
}

Jsonb	   *
accord_resolve_normalize(AccordManaged *managed, Jsonb *object)
{
	AccordValueScan scan;
	AccordBuild build;

	if (object == NULL)
		return NULL;
	if (!accord_value_is_object(object))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("change of table %s is not an object", managed->name),
				 errhint("Give {\"column\": value, ...}.")));
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_value_scan(&scan, object);
	while (accord_value_next(&scan))
	{
		int			column = writable_column(managed, scan.name);

		if (column < 0)
			continue;
		accord_build_key(&build, scan.name);
		if (is_instruction(&managed->columns[column], scan.value))
			accord_build_value(&build, scan.value);
		else
			accord_build_value(&build, accord_policy_normalize(managed, column,
															   scan.value));
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/* When it was made: not further ahead than its source may be. */
static int64
bounded_clock(const AccordChange *change, AccordResolved *result)
{
	TimestampTz limit = GetCurrentTimestamp() + change->skew_us;
	const char *source = change->source ? change->source : "application";

	if (change->occurred_at == 0)
		return accord_clock_next();
	if (!TIMESTAMP_NOT_FINITE(change->occurred_at) &&
		change->occurred_at <= limit)
		return change->occurred_at;
	if (change->refuse_ahead || TIMESTAMP_NOT_FINITE(change->occurred_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_FIELD_OVERFLOW),
				 errmsg("change \"%s\" of source \"%s\" is from the future",
						change->event_id ? change->event_id : "", source),
				 errdetail("It occurred at %s, and it is %s.",
						   pstrdup(timestamptz_to_str(change->occurred_at)),
						   pstrdup(timestamptz_to_str(GetCurrentTimestamp()))),
				 errhint("Set the source's clock right, or allow it more "
						 "skew.")));
	result->clamped = true;
	return limit;
}

static AccordStamp
make_stamp(const AccordChange *change, AccordResolved *result)
{
	if (change->revision != NULL &&
		!accord_stamp_is_revision(change->revision))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("revision \"%s\" of a change is not a finite number",
						change->revision),
				 errhint("Give a number that grows with each change, or "
						 "none.")));
	result->clock = bounded_clock(change, result);
	return accord_register_stamp(result->clock, change->source,
								 change->event_id, change->revision);
}

/* ---- the row ------------------------------------------------------------- */

/* Takes up the row as it is in its table, or as it is kept. */
static void
take_up(AccordEntity *entity, const AccordKept *kept, Jsonb *row)
{
	accord_register_read(entity, kept->state);
	if (row != NULL)
	{
		accord_register_set_row(entity, row);
		/* there from before the table was managed, or without our knowing */
		if (!accord_register_alive(entity))
		{
			entity->life.inserted = true;
			entity->life.insert = accord_register_stamp(ACCORD_CLOCK_NONE,
														NULL, NULL, NULL);
			entity->life.deleted = false;
		}
		return;
	}
	accord_register_set_row(entity, kept->values);
	/* gone without our knowing */
	if (accord_register_alive(entity))
		entity->life.inserted = false;
}

/* What the row holds in the columns of a change. */
static Jsonb *
before_of(const AccordEntity *entity, Jsonb *changes)
{
	AccordValueScan scan;
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_value_scan(&scan, changes);
	while (accord_value_next(&scan))
	{
		int			column = accord_policy_column(entity->managed, scan.name);

		accord_build_key(&build, scan.name);
		accord_build_value(&build, entity->values[column]);
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/* Columns of a row that comes (back) into its table: those that have a say. */
static bool *
columns_to_insert(const AccordEntity *entity)
{
	int			n = entity->managed->n_columns;
	bool	   *columns = palloc0(n * sizeof(bool));

	for (int i = 0; i < n; i++)
	{
		const AccordColumn *column = &entity->managed->columns[i];

		columns[i] = !column->is_key && !column->is_generated &&
			(entity->registers[i].known || entity->values[i] != NULL);
	}
	return columns;
}

static bool *
columns_to_update(const AccordEntity *entity, Jsonb *row, int *n_changed)
{
	int			n = entity->managed->n_columns;
	bool	   *columns = palloc0(n * sizeof(bool));

	*n_changed = 0;
	for (int i = 0; i < n; i++)
	{
		const AccordColumn *column = &entity->managed->columns[i];

		columns[i] = !column->is_key && !column->is_generated &&
			!accord_value_equal(entity->values[i],
								accord_value_member(row, column->name));
		*n_changed += columns[i];
	}
	return columns;
}

/* Makes the table say what the registers do; returns the row, or NULL. */
static Jsonb *
write_table(AccordEntity *entity, const AccordRowKey *key, Jsonb *row)
{
	AccordManaged *managed = entity->managed;
	bool		alive = accord_register_alive(entity);
	bool	   *columns;
	int			n;

	if (!alive)
	{
		if (row != NULL)
			accord_store_delete(managed, key);
		return NULL;
	}
	if (row == NULL)
		return accord_store_insert(managed, key, columns_to_insert(entity),
								   entity->values);
	columns = columns_to_update(entity, row, &n);
	if (n == 0)
		return row;
	return accord_store_update(managed, key, columns, entity->values);
}

/* ---- what became of it --------------------------------------------------- */

static void
report(const AccordEntity *entity, const AccordRowChange *change,
	   const AccordRowResult *merged, AccordResolved *result)
{
	AccordBuild applied;
	AccordBuild lost;
	bool		alive = accord_register_alive(entity);

	accord_build_begin(&applied);
	accord_build_begin(&lost);
	accord_build_object(&applied);
	accord_build_object(&lost);
	for (int i = 0; i < entity->managed->n_columns; i++)
	{
		bool		took = alive && merged->took[i];
		Jsonb	   *given;

		if (!merged->given[i])
			continue;
		given = accord_value_member(change->changes,
									entity->managed->columns[i].name);
		/* what stands already is neither, nor what waits for its row */
		if (!took && (alive ? accord_value_equal(given, entity->values[i]) :
					  !entity->life.inserted))
			continue;
		accord_build_key(took ? &applied : &lost,
						 entity->managed->columns[i].name);
		accord_build_value(took ? &applied : &lost,
						   alive ? entity->values[i] : NULL);
	}
	accord_build_end_object(&applied);
	accord_build_end_object(&lost);
	result->applied = accord_build_done(&applied);
	result->lost = accord_build_done(&lost);
	result->conflicts = merged->n_conflicts;
	result->is_lost = change->op == ACCORD_CHANGE_DELETE ? alive :
		!alive && entity->life.inserted;
}

static void
note_clamped(AccordManaged *managed, const AccordRowKey *key,
			 const AccordChange *change, const AccordRowChange *merged)
{
	AccordConflict conflict;

	memset(&conflict, 0, sizeof(conflict));
	conflict.column = -1;
	conflict.verdict.rule = "clock";
	conflict.verdict.winner_stamp = merged->stamp;
	conflict.verdict.loser_stamp = merged->stamp;
	conflict.verdict.loser_stamp.clock = change->occurred_at;
	accord_ledger_conflict(managed, key->text, &conflict);
}

static void
write_logs(AccordManaged *managed, const AccordRowKey *key,
		   const AccordRowChange *change, Jsonb *before,
		   const AccordRowResult *merged)
{
	for (int i = 0; i < merged->n_conflicts; i++)
		accord_ledger_conflict(managed, key->text, &merged->conflicts[i]);
	accord_ledger_change(managed, key->text, change, before);
}

bool
accord_resolve_manages(Oid relid)
{
	return accord_policy_find(relid) != NULL;
}

void
accord_resolve(const AccordChange *change, AccordResolved *result)
{
	AccordManaged *managed;
	AccordEntity *entity;
	AccordRowChange row_change;
	AccordRowResult merged;
	AccordRowKey key;
	AccordKept	kept;
	Jsonb	   *row;
	Jsonb	   *before;

	/* so that what is known of the table is true until it is written */
	LockRelationOid(change->relid, RowExclusiveLock);
	managed = accord_policy_require(change->relid);
	entity = accord_register_new(managed);
	memset(result, 0, sizeof(*result));
	accord_store_key(managed, change->key != NULL ? change->key :
					 accord_store_parse_key(managed, change->key_text), &key);
	memset(&row_change, 0, sizeof(row_change));
	row_change.op = change->op;
	row_change.changes = accord_resolve_normalize(managed, change->changes);
	row_change.base = accord_resolve_normalize(managed, change->base);
	row_change.is_override = change->is_override;
	row_change.stamp = make_stamp(change, result);
	row_change.seen = row_change.stamp.clock;
	accord_clock_heed(row_change.stamp.clock);

	row = accord_store_find(managed, &key);
	accord_kept_lock(managed, key.text, &kept);
	/* somebody who was inserting it may have been waited for */
	if (row == NULL && !kept.is_new)
		row = accord_store_find(managed, &key);
	take_up(entity, &kept, row);
	before = row == NULL ? NULL :
		change->op == ACCORD_CHANGE_DELETE ? row :
		before_of(entity, row_change.changes);

	accord_merge_row(entity, &row_change, &merged);
	accord_clock_publish(change->relid, row_change.stamp.clock);
	result->before = row;
	result->row = write_table(entity, &key, row);
	accord_kept_store(managed, key.text, &kept, accord_register_write(entity),
					  result->row == NULL ? accord_register_row(entity) :
					  NULL);
	write_logs(managed, &key, &row_change, before, &merged);
	if (result->clamped)
		note_clamped(managed, &key, change, &row_change);
	report(entity, &row_change, &merged, result);
}

/* ---- in SQL -------------------------------------------------------------- */

static int
op_of(char *word)
{
	int			op = accord_merge_op(word);

	if (op < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("op \"%s\" of a change is not known", word),
				 errhint("Use insert, update, upsert or delete.")));
	return op;
}

#define OPTIONAL(n, value) (PG_ARGISNULL(n) ? NULL : (value))

/*
 * accord.apply_change(relation, key, op, changes, source, event_id,
 * occurred_at, revision, base, override)
 */
Datum
accord_apply_change(PG_FUNCTION_ARGS)
{
	AccordChange change;
	AccordResolved resolved;
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {false};

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("a change has no table, key or op"),
				 errhint("Give relation, key and op.")));
	memset(&change, 0, sizeof(change));
	change.relid = PG_GETARG_OID(0);
	change.key = PG_GETARG_JSONB_P(1);
	change.op = op_of(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	change.changes = OPTIONAL(3, PG_GETARG_JSONB_P(3));
	change.source = OPTIONAL(4, text_to_cstring(PG_GETARG_TEXT_PP(4)));
	change.event_id = OPTIONAL(5, text_to_cstring(PG_GETARG_TEXT_PP(5)));
	change.occurred_at = PG_ARGISNULL(6) ? 0 : PG_GETARG_TIMESTAMPTZ(6);
	change.revision = OPTIONAL(7,
							   DatumGetCString(DirectFunctionCall1(numeric_out,
																   PG_GETARG_DATUM(7))));
	change.base = OPTIONAL(8, PG_GETARG_JSONB_P(8));
	change.is_override = !PG_ARGISNULL(9) && PG_GETARG_BOOL(9);
	change.skew_us = ACCORD_DEFAULT_SKEW_US;
	accord_resolve(&change, &resolved);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.apply_change() has no columns to return");
	values[0] = JsonbPGetDatum(resolved.applied);
	values[1] = JsonbPGetDatum(resolved.lost);
	values[2] = JsonbPGetDatum(resolved.row);
	nulls[2] = resolved.row == NULL;
	values[3] = Int32GetDatum(resolved.conflicts);
	values[4] = TimestampTzGetDatum(resolved.clock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* accord.key_object(relation, key) */
Datum
accord_key_object(PG_FUNCTION_ARGS)
{
	AccordManaged *managed = accord_policy_require(PG_GETARG_OID(0));

	PG_RETURN_POINTER(accord_store_parse_key(managed,
											 text_to_cstring(PG_GETARG_TEXT_PP(1))));
}

/* accord.row_now(relation, key) */
Datum
accord_row_now(PG_FUNCTION_ARGS)
{
	AccordManaged *managed = accord_policy_require(PG_GETARG_OID(0));
	char	   *key_text = text_to_cstring(PG_GETARG_TEXT_PP(1));
	AccordRowKey key;
	Jsonb	   *row;

	accord_store_key(managed, accord_store_parse_key(managed, key_text), &key);
	row = accord_store_look(managed, &key);
	if (row == NULL)
		PG_RETURN_NULL();
	PG_RETURN_POINTER(row);
}
