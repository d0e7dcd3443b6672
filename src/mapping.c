/*
 * mapping.c: what was sent to us, or fetched, becomes messages.
 *
 * Runs in the application's backends, for webhooks, and in clerks, for the
 * items of feeds. A mapping is an object of JSON paths and constants, a member
 * for each argument of accord.receive(); or a function that makes any number
 * of messages.
 *
 * Invariants
 *   - search_path is pg_catalog, pg_temp: the caller sees to it.
 *   - The function runs as the mapping's owner, in a security-restricted
 *     context, and not as a superuser when somebody else could replace it.
 *
 * On failure it raises: nothing came of it.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonpath.h"
#include "utils/regproc.h"

#include "compat.h"
#include "config.h"
#include "json.h"
#include "mapping.h"

/* The paths' variables: $headers. */
static Datum
path_variables(Jsonb *headers)
{
	AccordJsonbState state = {0};
	JsonbValue	name = {.type = jbvString};

	name.val.string.val = "headers";
	name.val.string.len = strlen("headers");
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	accord_jsonb_push(&state, WJB_KEY, &name);
	accord_jsonb_push(&state, WJB_VALUE, accord_json_path(headers, ""));
	return JsonbPGetDatum(accord_jsonb_end(&state, WJB_END_OBJECT));
}

/* The first value at the path; NULL: there is none. */
static Jsonb *
query_path(Jsonb *headers, Jsonb *body, const char *path)
{
	LOCAL_FCINFO(fcinfo, 4);
	Datum		found;

	InitFunctionCallInfoData(*fcinfo, NULL, 4, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(body);
	fcinfo->args[1].value = DirectFunctionCall1(jsonpath_in,
												CStringGetDatum(path));
	fcinfo->args[2].value = path_variables(headers);
	fcinfo->args[3].value = BoolGetDatum(false);
	for (int i = 0; i < 4; i++)
		fcinfo->args[i].isnull = false;
	found = jsonb_path_query_first(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetJsonbP(found);
}

/* What a member of the mapping comes to; NULL: nothing. */
static JsonbValue *
evaluate(Jsonb *headers, Jsonb *body, JsonbValue *member)
{
	Jsonb	   *found;

	if (member->type != jbvString || member->val.string.len == 0 ||
		member->val.string.val[0] != '$')
		return member;
	found = query_path(headers, body, accord_json_text(member));
	return found == NULL ? NULL : accord_json_path(found, "");
}

/* An object, of an object of paths and constants; what is not there is not. */
static JsonbValue *
evaluate_object(Jsonb *headers, Jsonb *body, JsonbValue *object)
{
	AccordJsonbState state = {0};
	JsonbIterator *iterator = JsonbIteratorInit(object->val.binary.data);
	JsonbIteratorToken token;
	JsonbValue	name = {0};
	JsonbValue	value;

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		JsonbValue *result;

		if (token == WJB_KEY)
			name = value;
		if (token != WJB_VALUE)
			continue;
		result = evaluate(headers, body, &value);
		if (result == NULL)
			continue;
		accord_jsonb_push(&state, WJB_KEY, &name);
		accord_jsonb_push(&state, WJB_VALUE, result);
	}
	return accord_json_path(accord_jsonb_end(&state, WJB_END_OBJECT), "");
}

static bool
is_object(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data);
}

void
accord_mapping_by_paths(const AccordMapping *mapping, Jsonb *headers,
						Jsonb *body, AccordMessage *message)
{
	JsonbIterator *iterator = JsonbIteratorInit(&mapping->paths->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	int			member = -1;

	memset(message, 0, sizeof(AccordMessage));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		JsonbValue *result;

		if (token == WJB_KEY)
			member = accord_message_member(value.val.string.val,
										   value.val.string.len);
		if (token != WJB_VALUE || member < 0)
			continue;
		result = is_object(&value) ? evaluate_object(headers, body, &value) :
			evaluate(headers, body, &value);
		if (result != NULL)
			accord_message_set(message, member, result);
	}
}

/* Who owns the function can replace it, and would then act as that role. */
static void
check_function(const AccordMapping *mapping)
{
	Oid			types[] = {JSONBOID, JSONBOID};
	Oid			function =
	LookupFuncName(accord_qualified_name_list(mapping->function), 2, types,
				   true);

	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("mapping_function \"%s\" of %s \"%s\" does not exist",
						mapping->function, mapping->kind, mapping->name),
				 errhint("It must be FUNCTION %s(jsonb, jsonb) RETURNS SETOF "
						 "accord.message.", mapping->function)));
	if (!accord_config_may_run(function, mapping->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("mapping_function %s of %s \"%s\" would run as a "
						"superuser, but its owner is none", mapping->function,
						mapping->kind, mapping->name),
				 errhint("Give the application's role as the owner of the %s, "
						 "or make the function a superuser's.",
						 mapping->kind)));
}

AccordMessage *
accord_mapping_by_function(const AccordMapping *mapping, Jsonb *headers,
						   Jsonb *body, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {JSONBOID, JSONBOID};
	Datum		values[] = {JsonbPGetDatum(headers), JsonbPGetDatum(body)};
	Oid			user;
	int			security;
	AccordMessage *messages;
	MemoryContext old;

	check_function(mapping);
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(user, security | SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	if (SPI_execute_with_args(psprintf("SELECT m.event_id, m.topic, m.target, "
									   "m.key, m.op, m.changes, m.occurred_at, "
									   "m.revision, m.account, m.base FROM %s($1, $2) "
									   "m WHERE NOT m IS NULL",
									   mapping->function),
							  2, types, values, NULL, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not run the mapping function of %s \"%s\"",
			 mapping->kind, mapping->name);
	*n = (int) SPI_processed;
	old = MemoryContextSwitchTo(context);
	messages = palloc(Max(*n, 1) * sizeof(AccordMessage));
	for (int i = 0; i < *n; i++)
	{
		Datum		members[ACCORD_MESSAGE_MEMBERS];
		bool		nulls[ACCORD_MESSAGE_MEMBERS];
		HeapTuple	row = heap_copytuple(SPI_tuptable->vals[i]);

		heap_deform_tuple(row, SPI_tuptable->tupdesc, members, nulls);
		accord_message_from_values(&messages[i], members, nulls);
	}
	MemoryContextSwitchTo(old);
	SPI_finish();
	SetUserIdAndSecContext(user, security);
	return messages;
}
