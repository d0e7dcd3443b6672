/*
 * request_frozen.c: a request is kept word for word.
 *
 * Runs in dispatchers, in a transaction or outside of any. Of a command whose
 * body comes from a function what was sent first is what is sent again,
 * whatever the function would make of it by then.
 *
 * Invariants: credentials, and what is made for a single attempt, are not
 * kept: they are put in later (accord_request_equip()). A body is kept as text
 * where it is text, else in base64.
 *
 * On failure, which is too large a request, request->error says so.
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "compat.h"
#include "encode.h"
#include "json.h"
#include "request_private.h"

static void
push_string(AccordJsonbState *state, JsonbIteratorToken token,
			const char *string)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) string;
	value.val.string.len = strlen(string);
	accord_jsonb_push(state, token, &value);
}

/* The body, if any, as a member of the object under way. */
static void
push_body(AccordJsonbState *state, const AccordHttpRequest *http)
{
	Datum		bytes;

	if (http->body == NULL)
		return;
	if (memchr(http->body, '\0', http->body_len) == NULL &&
		pg_verify_mbstr(PG_UTF8, http->body, http->body_len, true))
	{
		push_string(state, WJB_KEY, "body");
		push_string(state, WJB_VALUE,
					pg_any_to_server(http->body, http->body_len, PG_UTF8));
		return;
	}
	bytes = PointerGetDatum(cstring_to_text_with_len(http->body,
													 http->body_len));
	push_string(state, WJB_KEY, "body_base64");
	push_string(state, WJB_VALUE,
				TextDatumGetCString(DirectFunctionCall2(binary_encode, bytes,
														CStringGetTextDatum("base64"))));
}

static Jsonb *
freeze(const AccordRequest *request)
{
	AccordJsonbState state = {0};

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	push_string(&state, WJB_KEY, "method");
	push_string(&state, WJB_VALUE, request->http.method);
	push_string(&state, WJB_KEY, "url");
	push_string(&state, WJB_VALUE, request->http.url);
	push_string(&state, WJB_KEY, "key");
	push_string(&state, WJB_VALUE, request->key);
	push_string(&state, WJB_KEY, "headers");
	accord_jsonb_push(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < request->http.n_headers; i++)
		push_string(&state, WJB_ELEM, request->http.headers[i]);
	accord_jsonb_push(&state, WJB_END_ARRAY, NULL);
	push_body(&state, &request->http);
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

Jsonb	   *
accord_request_freeze(AccordRequest *request)
{
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *volatile frozen = NULL;

	PG_TRY();
	{
		frozen = freeze(request);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		request->error = psprintf("the request cannot be kept: %s",
								  error->message);
	}
	PG_END_TRY();
	return frozen;
}

Jsonb	   *
accord_request_sent(Jsonb *kept)
{
	JsonbValue *sent;

	/* of one that was accepted it stands beside what is asked */
	if (accord_json_path(kept, "until") == NULL)
		return kept;
	sent = accord_json_path(kept, "sent");
	return sent ? JsonbValueToJsonb(sent) : NULL;
}

void
accord_request_thaw(AccordRequest *request, Jsonb *frozen)
{
	char	   *body = accord_json_member(frozen, "body");
	char	   *base64 = accord_json_member(frozen, "body_base64");
	StringInfoData bytes;

	memset(request, 0, sizeof(*request));
	request->http.method = accord_json_member(frozen, "method");
	request->http.url = accord_json_member(frozen, "url");
	request->key = accord_json_member(frozen, "key");
	request->http.headers = palloc(ACCORD_REQUEST_HEADERS * sizeof(char *));
	for (int i = 0; i < ACCORD_REQUEST_HEADERS; i++)
	{
		JsonbValue *line = accord_json_path(frozen,
											psprintf("headers.%d", i));

		if (line == NULL)
			break;
		request->http.headers[request->http.n_headers++] =
			accord_json_text(line);
	}
	accord_request_set_body(request, body);
	if (base64 == NULL)
		return;
	initStringInfo(&bytes);
	accord_encode_bytes(&bytes, base64);
	request->http.body = bytes.data;
	request->http.body_len = bytes.len;
}
