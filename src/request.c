/*
 * request.c: an event becomes an HTTP request.
 *
 * Runs in dispatchers, and in backends that only look at it (preview.c). Its
 * parts: request_event.c (columns and variables), request_key.c (the
 * idempotency key), request_body.c, request_function.c, request_frozen.c.
 * Everything about one event that can go wrong here (a variable it does not
 * define, a body function that raises) becomes request->error and concerns
 * that event alone.
 *
 * Invariants: nothing read from an event reaches the host part of the URL;
 * path variables are percent-encoded, dot segments and control characters
 * refused. The credentials are added last (equip) and stored nowhere.
 *
 * On failure: a body function's error aborts its subtransaction; whether it
 * may pass is judged by its SQLSTATE class.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "encode.h"
#include "json.h"
#include "remote.h"
#include "request_private.h"
#include "template.h"
#include "token.h"

void
accord_request_add_header(AccordRequest *request, const char *name,
						  const char *value)
{
	AccordHttpRequest *http = &request->http;
	size_t		len;
	size_t		value_len;
	char	   *line;

	Assert(name != NULL && value != NULL);
	len = strlen(name);
	value_len = strlen(value);
	line = palloc(len + value_len + 3);
	memcpy(line, name, len);
	memcpy(line + len, ": ", 2);
	memcpy(line + len + 2, value, value_len + 1);

	for (int i = 0; i < http->n_headers; i++)
	{
		if (pg_strncasecmp(http->headers[i], name, len) == 0 &&
			http->headers[i][len] == ':')
		{
			http->headers[i] = line;
			return;
		}
	}
	if (http->n_headers == ACCORD_REQUEST_HEADERS)
		request->error = psprintf("more than %d headers", ACCORD_REQUEST_HEADERS);
	else
		http->headers[http->n_headers++] = line;
}

bool
accord_request_has_header(const AccordRequest *request, const char *name)
{
	size_t		len = strlen(name);

	for (int i = 0; i < request->http.n_headers; i++)
		if (pg_strncasecmp(request->http.headers[i], name, len) == 0 &&
			request->http.headers[i][len] == ':')
			return true;
	return false;
}

void
accord_request_add_headers(AccordRequest *request, Jsonb *object,
						   AccordRequestScope *scope)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	if (object == NULL || !JB_ROOT_IS_OBJECT(object) ||
		JB_ROOT_COUNT(object) == 0)
		return;
	iterator = JsonbIteratorInit(&object->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		char	   *text;

		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		if (token != WJB_VALUE)
			continue;
		text = accord_json_text(&value);
		if (text != NULL && scope != NULL)
		{
			char	   *missing;

			text = accord_template_expand(text, true, accord_request_variable,
										  scope, &missing);

			/*
			 * a probe is about no event; and what the channel has not told of
			 * is not said either
			 */
			if (missing != NULL && (scope->event == NULL ||
									accord_remote_owns(missing)))
				continue;
			if (missing != NULL)
			{
				request->error = psprintf("header %s: the event defines no "
										  "\"%s\"", name, missing);
				return;
			}
		}
		if (text != NULL)
			accord_request_add_header(request, name, text);
	}
}

/* What a path may not hold once it is expanded; NULL when it is fine. */
static char *
check_path(const char *path)
{
	const char *end = path + strcspn(path, "?");

	if (path[0] != '\0' && path[0] != '/' && path[0] != '?')
		return psprintf("path \"%s\" does not begin with \"/\"", path);
	for (const char *p = path; *p != '\0'; p++)
		if ((unsigned char) *p <= ' ' || (unsigned char) *p >= 0x7F ||
			*p == '#')
			return pstrdup("path holds a character that must be "
						   "percent-encoded");
	for (const char *p = path; p < end; p++)
	{
		size_t		len = *p == '/' ? strcspn(p + 1, "/?") : 0;

		if (*p == '/' && ((len == 1 && p[1] == '.') ||
						  (len == 2 && p[1] == '.' && p[2] == '.')))
			return psprintf("path \"%s\" has a dot segment", path);
	}
	return NULL;
}

/* The path, and the key as a parameter after it. */
static const char *
add_key_parameter(const AccordRequestScope *scope, const char *path)
{
	const char *name = scope->route->channel->idempotency_query;
	StringInfoData out;

	if (scope->key == NULL || name == NULL)
		return path;
	initStringInfo(&out);
	appendStringInfoString(&out, path);
	appendStringInfoChar(&out, strchr(path, '?') == NULL ? '?' : '&');
	accord_encode_percent(&out, name, "-._~");
	appendStringInfoChar(&out, '=');
	accord_encode_percent(&out, scope->key, "-._~");
	return out.data;
}

void
accord_request_set_path(AccordRequest *request, AccordRequestScope *scope,
						const char *path)
{
	const AccordAccount *account = scope->account;
	const char *base = account != NULL && account->base_url != NULL ?
	account->base_url : scope->route->channel->base_url;

	request->error = check_path(path);
	if (request->error == NULL)
		request->http.url = psprintf("%s%s", base,
									 add_key_parameter(scope, path));
}

/* The key, and where the channel takes one, places it in a header. */
static void
make_key(AccordRequest *request, AccordRequestScope *scope)
{
	const AccordChannel *channel = scope->route->channel;
	char	   *missing;
	char	   *key = accord_request_key(scope, &missing);

	request->key = key;
	if (channel->keyed)
		scope->key = key;
	if (key == NULL)
		request->error = psprintf("idempotency_key \"%s\": the event defines "
								  "no \"%s\"", channel->idempotency_key,
								  missing);
	else if (channel->idempotency_header != NULL)
		accord_request_add_header(request, channel->idempotency_header, key);
}

/* What every request says of its event. */
static void
add_own_headers(AccordRequest *request, AccordRequestScope *scope)
{
	const AccordEvent *event = scope->event;
	bool		isnull;
	Datum		ord = accord_request_column(event, ACCORD_EVENT_ORD, &isnull);

	accord_request_add_header(request, "Accord-Topic",
							  accord_request_text(event, ACCORD_EVENT_TOPIC));
	if (scope->batch != NULL)
		accord_request_add_header(request, "Accord-Batch",
								  psprintf("%d", scope->n_batch));
	else if (scope->seq != 0)
		accord_request_add_header(request, "Accord-Sequence",
								  psprintf(INT64_FORMAT ".%d", scope->seq,
										   DatumGetInt32(ord)));
	if (event->replay != NULL)
		accord_request_add_header(request, "Accord-Replay",
								  psprintf(INT64_FORMAT, event->replay->id));
}

/* The parts that every request has, by the route's templates. */
static void
make_plain(AccordRequest *request, AccordRequestScope *scope)
{
	const AccordRoute *route = scope->route;
	char	   *missing;
	char	   *path;

	make_key(request, scope);
	if (request->error != NULL)
		return;
	request->http.method = pstrdup(route->method);
	path = accord_template_expand(route->path, false, accord_request_variable,
								  scope, &missing);
	if (missing != NULL)
		request->error = psprintf("path \"%s\": the event defines no \"%s\"",
								  route->path, missing);
	else
		accord_request_set_path(request, scope, path);
	if (request->error != NULL)
		return;

	add_own_headers(request, scope);
	if (accord_request_function(scope) == NULL &&
		accord_request_method_has_body(route->method))
		accord_request_make_body(request, scope);
	if (request->error == NULL)
		accord_request_add_headers(request, route->channel->headers, scope);
	if (request->error == NULL)
		accord_request_add_headers(request, route->headers, scope);
	if (request->error == NULL)
		accord_request_add_headers(request,
								   accord_request_document(scope->event,
														   ACCORD_EVENT_HEADERS),
								   NULL);
}

bool
accord_request_needs_transaction(const AccordRoute *route)
{
	return route->body_function != NULL || route->batch_function != NULL ||
		route->channel->remembers || GetDatabaseEncoding() != PG_UTF8;
}

/* Makes it by the templates; no error escapes. */
static void
make_by_template(AccordRequest *request, AccordRequestScope *scope)
{
	MemoryContext caller = CurrentMemoryContext;

	PG_TRY();
	{
		make_plain(request, scope);
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

/* Whether there is nothing left to send of an event, or of one of a batch. */
static bool
is_erased(const AccordRequestScope *scope)
{
	bool		isnull;

	(void) accord_request_column(scope->event, ACCORD_EVENT_ERASED,
								 &isnull);
	for (int i = 0; i < scope->n_batch && isnull; i++)
		(void) accord_request_column(scope->batch[i], ACCORD_EVENT_ERASED,
									 &isnull);
	return !isnull;
}

static void
make(AccordRequest *request, AccordRequestScope *scope)
{
	const char *function = accord_request_function(scope);

	memset(request, 0, sizeof(*request));
	request->http.headers = palloc(ACCORD_REQUEST_HEADERS * sizeof(char *));
	if (is_erased(scope))
	{
		request->error = "the event's content was erased";
		return;
	}
	make_by_template(request, scope);
	if (request->error == NULL && function != NULL)
	{
		if (!OidIsValid(accord_request_function_oid(scope)) ||
			!OidIsValid(scope->route->owner))
		{
			request->error = psprintf("function %s or its route's owner does "
									  "not exist", function);
			return;
		}
		accord_request_run_function(request, scope);
	}
	if (request->error == NULL && !request->skip)
		accord_request_add_type(request, scope);
}

void
accord_request_make(AccordRequest *request, const AccordRoute *route,
					const AccordAccount *account, const AccordEvent *event,
					int64 seq)
{
	AccordRequestScope scope = {.route = route,.account = account,
	.event = event,.seq = seq};

	make(request, &scope);
}

void
accord_request_preview(AccordRequest *request, const AccordRoute *route,
					   const AccordAccount *account, const AccordEvent *event,
					   int64 seq)
{
	bool		batch = route->batch_size > 1 && !route->command;
	AccordRequestScope scope = {.route = route,.account = account,
		.event = event,.batch = batch ? &event : NULL,.n_batch = batch,
	.seq = batch ? 0 : seq,.preview = true};

	make(request, &scope);
}

/* The parts of a request that tells nothing. */
static void
make_probe(AccordRequest *request, AccordRequestScope *scope,
		   const char *path)
{
	char	   *missing;
	char	   *wrong = accord_template_check(path);
	char	   *expanded;

	if (wrong != NULL)
	{
		request->error = psprintf("path \"%s\": %s", path, wrong);
		return;
	}
	request->http.method = "GET";
	expanded = accord_template_expand(path, false, accord_request_variable,
									  scope, &missing);
	if (missing != NULL)
		request->error = psprintf("path \"%s\": the account defines no "
								  "\"%s\"", path, missing);
	else
		accord_request_set_path(request, scope, expanded);
	if (request->error == NULL)
		accord_request_add_headers(request, scope->route->channel->headers,
								   scope);
}

void
accord_request_make_probe(AccordRequest *request, AccordChannel *channel,
						  const AccordAccount *account, const char *path)
{
	AccordRoute route = {.channel = channel};
	AccordRequestScope scope = {.route = &route,.account = account};
	MemoryContext caller = CurrentMemoryContext;

	memset(request, 0, sizeof(*request));
	request->http.headers = palloc(ACCORD_REQUEST_HEADERS * sizeof(char *));
	PG_TRY();
	{
		make_probe(request, &scope, path);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		request->error = error->message;
	}
	PG_END_TRY();
}

void
accord_request_make_batch(AccordRequest *request, const AccordRoute *route,
						  const AccordAccount *account,
						  const AccordEvent *const *events, int n)
{
	AccordRequestScope scope = {.route = route,.account = account,
	.event = events[0],.batch = events,.n_batch = n};

	make(request, &scope);
}

void
accord_request_equip(AccordRequest *request, const AccordChannel *channel,
					 const AccordAccount *account, bool once)
{
	AccordHttpRequest *http = &request->http;
	const AccordAuth *auth = account != NULL && account->has_auth ?
	&account->auth : &channel->auth;
	const AccordLink *link = account != NULL ? &account->link :
	&channel->link;
	AccordToken *token;

	http->once = once;
	http->connect_timeout_ms = channel->connect_timeout_ms;
	http->timeout_ms = channel->timeout_ms;
	http->stall_timeout_s = channel->stall_timeout_s;
	http->max_response = channel->max_response;
	if (channel->compress_above >= 0)
		accord_request_compress(request, channel->compress_above);
	if (link->tls != NULL || link->proxy != NULL)
		accord_http_copy_link(http, link->tls, link->proxy);
	if (link->fault != NULL)
	{
		request->error = pstrdup(link->fault);
		request->transient = true;
		return;
	}
	if (auth->type == ACCORD_AUTH_NONE)
		return;
	token = accord_token_find(auth);
	request->error = accord_auth_apply(auth, request->key,
									   token ? token->access : NULL, http,
									   GetCurrentTimestamp());
	request->transient = request->error != NULL;
}
