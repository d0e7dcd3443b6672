/*
 * claims_read.c: which claims there are to decide about.
 *
 * Runs in the application's backends, within claims.c: as the table's owner,
 * but for what is read of our own tables.
 *
 * Invariant: nothing is kept; results are allocated where the caller is, and
 * outlive the SPI result they are from.
 *
 * On failure the statement raises, and nothing is decided.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

#include "accord.h"
#include "claims_private.h"
#include "compat.h"
#include "db.h"

Datum
accord_claims_value(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

bool
accord_claims_bool(int row, int column)
{
	bool		isnull;
	Datum		value = accord_claims_value(row, column, &isnull);

	return !isnull && DatumGetBool(value);
}

char	   *
accord_claims_text(int row, int column)
{
	bool		isnull;
	Datum		value = accord_claims_value(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

Datum
accord_claims_copy(int row, int column, bool *isnull)
{
	Form_pg_attribute attribute =
	TupleDescAttr(SPI_tuptable->tupdesc, column - 1);
	Datum		value = accord_claims_value(row, column, isnull);

	return *isnull ? (Datum) 0 :
		datumCopy(value, attribute->attbyval, attribute->attlen);
}

uint64
accord_claims_run(const char *statement, int n, Oid *types, Datum *values)
{
	int			code = SPI_execute_with_args(statement, n, types, values, NULL,
											 false, 0);

	if (code < 0)
		elog(ERROR, "could not run \"%s\": %s", statement,
			 SPI_result_code_string(code));
	return SPI_processed;
}

char	   *
accord_claims_read_statements(AccordClaims *claims, const char *kind)
{
	Oid			types[] = {INT4OID, REGCLASSOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(claims->id),
	ObjectIdGetDatum(claims->relid), CStringGetTextDatum(kind)};
	AccordDbUser before = accord_db_become(accord_db_owner());
	char	   *changed;
	bool		isnull;

	if (accord_claims_run("SELECT s.changed, s.reach, s.decide, s.mark, s.tell, c.topic, "
						  "pg_catalog.cardinality(c.key_columns) FROM accord.claims c, "
						  "accord.claims_statements($1, $2, $3) s "
						  "WHERE c.id OPERATOR(pg_catalog.=) $1",
						  3, types, values) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not known to accord.claims",
						get_rel_name(claims->relid)),
				 errhint("Call accord.manage_claims() for it again.")));
	changed = accord_claims_text(0, 1);
	claims->reach = accord_claims_text(0, 2);
	claims->decide = accord_claims_text(0, 3);
	claims->mark = accord_claims_text(0, 4);
	claims->tell = accord_claims_text(0, 5);
	claims->topic = accord_claims_text(0, 6);
	claims->n_keys = DatumGetInt32(accord_claims_value(0, 7, &isnull));
	accord_db_be_again(before);
	return changed;
}

AccordClaimResource *
accord_claims_read_resources(const char *changed, int *n)
{
	AccordClaimResource *resources;
	int			columns;
	bool		isnull;

	*n = (int) accord_claims_run(changed, 0, NULL, NULL);
	columns = SPI_tuptable->tupdesc->natts - 1;
	resources = palloc0((*n + 1) * sizeof(AccordClaimResource));
	for (int i = 0; i < *n; i++)
	{
		resources[i].n = columns - 1;
		for (int j = 0; j < columns; j++)
		{
			resources[i].types[j] = SPI_gettypeid(SPI_tuptable->tupdesc,
												  j + 1);
			resources[i].values[j] = accord_claims_copy(i, j + 1, &isnull);
		}
		resources[i].name = accord_claims_text(i, columns + 1);
	}
	return resources;
}

void
accord_claims_widen(const AccordClaims *claims, AccordClaimResource *resource)
{
	bool		isnull;
	bool		same = false;

	while (!same)
	{
		accord_claims_run(claims->reach, resource->n + 1, resource->types,
						  resource->values);
		same = accord_claims_bool(0, 2);
		resource->values[resource->n] = accord_claims_copy(0, 1, &isnull);
	}
}

/* Of whatever integer type; null: none. */
static int
read_capacity(int row, int column)
{
	bool		isnull;
	Datum		value = accord_claims_value(row, column, &isnull);

	if (isnull)
		return 0;
	switch (SPI_gettypeid(SPI_tuptable->tupdesc, column))
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT8OID:
			return (int) Max(0, Min(DatumGetInt64(value), PG_INT32_MAX));
		default:
			return DatumGetInt32(value);
	}
}

static void
read_claim(AccordClaim *claim, int row, int n_keys, TypeCacheEntry *range,
		   bool first)
{
	bool		isnull;
	bool		empty;
	Datum		during = accord_claims_copy(row, n_keys + 1, &isnull);

	claim->key = palloc(n_keys * sizeof(Datum));
	for (int i = 0; i < n_keys; i++)
		claim->key[i] = accord_claims_copy(row, i + 1, &isnull);
	range_deserialize(range, DatumGetRangeTypeP(during), &claim->lower,
					  &claim->upper, &empty);
	claim->accepted = accord_claims_bool(row, n_keys + 2);
	claim->counts = accord_claims_bool(row, n_keys + 3);
	claim->capacity = read_capacity(row, n_keys + 4);
	claim->was = claim->accepted;
	if (first)
	{
		accord_claims_value(row, n_keys + 5, &isnull);
		if (!isnull)
			claim->was = accord_claims_bool(row, n_keys + 5);
		claim->fresh = accord_claims_bool(row, n_keys + 6);
	}
}

AccordClaimDecision *
accord_claims_read(const AccordClaims *claims, AccordClaimResource *resource,
				   bool first)
{
	AccordClaimDecision *decision = palloc0(sizeof(AccordClaimDecision));

	decision->n =
		(int) accord_claims_run(claims->decide, resource->n + 1,
								resource->types,
								resource->values);
	decision->claims = palloc0((decision->n + 1) * sizeof(AccordClaim));
	for (int i = 0; i < claims->n_keys; i++)
		decision->key_types[i] = SPI_gettypeid(SPI_tuptable->tupdesc, i + 1);
	decision->range =
		lookup_type_cache(getBaseType(SPI_gettypeid(SPI_tuptable->tupdesc,
													claims->n_keys + 1)),
						  TYPECACHE_RANGE_INFO);
	for (int i = 0; i < decision->n; i++)
		read_claim(&decision->claims[i], i, claims->n_keys, decision->range,
				   first);
	return decision;
}

void
accord_claims_find_table(AccordClaims *claims, Relation rel, int id)
{
	memset(claims, 0, sizeof(*claims));
	claims->id = id;
	claims->relid = RelationGetRelid(rel);
	claims->owner = rel->rd_rel->relowner;
	if (rel->rd_rel->relispartition)
	{
		Relation	whole;

		claims->relid = llast_oid(get_partition_ancestors(claims->relid));
		whole = table_open(claims->relid, AccessShareLock);
		claims->owner = whole->rd_rel->relowner;
		table_close(whole, NoLock);
	}
}
