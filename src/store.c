/*
 * store.c: managed rows, what is kept of them, and the logs.
 *
 * Runs in the application's backends, inside their transactions. A managed
 * table is written as its owner, as PostgreSQL does for foreign keys, with
 * plans kept for the session; our own tables as theirs. Plans name operators
 * with their schemas, so that no search_path can bring in others.
 *
 * Lock order: a row of the table, then its row of row_state, then the logs'
 * sequences. Who inserts a row locks its row of row_state first.
 *
 * On failure the statement raises and the transaction decides.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "accord.h"
#include "counter.h"
#include "db.h"
#include "guc.h"
#include "rowkey.h"
#include "store.h"

/* A plan that writes some columns; the plan is first: policy.c frees it. */
typedef struct Write
{
	SPIPlanPtr	plan;
	bool		is_insert;
	bool	   *columns;
} Write;

/* The row being written; see accord_store_writing(). */
static Oid	writing_relid = InvalidOid;
static const char *writing_key = NULL;

/* ---- keys ---------------------------------------------------------------- */

void
accord_store_key(AccordManaged *managed, Jsonb *object, AccordRowKey *key)
{
	char	  **parts = palloc(managed->n_keys * sizeof(char *));

	key->values = palloc(managed->n_keys * sizeof(Datum));
	for (int i = 0; i < managed->n_keys; i++)
	{
		AccordColumn *column = &managed->columns[managed->keys[i]];
		Jsonb	   *value = accord_value_member(object, column->name);
		bool		isnull;

		if (accord_value_is_null(value))
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("key of a change of table %s has no \"%s\"",
							managed->name, column->name),
					 errhint("Give all columns of the key.")));
		value = accord_policy_normalize(managed, managed->keys[i], value);
		key->values[i] = accord_policy_datum(column, value, &isnull);
		parts[i] = accord_value_text(value);
	}
	key->text = accord_rowkey_make(managed->n_keys, parts);
}

/* The next part of a joined key, without its escapes. */
static char *
next_part(const char **text)
{
	StringInfoData part;

	initStringInfo(&part);
	for (; **text != '\0' && **text != ','; (*text)++)
	{
		if (**text == '\\' && (*text)[1] != '\0')
			(*text)++;
		appendStringInfoChar(&part, **text);
	}
	if (**text == ',')
		(*text)++;
	return part.data;
}

Jsonb	   *
accord_store_parse_key(AccordManaged *managed, const char *text)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	for (int i = 0; i < managed->n_keys; i++)
	{
		accord_build_key(&build, managed->columns[managed->keys[i]].name);
		accord_build_text(&build, managed->n_keys == 1 ? text :
						  next_part(&text));
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/* ---- plans --------------------------------------------------------------- */

/* "column OPERATOR(schema.=) $n" */
static void
append_equality(StringInfo query, const AccordColumn *column, int parameter)
{
	Oid			eq = lookup_type_cache(column->type,
									   TYPECACHE_EQ_OPR)->eq_opr;
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(eq));
	Form_pg_operator form;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("key column \"%s\" has a type without equality",
						column->name),
				 errhint("Use a key of another type.")));
	form = (Form_pg_operator) GETSTRUCT(tuple);
	appendStringInfo(query, "t.%s OPERATOR(%s.%s) $%d",
					 quote_identifier(column->name),
					 quote_identifier(get_namespace_name(form->oprnamespace)),
					 NameStr(form->oprname), parameter);
	ReleaseSysCache(tuple);
}

static void
append_where(StringInfo query, AccordManaged *managed, Oid *types, int first)
{
	appendStringInfoString(query, " WHERE ");
	for (int i = 0; i < managed->n_keys; i++)
	{
		const AccordColumn *column = &managed->columns[managed->keys[i]];

		if (i > 0)
			appendStringInfoString(query, " AND ");
		append_equality(query, column, first + i);
		types[first + i - 1] = column->type;
	}
}

static SPIPlanPtr
prepare(const char *query, int n, Oid *types)
{
	SPIPlanPtr	plan = SPI_prepare(query, n, types);

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare: %s", query);
	return plan;
}

static SPIPlanPtr
prepare_by_key(AccordManaged *managed, const char *head, const char *tail)
{
	Oid		   *types = palloc(managed->n_keys * sizeof(Oid));
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query, "%s %s t", head, managed->name);
	append_where(&query, managed, types, 1);
	appendStringInfoString(&query, tail);
	return prepare(query.data, managed->n_keys, types);
}

static SPIPlanPtr
prepare_insert(AccordManaged *managed, const bool *columns)
{
	Oid		   *types = palloc(managed->n_columns * sizeof(Oid));
	StringInfoData query;
	int			n = 0;

	initStringInfo(&query);
	appendStringInfo(&query, "INSERT INTO %s (", managed->name);
	for (int i = 0; i < managed->n_columns; i++)
	{
		if (!columns[i] && !managed->columns[i].is_key)
			continue;
		appendStringInfo(&query, "%s%s", n > 0 ? ", " : "",
						 quote_identifier(managed->columns[i].name));
		types[n++] = managed->columns[i].type;
	}
	appendStringInfoString(&query, ") OVERRIDING SYSTEM VALUE VALUES (");
	for (int i = 1; i <= n; i++)
		appendStringInfo(&query, "%s$%d", i > 1 ? ", " : "", i);
	appendStringInfoString(&query, ") RETURNING *");
	return prepare(query.data, n, types);
}

static SPIPlanPtr
prepare_update(AccordManaged *managed, const bool *columns)
{
	Oid		   *types = palloc((managed->n_columns + managed->n_keys) *
							   sizeof(Oid));
	StringInfoData query;
	int			n = 0;

	initStringInfo(&query);
	appendStringInfo(&query, "UPDATE %s t SET ", managed->name);
	for (int i = 0; i < managed->n_columns; i++)
	{
		if (!columns[i])
			continue;
		appendStringInfo(&query, "%s%s = $%d", n > 0 ? ", " : "",
						 quote_identifier(managed->columns[i].name), n + 1);
		types[n++] = managed->columns[i].type;
	}
	append_where(&query, managed, types, n + 1);
	appendStringInfoString(&query, " RETURNING t.*");
	return prepare(query.data, n + managed->n_keys, types);
}

/* The plan that writes these columns, prepared when there is none yet. */
static SPIPlanPtr
find_write(AccordManaged *managed, bool is_insert, const bool *columns)
{
	Size		size = managed->n_columns * sizeof(bool);
	SPIPlanPtr	plan;
	MemoryContext old;
	Write	   *write;
	ListCell   *lc;

	foreach(lc, managed->writes)
	{
		write = lfirst(lc);
		if (write->is_insert == is_insert &&
			memcmp(write->columns, columns, size) == 0)
			return write->plan;
	}
	plan = is_insert ? prepare_insert(managed, columns) :
		prepare_update(managed, columns);
	old = MemoryContextSwitchTo(managed->context);
	write = palloc(sizeof(Write));
	write->plan = plan;
	write->is_insert = is_insert;
	write->columns = palloc(size);
	memcpy(write->columns, columns, size);
	managed->writes = lappend(managed->writes, write);
	MemoryContextSwitchTo(old);
	return plan;
}

/* ---- the table ----------------------------------------------------------- */

/* The image of the row that came back, in the caller's memory; or NULL. */
static Jsonb *
returned_row(AccordManaged *managed)
{
	Datum	   *values = palloc(managed->natts * sizeof(Datum));
	bool	   *nulls = palloc(managed->natts * sizeof(bool));
	Jsonb	   *image;
	Jsonb	   *copy;

	if (SPI_processed == 0)
		return NULL;
	/* the result lacks dropped columns, the image counts them */
	for (int i = 0; i < managed->n_columns; i++)
		values[managed->columns[i].index] =
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1,
						  &nulls[managed->columns[i].index]);
	image = accord_image_build(managed->image, values, nulls, NULL);
	copy = SPI_palloc(VARSIZE(image));
	memcpy(copy, image, VARSIZE(image));
	return copy;
}

static Jsonb *
find_row(AccordManaged *managed, const AccordRowKey *key, SPIPlanPtr *plan,
		 const char *tail, bool read_only)
{
	AccordDbUser before = accord_db_become(managed->owner);
	Jsonb	   *row;
	int			result;

	SPI_connect();
	if (*plan == NULL)
		*plan = prepare_by_key(managed, "SELECT t.* FROM", tail);
	result = SPI_execute_plan(*plan, key->values, NULL, read_only, 1);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not read %s", managed->name);
	row = returned_row(managed);
	SPI_finish();
	accord_db_be_again(before);
	return row;
}

Jsonb	   *
accord_store_find(AccordManaged *managed, const AccordRowKey *key)
{
	return find_row(managed, key, &managed->find, " FOR UPDATE", false);
}

Jsonb	   *
accord_store_look(AccordManaged *managed, const AccordRowKey *key)
{
	return find_row(managed, key, &managed->look, "", true);
}

bool
accord_store_writing(Oid relid, const char *key)
{
	return relid == writing_relid && writing_key != NULL &&
		strcmp(key, writing_key) == 0;
}

/* Runs a plan; our triggers know that it is no write of the application's. */
static void
execute_write(AccordManaged *managed, SPIPlanPtr plan, const char *key,
			  Datum *values, const char *nulls)
{
	Oid			outer_relid = writing_relid;
	const char *outer_key = writing_key;

	writing_relid = managed->relid;
	writing_key = key;
	PG_TRY();
	{
		int			result = SPI_execute_plan(plan, values, nulls, false, 0);

		if (result < 0)
			elog(ERROR, "could not write %s: %s", managed->name,
				 SPI_result_code_string(result));
	}
	PG_FINALLY();
	{
		writing_relid = outer_relid;
		writing_key = outer_key;
	}
	PG_END_TRY();
}

static Jsonb *
write_row(AccordManaged *managed, bool is_insert, const AccordRowKey *key,
		  const bool *columns, Jsonb **new_values)
{
	AccordDbUser before = accord_db_become(managed->owner);
	Datum	   *values = palloc((managed->n_columns + managed->n_keys) *
								sizeof(Datum));
	char	   *nulls = palloc(managed->n_columns + managed->n_keys);
	int			n = 0;
	Jsonb	   *row;

	for (int i = 0; i < managed->n_columns; i++)
	{
		AccordColumn *column = &managed->columns[i];
		bool		isnull = false;

		if (is_insert && column->is_key)
		{
			for (int k = 0; k < managed->n_keys; k++)
				if (managed->keys[k] == i)
					values[n] = key->values[k];
		}
		else if (columns[i])
			values[n] = accord_policy_datum(column, new_values[i], &isnull);
		else
			continue;
		nulls[n++] = isnull ? 'n' : ' ';
	}
	for (int k = 0; !is_insert && k < managed->n_keys; k++)
	{
		values[n] = key->values[k];
		nulls[n++] = ' ';
	}
	SPI_connect();
	execute_write(managed, find_write(managed, is_insert, columns), key->text,
				  values, nulls);
	row = returned_row(managed);
	SPI_finish();
	accord_db_be_again(before);
	return row;
}

Jsonb	   *
accord_store_update(AccordManaged *managed, const AccordRowKey *key,
					const bool *columns, Jsonb **values)
{
	return write_row(managed, false, key, columns, values);
}

Jsonb	   *
accord_store_insert(AccordManaged *managed, const AccordRowKey *key,
					const bool *columns, Jsonb **values)
{
	return write_row(managed, true, key, columns, values);
}

void
accord_store_delete(AccordManaged *managed, const AccordRowKey *key)
{
	AccordDbUser before = accord_db_become(managed->owner);

	SPI_connect();
	if (managed->remove == NULL)
		managed->remove = prepare_by_key(managed, "DELETE FROM", "");
	execute_write(managed, managed->remove, key->text, key->values, NULL);
	SPI_finish();
	accord_db_be_again(before);
}

/* ---- row_state ----------------------------------------------------------- */

/* Plans over our own tables; made anew when those are. */
typedef enum OwnPlan
{
	PLAN_READ,
	PLAN_MAKE,
	PLAN_KEEP,
	PLAN_STAMP,
	PLAN_KNOWN,
	PLANS
} OwnPlan;

static const char *const own_queries[PLANS] = {
	[PLAN_READ] = "SELECT state, kept FROM accord.row_state WHERE managed "
	"OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 FOR UPDATE",
	[PLAN_MAKE] = "INSERT INTO accord.row_state (managed, key, state) "
	"VALUES ($1, $2, '{}') ON CONFLICT DO NOTHING",
	[PLAN_KEEP] = "UPDATE accord.row_state SET state = $3, kept = $4 WHERE "
	"managed OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
	[PLAN_STAMP] = "INSERT INTO accord.row_state AS s (managed, key, state) "
	"VALUES ($1, $2, pg_catalog.jsonb_build_object('', "
	"pg_catalog.jsonb_build_array($4)) OPERATOR(pg_catalog.||) $3) "
	"ON CONFLICT (managed, key) DO UPDATE SET state = "
	"accord.restamp(s.state, $3, $5)",
	[PLAN_KNOWN] = "SELECT FROM accord.conflict_log WHERE managed "
	"OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 "
	"AND column_name IS NOT DISTINCT FROM $3 AND loser_source IS NOT DISTINCT "
	"FROM $4 AND loser_event IS NOT DISTINCT FROM $5 AND loser_at "
	"IS NOT DISTINCT FROM $6 LIMIT 1"
};

static Oid	own_types[PLANS][6] = {
	[PLAN_READ] = {INT4OID, TEXTOID},
	[PLAN_MAKE] = {INT4OID, TEXTOID},
	[PLAN_KEEP] = {INT4OID, TEXTOID, JSONBOID, JSONBOID},
	[PLAN_STAMP] = {INT4OID, TEXTOID, JSONBOID, INT8OID, JSONBOID},
	[PLAN_KNOWN] = {INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TIMESTAMPTZOID}
};

static const int own_counts[PLANS] = {2, 2, 4, 5, 6};

static SPIPlanPtr own_plans[PLANS];

/* Runs one of them, connected, as the extension's owner. */
static int
run_own(OwnPlan which, Datum *values, const char *nulls)
{
	int			result;

	if (own_plans[which] == NULL)
		own_plans[which] = prepare(own_queries[which], own_counts[which],
								   own_types[which]);
	result = SPI_execute_plan(own_plans[which], values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI failed on accord.row_state: %s",
			 SPI_result_code_string(result));
	return (int) SPI_processed;
}

/* A column of the first row, in the caller's memory; NULL when null. */
static Jsonb *
own_json(int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, column, &isnull);
	Jsonb	   *json;
	Jsonb	   *copy;

	if (isnull)
		return NULL;
	json = DatumGetJsonbP(value);
	copy = SPI_palloc(VARSIZE(json));
	memcpy(copy, json, VARSIZE(json));
	return copy;
}

void
accord_store_lock(AccordManaged *managed, const char *key, AccordKept *kept)
{
	AccordDbUser before = accord_db_become(accord_db_owner());
	Datum		values[] = {Int32GetDatum(managed->id),
	CStringGetTextDatum(key)};

	memset(kept, 0, sizeof(*kept));
	SPI_connect();
	if (run_own(PLAN_READ, values, NULL) == 0)
	{
		/* whoever is making it as well is waited for */
		kept->is_new = run_own(PLAN_MAKE, values, NULL) == 1;
		if (!kept->is_new && run_own(PLAN_READ, values, NULL) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not lock what is kept of a row of %s",
							managed->name),
					 errhint("Retry the transaction.")));
	}
	if (!kept->is_new)
	{
		kept->state = own_json(1);
		kept->values = own_json(2);
	}
	SPI_finish();
	accord_db_be_again(before);
}

void
accord_store_keep(AccordManaged *managed, const char *key, Jsonb *state,
				  Jsonb *kept)
{
	AccordDbUser before = accord_db_become(accord_db_owner());
	Datum		values[] = {Int32GetDatum(managed->id),
		CStringGetTextDatum(key), JsonbPGetDatum(state),
	kept == NULL ? (Datum) 0 : JsonbPGetDatum(kept)};

	SPI_connect();
	run_own(PLAN_KEEP, values, kept == NULL ? "   n" : NULL);
	SPI_finish();
	accord_db_be_again(before);
}

void
accord_store_stamp(AccordManaged *managed, const char *key, Jsonb *registers,
				   int64 clock, Jsonb *old_values)
{
	AccordDbUser before = accord_db_become(accord_db_owner());
	Datum		values[] = {Int32GetDatum(managed->id),
		CStringGetTextDatum(key), JsonbPGetDatum(registers),
	Int64GetDatum(clock), JsonbPGetDatum(old_values)};

	SPI_connect();
	run_own(PLAN_STAMP, values, NULL);
	SPI_finish();
	accord_db_be_again(before);
}

/* ---- the logs ------------------------------------------------------------ */

typedef struct LogRow
{
	Datum		values[20];
	bool		nulls[20];
	int			n;
} LogRow;

static void
put(LogRow *row, Datum value, bool isnull)
{
	row->values[row->n] = value;
	row->nulls[row->n++] = isnull;
}

static void
put_text(LogRow *row, const char *text)
{
	put(row, text == NULL ? (Datum) 0 : CStringGetTextDatum(text),
		text == NULL);
}

static void
put_json(LogRow *row, Jsonb *json)
{
	put(row, json == NULL ? (Datum) 0 : JsonbPGetDatum(json), json == NULL);
}

static void
put_clock(LogRow *row, int64 clock)
{
	put(row, TimestampTzGetDatum(clock == ACCORD_CLOCK_NONE ? DT_NOBEGIN :
								 clock), false);
}

static void
put_decimal(LogRow *row, const char *number)
{
	put(row, number == NULL ? (Datum) 0 :
		DirectFunctionCall3(numeric_in, CStringGetDatum(number),
							ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)),
		number == NULL);
}

static int
current_slot(void)
{
	return (int) (accord_db_sequence_last(accord_db_relid("conflict_slot")) %
				  ACCORD_CONFLICT_SLOTS);
}

static void
insert_row(const char *log, int slot, LogRow *row)
{
	Relation	rel = table_open(accord_db_slot_relid(log, slot),
								 RowExclusiveLock);
	HeapTuple	tuple;

	Assert(row->n == RelationGetDescr(rel)->natts);
	tuple = heap_form_tuple(RelationGetDescr(rel), row->values, row->nulls);
	accord_db_insert(rel, &tuple, 1);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

void
accord_store_log_change(AccordManaged *managed, const char *key,
						const AccordRowChange *change, Jsonb *before)
{
	LogRow		row = {.n = 0};
	int			slot = current_slot();

	put(&row, TimestampTzGetDatum(GetCurrentTimestamp()), false);
	put_clock(&row, change->stamp.clock);
	put(&row, Int32GetDatum(managed->id), false);
	put(&row, Int16GetDatum(slot), false);
	put_text(&row, key);
	put_text(&row, accord_merge_op_word(change->op));
	put_text(&row, change->stamp.source);
	put_text(&row, change->stamp.event[0] == '\0' ? NULL :
			 change->stamp.event);
	put_decimal(&row, change->stamp.revision);
	put_json(&row, change->changes);
	put_json(&row, change->base);
	put_json(&row, before);
	put(&row, BoolGetDatum(change->is_override), false);
	insert_row("change_log", slot, &row);
}

/* Whether the loser is on record: the change came once more. */
static bool
is_known(AccordManaged *managed, const char *key, const char *column,
		 const AccordStamp *loser)
{
	AccordDbUser before = accord_db_become(accord_db_owner());
	LogRow		row = {.n = 0};
	char		nulls[7];
	bool		known;

	put(&row, Int32GetDatum(managed->id), false);
	put_text(&row, key);
	put_text(&row, column);
	put_text(&row, loser->source);
	put_text(&row, loser->event[0] == '\0' ? NULL : loser->event);
	put_clock(&row, loser->clock);
	for (int i = 0; i < row.n; i++)
		nulls[i] = row.nulls[i] ? 'n' : ' ';
	SPI_connect();
	known = run_own(PLAN_KNOWN, row.values, nulls) > 0;
	SPI_finish();
	accord_db_be_again(before);
	return known;
}

void
accord_store_log_conflict(AccordManaged *managed, const char *key,
						  const AccordConflict *conflict)
{
	const AccordVerdict *v = &conflict->verdict;
	const char *column = conflict->column < 0 ? NULL :
	managed->columns[conflict->column].name;
	LogRow		row = {.n = 0};
	int			slot = current_slot();

	if (is_known(managed, key, column, &v->loser_stamp))
		return;
	put(&row, Int64GetDatum(accord_db_sequence_next(accord_db_relid("conflict_seq"))),
		false);
	put(&row, TimestampTzGetDatum(GetCurrentTimestamp()), false);
	put_clock(&row, v->winner_stamp.clock);
	put_clock(&row, v->loser_stamp.clock);
	put(&row, Int32GetDatum(managed->id), false);
	put(&row, Int16GetDatum(slot), false);
	put_text(&row, key);
	put_text(&row, column);
	put_text(&row, v->rule);
	put(&row, BoolGetDatum(v->held), false);
	put_text(&row, v->winner_stamp.source);
	put_text(&row, v->winner_stamp.event == NULL ||
			 v->winner_stamp.event[0] == '\0' ? NULL : v->winner_stamp.event);
	put_text(&row, v->loser_stamp.source);
	put_text(&row, v->loser_stamp.event[0] == '\0' ? NULL :
			 v->loser_stamp.event);
	put_decimal(&row, v->loser_stamp.revision);
	put_json(&row, accord_value_is_null(v->winner) ? NULL : v->winner);
	put_json(&row, accord_value_is_null(v->loser) ? NULL : v->loser);
	put_text(&row, accord_reason == NULL || accord_reason[0] == '\0' ? NULL :
			 accord_reason);
	insert_row("conflict_log", slot, &row);
	accord_counter_note(ACCORD_COUNTER_CONFLICTS, 1);
}
