/*
 * request.c: an event becomes an HTTP request.
 *
 * Runs in dispatchers. Everything about one event that can go wrong here (a
 * variable it does not define, a body function that raises) becomes
 * request->error and concerns that event alone.
 *
 * Invariants: nothing read from an event reaches the host part of the URL;
 * path variables are percent-encoded, dot segments and control characters
 * refused. The credentials are added last (equip) and stored nowhere.
 *
 * On failure: a body function's error aborts its subtransaction; whether it
 * may pass is judged by its SQLSTATE class.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_proc.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/uuid.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "guc.h"
#include "json.h"
#include "request.h"
#include "template.h"

#define MAX_HEADERS 256			/* of all sources; each has its own limit */

/* What a template's variables are looked up in. */
typedef struct Variables
{
	const AccordRoute *route;
	const AccordAccount *account;
	const AccordEvent *event;
	const AccordEvent *const *batch;	/* all its events, or NULL */
	int			n_batch;
} Variables;

volatile	sig_atomic_t accord_request_in_function = false;

static TupleDesc event_desc = NULL;
static TimeoutId end_timeout;	/* a function has ignored its cancellation */

/* Signal handler: nothing in a function can catch this. */
static void
end_dispatcher(void)
{
	ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

/* A function is cancelled when its time is up; and we end with it when it goes
 * on for another second all the same. */
static void
begin_function(void)
{
	accord_request_in_function = true;
	enable_timeout_after(STATEMENT_TIMEOUT, accord_function_timeout);
	enable_timeout_after(end_timeout, accord_function_timeout + 1000);
}

static void
end_function(void)
{
	disable_timeout(end_timeout, false);
	disable_timeout(STATEMENT_TIMEOUT, false);
	accord_request_in_function = false;
}

void
accord_request_init(void)
{
	Relation	rel = table_open(accord_db_relid("event_log"),
								 AccessShareLock);
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	end_timeout = RegisterTimeout(USER_TIMEOUT, end_dispatcher);
	event_desc = CreateTupleDescCopy(RelationGetDescr(rel));
	MemoryContextSwitchTo(old);
	table_close(rel, NoLock);
}

Datum
accord_request_column(const AccordEvent *event, int column, bool *isnull)
{
	return heap_getattr(event->tuple, column, event_desc, isnull);
}

char	   *
accord_request_text(const AccordEvent *event, int column)
{
	bool		isnull;
	Datum		value = accord_request_column(event, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

TimestampTz
accord_request_time(const AccordEvent *event, int column)
{
	bool		isnull;
	Datum		value = accord_request_column(event, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

static JsonbValue *
make_string(char *string)
{
	JsonbValue *value;

	if (string == NULL)
		return NULL;
	value = palloc(sizeof(JsonbValue));
	value->type = jbvString;
	value->val.string.val = string;
	value->val.string.len = strlen(string);
	return value;
}

static char *
event_id_text(const AccordEvent *event)
{
	bool		isnull;
	Datum		id = accord_request_column(event, ACCORD_EVENT_EVENT_ID,
										   &isnull);

	return DatumGetCString(DirectFunctionCall1(uuid_out, id));
}

/*
 * A UUID of version 8 (RFC 9562), made of hashes.
 */
static char *
made_key(uint64 high, uint64 low)
{
	return psprintf("%08x-%04x-8%03x-%04x-%012llx",
					(uint32) (high >> 32), (uint32) (high >> 16) & 0xFFFF,
					(uint32) high & 0xFFF,
					((uint32) (low >> 48) & 0x3FFF) | 0x8000,
					(unsigned long long) (low & UINT64CONST(0xFFFFFFFFFFFF)));
}

/* Mixes an event's key into one that is made. */
static void
add_to_key(const AccordEvent *event, uint64 *high, uint64 *low)
{
	bool		isnull;
	Datum		id = accord_request_column(event, ACCORD_EVENT_EVENT_ID,
										   &isnull);
	const unsigned char *bytes = DatumGetUUIDP(id)->data;

	*high = hash_bytes_extended(bytes, UUID_LEN, *high);
	*low = hash_bytes_extended(bytes, UUID_LEN, *low);
	if (event->replay == NULL || !event->replay->rekey)
		return;
	*high = hash_bytes_extended(event->replay->salt, UUID_LEN, *high);
	*low = hash_bytes_extended(event->replay->salt, UUID_LEN, *low);
}

/*
 * The idempotency key of an event: its id; of one that is replayed under a new
 * key, one that every attempt of this replay has.
 */
static char *
key_text(const AccordEvent *event)
{
	uint64		high = 3;
	uint64		low = 4;

	if (event->replay == NULL || !event->replay->rekey)
		return event_id_text(event);
	add_to_key(event, &high, &low);
	return made_key(high, low);
}

/* The variables that are columns, and those that are reached into. */
static const struct
{
	const char *name;
	int			column;
}			variable_columns[] = {
	{"key", ACCORD_EVENT_KEY},
	{"topic", ACCORD_EVENT_TOPIC},
	{"op", ACCORD_EVENT_OP},
	{"account", ACCORD_EVENT_ACCOUNT},
	{"source", ACCORD_EVENT_SOURCE}
},			variable_documents[] = {
	{"payload", ACCORD_EVENT_PAYLOAD},
	{"before", ACCORD_EVENT_BEFORE},
	{"headers", ACCORD_EVENT_HEADERS}
};

/* The rest of a name after its root: "payload.a.b" is "a.b" of "payload". */
static const char *
path_below(const char *name, const char *root)
{
	size_t		len = strlen(root);

	if (strncmp(name, root, len) != 0)
		return NULL;
	if (name[len] == '\0')
		return name + len;
	return name[len] == '.' ? name + len + 1 : NULL;
}

static JsonbValue *
find_variable(const char *name, void *arg)
{
	Variables  *variables = arg;
	const char *path;

	for (int i = 0; i < lengthof(variable_columns); i++)
		if (strcmp(name, variable_columns[i].name) == 0)
			return make_string(accord_request_text(variables->event,
												   variable_columns[i].column));
	if (strcmp(name, "event_id") == 0)
		return make_string(event_id_text(variables->event));
	if (strcmp(name, "channel") == 0)
		return make_string(pstrdup(variables->route->channel->name));
	if ((path = path_below(name, "vars")) != NULL)
		return variables->account ?
			accord_json_path(variables->account->vars, path) : NULL;
	for (int i = 0; i < lengthof(variable_documents); i++)
	{
		bool		isnull;
		Datum		document;

		path = path_below(name, variable_documents[i].name);
		if (path == NULL)
			continue;
		document = accord_request_column(variables->event,
										 variable_documents[i].column,
										 &isnull);
		return isnull ? NULL : accord_json_path(DatumGetJsonbP(document),
												path);
	}
	return NULL;
}

char	   *
accord_request_expand(const char *template, const AccordRoute *route,
					  const AccordAccount *account, const AccordEvent *event)
{
	Variables	variables = {route, account, event, NULL, 0};

	return accord_template_expand(template, true, find_variable, &variables,
								  NULL);
}

/* Adds a header, in place of an earlier one of that name. */
static void
add_header(AccordRequest *request, const char *name, const char *value)
{
	size_t		len = strlen(name);
	size_t		value_len = strlen(value);
	char	   *line = palloc(len + value_len + 3);
	AccordHttpRequest *http = &request->http;

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
	if (http->n_headers == MAX_HEADERS)
		request->error = psprintf("more than %d headers", MAX_HEADERS);
	else
		http->headers[http->n_headers++] = line;
}

/* Adds the members of an object; as templates when variables are given. */
static void
add_headers(AccordRequest *request, Jsonb *object, Variables *variables)
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
		if (text != NULL && variables != NULL)
		{
			char	   *missing;

			text = accord_template_expand(text, true, find_variable,
										  variables, &missing);
			if (missing != NULL)
			{
				request->error = psprintf("header %s: the event defines no "
										  "\"%s\"", name, missing);
				return;
			}
		}
		if (text != NULL)
			add_header(request, name, text);
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

static void
set_path(AccordRequest *request, const AccordRoute *route,
		 const AccordAccount *account, const char *path)
{
	const char *base = account != NULL && account->base_url != NULL ?
	account->base_url : route->channel->base_url;

	request->error = check_path(path);
	if (request->error == NULL)
		request->http.url = psprintf("%s%s", base, path);
}

/* Sets the body; none when there is no text, or an empty one. */
static void
set_body(AccordRequest *request, char *text)
{
	request->http.body = NULL;
	request->http.body_len = 0;
	if (text == NULL || text[0] == '\0')
		return;
	request->http.body = pg_server_to_any(text, strlen(text), PG_UTF8);
	request->http.body_len = strlen(request->http.body);
}

/* GET, HEAD and DELETE carry no body unless a function makes one. */
static bool
method_has_body(const char *method)
{
	return strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0 &&
		strcmp(method, "DELETE") != 0;
}

/* The payload as JSON; NULL when null. */
static char *
payload_text(const AccordEvent *event)
{
	bool		isnull;
	Datum		payload = accord_request_column(event, ACCORD_EVENT_PAYLOAD,
												&isnull);
	Jsonb	   *json;

	if (isnull)
		return NULL;
	json = DatumGetJsonbP(payload);
	return accord_json_print(json);
}

/* The payloads of a batch as a JSON array. */
static char *
batch_text(const Variables *variables)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < variables->n_batch; i++)
	{
		char	   *payload = payload_text(variables->batch[i]);

		appendStringInfoChar(&text, i == 0 ? '[' : ',');
		appendStringInfoString(&text, payload ? payload : "null");
	}
	appendStringInfoChar(&text, ']');
	return text.data;
}

/* The parts that every request has, by the route's templates. */
static void
make_plain(AccordRequest *request, Variables *variables, int64 seq)
{
	const AccordRoute *route = variables->route;
	const AccordEvent *event = variables->event;
	bool		isnull;
	Datum		headers;
	Datum		ord;
	char	   *missing;
	char	   *path;

	request->http.method = pstrdup(route->method);
	path = accord_template_expand(route->path, false, find_variable,
								  variables, &missing);
	if (missing != NULL)
		request->error = psprintf("path \"%s\": the event defines no \"%s\"",
								  route->path, missing);
	else
		set_path(request, route, variables->account, path);
	if (request->error != NULL)
		return;

	if (method_has_body(route->method))
		set_body(request, variables->batch ? batch_text(variables) :
				 payload_text(event));
	ord = accord_request_column(event, ACCORD_EVENT_ORD, &isnull);
	add_header(request, "Accord-Topic",
			   accord_request_text(event, ACCORD_EVENT_TOPIC));
	if (variables->batch != NULL)
		add_header(request, "Accord-Batch",
				   psprintf("%d", variables->n_batch));
	else
		add_header(request, "Accord-Sequence",
				   psprintf(INT64_FORMAT ".%d", seq, DatumGetInt32(ord)));
	if (event->replay != NULL)
		add_header(request, "Accord-Replay",
				   psprintf(INT64_FORMAT, event->replay->id));
	add_headers(request, route->channel->headers, variables);
	if (request->error == NULL)
		add_headers(request, route->headers, variables);
	headers = accord_request_column(event, ACCORD_EVENT_HEADERS, &isnull);
	if (request->error == NULL && !isnull)
		add_headers(request, DatumGetJsonbP(headers), NULL);
}

/* A field of the composite accord.http_request; NULL when null. */
static char *
result_text(HeapTupleHeader result, int field)
{
	bool		isnull;
	Datum		value = GetAttributeByNum(result, field, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* Takes over what a body function returned. */
static void
apply_result(AccordRequest *request, Variables *variables,
			 HeapTupleHeader result)
{
	char	   *method = result_text(result, 1);
	char	   *path = result_text(result, 2);
	char	   *body = result_text(result, 4);
	bool		isnull;
	Datum		headers = GetAttributeByNum(result, 3, &isnull);

	if (method != NULL)
	{
		if (method[0] == '\0' ||
			strspn(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != strlen(method) ||
			strlen(method) > 20)
			request->error = psprintf("method \"%s\" is not an HTTP method",
									  method);
		request->http.method = method;
		if (!method_has_body(method))
			set_body(request, NULL);
	}
	if (request->error == NULL && path != NULL)
		set_path(request, variables->route, variables->account, path);
	if (request->error == NULL && !isnull &&
		!JB_ROOT_IS_OBJECT(DatumGetJsonbP(headers)))
		request->error = pstrdup("headers of the function's result are not "
								 "an object");
	if (request->error == NULL && !isnull)
		add_headers(request, DatumGetJsonbP(headers), NULL);
	if (request->error == NULL && body != NULL)
		set_body(request, body);
}

/* The function that makes the body; NULL: none does. */
static const char *
function_name(const Variables *variables)
{
	return variables->batch ? variables->route->batch_function :
		variables->route->body_function;
}

static Oid
function_oid(const Variables *variables)
{
	return variables->batch ? variables->route->batch_function_oid :
		variables->route->body_function_oid;
}

/* The event, or the array of a batch's. */
static Datum
function_argument(const Variables *variables)
{
	Datum	   *rows;

	if (variables->batch == NULL)
		return heap_copy_tuple_as_datum(variables->event->tuple, event_desc);
	rows = palloc(variables->n_batch * sizeof(Datum));
	for (int i = 0; i < variables->n_batch; i++)
		rows[i] = heap_copy_tuple_as_datum(variables->batch[i]->tuple,
										   event_desc);
	return PointerGetDatum(construct_array(rows, variables->n_batch,
										   event_desc->tdtypeid, -1, false,
										   TYPALIGN_DOUBLE));
}

/* Calls the function with its argument; NULL: nothing to send. */
static HeapTupleHeader
call_function(Variables *variables)
{
	LOCAL_FCINFO(fcinfo, 1);
	FmgrInfo	flinfo;
	Datum		result;

	fmgr_info(function_oid(variables), &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = function_argument(variables);
	fcinfo->args[0].isnull = false;
	result = FunctionCallInvoke(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetHeapTupleHeader(result);
}

/*
 * Runs the function as the route's owner: security-restricted, with a fixed
 * search_path, EXECUTE checked now as the grants may have changed.
 */
static void
run_as_owner(AccordRequest *request, Variables *variables)
{
	const AccordRoute *route = variables->route;
	HeapTupleHeader result;
	Oid			user;
	int			context;
	int			nest_level;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(route->owner,
						   context | SECURITY_RESTRICTED_OPERATION);
	nest_level = NewGUCNestLevel();
	/* row security is off for a dispatcher's own work, not for users' */
	set_config_option("row_security", "on", PGC_USERSET, PGC_S_SESSION,
					  GUC_ACTION_SAVE, true, 0, false);
	if (!accord_function_executable(function_oid(variables), route->owner))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION,
					   function_name(variables));
	if (!accord_config_may_run(function_oid(variables), route->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("its owner, who is not a superuser, would run it as "
						"superuser"),
				 errhint("UPDATE accord.route SET owner to the application's "
						 "role.")));
	begin_function();
	result = call_function(variables);
	end_function();
	if (result == NULL)
		request->skip = true;
	else
		apply_result(request, variables, result);
	AtEOXact_GUC(false, nest_level);
	SetUserIdAndSecContext(user, context);
}

/* Errors that another try may not meet: SQLSTATE classes. */
static bool
error_may_pass(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_SYSTEM_ERROR:
			return true;
		default:
			return false;
	}
}

static void
make_by_function(AccordRequest *request, Variables *variables)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction("accord_request");
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		run_as_owner(request, variables);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		end_function();
		RollbackAndReleaseCurrentSubTransaction();
		request->error = psprintf("function %s: %s",
								  function_name(variables), error->message);
		request->transient = error_may_pass(error->sqlerrcode);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
}

bool
accord_request_needs_transaction(const AccordRoute *route)
{
	return route->body_function != NULL || route->batch_function != NULL ||
		GetDatabaseEncoding() != PG_UTF8;
}

/* Makes it by the templates; no error escapes. */
static void
make_by_template(AccordRequest *request, Variables *variables, int64 seq)
{
	MemoryContext caller = CurrentMemoryContext;

	PG_TRY();
	{
		make_plain(request, variables, seq);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		request->error = error->message;
		request->transient = error_may_pass(error->sqlerrcode);
	}
	PG_END_TRY();
}

/* Whether there is nothing left to send of an event, or of one of a batch. */
static bool
is_erased(const Variables *variables)
{
	bool		isnull;

	(void) accord_request_column(variables->event, ACCORD_EVENT_ERASED,
								 &isnull);
	for (int i = 0; i < variables->n_batch && isnull; i++)
		(void) accord_request_column(variables->batch[i], ACCORD_EVENT_ERASED,
									 &isnull);
	return !isnull;
}

static void
make(AccordRequest *request, Variables *variables, const char *key, int64 seq)
{
	const AccordRoute *route = variables->route;
	const AccordChannel *channel = route->channel;
	const char *function = function_name(variables);

	memset(request, 0, sizeof(*request));
	request->http.headers = palloc(MAX_HEADERS * sizeof(char *));
	if (is_erased(variables))
	{
		request->error = "the event's content was erased";
		return;
	}
	if (channel->idempotency_header != NULL)
		add_header(request, channel->idempotency_header, key);
	make_by_template(request, variables, seq);
	if (request->error == NULL && function != NULL)
	{
		if (!OidIsValid(function_oid(variables)) || !OidIsValid(route->owner))
		{
			request->error = psprintf("function %s or its route's owner does "
									  "not exist", function);
			return;
		}
		make_by_function(request, variables);
	}
	if (request->error == NULL && !request->skip &&
		request->http.body != NULL)
	{
		bool		given = false;

		for (int i = 0; i < request->http.n_headers; i++)
			given |= pg_strncasecmp(request->http.headers[i],
									"Content-Type:", 13) == 0;
		if (!given)
			add_header(request, "Content-Type", route->content_type);
	}
}

void
accord_request_make(AccordRequest *request, const AccordRoute *route,
					const AccordAccount *account, const AccordEvent *event,
					int64 seq)
{
	Variables	variables = {route, account, event, NULL, 0};

	make(request, &variables, key_text(event), seq);
}

/*
 * The idempotency key of a batch: made of its events' own.
 */
static char *
batch_key(const AccordEvent *const *events, int n)
{
	uint64		high = 1;
	uint64		low = 2;

	if (n == 1)
		return key_text(events[0]);
	for (int i = 0; i < n; i++)
		add_to_key(events[i], &high, &low);
	return made_key(high, low);
}

void
accord_request_make_batch(AccordRequest *request, const AccordRoute *route,
						  const AccordAccount *account,
						  const AccordEvent *const *events, int n)
{
	Variables	variables = {route, account, events[0], events, n};

	make(request, &variables, batch_key(events, n), 0);
}

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

static Jsonb *
freeze(const AccordRequest *request)
{
	AccordJsonbState state = {0};

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	push_string(&state, WJB_KEY, "method");
	push_string(&state, WJB_VALUE, request->http.method);
	push_string(&state, WJB_KEY, "url");
	push_string(&state, WJB_VALUE, request->http.url);
	push_string(&state, WJB_KEY, "headers");
	accord_jsonb_push(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < request->http.n_headers; i++)
		push_string(&state, WJB_ELEM, request->http.headers[i]);
	accord_jsonb_push(&state, WJB_END_ARRAY, NULL);
	if (request->http.body != NULL)
	{
		push_string(&state, WJB_KEY, "body");
		push_string(&state, WJB_VALUE,
					pg_any_to_server(request->http.body,
									 request->http.body_len, PG_UTF8));
	}
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

void
accord_request_thaw(AccordRequest *request, Jsonb *frozen)
{
	char	   *body = accord_json_member(frozen, "body");

	memset(request, 0, sizeof(*request));
	request->http.method = accord_json_member(frozen, "method");
	request->http.url = accord_json_member(frozen, "url");
	request->http.headers = palloc(MAX_HEADERS * sizeof(char *));
	for (int i = 0; i < MAX_HEADERS; i++)
	{
		JsonbValue *line = accord_json_path(frozen,
											psprintf("headers.%d", i));

		if (line == NULL)
			break;
		request->http.headers[request->http.n_headers++] =
			accord_json_text(line);
	}
	set_body(request, body);
}

void
accord_request_equip(AccordRequest *request, const AccordChannel *channel,
					 const AccordAccount *account, bool once)
{
	AccordHttpRequest *http = &request->http;
	const AccordAuth *auth = account != NULL && account->has_auth ?
	&account->auth : &channel->auth;

	/* copies: the configuration may be replaced before the request leaves */
	http->auth = auth->type;
	http->auth_name = auth->name ? pstrdup(auth->name) : NULL;
	http->auth_secret = auth->secret ? pstrdup(auth->secret) : NULL;
	http->once = once;
	http->connect_timeout_ms = channel->connect_timeout_ms;
	http->timeout_ms = channel->timeout_ms;
	http->stall_timeout_s = channel->stall_timeout_s;
	http->max_response = channel->max_response;
	if (auth->type != ACCORD_HTTP_AUTH_NONE && auth->secret == NULL)
	{
		request->error = auth->fault ? pstrdup(auth->fault) :
			psprintf("secret \"%s\" is not stored",
					 auth->secret_name ? auth->secret_name : "");
		request->transient = true;
	}
}
