/*
 * claims_manage.c: accord.manage_claims(), and its end.
 *
 * Runs in the application's backends, in those functions, for who owns the
 * table. What is given is written down, and triggers are made, by functions
 * of SQL that run as the extension's owner; then it is tried on no rows, as
 * the table's owner, and all claims that there are are decided (claims.c).
 *
 * On failure it raises, and the table is as it was.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "accord.h"
#include "claims_private.h"
#include "compat.h"
#include "db.h"

PG_FUNCTION_INFO_V1(accord_manage_claims);
PG_FUNCTION_INFO_V1(accord_unmanage_claims);
PG_FUNCTION_INFO_V1(accord_settle_claims);

/* The table, locked, for who owns it. */
static Relation
open_owned(FunctionCallInfo fcinfo, LOCKMODE lock)
{
	Relation	rel;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("no table of claims is given"),
				 errhint("Give its name, such as 'booking'.")));
	rel = table_open(PG_GETARG_OID(0), lock);
	if (!accord_relation_owned(RelationGetRelid(rel), GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER,
					   get_relkind_objtype(rel->rd_rel->relkind),
					   RelationGetRelationName(rel));
	return rel;
}

/* Runs a function of ours as the owner of the extension; one row comes back. */
static void
call_owner(const char *statement, int n, Oid *types, Datum *values,
		   const char *nulls)
{
	AccordDbUser before = accord_db_become(accord_db_owner());

	if (SPI_execute_with_args(statement, n, types, values, nulls, false,
							  0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not run \"%s\"", statement);
	accord_db_be_again(before);
}

/* Tries the statements, which hold the caller's expressions, on no rows. */
static void
try_statements(AccordClaims *claims)
{
	char	   *changed = accord_claims_read_statements(claims, "all");
	AccordDbUser before = accord_db_become(claims->owner);
	AccordClaimResource none = {0};
	char		nulls[ACCORD_CLAIM_PARTS + 2];
	Oid			type;

	accord_claims_run(psprintf("SELECT * FROM (%s) t LIMIT 0", changed), 0,
					  NULL, NULL);
	none.n = SPI_tuptable->tupdesc->natts - 2;
	for (int i = 0; i <= none.n; i++)
		none.types[i] = SPI_gettypeid(SPI_tuptable->tupdesc, i + 1);
	memset(nulls, 'n', sizeof(nulls) - 1);
	nulls[sizeof(nulls) - 1] = '\0';
	if (SPI_execute_with_args(claims->decide, none.n + 1, none.types,
							  none.values, nulls, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run \"%s\"", claims->decide);
	type = SPI_gettypeid(SPI_tuptable->tupdesc, claims->n_keys + 4);
	if (type != INT2OID && type != INT4OID && type != INT8OID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("capacity of claims of \"%s\" is of type %s, not an "
						"integer", get_rel_name(claims->relid),
						format_type_be(type)),
				 errhint("Give a number, or an SQL expression that comes to "
						 "one.")));
	accord_db_be_again(before);
}

/* accord.manage_claims(relation, resource, during, accepted, ...) */
Datum
accord_manage_claims(PG_FUNCTION_ARGS)
{
	Oid			types[] = {REGCLASSOID, TEXTARRAYOID, TEXTOID, TEXTOID,
	TEXTARRAYOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	Relation	rel = open_owned(fcinfo, ShareRowExclusiveLock);
	AccordClaims claims;
	bool		isnull;

	accord_claims_find_table(&claims, rel, 0);
	/* triggers cannot be dropped while we have it open */
	table_close(rel, NoLock);

	for (int i = 0; i < lengthof(types); i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		/* condition, frozen, the columns and the topic may be left out */
		if (PG_ARGISNULL(i) && (i <= 4 || i == 7))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("resource, during, accepted, ranking and capacity "
							"of claims cannot be null"),
					 errhint("Leave out what is to have its default.")));
	}
	nulls[lengthof(types)] = '\0';
	SPI_connect();
	call_owner("SELECT accord.claims_store($1, $2, $3, $4, $5, $6, $7, $8, "
			   "$9, $10, $11)", lengthof(types), types, values, nulls);
	claims.id = DatumGetInt32(accord_claims_value(0, 1, &isnull));
	try_statements(&claims);
	accord_claims_decide(&claims, "all");
	SPI_finish();
	PG_RETURN_INT64(claims.changed);
}

Datum
accord_unmanage_claims(PG_FUNCTION_ARGS)
{
	Relation	rel = open_owned(fcinfo, AccessExclusiveLock);
	Oid			types[] = {REGCLASSOID};
	Datum		values[] = {ObjectIdGetDatum(RelationGetRelid(rel))};
	bool		was;

	table_close(rel, NoLock);
	SPI_connect();
	call_owner("SELECT accord.claims_forget($1)", 1, types, values, NULL);
	was = accord_claims_bool(0, 1);
	SPI_finish();
	PG_RETURN_BOOL(was);
}

Datum
accord_settle_claims(PG_FUNCTION_ARGS)
{
	Relation	rel = open_owned(fcinfo, RowExclusiveLock);
	Oid			types[] = {REGCLASSOID};
	Datum		values[] = {ObjectIdGetDatum(RelationGetRelid(rel))};
	AccordClaims claims;
	bool		isnull;
	Datum		id;

	SPI_connect();
	call_owner("SELECT accord.claims_id($1)", 1, types, values, NULL);
	id = accord_claims_value(0, 1, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the rows of table \"%s\" are not managed as claims",
						RelationGetRelationName(rel)),
				 errhint("Call accord.manage_claims() first.")));
	accord_claims_find_table(&claims, rel, DatumGetInt32(id));
	accord_claims_decide(&claims, "all");
	SPI_finish();
	table_close(rel, NoLock);
	PG_RETURN_INT64(claims.changed);
}
