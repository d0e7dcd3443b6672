/*
 * past_table.c: a captured table whose past is asked for.
 *
 * Runs in any backend that calls accord.as_of() or accord.row_as_of(): looks
 * the table and the point up, checks that the caller may read it, and makes
 * rows of what events say (past.c, past_row.c).
 *
 * Invariants
 *   - The snapshot is taken after the safe number (logread.c), and the point
 *     is not beyond that.
 *   - Who may not read all of the table's present may not read its past.
 *
 * On failure everything is released with the transaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "db.h"
#include "image.h"
#include "log.h"
#include "past_table.h"
#include "point.h"
#include "row.h"
#include "rowkey.h"

/* ---- the table and the point --------------------------------------------- */

/* A query of our own, planned once in a session. */
typedef struct OwnQuery
{
	const char *text;
	int			n;				/* of its arguments */
	Oid			types[2];
	SPIPlanPtr	plan;
} OwnQuery;

static OwnQuery point_query = {
	"SELECT accord.point_seq($1)", 1, {TEXTOID}, NULL
};
static OwnQuery table_query = {
	"SELECT id, key_columns, hidden, condition, is_shaped "
	"FROM accord.history_table($1, $2)", 2, {REGCLASSOID, INT8OID}, NULL
};
static OwnQuery shapes_query = {
	"SELECT seq, ord, names FROM accord.history_shapes($1)", 1, {INT4OID}, NULL
};
static OwnQuery citus_query = {
	"SELECT accord.citus_check_past($1)", 1, {REGCLASSOID}, NULL
};

static void
execute(OwnQuery *query, Datum *values)
{
	if (query->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(query->text, query->n, query->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\"", query->text);
		query->plan = plan;
	}
	if (SPI_execute_plan(query->plan, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not execute \"%s\"", query->text);
}

/* Evaluates a query that returns one row; its columns as Datums. */
static void
query_row(OwnQuery *query, Datum *values, Datum *result, bool *nulls, int columns)
{
	execute(query, values);
	if (SPI_processed != 1)
		elog(ERROR, "\"%s\" did not return one row", query->text);
	for (int i = 0; i < columns; i++)
		result[i] = SPI_getbinval(SPI_tuptable->vals[0],
								  SPI_tuptable->tupdesc, i + 1, &nulls[i]);
}

/* The point that the argument is: a time, a number, or a text that is one. */
static int64
point_of(FunctionCallInfo fcinfo, int argument, int64 safe)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, argument);
	Datum		value = PG_GETARG_DATUM(argument);
	int64		seq;
	bool		isnull;

	if (type == TIMESTAMPTZOID)
		seq = accord_point_at(DatumGetTimestampTz(value));
	else
	{
		Datum		result;

		if (type == INT8OID)
			value = CStringGetTextDatum(psprintf(INT64_FORMAT,
												 DatumGetInt64(value)));
		query_row(&point_query, &value, &result, &isnull, 1);
		if (isnull)
			elog(ERROR, "accord.point_seq() returned null");
		seq = DatumGetInt64(result);
	}
	return Min(seq, safe);
}

static int
column_index(AccordPastTable *table, const char *name)
{
	for (int i = 0; i < table->desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(table->desc, i);

		if (!attribute->attisdropped &&
			strcmp(NameStr(attribute->attname), name) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of captured table %s does not exist",
					name, table->name),
			 errhint("Call accord.capture() again with the columns that the "
					 "table has now.")));
}

/* Makes of the array of names of its key's columns what rows are known by. */
static void
set_keys(AccordPastTable *table, Datum array)
{
	Bitmapset  *columns = NULL;
	Datum	   *names;
	bool	   *nulls;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &names, &nulls, &table->n_keys);
	table->keys = palloc(table->n_keys * sizeof(int));
	for (int i = 0; i < table->n_keys; i++)
	{
		table->keys[i] = column_index(table, TextDatumGetCString(names[i]));
		columns = bms_add_member(columns, table->keys[i] + 1);
	}
	table->image = accord_image_prepare(table->desc, columns);
}

static void
set_hidden(AccordPastTable *table, Datum array)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &names, &nulls, &n);
	for (int i = 0; i < n; i++)
		table->hidden = bms_add_member(table->hidden,
									   column_index(table,
													TextDatumGetCString(names[i])));
}

/* Reads what became of the table's columns, when anything did. */
static void
set_shapes(AccordPastTable *table, MemoryContext context)
{
	Datum		values[] = {Int32GetDatum(table->id)};
	MemoryContext old;

	execute(&shapes_query, values);
	old = MemoryContextSwitchTo(context);
	table->n_shapes = SPI_processed;
	table->shapes = palloc0(Max(table->n_shapes, 1) * sizeof(AccordPastShape));
	for (int i = 0; i < table->n_shapes; i++)
	{
		AccordPastShape *shape = &table->shapes[i];
		Datum		columns[3];
		Datum	   *names;
		bool	   *nulls;
		bool		isnull;
		int			n;

		for (int c = 0; c < 3; c++)
			columns[c] = SPI_getbinval(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, c + 1, &isnull);
		shape->seq = DatumGetInt64(columns[0]);
		shape->ord = DatumGetInt32(columns[1]);
		shape->names = palloc0(table->desc->natts * sizeof(char *));
		deconstruct_array(DatumGetArrayTypeP(columns[2]), TEXTOID, -1, false,
						  TYPALIGN_INT, &names, &nulls, &n);
		for (int c = 0; c < Min(n, table->desc->natts); c++)
			shape->names[c] = nulls[c] ? NULL : TextDatumGetCString(names[c]);
	}
	MemoryContextSwitchTo(old);
}

/* How columns were called when an event was written. */
static char **
names_at(AccordPastTable *table, int64 seq, int32 ord)
{
	int			i = table->n_shapes - 1;

	while (i > 0 && (table->shapes[i].seq > seq ||
					 (table->shapes[i].seq == seq &&
					  table->shapes[i].ord > ord)))
		i--;
	return i < 0 ? NULL : table->shapes[i].names;
}

/*
 * What accord.history_table() knows of it: raises when the log does not reach
 * back to the point.
 */
static void
look_up(AccordPastTable *table, int64 seq, MemoryContext context)
{
	Datum		values[] = {ObjectIdGetDatum(table->relid), Int64GetDatum(seq)};
	Datum		result[5];
	bool		nulls[5];
	MemoryContext old;

	query_row(&table_query, values, result, nulls, 5);
	old = MemoryContextSwitchTo(context);
	table->id = DatumGetInt32(result[0]);
	table->seq = seq;
	table->desc = lookup_rowtype_tupdesc_copy(table->rowtype, -1);
	set_keys(table, result[1]);
	set_hidden(table, result[2]);
	table->condition = nulls[3] ? NULL : TextDatumGetCString(result[3]);
	table->maker = accord_row_prepare(table->rowtype);
	MemoryContextSwitchTo(old);
	if (DatumGetBool(result[4]))
		set_shapes(table, context);
}

/*
 * Who reads the past of a table must be allowed to read its present, all of
 * it: the log knows nothing of row security.
 */
static void
check_readable(AccordPastTable *table)
{
	AclResult	acl = pg_class_aclcheck(table->relid, GetUserId(),
										ACL_SELECT);

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl,
					   get_relkind_objtype(get_rel_relkind(table->relid)),
					   get_rel_name(table->relid));
	if (check_enable_rls(table->relid, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot read the past of table %s: row security "
						"applies to you", table->name),
				 errhint("Ask a role that bypasses row security, such as the "
						 "table's owner.")));
}

/* With Citus, a table may be less than all of its rows. */
static void
check_whole(AccordPastTable *table)
{
	Datum		relation = ObjectIdGetDatum(table->relid);

	if (OidIsValid(get_relname_relid("pg_dist_partition",
									 PG_CATALOG_NAMESPACE)))
		execute(&citus_query, &relation);
}

void
accord_past_begin(FunctionCallInfo fcinfo, AccordPastTable *table, int point)
{
	MemoryContext context = CurrentMemoryContext;
	int64		safe;

	table->rowtype = get_fn_expr_argtype(fcinfo->flinfo, 0);
	table->relid = OidIsValid(table->rowtype) ?
		get_typ_typrelid(table->rowtype) : InvalidOid;
	if (!OidIsValid(table->relid))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the first argument of %s() is not a row of a table",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("Give NULL::schema.table.")));
	if (PG_ARGISNULL(point))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("no point in time is given to %s()",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("Give a time, a commit number, or the name of a "
						 "mark.")));
	table->name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(table->relid)),
											 get_rel_name(table->relid));
	check_readable(table);
	safe = accord_log_safe_seq();
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	check_whole(table);
	look_up(table, point_of(fcinfo, point, safe), context);
}

void
accord_past_end(void)
{
	SPI_finish();
	PopActiveSnapshot();
}

/* ---- rows ---------------------------------------------------------------- */

char	   *
accord_past_key(AccordPastTable *table, const Datum *values, const bool *nulls)
{
	Jsonb	   *object = accord_image_build(table->image, values, nulls, NULL);
	char	   *parts[INDEX_MAX_KEYS];

	for (int i = 0; i < table->n_keys; i++)
		parts[i] = accord_image_text(object,
									 NameStr(TupleDescAttr(table->desc,
														   table->keys[i])->attname));
	return accord_rowkey_make(table->n_keys, parts);
}

void
accord_past_deform(AccordPastTable *table, HeapTupleHeader row, Datum *values, bool *nulls)
{
	HeapTupleData tuple;

	tuple.t_data = row;
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, table->desc, values, nulls);
}

void
accord_past_hide(AccordPastTable *table, bool *nulls)
{
	int			i = -1;

	while ((i = bms_next_member(table->hidden, i)) >= 0)
		nulls[i] = true;
}

static Jsonb *
event_object(HeapTuple event, TupleDesc desc, AccordEventColumn column)
{
	bool		isnull;
	Datum		value = heap_getattr(event, column, desc, &isnull);

	return isnull ? NULL : DatumGetJsonbP(value);
}

char
accord_past_insert_kind(bool isnull, Datum before)
{
	Jsonb	   *object = isnull ? NULL : DatumGetJsonbP(before);

	return object != NULL && JB_ROOT_IS_OBJECT(object) &&
		JB_ROOT_COUNT(object) == 0 ? ACCORD_PAST_BASELINE : ACCORD_PAST_INSERT;
}

HeapTuple
accord_past_before(AccordPastTable *table, HeapTuple event, TupleDesc desc, char op,
				   int64 seq, int32 ord)
{
	if (op == ACCORD_PAST_INSERT)
		return NULL;
	return accord_row_make(table->maker, names_at(table, seq, ord),
						   event_object(event, desc, ACCORD_EVENT_BEFORE),
						   event_object(event, desc, ACCORD_EVENT_PAYLOAD));
}

char
accord_past_letter(Datum op)
{
	return VARDATA_ANY(DatumGetTextPP(op))[0];
}

char
accord_past_op(HeapTuple event, TupleDesc desc)
{
	bool		isnull;
	char		op = accord_past_letter(heap_getattr(event, ACCORD_EVENT_OP, desc,
													 &isnull));
	Datum		before;

	if (op != ACCORD_PAST_INSERT)
		return op;
	before = heap_getattr(event, ACCORD_EVENT_BEFORE, desc, &isnull);
	return accord_past_insert_kind(isnull, before);
}

int64
accord_past_int64(HeapTuple tuple, int column, TupleDesc desc)
{
	bool		isnull;

	return DatumGetInt64(heap_getattr(tuple, column, desc, &isnull));
}
