/*
 * answer.c: what a channel answered about a delivery, judged and settled.
 *
 * Runs in dispatchers. Of a channel that has neither rules nor ids to keep the
 * status decides, and nothing is looked up. Else the rules are asked (judge.c),
 * then what a route's own columns say about a status: 202 is accepted where it
 * can be asked what became of it, 404 to a delete is its success, 409 and 412
 * are conflicts where it can be looked up what the channel has. What the
 * answer tells of the thing (id, version, entity tag) is noted, and committed
 * with the delivery.
 *
 *   accepted   ──> asked at intervals (ask.c) ──> delivered, rejected, or sent
 *                  again; unclear when its deadline passes
 *   conflict   ──> looked up ──> found: adopted, and sent again as what it is
 *                  now; not found: sent again
 *   in doubt   ──> (a command with ambiguous = 'verify') looked up ──> found: it
 *                  was done; not found: it was not, and is sent again
 *
 * Invariants: what is asked about an accepted or doubtful delivery never counts
 * as the delivery's own failure: that a question fails says nothing about what
 * became of it, and it is asked again.
 *
 * On failure nothing is raised: what an answer can do wrong is an outcome.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "ask.h"
#include "assign.h"
#include "choose.h"
#include "compat.h"
#include "db.h"
#include "json.h"
#include "request.h"
#include "settle.h"

#define MAX_TOLD 1000			/* bytes of an id, a version or an entity tag */

/* An answer on its way: what is found out about it as it is needed. */
typedef struct Landing
{
	AccordDesk *desk;
	AccordDelivery *delivery;
	const AccordRoute *route;
	const AccordAccount *account;
	const AccordHttpResponse *response;
	AccordJudgement *judgement;
	Jsonb	   *json;
	bool		parsed;
	TimestampTz now;
} Landing;

static Jsonb *
json_of(Landing *landing)
{
	if (!landing->parsed)
		landing->json = accord_judge_json(landing->response);
	landing->parsed = true;
	return landing->json;
}

/*
 * What answers tell
 */

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The last part of an address's path, without its percent-encoding. */
static char *
last_segment(const char *url)
{
	size_t		len = strcspn(url, "?#");
	size_t		from;
	char	   *segment;
	int			n = 0;

	while (len > 0 && url[len - 1] == '/')
		len--;
	from = len;
	while (from > 0 && url[from - 1] != '/')
		from--;
	segment = palloc(len - from + 1);
	for (size_t i = from; i < len; i++)
	{
		bool		encoded = url[i] == '%' && i + 2 < len &&
		hex_digit(url[i + 1]) >= 0 && hex_digit(url[i + 2]) >= 0;

		segment[n++] = encoded ? (char) (hex_digit(url[i + 1]) * 16 +
										 hex_digit(url[i + 2])) : url[i];
		i += encoded ? 2 : 0;
	}
	segment[n] = '\0';
	return segment;
}

/* What is there by a column of the route; NULL: nothing of use. */
static char *
mine(Landing *landing, const AccordMine *where, Jsonb *vars)
{
	const char *header;
	char	   *text = NULL;

	if (where->path != NULL)
		text = accord_judge_text(json_of(landing), where->path, vars);
	else if (where->header != NULL &&
			 (header = accord_http_answer_header(landing->response,
												 where->header)) != NULL)
		text = pg_strcasecmp(where->header, "Location") == 0 ?
			last_segment(header) : pstrdup(header);
	if (text == NULL || text[0] == '\0' || strlen(text) > MAX_TOLD)
		return NULL;
	return accord_json_clean(text, strlen(text), MAX_TOLD);
}

/* What the answer tells of the thing is kept with what is settled. */
static void
remember(Landing *landing)
{
	const AccordRoute *route = landing->route;
	AccordRemote remote = accord_choose_remote(landing->delivery,
											   landing->account, route);
	bool		asks_id = route->remote_id.path != NULL ||
	route->remote_id.header != NULL;

	if (remote.key == NULL)
		return;
	remote.id = mine(landing, &route->remote_id, NULL);
	remote.version = mine(landing, &route->remote_version, NULL);
	remote.etag = mine(landing, &route->remote_etag, NULL);
	/* of what has no id yet the next event makes another: it meets a conflict */
	if (asks_id && remote.id == NULL && !landing->delivery->known_remote)
	{
		if (landing->judgement->error == NULL)
			landing->judgement->error = "the answer tells no id by remote_id";
		return;
	}
	accord_remote_note(landing->delivery, &remote, false);
}

static void
forget(Landing *landing)
{
	AccordRemote remote = accord_choose_remote(landing->delivery,
											   landing->account,
											   landing->route);

	if (remote.key != NULL)
		accord_remote_note(landing->delivery, &remote, true);
}

/*
 * What follows
 */

/* Now, the first time; then after the usual delay. */
static TimestampTz
soon(const Landing *landing)
{
	return landing->delivery->attempts <= 1 ? landing->now : 0;
}

static void
decide(Landing *landing, AccordOutcome outcome, AccordVerdict verdict,
	   TimestampTz due_at)
{
	AccordJudgement *judgement = landing->judgement;

	judgement->outcome = outcome;
	judgement->decided = true;
	judgement->verdict = verdict;
	judgement->due_at = due_at;
}

/* What a route's own columns say where no rule does. */
static void
apply_columns(Landing *landing)
{
	const AccordRoute *route = landing->route;
	AccordJudgement *judgement = landing->judgement;
	int			status = landing->response->result.transport ==
	ACCORD_TRANSPORT_OK ? landing->response->result.status : 0;

	if (judgement->rule != 0)
		return;
	if (status == 202 && route->poll != NULL)
		judgement->outcome = ACCORD_OUTCOME_ACCEPTED;
	else if ((status == 404 || status == 410) && route->remote != NULL &&
			 landing->delivery->is_delete)
		judgement->gone = true;
	else if ((status == 409 || status == 412) && route->lookup != NULL)
		judgement->outcome = ACCORD_OUTCOME_CONFLICT;
}

/* A thing that is not there: to a delete a success, else it is made anew. */
static void
settle_gone(Landing *landing)
{
	AccordJudgement *judgement = landing->judgement;

	forget(landing);
	if (landing->delivery->is_delete || landing->response->result.is_delete)
	{
		decide(landing, ACCORD_OUTCOME_DELIVERED, ACCORD_VERDICT_DONE, 0);
		judgement->error = "it was gone already";
	}
	else if (landing->delivery->known_remote)
	{
		judgement->outcome = ACCORD_OUTCOME_RETRY;
		judgement->due_at = soon(landing);
		judgement->error = "it is gone: its id is forgotten";
	}
	else
		judgement->outcome = ACCORD_OUTCOME_REJECTED;
}

/* What was accepted is asked about from now on. */
static void
settle_accepted(Landing *landing)
{
	AccordJudgement *judgement = landing->judgement;
	const AccordPoll *poll = landing->route->poll;
	MemoryContext caller = CurrentMemoryContext;
	const char *error = NULL;

	accord_db_begin();
	MemoryContextSwitchTo(caller);
	judgement->keep = accord_ask_keep(landing->delivery, landing->route,
									  landing->account, landing->response,
									  json_of(landing), landing->now, &error);
	accord_db_commit();
	MemoryContextSwitchTo(caller);
	if (judgement->keep == NULL)
	{
		judgement->outcome = ACCORD_OUTCOME_UNCLEAR;
		judgement->sent = ACCORD_SENT_UNKNOWN;
		judgement->error = error;
		return;
	}
	judgement->error = NULL;
	judgement->free = true;
	decide(landing, ACCORD_OUTCOME_ACCEPTED, ACCORD_VERDICT_ACCEPT,
		   accord_ask_polls(judgement->keep) ?
		   landing->now + poll->every_ms * 1000 :
		   accord_ask_until(judgement->keep));
}

/* Somebody has confirmed it while it was in flight. */
static bool
settle_confirmed(Landing *landing)
{
	char		said = landing->delivery->confirmed;

	landing->delivery->confirmed = 0;
	if (said == 0 || landing->judgement->outcome != ACCORD_OUTCOME_ACCEPTED)
		return false;
	landing->judgement->outcome = said == 'd' ? ACCORD_OUTCOME_DELIVERED :
		ACCORD_OUTCOME_REJECTED;
	landing->judgement->error = said == 'd' ? NULL :
		"it was confirmed that it failed";
	return true;
}

static void
settle_judged(Landing *landing)
{
	AccordJudgement *judgement = landing->judgement;
	AccordDelivery *delivery = landing->delivery;

	(void) settle_confirmed(landing);
	if (judgement->gone && landing->route->remote != NULL)
		settle_gone(landing);
	else if (judgement->gone)
		judgement->outcome = delivery->is_delete ? ACCORD_OUTCOME_DELIVERED :
			ACCORD_OUTCOME_REJECTED;
	if (judgement->outcome == ACCORD_OUTCOME_CONFLICT &&
		landing->route->lookup == NULL)
	{
		judgement->outcome = ACCORD_OUTCOME_REJECTED;
		judgement->error = "a conflict, and its route has no lookup";
	}
	else if (judgement->outcome == ACCORD_OUTCOME_CONFLICT)
		judgement->due_at = soon(landing);
	if (landing->route->remote != NULL && !judgement->gone &&
		(judgement->outcome == ACCORD_OUTCOME_DELIVERED ||
		 judgement->outcome == ACCORD_OUTCOME_ACCEPTED))
	{
		if (!delivery->is_delete)
			remember(landing);
		else if (judgement->outcome == ACCORD_OUTCOME_DELIVERED)
			forget(landing);
	}
	if (judgement->outcome == ACCORD_OUTCOME_ACCEPTED)
		settle_accepted(landing);
	accord_settle_judged(delivery, landing->response, judgement, landing->now);
}

/*
 * Answers to questions
 */

/* What was kept when it was accepted: each of its rows has it. */
static Jsonb *
kept_of(Landing *landing)
{
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *kept;

	accord_db_begin();
	MemoryContextSwitchTo(caller);
	kept = accord_ask_kept(landing->delivery);
	accord_db_commit();
	MemoryContextSwitchTo(caller);
	return kept;
}

/* Of what was accepted: whether it is done. */
static void
land_poll(Landing *landing)
{
	AccordJudgement *judgement = landing->judgement;
	const AccordPoll *poll = landing->route->poll;
	bool		answers = judgement->outcome == ACCORD_OUTCOME_DELIVERED ||
	judgement->rule != 0;

	if (landing->response->result.transport == ACCORD_TRANSPORT_OK &&
		judgement->gone)
		answers = true;
	if (answers && judgement->outcome != ACCORD_OUTCOME_ACCEPTED)
	{
		settle_judged(landing);
		return;
	}
	/* it is not done, or nobody knows: what was kept is kept on */
	if (judgement->outcome == ACCORD_OUTCOME_ACCEPTED &&
		settle_confirmed(landing))
	{
		settle_judged(landing);
		return;
	}
	if (landing->route->remote != NULL && answers)
		remember(landing);
	judgement->free = true;
	judgement->keep = kept_of(landing);
	decide(landing, judgement->outcome, ACCORD_VERDICT_ACCEPT,
		   landing->now + 1000 * (poll ? poll->every_ms : 10000));
	accord_settle_judged(landing->delivery, landing->response, judgement,
						 landing->now);
}

static void
push_member(AccordJsonbState *state, const char *name, JsonbValue *value)
{
	JsonbValue	key;

	key.type = jbvString;
	key.val.string.val = (char *) name;
	key.val.string.len = strlen(name);
	accord_jsonb_push(state, WJB_KEY, &key);
	accord_jsonb_push(state, WJB_VALUE, value);
}

static void
push_text(AccordJsonbState *state, const char *name, char *text)
{
	JsonbValue	value;

	value.type = text ? jbvString : jbvNull;
	if (text != NULL)
	{
		value.val.string.val = text;
		value.val.string.len = strlen(text);
	}
	push_member(state, name, &value);
}

/* What the jsonpath of a lookup may name: $key, $topic, $payload. */
static Jsonb *
make_vars(const AccordDelivery *delivery)
{
	AccordJsonbState state = {0};
	JsonbValue	nothing = {.type = jbvNull};
	bool		isnull;
	Datum		payload = accord_request_column(delivery->event,
												ACCORD_EVENT_PAYLOAD, &isnull);
	JsonbValue *value = isnull ? &nothing :
	accord_json_path(DatumGetJsonbP(payload), "");

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, "key", accord_request_text(delivery->event,
												 ACCORD_EVENT_KEY));
	push_text(&state, "topic", accord_request_text(delivery->event,
												   ACCORD_EVENT_TOPIC));
	push_member(&state, "payload", value);
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

/* Whether the channel has it; what it has is noted. */
static bool
adopt(Landing *landing)
{
	const AccordLookup *lookup = landing->route->lookup;
	bool		asks_id = lookup->id.path != NULL || lookup->id.header != NULL;
	Jsonb	   *vars = make_vars(landing->delivery);
	AccordRemote remote;

	if (landing->response->result.status >= 300)
		return false;
	remote = accord_choose_remote(landing->delivery, landing->account,
								  landing->route);
	remote.id = mine(landing, &lookup->id, vars);
	if (asks_id && remote.id == NULL)
		return false;
	remote.version = mine(landing, &lookup->version, vars);
	remote.etag = mine(landing, &lookup->etag, vars);
	if (remote.kind != NULL && remote.key != NULL)
		accord_remote_note(landing->delivery, &remote, false);
	return true;
}

/* The channel has it, or not: both say how it goes on. */
static void
settle_lookup(Landing *landing)
{
	AccordJudgement *judgement = landing->judgement;
	AccordDelivery *delivery = landing->delivery;

	judgement->rule = 0;
	if (adopt(landing))
	{
		judgement->free = true;
		judgement->error = delivery->command ?
			"it was looked up: it had been done" :
			"it was looked up: the channel has it";
		if (delivery->command)
			decide(landing, ACCORD_OUTCOME_DELIVERED, ACCORD_VERDICT_DONE, 0);
		else
			decide(landing, ACCORD_OUTCOME_CONFLICT, ACCORD_VERDICT_RETRY,
				   delivery->attempts <= 2 ? landing->now : 0);
	}
	else
	{
		if (landing->route->remote != NULL)
			forget(landing);
		judgement->error = "it was looked up: the channel does not have it";
		decide(landing, ACCORD_OUTCOME_RETRY,
			   accord_settle_verdict(delivery, ACCORD_OUTCOME_RETRY,
									 ACCORD_SENT_YES, true, landing->now), 0);
	}
	accord_settle_judged(delivery, landing->response, judgement, landing->now);
}

static void
land_lookup(Landing *landing)
{
	AccordJudgement *judgement = landing->judgement;
	AccordDelivery *delivery = landing->delivery;
	int			status = landing->response->result.transport ==
	ACCORD_TRANSPORT_OK ? landing->response->result.status : 0;
	AccordVerdict verdict;

	*judgement = accord_judge_plain(landing->response);
	if (landing->route->lookup != NULL &&
		(judgement->outcome == ACCORD_OUTCOME_DELIVERED || status == 404 ||
		 status == 410))
	{
		settle_lookup(landing);
		return;
	}
	/* that it could not be looked up says nothing: again, as long as may be */
	verdict = accord_settle_verdict(delivery, ACCORD_OUTCOME_RETRY,
									ACCORD_SENT_YES, true, landing->now);
	if (verdict == ACCORD_VERDICT_RETRY)
		verdict = ACCORD_VERDICT_VERIFY;
	else if (delivery->command)
		verdict = ACCORD_VERDICT_HOLD;
	decide(landing, judgement->outcome, verdict, 0);
	accord_settle_judged(delivery, landing->response, judgement, landing->now);
}

void
accord_answer_settle(AccordDesk *desk, AccordDelivery *delivery,
					 const AccordRoute *route, const AccordAccount *account,
					 const AccordHttpResponse *response,
					 AccordJudgement *judgement, Jsonb *json, TimestampTz now)
{
	Landing		landing = {
		.desk = desk,
		.delivery = delivery,
		.route = route,
		.account = account,
		.response = response,
		.judgement = judgement,
		.json = json,
		.parsed = json != NULL,
		.now = now
	};

	apply_columns(&landing);
	if (!accord_delivery_asks(delivery))
		settle_judged(&landing);
	else if (delivery->state == ACCORD_STATE_ACCEPTED)
		land_poll(&landing);
	else
		land_lookup(&landing);
}

void
accord_answer_land(AccordDesk *desk, AccordDelivery *delivery,
				   const AccordHttpResponse *response, TimestampTz now)
{
	AccordChannel *channel = delivery->endpoint->connection->hub->config;
	AccordAccount *account;
	AccordRoute *route;
	AccordJudgement judgement;

	if (channel == NULL || !channel->judges ||
		!accord_assign_route(delivery, &channel, &account, &route))
	{
		accord_settle_response(delivery, response, now);
		return;
	}
	judgement = accord_judge_answer(channel, route, response);
	if (judgement.per_item)
		judgement = accord_judge_plain(response);
	accord_answer_settle(desk, delivery, route, account, response, &judgement,
						 NULL, now);
}
