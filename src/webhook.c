/*
 * webhook.c: accord.receive_webhook(): a webhook is checked, understood and
 * received.
 *
 * Runs in the application's backends, usually of a web server's role that may
 * do nothing else. Once the signature is found to be good, everything is done
 * as the source's owner: its mapping function, and the changes of tables.
 *
 * Invariants
 *   - Nothing of a webhook is looked at but its headers and the bytes of its
 *     body before its signature was checked.
 *   - search_path is pg_catalog, pg_temp throughout: the caller's has no say
 *     in what runs as the owner.
 *   - A delivery that has no id is known by the SHA-256 of its body.
 *
 * On failure the call raises, nothing was received, and the sender should try
 * again; what is wrong with a signature is SQLSTATE 28000.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonpath.h"
#include "utils/regproc.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "compat.h"
#include "config.h"
#include "json.h"
#include "keys.h"
#include "log.h"
#include "message.h"
#include "receive.h"
#include "signature.h"
#include "source.h"

/* A webhook whose signature is good. */
typedef struct Delivery
{
	AccordSource source;
	AccordWebhookSource *settings;
	Jsonb	   *headers;		/* names in lower case */
	Jsonb	   *body;			/* NULL: it is not JSON */
	char	   *id;
} Delivery;

PG_FUNCTION_INFO_V1(accord_receive_webhook);

/*
 * Headers and body
 */

/* Those given, or those that PostgREST tells of. */
static Jsonb *
get_headers(FunctionCallInfo fcinfo)
{
	const char *setting;

	if (!PG_ARGISNULL(1))
		return PG_GETARG_JSONB_P(1);
	setting = GetConfigOption("request.headers", true, false);
	if (setting == NULL || setting[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("headers of a webhook are null, and so is the setting "
						"request.headers"),
				 errhint("Give them as an object; PostgREST sets "
						 "request.headers.")));
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(setting)));
}

/* The same object with all names in lower case; the last of a name counts. */
static Jsonb *
lower_names(Jsonb *headers)
{
	AccordJsonbState state = {0};
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers of a webhook are not a JSON object"),
				 errhint("Give an object of names and strings.")));
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token != WJB_KEY && token != WJB_VALUE)
			continue;
		if (token == WJB_KEY)
		{
			char	   *name = pnstrdup(value.val.string.val,
										value.val.string.len);

			for (char *p = name; *p != '\0'; p++)
				*p = pg_ascii_tolower((unsigned char) *p);
			value.val.string.val = name;
		}
		accord_jsonb_push(&state, token, &value);
	}
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

/* The body as JSON, which is UTF-8. */
static Jsonb *
parse_body(bytea *body)
{
	char	   *text = pg_any_to_server(VARDATA_ANY(body),
										VARSIZE_ANY_EXHDR(body), PG_UTF8);

	if (text == VARDATA_ANY(body))
		text = pnstrdup(text, VARSIZE_ANY_EXHDR(body));
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
}

static char *
body_digest(bytea *body)
{
	uint8		digest[ACCORD_FINGERPRINT_LENGTH];
	StringInfoData text;

	accord_keys_fingerprint(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), digest);
	initStringInfo(&text);
	appendStringInfoString(&text, "sha256:");
	for (int i = 0; i < ACCORD_FINGERPRINT_LENGTH; i++)
		appendStringInfo(&text, "%02x", digest[i]);
	return text.data;
}

/* What the body itself says is its id, where the scheme says so. */
static char *
body_id(const Delivery *delivery)
{
	char	   *type = accord_json_member(delivery->settings->verify, "type");

	return type != NULL && strcmp(type, "stripe") == 0 ?
		accord_json_member(delivery->body, "id") : NULL;
}

/*
 * Mapping
 */

/* The first value at the path, with $headers; NULL: there is none. */
static Jsonb *
query_path(const Delivery *delivery, const char *path)
{
	AccordJsonbState state = {0};
	JsonbValue	name = {.type = jbvString};

	LOCAL_FCINFO(fcinfo, 4);
	Datum		found;

	name.val.string.val = "headers";
	name.val.string.len = strlen("headers");
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	accord_jsonb_push(&state, WJB_KEY, &name);
	accord_jsonb_push(&state, WJB_VALUE, accord_json_path(delivery->headers, ""));
	InitFunctionCallInfoData(*fcinfo, NULL, 4, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(delivery->body);
	fcinfo->args[1].value = DirectFunctionCall1(jsonpath_in,
												CStringGetDatum(path));
	fcinfo->args[2].value =
		JsonbPGetDatum(accord_jsonb_end(&state, WJB_END_OBJECT));
	fcinfo->args[3].value = BoolGetDatum(false);
	for (int i = 0; i < 4; i++)
		fcinfo->args[i].isnull = false;
	found = jsonb_path_query_first(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetJsonbP(found);
}

/* One message, of the JSON paths and constants of the mapping. */
static void
map_by_paths(const Delivery *delivery, AccordMessage *message)
{
	JsonbIterator *iterator =
	JsonbIteratorInit(&delivery->settings->mapping->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	int			member = -1;

	memset(message, 0, sizeof(AccordMessage));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		Jsonb	   *found;

		if (token == WJB_KEY)
			member = accord_message_member(value.val.string.val,
										   value.val.string.len);
		if (token != WJB_VALUE || member < 0)
			continue;
		if (value.val.string.len == 0 || value.val.string.val[0] != '$')
		{
			accord_message_set(message, member, &value);
			continue;
		}
		found = query_path(delivery, accord_json_text(&value));
		if (found != NULL)
			accord_message_set(message, member, accord_json_path(found, ""));
	}
}

/* Without a mapping: the body, under a topic of the source's. */
static void
map_plainly(const Delivery *delivery, AccordMessage *message)
{
	char	   *type = accord_signature_topic(delivery->settings->verify,
											  delivery->headers);

	memset(message, 0, sizeof(AccordMessage));
	if (type == NULL)
		type = accord_json_member(delivery->body, "type");
	message->topic = cstring_to_text(type == NULL || type[0] == '\0' ?
									 delivery->source.name :
									 psprintf("%s.%s", delivery->source.name,
											  type));
	message->changes = delivery->body;
}

/* Who owns the function can replace it, and would then act as that role. */
static void
check_function(const Delivery *delivery)
{
	Oid			types[] = {JSONBOID, JSONBOID};
	const char *name = delivery->settings->mapping_function;
	Oid			function = LookupFuncName(accord_qualified_name_list(name), 2,
										  types, true);

	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("mapping_function \"%s\" of source \"%s\" does not "
						"exist", name, delivery->source.name),
				 errhint("It must be FUNCTION %s(jsonb, jsonb) RETURNS SETOF "
						 "accord.message.", name)));
	if (!accord_config_may_run(function, delivery->settings->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("mapping_function %s of source \"%s\" would run as a "
						"superuser, but its owner is none", name,
						delivery->source.name),
				 errhint("Give the application's role as the source's owner, "
						 "or make the function a superuser's.")));
}

/*
 * The messages that the mapping function makes. It runs as the source's
 * owner, in a security-restricted context.
 */
static AccordMessage *
map_by_function(const Delivery *delivery, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {JSONBOID, JSONBOID};
	Datum		values[] = {JsonbPGetDatum(delivery->headers),
	JsonbPGetDatum(delivery->body)};
	Oid			user;
	int			security;
	AccordMessage *messages;
	MemoryContext old;

	check_function(delivery);
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(user, security | SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	if (SPI_execute_with_args(psprintf("SELECT m.event_id, m.topic, m.target, "
									   "m.key, m.op, m.changes, m.occurred_at, "
									   "m.revision, m.account, m.base FROM %s($1, $2) "
									   "m WHERE NOT m IS NULL",
									   delivery->settings->mapping_function),
							  2, types, values, NULL, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not run the mapping function of source \"%s\"",
			 delivery->source.name);
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

/*
 * Receiving
 */

static AccordMessage *
map_delivery(Delivery *delivery, int *n)
{
	AccordMessage *messages;

	if (delivery->settings->mapping_function != NULL)
		return map_by_function(delivery, n);
	messages = palloc(sizeof(AccordMessage));
	*n = 1;
	if (delivery->settings->mapping != NULL)
		map_by_paths(delivery, messages);
	else
		map_plainly(delivery, messages);
	return messages;
}

/* A webhook that means nothing to us. */
static Jsonb *
ignored_result(void)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum("{\"status\": \"ignored\"}")));
}

/* The result of the one message, or an array of those of several. */
static Jsonb *
receive_messages(Delivery *delivery, AccordMessage *messages, int n)
{
	AccordKeys *keys = accord_keys_open(ACCORD_KEYS_INBOX);
	AccordJsonbState state = {0};
	Jsonb	   *result = NULL;

	accord_jsonb_push(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < n; i++)
	{
		if (messages[i].event_id == NULL)
			messages[i].event_id =
				cstring_to_text(n == 1 ? delivery->id :
								psprintf("%s/%d", delivery->id, i + 1));
		result = accord_receive_message(&delivery->source, keys, &messages[i]);
		accord_jsonb_push(&state, WJB_ELEM, accord_json_path(result, ""));
	}
	accord_keys_close(keys);
	if (n == 0)
		return ignored_result();
	return n == 1 ? result :
		accord_jsonb_end(&state, WJB_END_ARRAY);
}

/* As the source's owner, and with nothing of the caller's search_path. */
static Jsonb *
receive_as_owner(Delivery *delivery)
{
	Oid			user;
	int			security;
	int			level = NewGUCNestLevel();
	AccordMessage *messages;
	Jsonb	   *result;
	int			n;

	if (!OidIsValid(delivery->settings->owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of source \"%s\" does not exist",
						delivery->source.name),
				 errhint("UPDATE accord.source SET owner to an existing "
						 "role.")));
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(delivery->settings->owner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
							 0, false);
	messages = map_delivery(delivery, &n);
	result = receive_messages(delivery, messages, n);
	AtEOXact_GUC(true, level);
	SetUserIdAndSecContext(user, security);
	return result;
}

static void
check_signature(const Delivery *delivery, Jsonb *headers, bytea *body)
{
	AccordWebhook webhook = {headers, VARDATA_ANY(body),
	VARSIZE_ANY_EXHDR(body)};
	AccordWebhookSource *settings = delivery->settings;
	const char *wrong = settings->verify == NULL ?
	"its source does not say how to check it" :
	accord_signature_check(settings->verify, settings->secrets,
						   settings->n_secrets, settings->tolerance, &webhook,
						   GetCurrentTimestamp());

	if (wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("webhook of source \"%s\" is refused: %s",
						delivery->source.name, wrong),
				 errhint("See verify and tolerance of accord.source.")));
}

/* accord.receive_webhook(source, headers, body) */
Datum
accord_receive_webhook(PG_FUNCTION_ARGS)
{
	Delivery	delivery;
	Jsonb	   *headers;
	bytea	   *body;
	char	   *name;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s of a webhook is null",
						PG_ARGISNULL(0) ? "source" : "body"),
				 errhint("Give the name of a row of accord.source, and the "
						 "body as it came.")));
	accord_log_require_preload();
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	body = PG_GETARG_BYTEA_PP(2);
	headers = get_headers(fcinfo);
	accord_source_get(name, &delivery.source);
	delivery.settings = accord_source_webhook(name);
	delivery.headers = lower_names(headers);
	check_signature(&delivery, delivery.headers, body);
	delivery.body = parse_body(body);
	delivery.id = accord_signature_delivery(delivery.settings->verify,
											delivery.headers);
	if (delivery.id == NULL)
		delivery.id = body_id(&delivery);
	if (delivery.id == NULL)
		delivery.id = body_digest(body);
	PG_RETURN_JSONB_P(receive_as_owner(&delivery));
}
