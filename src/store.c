/*
 * store.c: managed rows, in their tables.
 *
 * Runs in the application's backends, inside their transactions. A managed
 * table is written as its owner, as PostgreSQL does for foreign keys, with
 * plans kept for the session. Plans name operators with their schemas, so
 * that no search_path can bring in others. A row is found by the key's index
 * without a plan (seek.c) where the table has such an index for itself.
 *
 * Lock order: a row of the table, then its row of row_state, then the logs'
 * sequences. Who inserts a row locks its row of row_state first.
 *
 * On failure the statement raises and the transaction decides.
 */
#include "postgres.h"

#include "access/genam.h"
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
#include "db.h"
#include "rowkey.h"
#include "seek.h"
#include "store.h"
#include "value.h"

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
	SPIPlanPtr	plan = SPI_prepare_cursor(query, n, types,
										  CURSOR_OPT_GENERIC_PLAN);

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare: %s", query);
	accord_db_pin_plan(plan);
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
	else if (!SPI_plan_is_valid(*plan))
		accord_db_pin_plan(*plan);
	result = SPI_execute_plan(*plan, key->values, NULL, read_only, 1);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not read %s", managed->name);
	row = returned_row(managed);
	SPI_finish();
	accord_db_be_again(before);
	return row;
}

/*
 * The same by the key's index, without a plan: the table's owner may read and
 * lock what is in it. false: there is no such index (any more).
 */
static bool
seek_row(AccordManaged *managed, const AccordRowKey *key, Jsonb **row)
{
	Relation	heap = table_open(managed->relid, RowShareLock);
	ScanKeyData keys[INDEX_MAX_KEYS];
	List	   *indexes = RelationGetIndexList(heap);
	bool		is_there = list_member_oid(indexes, managed->key_index);

	list_free(indexes);
	if (is_there)
	{
		Relation	index = index_open(managed->key_index, AccessShareLock);
		TupleTableSlot *slot = table_slot_create(heap, NULL);

		for (int i = 0; i < managed->n_keys; i++)
		{
			keys[i] = managed->index_scan[i];
			keys[i].sk_argument = key->values[managed->index_keys[i]];
		}
		*row = NULL;
		if (accord_seek_locked(heap, index, keys, managed->n_keys, slot))
		{
			slot_getallattrs(slot);
			*row = accord_image_build(managed->image, slot->tts_values,
									  slot->tts_isnull, NULL);
		}
		ExecDropSingleTupleTableSlot(slot);
		index_close(index, NoLock);
	}
	table_close(heap, NoLock);
	return is_there;
}

Jsonb	   *
accord_store_find(AccordManaged *managed, const AccordRowKey *key)
{
	Jsonb	   *row;

	if (OidIsValid(managed->key_index) && seek_row(managed, key, &row))
		return row;
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
		int			result;

		if (!SPI_plan_is_valid(plan))
			accord_db_pin_plan(plan);
		result = SPI_execute_plan(plan, values, nulls, false, 0);

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
