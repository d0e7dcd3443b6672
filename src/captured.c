/*
 * captured.c: accord.capture(), accord.release(), and DDL of captured tables.
 *
 * Runs in the sessions of those who own tables. Whoever owns a table may have
 * it captured, though triggers of ours and the table accord.captured are
 * beyond their privileges: so ownership is looked at here, as the caller, and
 * the rest is done as the owner of the extension, in SQL (55_capture.sql).
 *
 * A condition is parsed here, in the caller's search_path, and written out
 * again with every name qualified, once with OLD and once with NEW before its
 * columns; as a trigger's WHEN it then follows renamed columns, and keeps
 * those it needs from being dropped.
 *
 * After statements that may have renamed, altered or dropped a captured table,
 * or given it a partition, accord.capture_follow() brings up to date what is
 * written of it; in the same transaction, and while the table is locked by it.
 *
 * On failure the statement raises; settings and user are put back with the
 * transaction, as PostgreSQL does.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

#include "accord.h"
#include "captured.h"
#include "compat.h"
#include "db.h"
#include "log.h"

PG_FUNCTION_INFO_V1(accord_capture);
PG_FUNCTION_INFO_V1(accord_release);
PG_FUNCTION_INFO_V1(accord_baseline);
PG_FUNCTION_INFO_V1(accord_shape_append);

static Oid
require_owned(FunctionCallInfo fcinfo)
{
	Oid			relid;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("no table to capture or release is given"),
				 errhint("Give its name, such as accord.capture('room').")));
	relid = PG_GETARG_OID(0);
	if (get_rel_name(relid) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid),
				 errhint("Give a table's name.")));
	if (!accord_relation_owned(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER,
					   get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
	return relid;
}

/* The expression that the text is: nothing else, and nothing besides. */
static Node *
parse_expression(const char *text)
{
	List	   *list = raw_parser(text, RAW_PARSE_PLPGSQL_EXPR);
	SelectStmt *select = linitial_node(SelectStmt,
									   list_make1(linitial_node(RawStmt, list)->stmt));

	if (list_length(select->targetList) != 1 || select->fromClause != NIL ||
		select->whereClause != NULL || select->groupClause != NIL ||
		select->havingClause != NULL || select->windowClause != NIL ||
		select->sortClause != NIL || select->limitOffset != NULL ||
		select->limitCount != NULL || select->lockingClause != NIL ||
		select->distinctClause != NIL || select->op != SETOP_NONE ||
		select->withClause != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("condition \"%s\" of a captured table is not an "
						"expression", text),
				 errhint("Give an expression over the table's columns, such "
						 "as status <> 'draft'.")));
	return linitial_node(ResTarget, select->targetList)->val;
}

/* Error context: a position is one in the condition, not in the statement. */
static void
locate_error(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery((const char *) arg);
	}
}

static Node *
analyze_condition(Oid relid, const char *text)
{
	Relation	rel = table_open(relid, AccessShareLock);
	ParseState *state = make_parsestate(NULL);
	ErrorContextCallback callback;
	ParseNamespaceItem *item;
	Node	   *condition;

	callback.callback = locate_error;
	callback.arg = unconstify(char *, text);
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	state->p_sourcetext = text;
	item = addRangeTableEntryForRelation(state, rel, AccessShareLock, NULL,
										 false, true);
	addNSItemToQuery(state, item, true, true, true);
	condition = transformExpr(state, parse_expression(text),
							  EXPR_KIND_TRIGGER_WHEN);
	condition = coerce_to_boolean(state, condition, "condition");
	assign_expr_collations(state, condition);
	free_parsestate(state);
	error_context_stack = callback.previous;
	table_close(rel, NoLock);
	return condition;
}

/* Writes a condition out; alias, when given, before all its columns. */
static Datum
write_condition(Oid relid, Node *condition, const char *alias)
{
	char	   *text =
	deparse_expression(condition,
					   deparse_context_for(alias ? alias : get_rel_name(relid),
										   relid),
					   alias != NULL, false);

	return CStringGetTextDatum(text);
}

/* Functions of ours that are under way: what DDL they do needs no following. */
static int	at_work = 0;

/* Calls an internal SQL function as the owner of the extension. */
static Datum
call_as_owner(const char *query, int n, Oid *types, Datum *values,
			  const char *nulls)
{
	AccordDbUser before;
	Datum		result = (Datum) 0;
	bool		isnull;

	before = accord_db_become(accord_db_owner());
	at_work++;
	PG_TRY();
	{
		SPI_connect();
		if (SPI_execute_with_args(query, n, types, values, nulls, false, 1) !=
			SPI_OK_SELECT || SPI_processed != 1)
			elog(ERROR, "could not execute \"%s\"", query);
		result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
							   &isnull);
		SPI_finish();
	}
	PG_FINALLY();
	{
		at_work--;
	}
	PG_END_TRY();
	accord_db_be_again(before);
	return result;
}

/* accord.capture(relation, topic, key_columns, columns, excluded, condition,
 * account_column, on_truncate) */
Datum
accord_capture(PG_FUNCTION_ARGS)
{
	/* where capture_table()'s arguments are among those of capture() */
	static const int source[] = {0, 1, 2, 3, 4, 5, 5, 5, 6, 7};
	static Oid	types[] = {
		REGCLASSOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID
	};
	Oid			relid = require_owned(fcinfo);
	Datum		values[lengthof(source)];
	char		nulls[lengthof(source) + 1] = {0};

	accord_log_require_preload();
	for (int i = 0; i < lengthof(source); i++)
	{
		values[i] = PG_GETARG_DATUM(source[i]);
		nulls[i] = PG_ARGISNULL(source[i]) ? 'n' : ' ';
	}
	if (!PG_ARGISNULL(5))
	{
		Node	   *condition =
		analyze_condition(relid, text_to_cstring(PG_GETARG_TEXT_PP(5)));
		int			level = NewGUCNestLevel();

		(void) set_config_option("search_path", "pg_catalog, pg_temp",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
		values[5] = write_condition(relid, condition, NULL);
		values[6] = write_condition(relid, condition, "old");
		values[7] = write_condition(relid, condition, "new");
		AtEOXact_GUC(true, level);
	}
	PG_RETURN_DATUM(call_as_owner("SELECT accord.capture_table($1, $2, $3, "
								  "$4, $5, $6, $7, $8, $9, $10)",
								  lengthof(source), types, values, nulls));
}

/* accord.release(relation) */
Datum
accord_release(PG_FUNCTION_ARGS)
{
	Datum		relation = ObjectIdGetDatum(require_owned(fcinfo));
	Oid			type = REGCLASSOID;

	PG_RETURN_DATUM(call_as_owner("SELECT accord.release_table($1)", 1, &type,
								  &relation, NULL));
}

/* accord.baseline(relation, max) */
Datum
accord_baseline(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {REGCLASSOID, INT8OID};
	Datum		values[2] = {ObjectIdGetDatum(require_owned(fcinfo))};

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("max of accord.baseline() is null"),
				 errhint("Give how many events to write at a time.")));
	values[1] = PG_GETARG_DATUM(1);
	PG_RETURN_DATUM(call_as_owner("SELECT accord.baseline_table($1, $2)", 2,
								  types, values, NULL));
}

/* ---- DDL ----------------------------------------------------------------- */

/*
 * Numbers of tables whose triggers were dropped, not followed yet. If that was
 * rolled back, following does no harm: the triggers are there.
 */
static int	dropped[64];
static int	n_dropped = 0;
static bool unmanaged = false;	/* so was one of a managed table */

/* Whether captured tables are to be looked at before and after a statement. */
bool
accord_captured_concerns(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_AlterTableStmt:
			return ((AlterTableStmt *) stmt)->objtype == OBJECT_TABLE;
		case T_AlterObjectSchemaStmt:
			return ((AlterObjectSchemaStmt *) stmt)->objectType == OBJECT_TABLE;
		case T_CreateStmt:
			return ((CreateStmt *) stmt)->partbound != NULL;
		case T_RenameStmt:
			{
				RenameStmt *rename = (RenameStmt *) stmt;

				return rename->renameType == OBJECT_TABLE ||
					rename->renameType == OBJECT_SCHEMA ||
					(rename->renameType == OBJECT_COLUMN &&
					 rename->relationType == OBJECT_TABLE);
			}
		default:
			return false;
	}
}

void
accord_captured_follow(bool concerned)
{
	Datum		ids[lengthof(dropped)];
	Datum		argument;
	Oid			type = INT4ARRAYOID;

	if (!IsTransactionState() || at_work > 0)
	{
		n_dropped = 0;			/* what dropped them has failed, or is ours */
		unmanaged = false;
	}
	if ((!concerned || at_work > 0) && n_dropped == 0 && !unmanaged)
		return;
	for (int i = 0; i < n_dropped; i++)
		ids[i] = Int32GetDatum(dropped[i]);
	argument = PointerGetDatum(construct_array(ids, n_dropped, INT4OID,
											   sizeof(int32), true,
											   TYPALIGN_INT));
	n_dropped = 0;
	unmanaged = false;
	/* pg_upgrade makes our tables one by one, and brings their rows after */
	if (creating_extension || IsBinaryUpgrade ||
		!OidIsValid(accord_db_relid_if_any("captured_shape")))
		return;
	call_as_owner("SELECT accord.capture_follow($1)", 1, &type, &argument,
				  NULL);
}

/*
 * A trigger was made, not by us: if it is one of ours, made by Citus on a
 * worker, or by a restore, its table is captured again.
 */
void
accord_captured_note_made(Node *stmt)
{
	CreateTrigStmt *trigger = (CreateTrigStmt *) stmt;
	Oid			type = INT4OID;
	Datum		id;

	if (!IsA(stmt, CreateTrigStmt) || at_work > 0 || creating_extension ||
		IsBinaryUpgrade || trigger->args == NIL ||
		strcmp(strVal(llast(trigger->funcname)), "capture_row") != 0 ||
		!OidIsValid(accord_db_relid_if_any("captured")))
		return;
	id = Int32GetDatum(atoi(strVal(linitial(trigger->args))));
	call_as_owner("SELECT accord.capture_made($1)", 1, &type, &id, NULL);
}

/* A trigger is about to be dropped: is it one of ours? */
void
accord_captured_note_drop(Oid trigger)
{
	Relation	catalog = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(catalog, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		char	   *function =
		get_func_name(((Form_pg_trigger) GETSTRUCT(tuple))->tgfoid);
		bool		isnull;
		Datum		arguments = heap_getattr(tuple, Anum_pg_trigger_tgargs,
											 RelationGetDescr(catalog), &isnull);

		if (function != NULL && strcmp(function, "agree_after") == 0)
			unmanaged = true;
		if (function != NULL && !isnull && n_dropped < lengthof(dropped) &&
			strcmp(function, "capture_row") == 0)
			dropped[n_dropped++] = atoi(VARDATA_ANY(DatumGetByteaPP(arguments)));
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/* accord.shape_append(table_id, columns, OUT tx_id, OUT ord) */
Datum
accord_shape_append(PG_FUNCTION_ARGS)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];
	Datum		place[2];
	bool		place_nulls[2] = {0};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.shape_append() returns a record");
	memset(nulls, true, sizeof(nulls));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_TABLE_ID, PG_GETARG_DATUM(0));
	SET(ACCORD_EVENT_PAYLOAD, PG_GETARG_DATUM(1));
	SET(ACCORD_EVENT_TOPIC, CStringGetTextDatum("accord.shape"));
	SET(ACCORD_EVENT_OP, CStringGetTextDatum("event"));
#undef SET
	accord_log_append(values, nulls);
	place[0] = values[ACCORD_EVENT_TX_ID - 1];
	place[1] = values[ACCORD_EVENT_ORD - 1];
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  place, place_nulls)));
}
