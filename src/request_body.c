/*
 * request_body.c: the body of a request.
 *
 * Runs in dispatchers, and in backends that only look at a request. What part
 * of the event goes (route.body_from) and as what (route.body) is the route's
 * to say; a function of its own makes the text of it instead, if there is one.
 *
 * Invariants: the same event makes the same bytes every time. The idempotency
 * key, where the channel takes it in the body, is put in before the body is
 * written; one that a function has put there itself stays. Every body is
 * UTF-8, or bytes. Compression comes last of all, so that what is kept or
 * shown of a request is what was meant.
 *
 * On failure request->error says what is wrong with this event; what cannot be
 * compressed goes as it is.
 */
#include "postgres.h"

#include <zlib.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"

#include "accord.h"
#include "compat.h"
#include "encode.h"
#include "json.h"
#include "keyform.h"
#include "request_private.h"

/* What may stand in a header of CloudEvents as it is: printable ASCII. */
#define HEADER_KEPT "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
#define GZIP_WINDOW (15 + 16)	/* zlib: the largest window, in gzip's format */

bool
accord_request_method_has_body(const char *method)
{
	return strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0 &&
		strcmp(method, "DELETE") != 0;
}

static void
set_bytes(AccordRequest *request, StringInfo bytes)
{
	request->http.body = bytes->data;
	request->http.body_len = bytes->len;
}

void
accord_request_set_body(AccordRequest *request, const char *text)
{
	request->http.body = NULL;
	request->http.body_len = 0;
	if (text == NULL || text[0] == '\0')
		return;
	request->http.body = pg_server_to_any(text, strlen(text), PG_UTF8);
	request->http.body_len = strlen(request->http.body);
}

/* ---- the idempotency key, put into an object ---- */

/*
 * Pushes an object (NULL: an empty one) with a string at a dotted path in it,
 * unless there is a value already; NULL, or what stands in the way.
 */
static char *
push_with_key(AccordJsonbState *state, JsonbContainer *object,
			  const char *path, const char *key, bool outermost)
{
	size_t		len = strcspn(path, ".");
	JsonbIterator *iterator = object ? JsonbIteratorInit(object) : NULL;
	JsonbValue	name;
	JsonbValue	value;
	JsonbValue	step = {.type = jbvString};
	JsonbValue *there = NULL;
	char	   *wrong = NULL;

	step.val.string.val = (char *) path;
	step.val.string.len = (int) len;
	accord_jsonb_push(state, WJB_BEGIN_OBJECT, NULL);
	if (iterator != NULL)
		(void) JsonbIteratorNext(&iterator, &value, true);
	while (iterator != NULL &&
		   JsonbIteratorNext(&iterator, &name, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&iterator, &value, true);
		if (name.val.string.len == len &&
			memcmp(name.val.string.val, path, len) == 0)
		{
			there = palloc(sizeof(JsonbValue));
			*there = value;
			if (path[len] != '\0' || value.type == jbvNull)
				continue;
		}
		accord_jsonb_push(state, WJB_KEY, &name);
		accord_jsonb_push(state, WJB_VALUE, &value);
	}
	if (path[len] == '\0' && (there == NULL || there->type == jbvNull))
	{
		value.type = jbvString;
		value.val.string.val = (char *) key;
		value.val.string.len = strlen(key);
		accord_jsonb_push(state, WJB_KEY, &step);
		accord_jsonb_push(state, WJB_VALUE, &value);
	}
	else if (path[len] != '\0' && there != NULL && there->type != jbvNull &&
			 (there->type != jbvBinary ||
			  !JsonContainerIsObject(there->val.binary.data)))
		wrong = psprintf("\"%.*s\" of the body is not an object", (int) len,
						 path);
	else if (path[len] != '\0')
	{
		accord_jsonb_push(state, WJB_KEY, &step);
		wrong = push_with_key(state, there == NULL || there->type == jbvNull ?
							  NULL : there->val.binary.data, path + len + 1,
							  key, false);
	}
	if (!outermost)
		accord_jsonb_push(state, WJB_END_OBJECT, NULL);
	return wrong;
}

/* The value (NULL: none) with the key in it, where that is its place. */
static JsonbValue *
place_key(AccordRequest *request, AccordRequestScope *scope,
		  JsonbValue *value)
{
	const char *path = scope->route->channel->idempotency_path;
	AccordJsonbState state = {0};
	JsonbContainer *object = NULL;
	char	   *wrong;
	Jsonb	   *placed;

	if (path == NULL || scope->key == NULL)
		return value;
	if (value != NULL && value->type == jbvBinary)
		object = value->val.binary.data;
	/* the payloads of a batch have nothing around them to put it into */
	if (scope->batch != NULL && object != NULL &&
		JsonContainerIsArray(object))
		return value;
	if (value != NULL && value->type != jbvNull &&
		(object == NULL || !JsonContainerIsObject(object)))
	{
		request->error = psprintf("the idempotency key has no place at \"%s\": "
								  "the body is not an object", path);
		return value;
	}
	wrong = push_with_key(&state, object, path, scope->key, true);
	placed = accord_jsonb_end(&state, WJB_END_OBJECT);
	if (wrong != NULL)
		request->error = psprintf("the idempotency key has no place at \"%s\": "
								  "%s", path, wrong);
	return accord_json_path(placed, "");
}

/* ---- what goes ---- */

/* The part of an event that its route sends; NULL: there is none. */
static JsonbValue *
find_value(const AccordRequestScope *scope, const AccordEvent *event)
{
	AccordRequestScope one = *scope;

	one.event = event;
	return accord_request_variable(scope->route->body_from, &one);
}

/* As JSON. The payload itself, which most routes send, is printed at once. */
static char *
print_value(JsonbValue *value)
{
	return accord_json_print(JsonbValueToJsonb(value));
}

static bool
sends_payload(const AccordRequestScope *scope)
{
	return strcmp(scope->route->body_from, "payload") == 0;
}

/* An event's part as JSON; NULL: there is none. */
static char *
json_text(const AccordRequestScope *scope, const AccordEvent *event)
{
	JsonbValue *value;

	if (sends_payload(scope))
	{
		Jsonb	   *payload = accord_request_document(event,
													  ACCORD_EVENT_PAYLOAD);

		return payload ? accord_json_print(payload) : NULL;
	}
	value = find_value(scope, event);
	return value ? print_value(value) : NULL;
}

/* ---- CloudEvents ---- */

/* The attributes of an event, as members or as headers; value not NULL. */
typedef void (*AttributeVisit) (const char *name, const char *value,
								void *arg);

static char *
origin_path(void)
{
	StringInfoData out;
	const char *origin = accord_request_origin();

	initStringInfo(&out);
	appendStringInfoChar(&out, '/');
	accord_encode_percent(&out, pg_server_to_any(origin, strlen(origin),
												 PG_UTF8), "-._~");
	return out.data;
}

static void
visit_attributes(const AccordRequestScope *scope, const AccordEvent *event,
				 AttributeVisit visit, void *arg)
{
	static const struct
	{
		const char *name;
		int			column;
	}			texts[] = {
		{"type", ACCORD_EVENT_TOPIC}, {"subject", ACCORD_EVENT_KEY},
		{"op", ACCORD_EVENT_OP}, {"account", ACCORD_EVENT_ACCOUNT}
	};
	char		time[MAXDATELEN + 1];
	int			utc = 0;
	bool		isnull;

	visit("specversion", "1.0", arg);
	visit("id", accord_request_event_id(event), arg);
	visit("source", origin_path(), arg);
	for (int i = 0; i < lengthof(texts); i++)
	{
		char	   *text = accord_request_text(event, texts[i].column);

		if (text != NULL && text[0] != '\0')
			visit(texts[i].name, text, arg);
	}
	JsonEncodeDateTime(time, accord_request_column(event,
												   ACCORD_EVENT_OCCURRED_AT,
												   &isnull),
					   TIMESTAMPTZOID, &utc);
	visit("time", time, arg);
	if (scope->seq != 0)
		visit("sequence",
			  psprintf(INT64_FORMAT ".%d", scope->seq,
					   DatumGetInt32(accord_request_column(event,
														   ACCORD_EVENT_ORD,
														   &isnull))), arg);
}

/* AttributeVisit: the next member of the envelope. */
static void
add_member(const char *name, const char *value, void *arg)
{
	StringInfo	out = arg;

	appendStringInfo(out, "%s\"%s\":", out->data[out->len - 1] == '{' ? "" :
					 ",", name);
	escape_json(out, value);
}

/* AttributeVisit: a header, percent-encoded as the HTTP binding has it. */
static void
add_attribute_header(const char *name, const char *value, void *arg)
{
	StringInfoData out;

	initStringInfo(&out);
	accord_encode_percent(&out, pg_server_to_any(value, strlen(value),
												 PG_UTF8), HEADER_KEPT);
	accord_request_add_header(arg, psprintf("ce-%s", name), out.data);
}

/* data: JSON; NULL: none. */
static void
append_envelope(StringInfo out, const AccordRequestScope *scope,
				const AccordEvent *event, const char *data)
{
	appendStringInfoChar(out, '{');
	visit_attributes(scope, event, add_member, out);
	if (data != NULL)
		appendStringInfo(out, ",\"datacontenttype\":\"application/json\","
						 "\"data\":%s", data);
	appendStringInfoChar(out, '}');
}

/* ---- the formats ---- */

/* Each makes the body of one event's part, which is not NULL. */
typedef char *(*BodyWriter) (StringInfo out, const AccordRequestScope *scope,
							 JsonbValue *value);

static char *
write_form(StringInfo out, const AccordRequestScope *scope, JsonbValue *value)
{
	return accord_encode_form(out, value, scope->route->form_arrays);
}

static char *
write_xml(StringInfo out, const AccordRequestScope *scope, JsonbValue *value)
{
	return accord_encode_xml(out, value, scope->route->body_root);
}

static char *
write_text(StringInfo out, const AccordRequestScope *scope, JsonbValue *value)
{
	char	   *text = accord_json_text(value);

	if (text != NULL)
		appendStringInfoString(out, pg_server_to_any(text, strlen(text),
													 PG_UTF8));
	return NULL;
}

static char *
write_bytes(StringInfo out, const AccordRequestScope *scope,
			JsonbValue *value)
{
	if (value->type == jbvNull)
		return NULL;
	if (value->type != jbvString)
		return pstrdup("bytes are given as a string of base64, and this is "
					   "none");
	accord_encode_bytes(out, accord_json_text(value));
	return NULL;
}

static char *
write_multipart(StringInfo out, const AccordRequestScope *scope,
				JsonbValue *value)
{
	return accord_encode_multipart(out, value, scope->boundary);
}

static void
make_written(AccordRequest *request, AccordRequestScope *scope,
			 BodyWriter writer, bool holds_key)
{
	JsonbValue *value = find_value(scope, scope->event);
	StringInfoData out;
	char	   *wrong;

	if (holds_key)
		value = place_key(request, scope, value);
	if (value == NULL || request->error != NULL)
		return;
	initStringInfo(&out);
	wrong = writer(&out, scope, value);
	if (wrong != NULL)
		request->error = psprintf("body from %s: %s", scope->route->body_from,
								  wrong);
	else if (out.len > 0)
		set_bytes(request, &out);
}

/* The body of a batch: an array of what each would have. */
static char *
batch_text(const AccordRequestScope *scope, bool envelopes)
{
	StringInfoData out;

	initStringInfo(&out);
	for (int i = 0; i < scope->n_batch; i++)
	{
		char	   *data = json_text(scope, scope->batch[i]);

		appendStringInfoChar(&out, i == 0 ? '[' : ',');
		if (envelopes)
			append_envelope(&out, scope, scope->batch[i], data);
		else
			appendStringInfoString(&out, data ? data : "null");
	}
	appendStringInfoChar(&out, ']');
	return out.data;
}

/* One event's part as JSON, with the key in it; NULL: there is none. */
static char *
keyed_json_text(AccordRequest *request, AccordRequestScope *scope)
{
	JsonbValue *value;

	if (scope->key == NULL || scope->route->channel->idempotency_path == NULL)
		return json_text(scope, scope->event);
	value = place_key(request, scope, find_value(scope, scope->event));
	return value == NULL ? NULL : print_value(value);
}

static void
make_cloudevents(AccordRequest *request, AccordRequestScope *scope)
{
	StringInfoData out;

	initStringInfo(&out);
	if (scope->batch != NULL)
		appendStringInfoString(&out, batch_text(scope, true));
	else
		append_envelope(&out, scope, scope->event,
						keyed_json_text(request, scope));
	accord_request_set_body(request, out.data);
}

/*
 * What parts the parts: made of a hash of what is in them, which so cannot
 * have it in it.
 */
static char *
make_boundary(const AccordRequestScope *scope)
{
	char	   *text = json_text(scope, scope->event);

	return psprintf("accord-%s", accord_keyform_hash(text ? text : "",
													 ACCORD_KEY_HEX, 32));
}

void
accord_request_make_body(AccordRequest *request, AccordRequestScope *scope)
{
	switch (scope->route->body)
	{
		case ACCORD_BODY_CLOUDEVENTS:
			make_cloudevents(request, scope);
			break;
		case ACCORD_BODY_CLOUDEVENTS_BINARY:
			visit_attributes(scope, scope->event, add_attribute_header,
							 request);
			accord_request_set_body(request, keyed_json_text(request, scope));
			break;
		case ACCORD_BODY_FORM:
			make_written(request, scope, write_form, true);
			break;
		case ACCORD_BODY_XML:
			make_written(request, scope, write_xml, true);
			break;
		case ACCORD_BODY_MULTIPART:
			scope->boundary = make_boundary(scope);
			make_written(request, scope, write_multipart, true);
			break;
		case ACCORD_BODY_TEXT:
			make_written(request, scope, write_text, false);
			break;
		case ACCORD_BODY_BYTES:
			make_written(request, scope, write_bytes, false);
			break;
		case ACCORD_BODY_NONE:
			break;
		case ACCORD_BODY_JSON:
			accord_request_set_body(request, scope->batch != NULL ?
									batch_text(scope, false) :
									keyed_json_text(request, scope));
			break;
	}
}

/* ---- a function's body ---- */

/* A form that a function wrote: the key is another field of it. */
static char *
add_key_field(const AccordRequestScope *scope, const char *text)
{
	const char *path = scope->route->channel->idempotency_path;
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfo(&out, "%s%s", text, text[0] == '\0' ? "" : "&");
	for (bool first = true;; first = false)
	{
		size_t		len = strcspn(path, ".");

		if (!first)
			appendStringInfoChar(&out, '[');
		accord_encode_percent(&out, pnstrdup(path, len), "*-._");
		if (!first)
			appendStringInfoChar(&out, ']');
		if (path[len] == '\0')
			break;
		path += len + 1;
	}
	appendStringInfoChar(&out, '=');
	accord_encode_percent(&out, scope->key, "*-._");
	return out.data;
}

void
accord_request_take_body(AccordRequest *request, AccordRequestScope *scope,
						 const char *text)
{
	bool		placed = scope->key != NULL &&
	scope->route->channel->idempotency_path != NULL;
	StringInfoData bytes;
	JsonbValue *value;

	if (scope->route->body == ACCORD_BODY_BYTES)
	{
		initStringInfo(&bytes);
		accord_encode_bytes(&bytes, text);
		set_bytes(request, &bytes);
	}
	else if (placed && scope->route->body == ACCORD_BODY_FORM)
		accord_request_set_body(request, add_key_field(scope, text));
	else if (placed && scope->route->body == ACCORD_BODY_JSON)
	{
		Datum		json = DirectFunctionCall1(jsonb_in,
											   CStringGetDatum(text));

		value = place_key(request, scope,
						  accord_json_path(DatumGetJsonbP(json), ""));
		accord_request_set_body(request, print_value(value));
	}
	else
		accord_request_set_body(request, text);
}

/* ---- what it is called, and how it travels ---- */

void
accord_request_add_type(AccordRequest *request, AccordRequestScope *scope)
{
	const AccordRoute *route = scope->route;
	const char *type = route->content_type;

	if (request->http.body == NULL ||
		accord_request_has_header(request, "Content-Type"))
		return;
	if (scope->batch != NULL && route->body == ACCORD_BODY_CLOUDEVENTS &&
		!route->own_content_type)
		type = "application/cloudevents-batch+json";
	if (scope->boundary != NULL)
		type = psprintf("%s; boundary=%s", type, scope->boundary);
	accord_request_add_header(request, "Content-Type", type);
}

void
accord_request_compress(AccordRequest *request, size_t above)
{
	AccordHttpRequest *http = &request->http;
	z_stream	stream;
	char	   *out;
	int			code;

	if (http->body == NULL || http->body_len <= above ||
		http->body_len > PG_INT32_MAX ||
		accord_request_has_header(request, "Content-Encoding"))
		return;
	memset(&stream, 0, sizeof(stream));
	if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, GZIP_WINDOW,
					 8, Z_DEFAULT_STRATEGY) != Z_OK)
		return;
	out = palloc(http->body_len);
	stream.next_in = (Bytef *) http->body;
	stream.avail_in = (uInt) http->body_len;
	stream.next_out = (Bytef *) out;
	/* one byte less: to be no shorter is no gain */
	stream.avail_out = (uInt) http->body_len - 1;
	code = deflate(&stream, Z_FINISH);
	if (code == Z_STREAM_END)
	{
		request->plain = http->body;
		request->plain_len = http->body_len;
		http->body = out;
		http->body_len = stream.total_out;
		accord_request_add_header(request, "Content-Encoding", "gzip");
	}
	else
		pfree(out);
	deflateEnd(&stream);
}
