/*
 * ask.c: what a channel is asked about a delivery.
 *
 * Runs in dispatchers. Two questions: what became of a request that was
 * accepted, and whether the channel has a thing. Either is sent as the delivery
 * itself is: at its turn, through the same gates, limits and breaker, holding
 * its key's lane; only the request is another. Which one is due the state of
 * its backlog row tells, so a restart changes nothing.
 *
 * What is kept of an accepted delivery is in its row's request: the question as
 * it was made from the answer ("poll"), until when it is asked ("until"), what it
 * is about ("kind", "key"), and, of a command, the request as it was first made
 * ("sent").
 *
 * Invariants: a status address that a channel gives is followed only within the
 * channel's own origin: the credentials go with it.
 *
 * On failure request->error says what is wrong; nothing is raised.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "ask.h"
#include "backlog.h"
#include "choose.h"
#include "compat.h"
#include "db.h"
#include "json.h"
#include "remote.h"

Jsonb	   *
accord_ask_kept(const AccordDelivery *delivery)
{
	Jsonb	   *kept = accord_backlog_request(delivery->endpoint->channel,
											  delivery->endpoint->account,
											  delivery->seq, delivery->ord,
											  delivery->replay ?
											  delivery->replay->id : 0);

	return kept != NULL && accord_json_path(kept, "until") != NULL ? kept :
		NULL;
}

TimestampTz
accord_ask_until(Jsonb *kept)
{
	char	   *until = accord_json_member(kept, "until");

	return until ? strtoll(until, NULL, 10) : 0;
}

bool
accord_ask_polls(Jsonb *kept)
{
	return accord_json_path(kept, "poll") != NULL;
}

/* The question of an accepted delivery, as it was kept. */
static void
make_poll(AccordRequest *request, const AccordDelivery *delivery,
		  TimestampTz now)
{
	Jsonb	   *kept = accord_ask_kept(delivery);
	JsonbValue *poll = kept ? accord_json_path(kept, "poll") : NULL;

	if (kept == NULL || now >= accord_ask_until(kept) || poll == NULL)
	{
		memset(request, 0, sizeof(*request));
		request->error = pstrdup("the channel accepted it, and did not say in "
								 "time what became of it");
		return;
	}
	accord_request_thaw(request, JsonbValueToJsonb(poll));
}

void
accord_ask_make(AccordRequest *request, const AccordDelivery *delivery,
				const AccordRoute *route, const AccordAccount *account,
				TimestampTz now)
{
	const AccordLookup *lookup = route->lookup;

	if (delivery->state == ACCORD_STATE_ACCEPTED)
		make_poll(request, delivery, now);
	else if (lookup == NULL)
	{
		memset(request, 0, sizeof(*request));
		request->error = pstrdup("its route has no lookup any more");
	}
	else
		accord_request_ask(request, route, account, delivery->event,
						   lookup->method, lookup->path, lookup->body);
}

/*
 * Keeping
 */

/* Scheme, host and port of an address; its length. */
static size_t
origin_length(const char *url)
{
	const char *host = strstr(url, "://");

	return host == NULL ? 0 : host + 3 - url + strcspn(host + 3, "/?#");
}

/* The status address that an answer's header gives; NULL: none to go to. */
static char *
resolve(const char *base, const char *location, const char **error)
{
	size_t		origin = origin_length(base);

	if (location == NULL)
		*error = "the answer tells no status address";
	else if (location[0] == '/' && location[1] != '/')
		return psprintf("%.*s%s", (int) origin, base, location);
	else if (origin_length(location) == origin &&
			 pg_strncasecmp(location, base, origin) == 0)
		return pstrdup(location);
	else
		*error = "its status address is not at the channel";
	return NULL;
}

/* The question, made of the answer; frozen. NULL: there is none to ask. */
static Jsonb *
freeze_question(const AccordDelivery *delivery, const AccordRoute *route,
				const AccordAccount *account,
				const AccordHttpResponse *response, Jsonb *answer,
				const char **error)
{
	const AccordPoll *poll = route->poll;
	AccordRequest request;
	AccordRemoteScope *scope;
	Jsonb	   *frozen;

	if (poll == NULL || (poll->path == NULL && poll->location == NULL))
		return NULL;
	scope = accord_choose_scope(delivery, account, route);
	scope->answer = answer;
	accord_remote_enter(scope);
	accord_request_ask(&request, route, account, delivery->event, poll->method,
					   poll->path ? poll->path : "", NULL);
	accord_remote_enter(NULL);
	if (request.error == NULL && poll->location != NULL)
		request.http.url =
			resolve(request.http.url,
					accord_http_answer_header(response, poll->location), error);
	if (request.error != NULL)
		*error = request.error;
	if (*error != NULL)
		return NULL;
	frozen = accord_request_freeze(&request);
	*error = request.error;
	return frozen;
}

static void
push_json(AccordJsonbState *state, const char *name, Jsonb *json)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) name;
	value.val.string.len = strlen(name);
	accord_jsonb_push(state, WJB_KEY, &value);
	value.type = jbvBinary;
	value.val.binary.data = &json->root;
	value.val.binary.len = VARSIZE(json) - VARHDRSZ;
	accord_jsonb_push(state, WJB_VALUE, &value);
}

static void
push_text(AccordJsonbState *state, const char *name, char *text)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) name;
	value.val.string.len = strlen(name);
	accord_jsonb_push(state, WJB_KEY, &value);
	value.val.string.val = text;
	value.val.string.len = strlen(text);
	accord_jsonb_push(state, WJB_VALUE, &value);
}

/* The request of a command as it was first made, if that was kept. */
static Jsonb *
find_sent(const AccordDelivery *delivery, const AccordRoute *route)
{
	Jsonb	   *kept;

	if (!route->command || route->body_function == NULL)
		return NULL;
	kept = accord_backlog_request(delivery->endpoint->channel,
								  delivery->endpoint->account, delivery->seq,
								  delivery->ord, delivery->replay ?
								  delivery->replay->id : 0);
	return kept ? accord_request_sent(kept) : NULL;
}

Jsonb	   *
accord_ask_keep(const AccordDelivery *delivery, const AccordRoute *route,
				const AccordAccount *account,
				const AccordHttpResponse *response, Jsonb *answer,
				TimestampTz now, const char **error)
{
	int64		deadline_ms = route->poll ? route->poll->deadline_ms :
	delivery->endpoint->connection->policy.max_age_ms;
	AccordJsonbState state = {0};
	AccordRemote remote;
	Jsonb	   *poll;
	Jsonb	   *sent;

	poll = freeze_question(delivery, route, account, response, answer, error);
	if (*error != NULL)
		return NULL;
	sent = find_sent(delivery, route);
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, "until", psprintf(INT64_FORMAT, now + deadline_ms *
										1000));
	remote = accord_choose_remote(delivery, account, route);
	if (remote.kind != NULL && remote.key != NULL)
	{
		push_text(&state, "kind", pstrdup(remote.kind));
		push_text(&state, "key", pstrdup(remote.key));
	}
	if (poll != NULL)
		push_json(&state, "poll", poll);
	if (sent != NULL)
		push_json(&state, "sent", sent);
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}
