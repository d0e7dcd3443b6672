/*
 * request_question.c: a question about an event.
 *
 * Runs in dispatchers. A channel may be asked what became of a request, or what
 * it has: a request that delivers nothing, made of templates over the same
 * variables. It carries the channel's headers, and neither an idempotency key
 * nor the route's headers: those are about what is delivered.
 *
 * On failure request->error says what is wrong; nothing is raised.
 */
#include "postgres.h"

#include "compat.h"
#include "json.h"
#include "request_private.h"
#include "template.h"
#include "utils/memutils.h"

/* A string of the body, expanded. */
static void
expand_string(JsonbValue *value, AccordRequestScope *scope)
{
	char	   *text = pnstrdup(value->val.string.val, value->val.string.len);

	text = accord_template_expand(text, true, accord_request_variable, scope,
								  NULL);
	value->val.string.val = text;
	value->val.string.len = strlen(text);
}

/* The body: as it is given, its strings expanded. */
static char *
expand_body(Jsonb *body, AccordRequestScope *scope)
{
	AccordJsonbState state = {0};
	JsonbIterator *iterator = JsonbIteratorInit(&body->root);
	JsonbIteratorToken token;
	JsonbIteratorToken last = WJB_DONE;
	JsonbValue	value;
	int			depth = 0;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		bool		scalar = token == WJB_KEY || token == WJB_VALUE ||
		token == WJB_ELEM;

		depth += token == WJB_BEGIN_OBJECT || token == WJB_BEGIN_ARRAY;
		depth -= token == WJB_END_OBJECT || token == WJB_END_ARRAY;
		last = token;
		if (depth == 0)
			break;
		if ((token == WJB_VALUE || token == WJB_ELEM) &&
			value.type == jbvString)
			expand_string(&value, scope);
		accord_jsonb_push(&state, token, scalar ? &value : NULL);
	}
	return accord_json_print(accord_jsonb_end(&state, last));
}

static void
make_question(AccordRequest *request, AccordRequestScope *scope,
			  const char *method, const char *path, Jsonb *body)
{
	char	   *missing;
	char	   *expanded;

	request->http.method = pstrdup(method);
	expanded = accord_template_expand(path, false, accord_request_variable,
									  scope, &missing);
	if (missing != NULL)
		request->error = psprintf("path \"%s\": there is no \"%s\"", path,
								  missing);
	else
		accord_request_set_path(request, scope, expanded);
	if (request->error == NULL && body != NULL)
	{
		accord_request_set_body(request, expand_body(body, scope));
		accord_request_add_header(request, "Content-Type", "application/json");
	}
	if (request->error == NULL)
		accord_request_add_headers(request, scope->route->channel->headers,
								   scope);
}

void
accord_request_ask(AccordRequest *request, const AccordRoute *route,
				   const AccordAccount *account, const AccordEvent *event,
				   const char *method, const char *path, Jsonb *body)
{
	AccordRequestScope scope = {.route = route,.account = account,
	.event = event};
	MemoryContext caller = CurrentMemoryContext;

	memset(request, 0, sizeof(*request));
	request->key = pstrdup("");
	request->http.headers = palloc(ACCORD_REQUEST_HEADERS * sizeof(char *));
	PG_TRY();
	{
		make_question(request, &scope, method, path, body);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		request->error = error->message;
		request->transient = accord_request_error_may_pass(error->sqlerrcode);
	}
	PG_END_TRY();
}
