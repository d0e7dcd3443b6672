/*
 * once.c: accord.once(): work is done once, and its result returned to every
 * repeat.
 *
 * Runs in the application's backends, as the caller. The key is claimed, the
 * statement runs, and its result is stored with the key, all in the caller's
 * transaction: so the result is there if and only if the work is. Who comes
 * with the same key meanwhile waits for that transaction to end, or is told
 * that it is under way.
 *
 * On failure of the work the (sub)transaction aborts, the key is free, and the
 * work may be tried again. A key that was used with another request is an
 * error.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "image.h"
#include "keys.h"

#define MAX_SCOPE 255			/* bytes */
#define MAX_KEY 1000
#define MAX_STATEMENT (64 * 1024 * 1024)

PG_FUNCTION_INFO_V1(accord_once);

static void
check_length(FunctionCallInfo fcinfo, int argument, const char *name, int limit)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s of accord.once() is null", name),
				 errhint("Give scope, key and statement.")));
	if (VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(argument)) > limit ||
		VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(argument)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%s of accord.once() is empty or longer than %d bytes",
						name, limit),
				 errhint("Use a hash of what is longer.")));
}

/* Scopes of our own: nobody shall use up an event's keys, or a table's. */
static void
refuse_reserved(const char *scope)
{
	if (strcmp(scope, "outbox") == 0 || strncmp(scope, "table ", 6) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("scope \"%s\" is reserved", scope),
				 errhint("Choose one that is not \"outbox\" and does not begin "
						 "with \"table \".")));
}

/* The first row: of one column its value, else an object of all. */
static Jsonb *
first_row(MemoryContext context)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	MemoryContext old;
	Jsonb	   *row;

	heap_deform_tuple(SPI_tuptable->vals[0], desc, values, nulls);
	old = MemoryContextSwitchTo(context);
	row = accord_image_build(accord_image_prepare(desc, NULL), values, nulls,
							 NULL);
	if (desc->natts == 1)
	{
		JsonbIterator *iterator = JsonbIteratorInit(&row->root);
		JsonbValue	value;

		while (JsonbIteratorNext(&iterator, &value, true) != WJB_VALUE)
			 /* the object's beginning, and its one name */ ;
		row = JsonbValueToJsonb(&value);
	}
	MemoryContextSwitchTo(old);
	return row;
}

static Jsonb *
null_result(void)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum("null")));
}

/* Runs the statement as the caller; $1 is the request. */
static Jsonb *
run_work(const char *statement, Datum request, bool no_request)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {JSONBOID};
	char		nulls[] = {no_request ? 'n' : ' ', '\0'};
	Jsonb	   *result = NULL;
	int			status;

	SPI_connect();
	status = SPI_execute_with_args(statement, 1, types, &request, nulls, false,
								   0);
	if (status < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("statement of accord.once() cannot be run: %s",
						SPI_result_code_string(status)),
				 errhint("Give one statement that may run within a "
						 "transaction; $1 is the request.")));
	if (SPI_tuptable != NULL && SPI_processed > 0)
		result = first_row(context);
	SPI_finish();
	return result != NULL ? result : null_result();
}

static void
fingerprint_request(FunctionCallInfo fcinfo, uint8 *fingerprint)
{
	Jsonb	   *request = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);

	if (request == NULL)
		accord_keys_fingerprint("", 0, fingerprint);
	else
		accord_keys_fingerprint(VARDATA(request), VARSIZE(request) - VARHDRSZ,
								fingerprint);
}

static void
refuse_busy(Datum scope, Datum key)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("key \"%s\" of \"%s\" is in use by work that is under way",
					TextDatumGetCString(key), TextDatumGetCString(scope)),
			 errhint("Try again later, or let accord.once() wait.")));
}

static void
refuse_other(Datum scope, Datum key, TimestampTz at)
{
	ereport(ERROR,
			(errcode(ACCORD_ERRCODE_OTHER_CONTENT),
			 errmsg("key \"%s\" of \"%s\" was used with another request",
					TextDatumGetCString(key), TextDatumGetCString(scope)),
			 errdetail("It was used at %s.", timestamptz_to_str(at)),
			 errhint("Use a new key for a new request.")));
}

/* accord.once(scope, key, request, statement, wait) */
Datum
accord_once(PG_FUNCTION_ARGS)
{
	Datum		scope = PG_GETARG_DATUM(0);
	Datum		key = PG_GETARG_DATUM(1);
	bool		wait = PG_ARGISNULL(4) || PG_GETARG_BOOL(4);
	AccordKeys *keys;
	AccordKeyEntry ours = {0};
	AccordKeyEntry entry;
	AccordKeyState state;

	check_length(fcinfo, 0, "scope", MAX_SCOPE);
	check_length(fcinfo, 1, "key", MAX_KEY);
	check_length(fcinfo, 3, "statement", MAX_STATEMENT);
	refuse_reserved(TextDatumGetCString(scope));
	fingerprint_request(fcinfo, ours.fingerprint);
	keys = accord_keys_open(ACCORD_KEYS_IDEMPOTENCY);
	state = accord_keys_claim(keys, scope, key, wait, &entry);
	if (state == ACCORD_KEY_BUSY)
		refuse_busy(scope, key);
	if (state == ACCORD_KEY_USED &&
		memcmp(entry.fingerprint, ours.fingerprint,
			   ACCORD_FINGERPRINT_LENGTH) != 0)
		refuse_other(scope, key, entry.at);
	if (state == ACCORD_KEY_FREE)
	{
		ours.result = run_work(text_to_cstring(PG_GETARG_TEXT_PP(3)),
							   PG_GETARG_DATUM(2), PG_ARGISNULL(2));
		accord_keys_store(keys, scope, key, &ours);
		entry.result = ours.result;
	}
	accord_keys_close(keys);
	PG_RETURN_JSONB_P(entry.result != NULL ? entry.result : null_result());
}
