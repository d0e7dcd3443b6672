/*
 * target.c: a message's change, written into a table of the application.
 *
 * Runs in the application's backends, as the user who receives. The row is
 * named by its primary key and locked first; then updated, inserted or
 * deleted, by statements that are prepared once for each table and set of
 * columns, for every value alike (a generic plan by the primary key).
 *
 * Invariants
 *   - A statement names everything with its schema, operators included, so
 *     search_path has no say.
 *   - What is kept of a table is forgotten when its definition changes.
 *
 * On failure the statement's error is the caller's.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "image.h"
#include "invalidation.h"
#include "json.h"
#include "managed.h"
#include "partition.h"
#include "rowkey.h"
#include "target.h"

#define MAX_STATEMENTS 64		/* kept for one table */
#define MAX_TRIES 16			/* at a row that comes and goes */

typedef enum Verb
{
	VERB_LOCK,
	VERB_UPDATE,
	VERB_INSERT,
	VERB_DELETE
} Verb;

/* A statement for one set of columns. */
typedef struct Statement
{
	Verb		verb;
	char	   *columns;		/* their names, each quoted, in jsonb's order */
	SPIPlanPtr	plan;
	struct Statement *next;
} Statement;

typedef struct Target
{
	Oid			relid;			/* hash key */
	bool		valid;
	int			in_use;			/* calls under way, which may be nested */
	MemoryContext context;		/* of all the rest */
	char	   *name;			/* with its schema, quoted */
	char	   *alias;			/* what no column is called */
	AccordImage *image;			/* how its rows are written */
	AccordTargetEvents events;
	int			n_event_keys;
	char	  **event_keys;		/* columns that events name a row by */
	int			n_keys;
	char	  **keys;			/* columns of the primary key */
	char	  **equality;		/* their operators */
	bool		generated_key;	/* an identity column that always generates */
	bool		is_partition;
	Statement  *statements;
	int			n_statements;
} Target;

static HTAB *targets = NULL;

/* Relation cache callback. */
static void
forget_target(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;

	if (OidIsValid(relid))
	{
		target = hash_search(targets, &relid, HASH_FIND, NULL);
		if (target != NULL)
			target->valid = false;
		return;
	}
	hash_seq_init(&scan, targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		target->valid = false;
}

static void
create_targets(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Target);
	ctl.hcxt = TopMemoryContext;
	targets = hash_create("pg_accord targets", 32, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	accord_invalidation_heed(forget_target, (Datum) 0);
}

/* The equality of a primary key's column, as OPERATOR(schema.=). */
static char *
equality_operator(Relation index, int column)
{
	Oid			type = index->rd_opcintype[column];
	Oid			operator = get_opfamily_member(index->rd_opfamily[column], type,
											   type, BTEqualStrategyNumber);
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	name = psprintf("OPERATOR(%s.%s)",
					quote_identifier(get_namespace_name(form->oprnamespace)),
					NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return name;
}

static void
refuse_target(Relation rel, const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("cannot receive into \"%s\": %s",
					RelationGetRelationName(rel), what),
			 errhint("%s", hint)));
}

/* Reads the primary key; everything is allocated in the target's context. */
static void
load_keys(Target *target, Relation rel)
{
	Relation	index;

	list_free(RelationGetIndexList(rel));	/* sets rd_pkindex */
	if (!OidIsValid(rel->rd_pkindex))
		refuse_target(rel, "it has no primary key",
					  "Add one, or receive under a topic.");
	index = index_open(rel->rd_pkindex, AccessShareLock);
	target->n_keys = index->rd_index->indnkeyatts;
	target->keys = palloc(target->n_keys * sizeof(char *));
	target->equality = palloc(target->n_keys * sizeof(char *));
	for (int i = 0; i < target->n_keys; i++)
	{
		Form_pg_attribute column =
		TupleDescAttr(RelationGetDescr(rel),
					  index->rd_index->indkey.values[i] - 1);

		target->keys[i] = pstrdup(NameStr(column->attname));
		target->equality[i] = equality_operator(index, i);
		if (column->attidentity == ATTRIBUTE_IDENTITY_ALWAYS)
			target->generated_key = true;
	}
	index_close(index, NoLock);
}

/* What no column is called, so that it means the row. */
static char *
choose_alias(Relation rel)
{
	char	   *alias = pstrdup("r");

	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		if (strcmp(NameStr(TupleDescAttr(RelationGetDescr(rel), i)->attname),
				   alias) == 0)
		{
			alias = psprintf("%s_", alias);
			i = -1;
		}
	return alias;
}

/* accord.capture_row(). */
static Oid
capture_function(void)
{
	List	   *name = list_make2(makeString(pstrdup(ACCORD_SCHEMA)),
								  makeString(pstrdup("capture_row")));

	return LookupFuncName(name, 0, NULL, true);
}

/* The number that the table's capture trigger carries; 0: it has none. */
static int
captured_number(Relation rel)
{
	Oid			function = capture_function();

	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (trigger->tgfoid == function && trigger->tgnargs > 0 &&
			trigger->tgenabled != TRIGGER_DISABLED)
			return pg_strtoint32(trigger->tgargs[0]);
	}
	return 0;
}

/* A text of the one row that was read; NULL: null. */
static char *
read_text(int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, column);

	return value == NULL ? NULL : MemoryContextStrdup(context, value);
}

/* Reads how the table is captured, as the owner of accord.captured. */
static void
load_captured(Target *target)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(target->events.table_id)};
	AccordDbUser before;

	before = accord_db_become(accord_db_owner());
	SPI_connect();
	if (SPI_execute_with_args("SELECT topic, account_column, k "
							  "FROM accord.captured, "
							  "pg_catalog.unnest(key_columns) WITH ORDINALITY "
							  "AS u(k, n) WHERE id OPERATOR(pg_catalog.=) $1 "
							  "ORDER BY n", 1, types, values, NULL, false,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read accord.captured");
	if (SPI_processed > 0)
	{
		target->events.topic = read_text(1, context);
		target->events.account = read_text(2, context);
		target->n_event_keys = (int) SPI_processed;
		target->event_keys = MemoryContextAlloc(context, SPI_processed *
												sizeof(char *));
	}
	for (uint64 i = 0; i < SPI_processed; i++)
		target->event_keys[i] =
			MemoryContextStrdup(context,
								SPI_getvalue(SPI_tuptable->vals[i],
											 SPI_tuptable->tupdesc, 3));
	SPI_finish();
	accord_db_be_again(before);
}

static void
load_target(Target *target)
{
	Relation	rel = table_open(target->relid, AccessShareLock);
	MemoryContext old;

	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		refuse_target(rel, "it is not a table",
					  "Give a table as target, or receive under a topic.");
	if (target->context == NULL)
		target->context = AllocSetContextCreate(TopMemoryContext,
												"pg_accord target",
												ALLOCSET_SMALL_SIZES);
	for (Statement *s = target->statements; s != NULL; s = s->next)
		SPI_freeplan(s->plan);
	target->statements = NULL;
	target->n_statements = 0;
	MemoryContextReset(target->context);
	old = MemoryContextSwitchTo(target->context);
	target->name =
		quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
								   RelationGetRelationName(rel));
	target->generated_key = false;
	target->is_partition = rel->rd_rel->relispartition;
	target->alias = choose_alias(rel);
	target->image = accord_image_prepare(RelationGetDescr(rel), NULL);
	load_keys(target, rel);
	target->events.table_id = captured_number(rel);
	target->events.topic = pstrdup(RelationGetRelationName(rel));
	target->events.account = NULL;
	target->n_event_keys = target->n_keys;
	target->event_keys = target->keys;
	if (target->events.table_id != 0)
		load_captured(target);
	MemoryContextSwitchTo(old);
	table_close(rel, NoLock);
	target->valid = true;
}

static Target *
get_target(Oid relid)
{
	Target	   *target;
	bool		found;

	if (targets == NULL)
		create_targets();
	target = hash_search(targets, &relid, HASH_ENTER, &found);
	if (!found)
	{
		target->valid = false;
		target->in_use = 0;
		target->context = NULL;
		target->statements = NULL;
	}
	/* a call that is under way goes on with what it has */
	if (!target->valid && target->in_use == 0)
		load_target(target);
	return target;
}

/*
 * Statements
 */

static bool
is_key(Target *target, const char *column)
{
	for (int i = 0; i < target->n_keys; i++)
		if (strcmp(target->keys[i], column) == 0)
			return true;
	return false;
}

/* A column's type, for the list of columns of jsonb_to_record(). */
static char *
column_type(Target *target, const char *column)
{
	AttrNumber	number = get_attnum(target->relid, column);
	Oid			type;
	int32		typmod;
	Oid			collation;

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table %s does not exist", column,
						target->name),
				 errhint("Send only columns of the table as changes, or have "
						 "the source's mapping pick them.")));
	get_atttypetypmodcoll(target->relid, number, &type, &typmod, &collation);
	return format_type_extended(type, typmod, FORMAT_TYPE_TYPEMOD_GIVEN |
								FORMAT_TYPE_FORCE_QUALIFY);
}

/* FROM jsonb_to_record($1) AS m(key, ..., column, ...) */
static void
add_record(StringInfo sql, Target *target, List *columns)
{
	ListCell   *lc;

	appendStringInfoString(sql, "pg_catalog.jsonb_to_record($1) AS m(");
	for (int i = 0; i < target->n_keys; i++)
		appendStringInfo(sql, "%s%s %s", i > 0 ? ", " : "",
						 quote_identifier(target->keys[i]),
						 column_type(target, target->keys[i]));
	foreach(lc, columns)
		appendStringInfo(sql, ", %s %s", quote_identifier(lfirst(lc)),
						 column_type(target, lfirst(lc)));
	appendStringInfoChar(sql, ')');
}

static void
add_condition(StringInfo sql, Target *target)
{
	for (int i = 0; i < target->n_keys; i++)
		appendStringInfo(sql, "%s %s.%s %s m.%s",
						 i > 0 ? " AND" : " WHERE", target->alias,
						 quote_identifier(target->keys[i]),
						 target->equality[i],
						 quote_identifier(target->keys[i]));
}

/* Columns as a list, each after a prefix. */
static void
add_columns(StringInfo sql, Target *target, List *columns, const char *prefix)
{
	ListCell   *lc;

	for (int i = 0; i < target->n_keys; i++)
		appendStringInfo(sql, "%s%s%s", i > 0 ? ", " : "", prefix,
						 quote_identifier(target->keys[i]));
	foreach(lc, columns)
		appendStringInfo(sql, ", %s%s", prefix, quote_identifier(lfirst(lc)));
}

static void
add_insert(StringInfo sql, Target *target, List *columns)
{
	appendStringInfo(sql, "INSERT INTO %s AS %s (", target->name,
					 target->alias);
	add_columns(sql, target, columns, "");
	appendStringInfo(sql, ")%s SELECT ", target->generated_key ?
					 " OVERRIDING SYSTEM VALUE" : "");
	add_columns(sql, target, columns, "m.");
	appendStringInfoString(sql, " FROM ");
	add_record(sql, target, columns);
	appendStringInfoString(sql, " ON CONFLICT (");
	add_columns(sql, target, NIL, "");
	appendStringInfoString(sql, ") DO NOTHING");
}

static void
add_update(StringInfo sql, Target *target, List *columns)
{
	const char *separator = "";
	ListCell   *lc;

	appendStringInfo(sql, "UPDATE %s AS %s SET ", target->name,
					 target->alias);
	foreach(lc, columns)
	{
		const char *name = quote_identifier(lfirst(lc));

		appendStringInfo(sql, "%s%s = m.%s", separator, name, name);
		separator = ", ";
	}
	appendStringInfoString(sql, " FROM ");
	add_record(sql, target, columns);
	add_condition(sql, target);
}

/* $1 holds the key columns and the others; the row comes back as one value. */
static char *
make_sql(Target *target, Verb verb, List *columns)
{
	StringInfoData sql;

	initStringInfo(&sql);
	switch (verb)
	{
		case VERB_LOCK:
			appendStringInfo(&sql, "SELECT %s FROM %s AS %s, ", target->alias,
							 target->name, target->alias);
			add_record(&sql, target, NIL);
			add_condition(&sql, target);
			appendStringInfo(&sql, " FOR UPDATE OF %s", target->alias);
			return sql.data;
		case VERB_DELETE:
			appendStringInfo(&sql, "DELETE FROM %s AS %s USING ", target->name,
							 target->alias);
			add_record(&sql, target, NIL);
			add_condition(&sql, target);
			break;
		case VERB_INSERT:
			add_insert(&sql, target, columns);
			break;
		case VERB_UPDATE:
			add_update(&sql, target, columns);
			break;
	}
	appendStringInfo(&sql, " RETURNING %s", target->alias);
	return sql.data;
}

/* The columns' names as one text, which is the same for the same columns. */
static char *
join_columns(List *columns)
{
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, columns)
		appendStringInfo(&names, "%s ", quote_identifier(lfirst(lc)));
	return names.data;
}

/* Prepared once, within SPI. */
static SPIPlanPtr
get_plan(Target *target, Verb verb, List *columns)
{
	Oid			types[] = {JSONBOID};
	char	   *names = join_columns(columns);
	Statement  *statement;
	SPIPlanPtr	plan;

	for (statement = target->statements; statement != NULL;
		 statement = statement->next)
		if (statement->verb == verb && strcmp(statement->columns, names) == 0)
		{
			if (!SPI_plan_is_valid(statement->plan))
				accord_db_pin_plan(statement->plan);
			return statement->plan;
		}
	plan = SPI_prepare_cursor(make_sql(target, verb, columns), 1, types,
							  CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "could not prepare a statement for %s: %s", target->name,
			 SPI_result_code_string(SPI_result));
	if (target->n_statements >= MAX_STATEMENTS)
		return plan;			/* goes with this call */
	SPI_keepplan(plan);
	accord_db_pin_plan(plan);
	statement = MemoryContextAlloc(target->context, sizeof(Statement));
	statement->verb = verb;
	statement->columns = MemoryContextStrdup(target->context, names);
	statement->plan = plan;
	statement->next = target->statements;
	target->statements = statement;
	target->n_statements++;
	return plan;
}

/* A row as jsonb, the same in every session whatever its settings. */
static Jsonb *
write_image(Target *target, Datum row)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(row);
	TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
											  HeapTupleHeaderGetTypMod(header));
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	HeapTupleData tuple;
	Jsonb	   *image;

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, desc, values, nulls);
	image = accord_image_build(target->image, values, nulls, NULL);
	ReleaseTupleDesc(desc);
	return image;
}

/* The row that the statement returned, in the given context; NULL: none. */
static Jsonb *
run_statement(Target *target, Verb verb, List *columns, Jsonb *document,
			  MemoryContext context)
{
	Datum		values[] = {JsonbPGetDatum(document)};
	MemoryContext old;
	Jsonb	   *row;
	bool		isnull;
	int			result = SPI_execute_plan(get_plan(target, verb, columns),
										  values, NULL, false, 0);

	if (result < 0)
		elog(ERROR, "could not write %s: %s", target->name,
			 SPI_result_code_string(result));
	if (SPI_processed == 0)
		return NULL;
	old = MemoryContextSwitchTo(context);
	row = write_image(target, SPI_getbinval(SPI_tuptable->vals[0],
											SPI_tuptable->tupdesc, 1,
											&isnull));
	MemoryContextSwitchTo(old);
	return row;
}

/*
 * The key, and the change as a document
 */

static void
push_string(AccordJsonbState *state, JsonbIteratorToken token,
			const char *string)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, string);
	value.val.string.len = strlen(string);
	accord_jsonb_push(state, token, &value);
}

/* The value of a key column in a composite key, an object or an array. */
static JsonbValue *
composite_part(Target *target, int column, Jsonb *key)
{
	if (JB_ROOT_IS_OBJECT(key))
		return getKeyJsonValueFromContainer(&key->root, target->keys[column],
											strlen(target->keys[column]), NULL);
	if (JB_ROOT_IS_ARRAY(key) && !JB_ROOT_IS_SCALAR(key))
		return getIthJsonbValueFromContainer(&key->root, column);
	return NULL;
}

static Jsonb *
parse_composite(Target *target, text * key)
{
	char	   *string = text_to_cstring(key);

	if (string[0] != '{' && string[0] != '[')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key \"%s\" of table %s is not JSON, but its primary "
						"key has %d columns", string, target->name,
						target->n_keys),
				 errhint("Give an object of the key columns, or an array in "
						 "their order; or null, and the columns among the "
						 "changes.")));
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(string)));
}

/* The key columns as an object. */
static Jsonb *
key_object(Target *target, const AccordMessage *message)
{
	AccordJsonbState state = {0};
	Jsonb	   *composite = NULL;

	if (message->key != NULL && target->n_keys > 1)
		composite = parse_composite(target, message->key);
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < target->n_keys; i++)
	{
		JsonbValue *value = NULL;

		push_string(&state, WJB_KEY, target->keys[i]);
		if (message->key != NULL && composite == NULL)
		{
			push_string(&state, WJB_VALUE, text_to_cstring(message->key));
			continue;
		}
		if (composite != NULL)
			value = composite_part(target, i, composite);
		else if (message->changes != NULL && JB_ROOT_IS_OBJECT(message->changes))
			value = getKeyJsonValueFromContainer(&message->changes->root,
												 target->keys[i],
												 strlen(target->keys[i]), NULL);
		if (value == NULL || value->type == jbvNull)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("message about table %s has no value for its key "
							"column \"%s\"", target->name, target->keys[i]),
					 errhint("Give it as key, or among the changes.")));
		accord_jsonb_push(&state, WJB_VALUE, value);
	}
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

/* A key column among the changes must say the same as the key. */
static void
check_key_column(Target *target, const char *column, Jsonb *key,
				 JsonbValue *value)
{
	JsonbValue *given = getKeyJsonValueFromContainer(&key->root, column,
													 strlen(column), NULL);
	char	   *text = accord_json_text(value);

	if (text == NULL || strcmp(text, accord_json_text(given)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("changes to table %s would change its key column \"%s\"",
						target->name, column),
				 errhint("Send a delete of the old key and an insert of the "
						 "new one.")));
}

/* The columns that are changed, but those of the key. */
static List *
list_columns(Target *target, const AccordMessage *message, Jsonb *key)
{
	List	   *columns = NIL;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	if (message->changes == NULL || !JB_ROOT_IS_OBJECT(message->changes))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("changes to table %s are not a JSON object",
						target->name),
				 errhint("Give an object of columns and their values.")));
	iterator = JsonbIteratorInit(&message->changes->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE && !is_key(target, name))
			columns = lappend(columns, name);
		else if (token == WJB_VALUE)
			check_key_column(target, name, key, &value);
	}
	return columns;
}

/* The old values of what has changed. */
static Jsonb *
changed_columns(Jsonb *old, Jsonb *new)
{
	AccordJsonbState state = {0};
	JsonbIterator *iterator = JsonbIteratorInit(&old->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	JsonbValue	name = {0};

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		JsonbValue *now;
		Jsonb	   *a;
		Jsonb	   *b;

		if (token == WJB_KEY)
			name = value;
		if (token != WJB_VALUE)
			continue;
		now = getKeyJsonValueFromContainer(&new->root, name.val.string.val,
										   name.val.string.len, NULL);
		a = JsonbValueToJsonb(&value);
		b = now == NULL ? NULL : JsonbValueToJsonb(now);
		if (b != NULL && compareJsonbContainers(&a->root, &b->root) == 0)
			continue;
		accord_jsonb_push(&state, WJB_KEY, &name);
		accord_jsonb_push(&state, WJB_VALUE, &value);
	}
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

/*
 * Applying
 */

static Verb
parse_op(const AccordMessage *message, bool *may_insert, bool *may_update)
{
	char	   *op = message->op ? text_to_cstring(message->op) : "upsert";

	*may_insert = strcmp(op, "upsert") == 0 || strcmp(op, "insert") == 0;
	*may_update = strcmp(op, "upsert") == 0 || strcmp(op, "update") == 0;
	if (*may_insert || *may_update)
		return VERB_UPDATE;
	if (strcmp(op, "delete") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("op \"%s\" of a message about a table is not known", op),
				 errhint("Use upsert (the default), insert, update or "
						 "delete.")));
	return VERB_DELETE;
}

static void
delete_row(Target *target, Jsonb *key, MemoryContext context,
		   AccordApplied *applied)
{
	applied->before = run_statement(target, VERB_DELETE, NIL, key, context);
	applied->op = applied->before != NULL ? "delete" : NULL;
}

/* The row is locked, or inserted where it is not there. */
static void
write_row(Target *target, const AccordMessage *message, Jsonb *key,
		  bool may_insert, bool may_update, MemoryContext context,
		  AccordApplied *applied)
{
	List	   *columns = list_columns(target, message, key);
	Jsonb	   *document =
	DatumGetJsonbP(DirectFunctionCall2(jsonb_concat,
									   JsonbPGetDatum(message->changes),
									   JsonbPGetDatum(key)));

	for (int try = 0; try < MAX_TRIES; try++)
	{
		Jsonb	   *old = run_statement(target, VERB_LOCK, NIL, key, context);

		if (old != NULL && !may_update)
			ereport(ERROR,
					(errcode(ERRCODE_UNIQUE_VIOLATION),
					 errmsg("row %s of table %s exists already",
							JsonbToCString(NULL, &key->root, VARSIZE(key)),
							target->name),
					 errhint("Send op upsert where it may.")));
		if (old != NULL)
		{
			applied->op = "update";
			applied->row = columns == NIL ? old :
				run_statement(target, VERB_UPDATE, columns, document, context);
			/* a trigger may have refused it without a word */
			if (applied->row == NULL)
				applied->op = NULL;
			else
				applied->before = old;
			return;
		}
		if (!may_insert)
			return;
		applied->row = run_statement(target, VERB_INSERT, columns, document,
									 context);
		if (applied->row != NULL)
		{
			applied->op = "insert";
			return;
		}
	}
}

/* How events name the row. */
static text *
event_key(Target *target, Jsonb *row)
{
	char	  **parts = palloc(target->n_event_keys * sizeof(char *));
	char	   *key;

	for (int i = 0; i < target->n_event_keys; i++)
		parts[i] = accord_image_text(row, target->event_keys[i]);
	key = accord_rowkey_make(target->n_event_keys, parts);
	return key == NULL ? NULL : cstring_to_text(key);
}

/* A table without policies takes a change as it comes. */
static void
run_change(Target *target, const AccordMessage *message, Jsonb *key,
		   AccordApplied *applied)
{
	MemoryContext context = CurrentMemoryContext;
	bool		may_insert;
	bool		may_update;
	Verb		verb = parse_op(message, &may_insert, &may_update);

	SPI_connect();
	if (verb == VERB_DELETE)
		delete_row(target, key, context, applied);
	else
		write_row(target, message, key, may_insert, may_update, context,
				  applied);
	SPI_finish();
	applied->status = applied->op != NULL ? ACCORD_RECEIVED_APPLIED :
		ACCORD_RECEIVED_IGNORED;
}

/* Policies are those of the whole table, and so is what is merged. */
static void
refuse_partition(Target *target)
{
	Oid			root = accord_partition_root(target->relid);

	if (!OidIsValid(root))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("cannot receive into %s: it is a partition of managed "
					"table \"%s\"", target->name, get_rel_name(root)),
			 errhint("Give the managed table as target.")));
}

/* With accord.source set, so that triggers and events know. */
static void
change_row(Target *target, const AccordMessage *message,
		   const AccordSource *source, AccordApplied *applied)
{
	Jsonb	   *key = key_object(target, message);
	int			level;

	if (target->is_partition)
		refuse_partition(target);
	level = NewGUCNestLevel();
	(void) set_config_option("accord.source", source->name, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (accord_managed_is(target->relid))
		accord_managed_apply(message, source, key, applied);
	else
		run_change(target, message, key, applied);
	if (applied->row != NULL && applied->before != NULL)
		applied->before = changed_columns(applied->before, applied->row);
	AtEOXact_GUC(true, level);
	applied->key = event_key(target, applied->row ? applied->row :
							 applied->before ? applied->before : key);
}

void
accord_target_apply(const AccordMessage *message, const AccordSource *source,
					AccordApplied *applied)
{
	Target	   *target = get_target(message->target);

	memset(applied, 0, sizeof(AccordApplied));
	target->in_use++;
	PG_TRY();
	{
		change_row(target, message, source, applied);
	}
	PG_FINALLY();
	{
		target->in_use--;
	}
	PG_END_TRY();
}

AccordTargetEvents
accord_target_events(Oid relid)
{
	Target	   *target = get_target(relid);
	AccordTargetEvents events = target->events;

	events.topic = pstrdup(events.topic);
	events.account = events.account == NULL ? NULL : pstrdup(events.account);
	return events;
}
