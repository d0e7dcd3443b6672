/*
 * captured.c: accord.capture() and accord.release().
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
 * On failure the statement raises; settings and user are put back with the
 * transaction, as PostgreSQL does.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "log.h"

PG_FUNCTION_INFO_V1(accord_capture);
PG_FUNCTION_INFO_V1(accord_release);

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

static Node *
analyze_condition(Oid relid, const char *text)
{
	Relation	rel = table_open(relid, AccessShareLock);
	ParseState *state = make_parsestate(NULL);
	ParseNamespaceItem *item;
	Node	   *condition;

	state->p_sourcetext = text;
	item = addRangeTableEntryForRelation(state, rel, AccessShareLock, NULL,
										 false, true);
	addNSItemToQuery(state, item, true, true, true);
	condition = transformExpr(state, parse_expression(text),
							  EXPR_KIND_TRIGGER_WHEN);
	condition = coerce_to_boolean(state, condition, "condition");
	assign_expr_collations(state, condition);
	free_parsestate(state);
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

/* Calls an internal SQL function as the owner of the extension. */
static Datum
call_as_owner(const char *query, int n, Oid *types, Datum *values,
			  const char *nulls)
{
	Oid			user;
	int			context;
	Datum		result;
	bool		isnull;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(accord_db_owner(),
						   context | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();
	if (SPI_execute_with_args(query, n, types, values, nulls, false, 1) !=
		SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not execute \"%s\"", query);
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						   &isnull);
	SPI_finish();
	SetUserIdAndSecContext(user, context);
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
