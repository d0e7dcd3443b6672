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

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "compat.h"
#include "config.h"
#include "json.h"
#include "keys.h"
#include "log.h"
#include "mapping.h"
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

/*
 * Receiving
 */

static AccordMessage *
map_delivery(Delivery *delivery, int *n)
{
	AccordWebhookSource *settings = delivery->settings;
	AccordMapping mapping = {"source", delivery->source.name,
		settings->mapping, settings->mapping_function, settings->owner
	};
	AccordMessage *messages;

	if (mapping.function != NULL)
		return accord_mapping_by_function(&mapping, delivery->headers,
										  delivery->body, n);
	messages = palloc(sizeof(AccordMessage));
	*n = 1;
	if (mapping.paths != NULL)
		accord_mapping_by_paths(&mapping, delivery->headers, delivery->body,
								messages);
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
	Jsonb	   *result;
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
	result = receive_as_owner(&delivery);
	if (delivery.settings->polls)
		accord_source_poll(name);
	PG_RETURN_JSONB_P(result);
}
