/*
 * settle.c: conclusions about deliveries, made durable many at a time.
 *
 * Runs in dispatchers. An outcome is decided (retry.c), turned into rows, and
 * waits for company; one transaction then appends all rows. Only after its
 * commit does anything that depends on it happen: the next event of the key is
 * let through, an intent is sent, memory is freed, the position moves.
 *
 * Invariants
 *   - A delivery is in the settling batch at most once.
 *   - The position written in a batch is what earlier batches committed: it
 *     is computed before anything of this one is.
 *   - A request that is in flight for longer than SPILL_AFTER gets a row
 *     ('sending') so that it does not hold the position; so does what waits
 *     for so long behind one of its key that is retrying or held ('waiting').
 *     An endpoint whose queue stands for so long gets a cursor of its own.
 *
 * On failure the transaction's error ends the dispatcher. The next one reads
 * again from the position and drops what was settled.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "delivery.h"
#include "fingerprint.h"
#include "flow.h"
#include "guc.h"
#include "json.h"
#include "remote.h"
#include "routing.h"
#include "settle.h"
#include "tally.h"
#include "token.h"

#define BATCH_LIMIT 1000		/* deliveries that settle together */
#define SPILL_AFTER 1000		/* ms */
#define CURSORS_PER_SECOND 500
#define LOOK_EVERY 200			/* ms */
#define LOOK_EACH 50			/* us for each endpoint, with thousands */
#define POSITION_EACH 16		/* ... for the position alone */
#define REPLAY_LIMIT 64			/* replays whose progress is written together */
#define LOG_EVERY 10000			/* ms */
#define HTTP_UNAUTHORIZED 401

/* What happens to a delivery once its rows are durable. */
typedef enum Sequel
{
	SEQUEL_FREE,				/* settled, or dead: forgotten here */
	SEQUEL_PARK,				/* until due_at */
	SEQUEL_HOLD,				/* until a person decides */
	SEQUEL_SEND,				/* the intent is durable */
	SEQUEL_SPILL,				/* goes on flying, or waiting */
	SEQUEL_QUEUE,				/* its turn is now */
	SEQUEL_AGAIN				/* ... again: TAKEN as it is */
} Sequel;

typedef struct Settlement
{
	AccordDelivery *delivery;
	Sequel		sequel;
	AccordState state;			/* of its row, when has_row */
	bool		has_row;
	int			row;			/* ... in batch.rows */
	TimestampTz due_at;
} Settlement;

/* The batch: settlements, and rows of the three logs. */
static struct
{
	AccordDesk *desk;
	MemoryContext context;		/* of everything in the batch; reset after it */
	Settlement	settlements[2 * BATCH_LIMIT];
	AccordBacklogRow rows[2 * BATCH_LIMIT];
	AccordAttemptRow attempts[2 * BATCH_LIMIT];
	AccordCursorRow *cursors;
	AccordReplayRow replays[REPLAY_LIMIT];
	int			n_replays;
	int			n_settlements;
	int			n_rows;
	int			n_attempts;
	int			n_cursors;
	int			n_active;		/* endpoints with a cursor, or that owe */
	int			max_cursors;
	bool		urgent;			/* an endpoint waits for the commit */
	TimestampTz since;			/* first one's arrival */
	TimestampTz looked_at;		/* for what lasts, and at cursors */
	TimestampTz positioned_at;	/* the position was found anew */
	TimestampTz last_commit;
	TimestampTz last_duration;	/* microseconds the last commit took */
	int64		position;		/* what committed batches allow */
	int64		position_written;
	pg_prng_state dice;
	double		throw;			/* of those who fail together; -1: of each */
}			batch;

void
accord_settle_init(AccordDesk *desk)
{
	batch.desk = desk;
	batch.context = AllocSetContextCreate(TopMemoryContext,
										  "pg_accord settle",
										  ALLOCSET_DEFAULT_SIZES);
	batch.position = accord_backlog_position(desk->number);
	batch.position_written = batch.position;
	batch.max_cursors = 64;
	batch.cursors = MemoryContextAlloc(desk->context, batch.max_cursors *
									   sizeof(AccordCursorRow));
	batch.throw = -1;
	pg_prng_seed(&batch.dice, (uint64) MyProcPid ^ GetCurrentTimestamp());
}

static Settlement *
add_settlement(AccordDelivery *delivery, Sequel sequel)
{
	Settlement *settlement;

	/* callers leave room: see accord_settle_timeout() */
	if (batch.n_settlements == lengthof(batch.settlements))
		elog(ERROR, "too many deliveries settle at once");
	if (batch.n_settlements == 0)
		batch.since = GetCurrentTimestamp();
	settlement = &batch.settlements[batch.n_settlements++];
	memset(settlement, 0, sizeof(*settlement));
	settlement->delivery = delivery;
	Assert(!delivery->settling);
	delivery->settling = true;
	settlement->sequel = sequel;
	return settlement;
}

/* The next version of a delivery's backlog row. */
static AccordBacklogRow *
add_row(Settlement *settlement, AccordState state, const char *error,
		Jsonb *request)
{
	AccordDelivery *delivery = settlement->delivery;
	AccordBacklogRow *row = &batch.rows[batch.n_rows++];
	MemoryContext old = MemoryContextSwitchTo(batch.context);

	settlement->has_row = true;
	settlement->row = batch.n_rows - 1;
	settlement->state = state;
	row->replay = delivery->replay ? delivery->replay->id : 0;
	row->seq = delivery->seq;
	row->tx_id = delivery->tx_id;
	row->owed_since = delivery->owed_since;
	row->attempted_at = delivery->attempted_at;
	row->due_at = settlement->due_at;
	row->route = delivery->route;
	row->decided_by = delivery->decided_by;
	row->ord = delivery->ord;
	row->version = delivery->version + 1;
	row->attempts = delivery->attempts;
	row->event_slot = delivery->slot;
	row->priority = delivery->endpoint->priority;
	row->channel = delivery->endpoint->channel;
	row->account = delivery->endpoint->account;
	row->key = delivery->event == NULL ? NULL :
		accord_request_text(delivery->event, ACCORD_EVENT_KEY);
	row->state = state;
	row->error = error ? pstrdup(error) : NULL;
	row->request = request;
	MemoryContextSwitchTo(old);
	return row;
}

/* What the endpoint shows of an attempt. */
static void
show_attempt(AccordDelivery *delivery, AccordOutcome outcome,
			 const AccordHttpResponse *response, const char *error,
			 TimestampTz now)
{
	AccordConnection *connection = delivery->endpoint->connection;
	bool		delivered = outcome == ACCORD_OUTCOME_DELIVERED;

	accord_connection_touch(batch.desk, connection);
	accord_tally_attempt(connection, outcome);
	if (outcome >= ACCORD_OUTCOME_SKIPPED && outcome != ACCORD_OUTCOME_LOST)
		return;					/* nothing was tried */
	accord_gauge_attempt(&connection->gauge, delivered,
						 response ? response->duration_ms : -1, now);
	connection->last_outcome = outcome;
	connection->last_attempt_at = now;
	if (delivered)
		connection->last_delivered_at = now;
	if (error != NULL)
	{
		connection->last_error_at = now;
		strlcpy(connection->last_error, error,
				sizeof(connection->last_error));
		connection->last_error[pg_mbcliplen(connection->last_error,
											strlen(connection->last_error),
											sizeof(connection->last_error) - 1)] = '\0';
	}
}

char	   *
accord_settle_foreign_text(const AccordConnection *connection,
						   const char *bytes, size_t len, size_t keep)
{
	const char *access = connection->token ? connection->token->access : NULL;

	if (connection->hub->config != NULL)
		bytes = accord_auth_redact(connection->config != NULL &&
								   connection->config->has_auth ?
								   &connection->config->auth :
								   &connection->hub->config->auth, access,
								   bytes, &len, keep);
	return accord_json_clean(bytes, len, keep);
}

static void
add_attempt(AccordDelivery *delivery, AccordOutcome outcome,
			const AccordHttpResponse *response, const char *error,
			TimestampTz now)
{
	AccordAttemptRow *row = &batch.attempts[batch.n_attempts++];
	MemoryContext old = MemoryContextSwitchTo(batch.context);

	show_attempt(delivery, outcome, response, error, now);
	memset(row, 0, sizeof(*row));
	row->seq = delivery->seq;
	row->replay = delivery->replay ? delivery->replay->id : 0;
	row->ord = delivery->ord;
	row->attempt = delivery->attempts;
	row->duration_ms = response ? response->duration_ms : -1;
	row->channel = delivery->endpoint->channel;
	row->account = delivery->endpoint->account;
	row->outcome = accord_retry_word(outcome);
	row->error = error ? pstrdup(error) : NULL;
	if (response != NULL)
	{
		row->status = response->result.status;
		row->sent = accord_retry_sent_word(response->result.sent);
		if (outcome != ACCORD_OUTCOME_DELIVERED && response->body_len > 0)
			row->response =
				accord_settle_foreign_text(delivery->endpoint->connection,
										   response->body, response->body_len,
										   accord_response_excerpt);
		if (response->request_id != NULL)
			row->request_id =
				accord_settle_foreign_text(delivery->endpoint->connection,
										   response->request_id,
										   strlen(response->request_id), 200);
	}
	else if (outcome == ACCORD_OUTCOME_LOST)
		row->sent = accord_retry_sent_word(ACCORD_SENT_UNKNOWN);
	MemoryContextSwitchTo(old);
}

/*
 * Says in the server log what a person should know, for each endpoint at most
 * every LOG_EVERY.
 */
static void
log_trouble(AccordDelivery *delivery, AccordVerdict verdict,
			const char *error, TimestampTz now)
{
	AccordEndpoint *endpoint = delivery->endpoint;
	AccordConnection *connection = endpoint->connection;

	if (!TimestampDifferenceExceeds(connection->logged_at, now, LOG_EVERY))
	{
		connection->unlogged++;
		return;
	}
	ereport(LOG,
			(errmsg("channel \"%s\"%s%s%s: event " INT64_FORMAT ".%d %s",
					endpoint->channel, endpoint->account[0] ?
					", account \"" : "", endpoint->account,
					endpoint->account[0] ? "\"" : "", delivery->seq,
					delivery->ord, verdict == ACCORD_VERDICT_DEAD ?
					"became a dead letter" : delivery->command ?
					"is held: its outcome is not known" :
					"is held: it was given up, and its key waits"),
			 error ? errdetail("%s", error) : 0,
			 connection->unlogged > 0 ?
			 errcontext("%d more like it since the last message",
						connection->unlogged) : 0,
			 errhint("See accord.timeline; then accord.redeliver() or "
					 "accord.discard().")));
	connection->logged_at = now;
	connection->unlogged = 0;
}

/* The state that closes a delivery. */
static AccordState
closed_state(AccordOutcome outcome)
{
	switch (outcome)
	{
		case ACCORD_OUTCOME_DELIVERED:
			return ACCORD_STATE_DELIVERED;
		case ACCORD_OUTCOME_SKIPPED:
			return ACCORD_STATE_SKIPPED;
		case ACCORD_OUTCOME_SUPERSEDED:
			return ACCORD_STATE_SUPERSEDED;
		case ACCORD_OUTCOME_EXPIRED:
			return ACCORD_STATE_EXPIRED;
		default:
			return ACCORD_STATE_DISCARDED;
	}
}

/*
 * When to try again: what was refused as too early, when the pause is over
 * that all of its account or channel make.
 */
static TimestampTz
retry_time(AccordDelivery *delivery, AccordOutcome outcome,
		   const AccordHttpResponse *response, TimestampTz now)
{
	TimestampTz pause = accord_flow_pause(delivery);

	if (outcome == ACCORD_OUTCOME_RETRY_AFTER && pause > now)
		return pause;
	return now + 1000 *
		accord_retry_delay(&delivery->endpoint->connection->policy,
						   Max(delivery->attempts, 1), response ?
						   response->result.retry_after_ms : -1,
						   batch.throw >= 0 ? batch.throw :
						   pg_prng_double(&batch.dice));
}

void
accord_settle_together(bool together)
{
	batch.throw = together ? pg_prng_double(&batch.dice) : -1;
}

/* A request's result is told once, by the member that counts as it. */
static void
tell_flow(AccordDelivery *delivery, AccordOutcome outcome,
		  const AccordHttpResponse *response, const char *error,
		  TimestampTz now)
{
	if (!delivery->rider && response != NULL)
		accord_tally_request(delivery->endpoint->connection, response);
	if (!delivery->rider)
		accord_flow_result(batch.desk, delivery, outcome, response, error,
						   pg_prng_double(&batch.dice), now);
	delivery->rider = false;
	delivery->sent = false;
}

/* What its replay counts of it. */
static void
count_replayed(AccordReplay *replay, AccordOutcome outcome,
			   AccordVerdict verdict)
{
	if (replay == NULL)
		return;
	replay->changed = true;
	if (verdict == ACCORD_VERDICT_DEAD)
		replay->failed++;
	else if (verdict == ACCORD_VERDICT_DONE &&
			 outcome == ACCORD_OUTCOME_DELIVERED)
		replay->delivered++;
	else if (verdict == ACCORD_VERDICT_DONE)
		replay->passed++;
}

/* What was concluded about a delivery. */
typedef struct Conclusion
{
	AccordOutcome outcome;
	AccordVerdict verdict;
	TimestampTz due_at;			/* when it is tried again; 0: as the policy
								 * has it */
	Jsonb	   *keep;			/* in its row */
	const char *error;
} Conclusion;

/* It is tried, or asked about, again: its row, and when. */
static void
conclude_later(Settlement *settlement, AccordState state,
			   const Conclusion *conclusion,
			   const AccordHttpResponse *response, TimestampTz now)
{
	Jsonb	   *keep = conclusion->keep;
	MemoryContext old = MemoryContextSwitchTo(batch.context);

	if (keep != NULL)
		keep = (Jsonb *) DatumGetPointer(datumCopy(JsonbPGetDatum(keep), false,
												   -1));
	MemoryContextSwitchTo(old);
	settlement->sequel = SEQUEL_PARK;
	settlement->due_at = conclusion->due_at != 0 ? conclusion->due_at :
		retry_time(settlement->delivery, conclusion->outcome, response, now);
	add_row(settlement, state, conclusion->error, keep);
}

/*
 * Turns a verdict into the delivery's next row and sequel. response is NULL
 * when no request was made.
 */
static void
conclude(AccordDelivery *delivery, Conclusion *conclusion,
		 const AccordHttpResponse *response, TimestampTz now)
{
	Settlement *settlement;
	AccordConnection *connection = delivery->endpoint->connection;
	const char *error = conclusion->error;

	if (delivery->discard && conclusion->verdict != ACCORD_VERDICT_DONE)
	{
		conclusion->verdict = ACCORD_VERDICT_DONE;
		conclusion->outcome = ACCORD_OUTCOME_DISCARDED;
	}
	if (conclusion->verdict == ACCORD_VERDICT_HOLD ||
		conclusion->verdict == ACCORD_VERDICT_DEAD)
		log_trouble(delivery, conclusion->verdict, error, now);
	/* its request slot is free now: only its key waits for the commit */
	accord_delivery_landed(batch.desk, delivery, response != NULL);
	tell_flow(delivery, conclusion->outcome, response, error, now);
	count_replayed(delivery->replay, conclusion->outcome, conclusion->verdict);
	accord_tally_verdict(connection, conclusion->outcome,
						 conclusion->verdict);
	delivery->chosen = 0;
	batch.urgent |=
		connection->gate.unsettled >= connection->gate.max_in_flight ||
		connection->hub->gate.unsettled >=
		connection->hub->gate.max_in_flight;
	settlement = add_settlement(delivery, SEQUEL_FREE);
	switch (conclusion->verdict)
	{
		case ACCORD_VERDICT_DONE:
			if (conclusion->outcome == ACCORD_OUTCOME_DELIVERED)
				accord_fingerprint_accept(delivery);
			if (delivery->version > 0)
				add_row(settlement, closed_state(conclusion->outcome), error,
						NULL);
			break;
		case ACCORD_VERDICT_RETRY:
			conclude_later(settlement, ACCORD_STATE_RETRYING, conclusion,
						   response, now);
			break;
		case ACCORD_VERDICT_ACCEPT:
			conclude_later(settlement, ACCORD_STATE_ACCEPTED, conclusion,
						   response, now);
			break;
		case ACCORD_VERDICT_VERIFY:
			conclude_later(settlement, ACCORD_STATE_VERIFYING, conclusion,
						   response, now);
			break;
		case ACCORD_VERDICT_HOLD:
			settlement->sequel = SEQUEL_HOLD;
			add_row(settlement, ACCORD_STATE_HELD, error, NULL);
			break;
		case ACCORD_VERDICT_DEAD:
			add_row(settlement, ACCORD_STATE_DEAD, error, NULL);
			break;
	}
}

void
accord_settle_response(AccordDelivery *delivery,
					   const AccordHttpResponse *response, TimestampTz now)
{
	AccordJudgement judgement = accord_judge_plain(response);

	accord_settle_judged(delivery, response, &judgement, now);
}

void
accord_settle_again(AccordDelivery *delivery,
					const AccordHttpResponse *response, int batch_max,
					const char *error, TimestampTz now)
{
	add_attempt(delivery, response ? ACCORD_OUTCOME_RETRY :
				ACCORD_OUTCOME_INVALID, response, error, now);
	if (response != NULL)
		delivery->attempts--;	/* it was not about this one alone */
	delivery->batch_max = batch_max;
	accord_delivery_landed(batch.desk, delivery, response != NULL);
	tell_flow(delivery, ACCORD_OUTCOME_REJECTED, response, error, now);
	add_settlement(delivery, SEQUEL_AGAIN);
}

/*
 * Whether the token it was sent with is to be replaced, and the request to be
 * made once more with another one.
 */
static bool
is_token_refused(const AccordDelivery *delivery,
				 const AccordHttpResponse *response,
				 const AccordJudgement *judgement, TimestampTz now)
{
	AccordToken *token = delivery->endpoint->connection->token;

	if (token == NULL)
		return false;
	if (judgement->outcome == ACCORD_OUTCOME_DELIVERED)
		accord_token_accepted(token);
	return judgement->outcome == ACCORD_OUTCOME_UNAUTHORIZED &&
		response->result.status == HTTP_UNAUTHORIZED &&
		accord_token_refused(token, delivery->started_at, now);
}

/* That was no attempt, and says nothing about the channel. */
static void
settle_with_new_token(AccordDelivery *delivery,
					  const AccordHttpResponse *response, const char *error,
					  TimestampTz now)
{
	add_attempt(delivery, ACCORD_OUTCOME_UNAUTHORIZED, response,
				psprintf("%s: sent again with a new token",
						 error ? error : "refused"), now);
	delivery->attempts--;
	accord_delivery_landed(batch.desk, delivery, true);
	tell_flow(delivery, ACCORD_OUTCOME_REJECTED, response, NULL, now);
	add_settlement(delivery, SEQUEL_AGAIN);
}

AccordVerdict
accord_settle_verdict(const AccordDelivery *delivery, AccordOutcome outcome,
					  AccordSent sent, bool certain, TimestampTz now)
{
	AccordRetryPolicy policy = delivery->endpoint->connection->policy;

	policy.hold_dead = delivery->hold_dead;
	policy.command = delivery->command && !certain;
	policy.keyed &= !delivery->keyless;
	policy.ambiguous_retry = delivery->ambiguous_retry;
	policy.verify = delivery->verify;
	return accord_retry_verdict(&policy, outcome, sent, delivery->attempts,
								(now - delivery->owed_since) / 1000,
								(now - delivery->attempted_at) / 1000);
}

/* counts: as an attempt. */
static void
settle_judged(AccordDelivery *delivery, const AccordHttpResponse *response,
			  const AccordJudgement *judgement, bool counts, TimestampTz now)
{
	AccordHttpResponse told = *response;
	Conclusion	conclusion = {
		.outcome = judgement->outcome,
		.verdict = judgement->verdict,
		.due_at = judgement->due_at,
		.keep = judgement->keep,
		.error = judgement->error
	};

	if (judgement->error != NULL)
		conclusion.error =
			accord_settle_foreign_text(delivery->endpoint->connection,
									   judgement->error,
									   strlen(judgement->error), 1000);
	if (is_token_refused(delivery, response, judgement, now))
	{
		settle_with_new_token(delivery, response, conclusion.error, now);
		return;
	}
	if (judgement->pause_ms >= 0)
		told.result.retry_after_ms = judgement->pause_ms;
	add_attempt(delivery, judgement->outcome, response, conclusion.error, now);
	batch.attempts[batch.n_attempts - 1].rule = judgement->rule;
	if (!counts || judgement->free)
		delivery->attempts--;
	if (!judgement->decided)
		conclusion.verdict = accord_settle_verdict(delivery,
												   judgement->outcome,
												   judgement->sent, false,
												   now);
	conclude(delivery, &conclusion, &told, now);
}

void
accord_settle_judged(AccordDelivery *delivery,
					 const AccordHttpResponse *response,
					 const AccordJudgement *judgement, TimestampTz now)
{
	settle_judged(delivery, response, judgement, true, now);
}

void
accord_settle_divided(AccordDelivery *delivery,
					  const AccordHttpResponse *response,
					  const AccordJudgement *judgement, int batch_max,
					  TimestampTz now)
{
	delivery->batch_max = batch_max;
	settle_judged(delivery, response, judgement, false, now);
}

void
accord_settle_without(AccordDelivery *delivery, AccordOutcome outcome,
					  const char *error, TimestampTz now)
{
	AccordSent	sent = outcome == ACCORD_OUTCOME_LOST ||
	outcome == ACCORD_OUTCOME_UNCLEAR ? ACCORD_SENT_UNKNOWN : ACCORD_SENT_NO;
	Conclusion	conclusion = {.outcome = outcome,.error = error};

	if (delivery->attempted_at == 0)
		delivery->attempted_at = now;
	conclusion.verdict = accord_settle_verdict(delivery, outcome, sent,
											   false, now);
	add_attempt(delivery, outcome, NULL, error, now);
	conclude(delivery, &conclusion, NULL, now);
}

void
accord_settle_intent(AccordDelivery *delivery, Jsonb *request,
					 TimestampTz now)
{
	Settlement *settlement = add_settlement(delivery, SEQUEL_SEND);
	MemoryContext old = MemoryContextSwitchTo(batch.context);

	if (request != NULL)
		request = (Jsonb *) DatumGetPointer(
											datumCopy(JsonbPGetDatum(request), false, -1));
	MemoryContextSwitchTo(old);
	delivery->started_at = now;
	if (delivery->attempted_at == 0)
		delivery->attempted_at = now;
	add_row(settlement, ACCORD_STATE_SENDING, NULL, request);
}

void
accord_settle_schedule(AccordDelivery *delivery, TimestampTz due_at)
{
	Settlement *settlement = add_settlement(delivery, SEQUEL_PARK);

	settlement->due_at = due_at;
	accord_delivery_landed(batch.desk, delivery, false);
	add_row(settlement, ACCORD_STATE_SCHEDULED, NULL, NULL);
}

void
accord_settle_replay(AccordDelivery *delivery, const char *key,
					 TimestampTz now, bool keep)
{
	Settlement *settlement = add_settlement(delivery, keep ?
											SEQUEL_QUEUE : SEQUEL_FREE);
	AccordBacklogRow *row;

	delivery->owed_since = now;
	delivery->attempts = 0;
	delivery->attempted_at = 0;
	settlement->due_at = now;
	row = add_row(settlement, ACCORD_STATE_REPLAYED, NULL, NULL);
	row->key = key ? MemoryContextStrdup(batch.context, key) : NULL;
}

void
accord_settle_discard(AccordDelivery *delivery, const char *key)
{
	Settlement *settlement = add_settlement(delivery, SEQUEL_FREE);
	AccordBacklogRow *row;

	add_attempt(delivery, ACCORD_OUTCOME_DISCARDED, NULL, NULL,
				GetCurrentTimestamp());
	count_replayed(delivery->replay, ACCORD_OUTCOME_DISCARDED,
				   ACCORD_VERDICT_DONE);
	accord_tally(delivery->endpoint->connection, ACCORD_TALLY_DISCARDED);
	row = add_row(settlement, ACCORD_STATE_DISCARDED, NULL, NULL);
	row->key = key ? MemoryContextStrdup(batch.context, key) : NULL;
}

bool
accord_settle_pending(void)
{
	return batch.n_settlements > 0;
}

bool
accord_settle_full(void)
{
	return batch.n_settlements >= BATCH_LIMIT / 2;
}

void
accord_settle_hurry(void)
{
	batch.urgent = true;
}

static bool
has_notes(void)
{
	const AccordTransitionRow *notes;

	return accord_flow_noted(&notes) > 0;
}

long
accord_settle_timeout(TimestampTz now, bool idle)
{
	TimestampTz delay;

	if (batch.n_settlements == 0 && (has_notes() || batch.urgent))
		return 0;
	if (batch.n_settlements == 0)
	{
		/*
		 * What memory alone owes is looked after (spilled, given a cursor),
		 * and the position follows what has been read.
		 */
		TimestampTz look = batch.last_commit + SPILL_AFTER * 1000;
		bool		behind = idle && accord_desk_position(batch.desk) >
		batch.position_written;

		if (!behind && !batch.desk->unrest)
			return -1;
		return now >= look ? 0 : (look - now + 999) / 1000;
	}
	if (idle || batch.urgent || batch.n_settlements >= BATCH_LIMIT / 2)
		return 0;

	/* a slow disk wants larger batches: commits take a fifth of the time */
	delay = Max((TimestampTz) accord_settle_delay * 1000,
				4 * batch.last_duration);
	if (now - batch.since >= delay)
		return 0;
	return (batch.since + delay - now + 999) / 1000;
}

/* Whether it waits for one of its key, or a parent, that will take its time. */
static bool
is_blocked(const AccordDelivery *delivery)
{
	const AccordLane *lane = delivery->lane ? delivery->lane : delivery->order;
	const AccordDelivery *holder = lane ? lane->holder : NULL;

	if (delivery->awaits != 0)
		return true;
	/* where nothing moves, the cursor remembers more cheaply */
	if (delivery->phase != ACCORD_PHASE_WAITING || holder == NULL ||
		delivery->endpoint->connection->breaker.state !=
		ACCORD_BREAKER_CLOSED)
		return false;
	return holder->phase == ACCORD_PHASE_HELD ||
		(holder->phase == ACCORD_PHASE_PARKED && holder->excepted);
}

/*
 * Whether any of its deliveries may come to need a row: what is in flight, or
 * behind another of its key that has one (while the breaker is closed: see
 * is_blocked()). Of thousands of endpoints most are told here, and one that is
 * down, without a look at what each is owed.
 */
static bool
may_last(AccordConnection *connection)
{
	return connection->gate.in_flight > 0 || connection->n_awaiting > 0 ||
		(connection->breaker.state == ACCORD_BREAKER_CLOSED &&
		 !dlist_is_empty(&connection->exceptions));
}

/*
 * Gives long requests, and what is blocked for long, a row of their own. True:
 * there are others that may come to need one.
 */
static bool
spill_lasting(AccordEndpoint *endpoint, TimestampTz now)
{
	dlist_iter	iter;
	TimestampTz long_ago = now - SPILL_AFTER * 1000;
	bool		others = false;

	/* what is blocked shall not keep others out of a queue that is full */
	bool		full = endpoint->n_owed >= ACCORD_QUEUE_LIMIT / 2 &&
	endpoint->n_exceptions < ACCORD_EXCEPTION_LIMIT / 2;

	dlist_foreach(iter, &endpoint->owed)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, owed_node,
												   iter.cur);

		if (batch.n_settlements >= BATCH_LIMIT * 2 - 1)
			return true;
		if (delivery->settling || (!delivery->sent && !is_blocked(delivery)))
			others |= delivery->phase == ACCORD_PHASE_TAKEN;
		else if (delivery->started_at >= long_ago &&
				 (delivery->sent || !full))
			others = true;
		else
			add_row(add_settlement(delivery, SEQUEL_SPILL), delivery->sent ?
					ACCORD_STATE_SENDING : ACCORD_STATE_WAITING, NULL, NULL);
	}
	return others;
}

static void
add_cursor(AccordEndpoint *endpoint, AccordPoint point, bool done,
		   TimestampTz now)
{
	AccordDesk *desk = batch.desk;
	AccordCursorRow *row;

	if (batch.n_cursors == batch.max_cursors)
	{
		batch.max_cursors *= 2;
		batch.cursors = repalloc(batch.cursors, batch.max_cursors *
								 sizeof(AccordCursorRow));
	}
	row = &batch.cursors[batch.n_cursors++];
	row->version = ++endpoint->cursor_version;
	row->point = point;
	row->done = done;
	row->behind = endpoint->behind + endpoint->n_owed - endpoint->n_leaving;
	row->counted = desk->read.ord == ACCORD_ORD_ALL ? desk->read.seq :
		desk->read.seq - 1;
	row->priority = endpoint->priority;
	row->channel = endpoint->channel;
	row->account = endpoint->account;
	endpoint->persisted = point;
	endpoint->persisted_at = now;
}

/*
 * How long a cursor stands, in microseconds. It need not be exact, so that
 * thousands of endpoints write no more than some hundreds of rows a second.
 */
static int64
cursor_interval(void)
{
	return Max((int64) SPILL_AFTER * 1000,
			   (int64) batch.n_active * USECS_PER_SEC / CURSORS_PER_SECOND);
}

/*
 * An endpoint that lags, or whose queue has not moved for a while, keeps its
 * own cursor, so that the position can go on; one that has caught up with the
 * position gives it back. It is written now and then: what was settled after
 * it is in attempt_log.
 */
static void
move_cursor(AccordEndpoint *endpoint, TimestampTz now)
{
	AccordPoint low = accord_endpoint_low(batch.desk, endpoint);
	AccordDelivery *first = dlist_is_empty(&endpoint->owed) ? NULL :
	dlist_head_element(AccordDelivery, owed_node, &endpoint->owed);

	if (endpoint->cursored)
	{
		bool		done = !endpoint->lagging && !endpoint->overflow &&
		(first == NULL || first->seq > batch.position);

		if (!done && accord_point_compare(low, endpoint->persisted) == 0)
			return;
		if (endpoint->persisted_at > now - cursor_interval())
		{
			batch.desk->unrest = true;
			return;
		}
		add_cursor(endpoint, low, done, now);
		endpoint->cursored = !done;
	}
	else if (endpoint->lagging ||
			 (first != NULL && first->started_at < now - SPILL_AFTER * 1000))
	{
		add_cursor(endpoint, low, false, now);
		endpoint->cursored = true;
	}
}

/*
 * What the batch's transaction writes besides conclusions. Where nothing is
 * under way and the cursor is right, there is nothing to look after until
 * something happens, however long deliveries wait.
 */
static void
prepare_positions(TimestampTz now)
{
	dlist_mutable_iter iter;
	int			n_active = 0;

	batch.n_cursors = 0;
	if (batch.n_settlements > 0 && now >= batch.looked_at &&
		now - batch.looked_at < Max(LOOK_EVERY * 1000,
									LOOK_EACH * batch.desk->n_active))
	{
		batch.desk->unrest = true;
		return;
	}
	batch.looked_at = now;
	batch.desk->unrest = false;
	dlist_foreach_modify(iter, &batch.desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		n_active++;
		if (may_last(endpoint->connection))
			batch.desk->unrest |= spill_lasting(endpoint, now);
		if (endpoint->priority != ACCORD_PRIORITY_REPLAY)
		{
			move_cursor(endpoint, now);
			batch.desk->unrest |= endpoint->n_owed > 0 && !endpoint->cursored;
		}
		accord_endpoint_touch(batch.desk, endpoint);
	}
	batch.n_active = n_active;
}

static const char *
replay_word(AccordReplayState state)
{
	switch (state)
	{
		case ACCORD_REPLAY_DONE:
			return "done";
		case ACCORD_REPLAY_CANCELLED:
			return "cancelled";
		case ACCORD_REPLAY_FAILED:
			return "failed";
		default:
			return "running";
	}
}

/*
 * How far a replay has come. What is counted is what this batch and earlier
 * ones say; what they settle beyond the point will be found in attempt_log.
 */
static void
add_replay(AccordReplay *replay, TimestampTz now)
{
	AccordReplayRow *row = &batch.replays[batch.n_replays++];
	AccordDelivery *first = dlist_is_empty(&replay->owed) ? NULL :
	dlist_head_element(AccordDelivery, replay_node, &replay->owed);

	row->id = replay->id;
	row->version = ++replay->version;
	row->point = replay->read;
	row->done = replay->walked;
	row->passed = replay->passed + replay->skipped;
	row->since = now;
	if (first != NULL)
	{
		row->point.seq = first->seq;
		row->point.ord = first->ord - 1;
		row->done = first->walked;
		row->passed = replay->passed + first->skipped;
		row->since = first->read_at;
	}
	if (replay->settled_since != 0)
		row->since = Min(row->since, replay->settled_since);
	row->first_seq = replay->first_seq > 0 ? replay->first_seq :
		row->point.seq;
	row->pass_low = replay->pass_low;
	row->pass_high = replay->pass_high;
	row->delivered = replay->delivered;
	row->failed = replay->failed;
	row->started_at = replay->started_at;
	row->state = replay_word(replay->state);
	row->reason = replay->reason;
	replay->changed = false;
	replay->persisted_at = now;
}

/* The progress of replays is written once a second; how they end, at once. */
static void
prepare_replays(TimestampTz now)
{
	dlist_mutable_iter iter;

	batch.n_replays = 0;
	dlist_foreach_modify(iter, &batch.desk->replays)
	{
		AccordReplay *replay = dlist_container(AccordReplay, node, iter.cur);
		bool		ended = replay->state >= ACCORD_REPLAY_DONE;

		if (batch.n_replays == REPLAY_LIMIT)
			break;
		if (!replay->changed)
			continue;
		if (ended || replay->persisted_at <= now - SPILL_AFTER * 1000)
		{
			add_replay(replay, now);
			/* the others have their turn first next time */
			dlist_delete(&replay->node);
			if (!ended)
				dlist_push_tail(&batch.desk->replays, &replay->node);
		}
		else
			batch.desk->unrest = true;
	}
}

/*
 * A delivery whose event was unloaded cannot tell the key that its row needs;
 * the log can. In the batch's transaction.
 */
static void
find_keys(void)
{
	AccordLogReader *reader = NULL;

	for (int i = 0; i < batch.n_rows; i++)
	{
		AccordBacklogRow *row = &batch.rows[i];
		AccordPoint nowhere = {0, ACCORD_ORD_ALL};
		TupleTableSlot *event;

		if (row->state != ACCORD_STATE_WAITING || row->key != NULL)
			continue;
		if (reader == NULL)
			reader = accord_log_open(nowhere, 0);
		event = accord_log_event(reader, row->event_slot, row->tx_id, row->ord);
		if (event != NULL)
			row->key = accord_routing_text(event, ACCORD_EVENT_KEY);
	}
	if (reader != NULL)
		accord_log_close(reader);
}

/*
 * A replayed delivery's row goes on from those that the same delivery has had
 * before, which nobody has looked for until now. In the batch's transaction.
 */
static void
find_versions(void)
{
	for (int i = 0; i < batch.n_settlements; i++)
	{
		Settlement *settlement = &batch.settlements[i];
		AccordDelivery *delivery = settlement->delivery;
		AccordBacklogRow known;

		if (!settlement->has_row || delivery->replay == NULL ||
			delivery->versioned)
			continue;
		delivery->versioned = true;
		if (!accord_backlog_find(delivery->endpoint->channel,
								 delivery->endpoint->account, delivery->seq,
								 delivery->ord, &known))
			continue;
		delivery->version = known.version;
		batch.rows[settlement->row].version = known.version + 1;
	}
}

static void
write_batch(void)
{
	MemoryContext old;
	const AccordTransitionRow *notes;
	int			n_notes = accord_flow_noted(&notes);
	bool		rows = batch.n_settlements > 0 || batch.n_cursors > 0 ||
	batch.n_replays > 0;

	accord_db_begin();
	old = MemoryContextSwitchTo(batch.context);
	/* a position alone may be lost: what it says is read again */
	if (!rows)
		set_config_option("synchronous_commit", "off", PGC_USERSET,
						  PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	if (batch.position > batch.position_written)
		accord_backlog_set_position(batch.desk->number, batch.position);
	accord_backlog_append_attempts(batch.attempts, batch.n_attempts);
	find_keys();
	find_versions();
	accord_backlog_append(batch.rows, batch.n_rows);
	accord_backlog_append_cursors(batch.cursors, batch.n_cursors);
	accord_backlog_append_replays(batch.replays, batch.n_replays);
	accord_backlog_append_transitions(notes, n_notes);
	accord_remote_write();
	MemoryContextSwitchTo(old);
	accord_db_commit();
	accord_flow_forget();
	batch.position_written = Max(batch.position_written, batch.position);
}

/* Lets a delivery go on, now that its rows are durable. */
static void
follow(Settlement *settlement, AccordSettleSend send)
{
	AccordDesk *desk = batch.desk;
	AccordDelivery *delivery = settlement->delivery;

	if (settlement->has_row && delivery->was_dead)
	{
		delivery->was_dead = false;
		delivery->endpoint->connection->n_dead--;
	}
	if (settlement->has_row && settlement->sequel != SEQUEL_FREE)
		accord_delivery_except(desk, delivery, settlement->state);
	if (settlement->has_row && settlement->state == ACCORD_STATE_DEAD)
		delivery->endpoint->connection->n_dead++;
	if (delivery->event != NULL && (settlement->sequel == SEQUEL_PARK ||
									settlement->sequel == SEQUEL_HOLD ||
									(settlement->sequel == SEQUEL_SPILL &&
									 !delivery->sent)))
	{
		accord_event_release(desk, delivery->event);
		delivery->event = NULL;
	}
	delivery->settling = false;
	accord_delivery_settled(desk, delivery);
	switch (settlement->sequel)
	{
		case SEQUEL_FREE:
			accord_delivery_free(desk, delivery);
			break;
		case SEQUEL_PARK:
			accord_delivery_park(desk, delivery, settlement->due_at);
			/* from now on a newer one may go instead */
			if (settlement->state == ACCORD_STATE_RETRYING)
				accord_merge_enter(desk, delivery);
			break;
		case SEQUEL_HOLD:
			accord_delivery_hold(desk, delivery);
			break;
		case SEQUEL_SEND:
			send(delivery);
			break;
		case SEQUEL_QUEUE:
			accord_delivery_queue(desk, delivery);
			break;
		case SEQUEL_AGAIN:
			accord_delivery_again(desk, delivery);
			break;
		case SEQUEL_SPILL:
			break;
	}
}

/*
 * Up to where everything is settled, before this batch; with thousands of
 * endpoints not at every commit: in so many times as many microseconds as there
 * are of them.
 */
static void
find_position(TimestampTz now)
{
	if (batch.n_settlements > 0 && now >= batch.positioned_at &&
		now - batch.positioned_at < POSITION_EACH * batch.desk->n_active)
		return;
	batch.positioned_at = now;
	batch.position = accord_desk_position(batch.desk);
}

void
accord_settle_commit(TimestampTz now, AccordSettleSend send)
{
	TimestampTz start = GetCurrentTimestamp();
	int			n;

	find_position(now);
	prepare_positions(now);
	prepare_replays(now);
	if (batch.n_settlements > 0 || batch.n_cursors > 0 ||
		batch.n_replays > 0 || has_notes() ||
		batch.position > batch.position_written)
		write_batch();

	/*
	 * following may conclude again (a send that fails at once): that is the
	 * next batch, so this one is taken off first
	 */
	n = batch.n_settlements;
	batch.desk->unrest |= n > 0;
	batch.n_settlements = 0;
	batch.n_rows = 0;
	batch.n_attempts = 0;
	batch.urgent = false;
	if (n > 0)
	{
		Settlement *done = palloc(n * sizeof(Settlement));

		memcpy(done, batch.settlements, n * sizeof(Settlement));
		MemoryContextReset(batch.context);
		for (int i = 0; i < n; i++)
			follow(&done[i], send);
		pfree(done);
	}
	accord_remote_written(batch.desk);
	batch.last_commit = GetCurrentTimestamp();
	batch.last_duration = batch.last_commit - start;
}
