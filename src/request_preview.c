/*
 * request_preview.c: the exact request that an event makes, to be looked at.
 *
 * Runs in any backend that calls accord.preview(). The request is made by the
 * same functions as in a dispatcher, of the committed configuration, by the
 * same role and within the same time; then it is shown instead of sent.
 *
 * Invariants: nothing is sent and nothing stays written: what a body function
 * wrote is rolled back. No secret is read: a backend's configuration has none,
 * and where one would be stands "***".
 *
 * On failure: an event or a channel that is not there raises; what would be
 * wrong with the request is what is shown. The configuration is released
 * whatever happens.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "accord.h"
#include "auth.h"
#include "backlog.h"
#include "choose.h"
#include "compat.h"
#include "json.h"
#include "log.h"
#include "request_private.h"
#include "routing.h"

/* What is asked, and what there is to say about it. */
typedef struct Preview
{
	AccordChannel *channel;
	AccordAccount *account;		/* NULL: the channel itself */
	AccordRoute *route;			/* NULL: none takes the event */
	AccordEvent event;
	int64		seq;			/* 0: not committed */
	int			ord;
	bool		owed;			/* the event goes to this endpoint */
	AccordRequest request;
	const char *text;			/* the body before it is compressed */
	size_t		text_len;
	StringInfoData note;
} Preview;

/* Columns of the result */
enum
{
	METHOD, URL, HEADERS, BODY, CONTENT, NOTE, N_COLUMNS
};

PG_FUNCTION_INFO_V1(accord_preview_event);

static void
add_note(Preview *preview, const char *note)
{
	if (preview->note.len > 0)
		appendStringInfoString(&preview->note, "; ");
	appendStringInfoString(&preview->note, note);
}

/* AccordRoutingVisit */
static void
note_visit(AccordChannel *channel, const char *account, AccordRoute *route,
		   void *arg)
{
	Preview    *preview = arg;

	preview->owed |= channel == preview->channel &&
		strcmp(account, preview->account ? preview->account->name : "") == 0;
}

static void
find_channel(Preview *preview, AccordConfig *config, const char *name)
{
	preview->channel = accord_config_channel(config, name);
	if (preview->channel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("channel \"%s\" does not exist", name),
				 errhint("See accord.channel.")));
}

/* The account that is asked for, else the event's. */
static void
find_account(Preview *preview, AccordConfig *config, TupleTableSlot *row,
			 const char *asked)
{
	const char *name = asked ? asked :
	accord_routing_text(row, ACCORD_EVENT_ACCOUNT);

	if (name == NULL || name[0] == '\0')
		return;
	preview->account = accord_config_account(config, preview->channel, name);
	if (preview->account == NULL && asked != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("account \"%s\" of channel \"%s\" does not exist",
						asked, preview->channel->name),
				 errhint("See accord.account.")));
}

/* The request as it was made first, if it was kept. */
static Jsonb *
find_frozen(const Preview *preview)
{
	Jsonb	   *kept;

	if (!preview->route->command || preview->route->body_function == NULL ||
		preview->seq == 0)
		return NULL;
	kept = accord_backlog_request(preview->channel->name,
								  preview->account ?
								  preview->account->name : "",
								  preview->seq, preview->ord, 0);
	return kept != NULL && accord_json_member(kept, "url") != NULL ? kept :
		NULL;
}

/* By what the channel has of it now; false: there is nothing to send. */
static bool
choose_route(Preview *preview)
{
	AccordRoute *route;

	accord_remote_enter(NULL);
	if (!preview->channel->remembers)
		return true;
	route = accord_choose_for(&preview->event, preview->account,
							  preview->route);
	if (route == NULL)
		return false;
	preview->route = route;
	return true;
}

static void
make_request(Preview *preview)
{
	AccordRequest *request = &preview->request;
	Jsonb	   *frozen = find_frozen(preview);

	if (frozen != NULL)
		frozen = accord_request_sent(frozen);
	if (frozen != NULL)
	{
		accord_request_thaw(request, frozen);
		add_note(preview, "as it was made when it was sent first");
	}
	else if (!choose_route(preview))
	{
		request->skip = true;
		add_note(preview, "no route takes it, by what the channel has of it");
	}
	else
		accord_request_preview(request, preview->route, preview->account,
							   &preview->event, preview->seq);
	if (request->error != NULL)
		add_note(preview, psprintf("it cannot be sent: %s", request->error));
	else if (request->skip && preview->note.len == 0)
		add_note(preview, "its function has nothing to send");
	if (request->error != NULL || request->skip)
		return;
	if (preview->channel->compress_above >= 0)
		accord_request_compress(request, preview->channel->compress_above);
	preview->text = request->plain ? request->plain : request->http.body;
	preview->text_len = request->plain ? request->plain_len :
		request->http.body_len;
	if (preview->route->batch_size > 1 && !preview->route->command)
		add_note(preview, psprintf("up to %d events go together",
								   preview->route->batch_size));
	if (preview->seq == 0)
		add_note(preview, "not committed: Accord-Sequence is not known yet");
}

/* How the credential will be placed; what it adds to the URL, or NULL. */
static const char *
add_credential(Preview *preview)
{
	const AccordAuth *auth = preview->account != NULL &&
	preview->account->has_auth ? &preview->account->auth :
	&preview->channel->auth;
	const char *lines[ACCORD_SIGN_LINES];
	const char *query;
	int			n = accord_auth_mask(auth, lines, &query);

	for (int i = 0; i < n; i++)
	{
		size_t		len = strcspn(lines[i], ":");

		accord_request_add_header(&preview->request, pnstrdup(lines[i], len),
								  lines[i] + len + strspn(lines[i] + len,
														  ": "));
	}
	return query;
}

static void
push_text(AccordJsonbState *state, JsonbIteratorToken token, const char *text,
		  size_t len)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) text;
	value.val.string.len = (int) len;
	accord_jsonb_push(state, token, &value);
}

/* The headers as an object, those that the HTTP library's caller adds too. */
static Jsonb *
show_headers(Preview *preview)
{
	AccordRequest *request = &preview->request;
	AccordJsonbState state = {0};

	if (!accord_request_has_header(request, "User-Agent"))
		accord_request_add_header(request, "User-Agent",
								  "pg_accord/" ACCORD_VERSION);
	if (!accord_request_has_header(request, "Accept-Encoding"))
		accord_request_add_header(request, "Accept-Encoding", "gzip");
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < request->http.n_headers; i++)
	{
		const char *line = request->http.headers[i];
		size_t		len = strcspn(line, ":");
		const char *value = line + len + strspn(line + len, ": ");

		push_text(&state, WJB_KEY, line, len);
		push_text(&state, WJB_VALUE, value, strlen(value));
	}
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

/* The body as text, where it is text that the database can hold. */
static bool
show_text(const Preview *preview, Datum *text)
{
	if (preview->text == NULL ||
		memchr(preview->text, '\0', preview->text_len) != NULL ||
		!pg_verify_mbstr(PG_UTF8, preview->text, preview->text_len, true))
		return false;
	*text = CStringGetTextDatum(pg_any_to_server(preview->text,
												 preview->text_len, PG_UTF8));
	return true;
}

static void
show_request(Preview *preview, Datum *values, bool *nulls)
{
	const AccordHttpRequest *http = &preview->request.http;
	const char *query;

	if (preview->route == NULL || preview->request.error != NULL ||
		preview->request.skip)
		return;
	query = add_credential(preview);
	values[METHOD] = CStringGetTextDatum(http->method);
	values[URL] = CStringGetTextDatum(query == NULL ? http->url :
									  psprintf("%s%c%s", http->url,
											   strchr(http->url, '?') ? '&' :
											   '?', query));
	values[HEADERS] = JsonbPGetDatum(show_headers(preview));
	nulls[METHOD] = nulls[URL] = nulls[HEADERS] = false;
	nulls[BODY] = !show_text(preview, &values[BODY]);
	if (http->body == NULL)
		return;
	values[CONTENT] = PointerGetDatum(cstring_to_text_with_len(http->body,
															   http->body_len));
	nulls[CONTENT] = false;
}

/* Everything about the event at that place. */
static void
look_at(Preview *preview, AccordConfig *config, TupleTableSlot *row,
		const char *account)
{
	find_account(preview, config, row, account);
	preview->event.tuple = ExecCopySlotHeapTuple(row);
	preview->route =
		accord_config_match(preview->channel,
							accord_routing_text(row, ACCORD_EVENT_TOPIC),
							accord_config_op(accord_routing_text(row,
																 ACCORD_EVENT_OP)));
	accord_routing_visit(config, row, note_visit, preview);
	if (preview->route == NULL)
		add_note(preview, "no route of the channel takes this event");
	else
		make_request(preview);
	if (!preview->owed)
		add_note(preview, "this event does not go there by itself");
}

/* The event's row, and what is said of it. */
static void
preview_event(Preview *preview, FunctionCallInfo fcinfo)
{
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordConfig *config = accord_config_get();
	AccordLogReader *reader;
	TupleTableSlot *row;

	accord_request_init();
	find_channel(preview, config, text_to_cstring(PG_GETARG_TEXT_PP(4)));
	reader = accord_log_open(nowhere, 0);
	row = accord_log_event(reader, PG_GETARG_INT32(0), PG_GETARG_INT64(1),
						   preview->ord);
	if (row == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event " INT64_FORMAT ".%d is not in the log",
						preview->seq, preview->ord),
				 errhint("See accord.event_log and accord.log_retention.")));
	look_at(preview, config, row, PG_ARGISNULL(5) ? NULL :
			text_to_cstring(PG_GETARG_TEXT_PP(5)));
	accord_log_close(reader);
}

/* accord.preview_event(slot, tx_id, ord, seq, channel, account) */
Datum
accord_preview_event(PG_FUNCTION_ARGS)
{
	Preview		preview = {.seq = PG_GETARG_INT64(3),
	.ord = PG_GETARG_INT32(2)};
	Datum		values[N_COLUMNS];
	bool		nulls[N_COLUMNS];
	TupleDesc	desc;
	bool		pinned;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.preview_event() does not return a row");
	memset(nulls, true, sizeof(nulls));
	initStringInfo(&preview.note);
	(void) accord_config_get();
	/* a function that is looked at, or a dispatcher's, may look itself */
	pinned = accord_config_pin(true);
	PG_TRY();
	{
		preview_event(&preview, fcinfo);
		show_request(&preview, values, nulls);
	}
	PG_FINALLY();
	{
		accord_config_pin(pinned);
	}
	PG_END_TRY();
	nulls[NOTE] = preview.note.len == 0;
	if (!nulls[NOTE])
		values[NOTE] = CStringGetTextDatum(preview.note.data);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
