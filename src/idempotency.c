/*
 * idempotency.c: an idempotency key is used once.
 *
 * Runs in the application's backends, inside their transactions. The unique
 * index of accord.idempotency_key decides between sessions: whoever inserts
 * first works, the others wait for that transaction to end and then find the
 * key used, or use it themselves if it aborted.
 *
 * On failure the transaction aborts and the key is free again. Under
 * REPEATABLE READ a key used after the snapshot raises PostgreSQL's
 * serialization failure, as any unique row would.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "idempotency.h"

/* What makes two events the same: everything their author gave. */
static const AccordEventColumn content_columns[] = {
	ACCORD_EVENT_TOPIC, ACCORD_EVENT_KEY, ACCORD_EVENT_OP,
	ACCORD_EVENT_SOURCE, ACCORD_EVENT_ACCOUNT, ACCORD_EVENT_CHANNELS,
	ACCORD_EVENT_DELIVER_AT, ACCORD_EVENT_PAYLOAD, ACCORD_EVENT_BEFORE,
	ACCORD_EVENT_HEADERS, ACCORD_EVENT_EXPIRES_AT, ACCORD_EVENT_PRIORITY
};

/* A column's text form, the same in every session whatever its settings. */
static char *
stable_text(Oid type, Datum value)
{
	Oid			output;
	bool		varlena;

	if (type == TIMESTAMPTZOID)
		return psprintf(INT64_FORMAT, DatumGetTimestampTz(value));
	getTypeOutputInfo(type, &output, &varlena);
	return OidOutputFunctionCall(output, value);
}

/* SHA-256 over the columns' text forms, each with its length or as null. */
static bytea *
content_fingerprint(const Datum *values, const bool *nulls)
{
	StringInfoData content;
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	bytea	   *digest = palloc(VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	Relation	rel = table_open(accord_db_relid("event_log"), NoLock);

	initStringInfo(&content);
	for (int i = 0; i < lengthof(content_columns); i++)
	{
		int			column = content_columns[i];
		char	   *text;

		if (nulls[column - 1])
		{
			appendStringInfoString(&content, "-;");
			continue;
		}
		text = stable_text(TupleDescAttr(RelationGetDescr(rel),
										 column - 1)->atttypid,
						   values[column - 1]);
		appendStringInfo(&content, "%zu:%s;", strlen(text), text);
	}
	table_close(rel, NoLock);

	SET_VARSIZE(digest, VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	if (hash == NULL || pg_cryptohash_init(hash) < 0 ||
		pg_cryptohash_update(hash, (uint8 *) content.data, content.len) < 0 ||
		pg_cryptohash_final(hash, (uint8 *) VARDATA(digest),
							PG_SHA256_DIGEST_LENGTH) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute the fingerprint of an event"),
				 errhint("Check the server's cryptographic library.")));
	pg_cryptohash_free(hash);
	return digest;
}

/* Runs a query with the two text arguments and the other two. */
static int
run_query(const char *query, int nargs, Datum *args)
{
	static Oid	types[] = {TEXTOID, BYTEAOID, UUIDOID};
	int			result = SPI_execute_with_args(query, nargs, types, args, NULL,
											   false, 1);

	if (result < 0)
		elog(ERROR, "SPI failed on idempotency_key: %s",
			 SPI_result_code_string(result));
	return (int) SPI_processed;
}

/* Whether the key, known to be used, was used for this content. */
static bool
same_content(Datum *args)
{
	bool		isnull;

	if (run_query("SELECT fingerprint OPERATOR(pg_catalog.=) $2 "
				  "FROM accord.idempotency_key "
				  "WHERE scope OPERATOR(pg_catalog.=) 'outbox' "
				  "AND key OPERATOR(pg_catalog.=) $1", 2, args) == 0)
		return false;
	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull));
}

bool
accord_idempotency_claim(const Datum *values, const bool *nulls)
{
	Datum		args[3];
	Oid			user;
	int			context;
	bool		claimed;
	bool		same = false;

	args[0] = values[ACCORD_EVENT_IDEMPOTENCY_KEY - 1];
	args[1] = PointerGetDatum(content_fingerprint(values, nulls));
	args[2] = values[ACCORD_EVENT_EVENT_ID - 1];

	/* The author may insert into the outbox, not into our own tables. */
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(accord_db_owner(),
						   context | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();
	claimed = run_query("INSERT INTO accord.idempotency_key "
						"(scope, key, fingerprint, event_id) "
						"VALUES ('outbox', $1, $2, $3) "
						"ON CONFLICT (scope, key) DO NOTHING", 3, args) == 1;
	if (!claimed)
		same = same_content(args);
	SPI_finish();
	SetUserIdAndSecContext(user, context);

	if (!claimed && !same)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("idempotency key \"%s\" was used for an event with "
						"other content",
						TextDatumGetCString(args[0])),
				 errhint("Repeat the same event to have it discarded, or use "
						 "a new key for a new event.")));
	return claimed;
}
