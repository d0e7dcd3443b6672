/*
 * settle.c: what becomes of a delivery.
 *
 * Runs in dispatchers. An outcome is decided (retry.c), turned into rows
 * (settle_rows.c), and waits for company; one transaction then appends all
 * rows (settle_commit.c), with what is remembered of the others
 * (settle_position.c).
 *
 * Invariant: what is concluded here has no effect beyond this process before
 * that commit, except that its request slot is free.
 *
 * On failure the error ends the dispatcher. The next one reads again from the
 * position and drops what was settled.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/datum.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "delivery.h"
#include "fingerprint.h"
#include "flow.h"
#include "settle_private.h"
#include "tally.h"
#include "token.h"

#define LOG_EVERY 10000			/* ms */
#define HTTP_UNAUTHORIZED 401

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
						   accord_settling.throw >= 0 ? accord_settling.throw :
						   pg_prng_double(&accord_settling.dice));
}

void
accord_settle_together(bool together)
{
	accord_settling.throw = together ?
		pg_prng_double(&accord_settling.dice) : -1;
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
		accord_flow_result(accord_settling.desk, delivery, outcome, response,
						   error,
						   pg_prng_double(&accord_settling.dice), now);
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
conclude_later(AccordSettlement *settlement, AccordState state,
			   const Conclusion *conclusion,
			   const AccordHttpResponse *response, TimestampTz now)
{
	Jsonb	   *keep = conclusion->keep;
	MemoryContext old = MemoryContextSwitchTo(accord_settling.context);

	if (keep != NULL)
		keep = (Jsonb *) DatumGetPointer(datumCopy(JsonbPGetDatum(keep), false,
												   -1));
	MemoryContextSwitchTo(old);
	settlement->sequel = ACCORD_SEQUEL_PARK;
	settlement->due_at = conclusion->due_at != 0 ? conclusion->due_at :
		retry_time(settlement->delivery, conclusion->outcome, response, now);
	accord_settle_row(settlement, state, conclusion->error, keep);
}

/*
 * Turns a verdict into the delivery's next row and sequel. response is NULL
 * when no request was made.
 */
static void
conclude(AccordDelivery *delivery, Conclusion *conclusion,
		 const AccordHttpResponse *response, TimestampTz now)
{
	AccordSettlement *settlement;
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
	accord_delivery_landed(accord_settling.desk, delivery, response != NULL);
	tell_flow(delivery, conclusion->outcome, response, error, now);
	count_replayed(delivery->replay, conclusion->outcome, conclusion->verdict);
	accord_tally_verdict(connection, conclusion->outcome,
						 conclusion->verdict);
	delivery->chosen = 0;
	accord_settling.urgent |=
		connection->gate.unsettled >= connection->gate.max_in_flight ||
		connection->hub->gate.unsettled >=
		connection->hub->gate.max_in_flight;
	settlement = accord_settle_add(delivery, ACCORD_SEQUEL_FREE);
	switch (conclusion->verdict)
	{
		case ACCORD_VERDICT_DONE:
			if (conclusion->outcome == ACCORD_OUTCOME_DELIVERED)
				accord_fingerprint_accept(delivery);
			if (delivery->version > 0)
				accord_settle_row(settlement,
								  closed_state(conclusion->outcome), error,
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
			settlement->sequel = ACCORD_SEQUEL_HOLD;
			accord_settle_row(settlement, ACCORD_STATE_HELD, error, NULL);
			break;
		case ACCORD_VERDICT_DEAD:
			accord_settle_row(settlement, ACCORD_STATE_DEAD, error, NULL);
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
	accord_settle_attempt(delivery, response ? ACCORD_OUTCOME_RETRY :
						  ACCORD_OUTCOME_INVALID, response, error, now);
	if (response != NULL)
		delivery->attempts--;	/* it was not about this one alone */
	delivery->batch_max = batch_max;
	accord_delivery_landed(accord_settling.desk, delivery, response != NULL);
	tell_flow(delivery, ACCORD_OUTCOME_REJECTED, response, error, now);
	accord_settle_add(delivery, ACCORD_SEQUEL_AGAIN);
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
	accord_settle_attempt(delivery, ACCORD_OUTCOME_UNAUTHORIZED, response,
						  psprintf("%s: sent again with a new token",
								   error ? error : "refused"), now);
	delivery->attempts--;
	accord_delivery_landed(accord_settling.desk, delivery, true);
	tell_flow(delivery, ACCORD_OUTCOME_REJECTED, response, NULL, now);
	accord_settle_add(delivery, ACCORD_SEQUEL_AGAIN);
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
	accord_settle_attempt(delivery, judgement->outcome, response,
						  conclusion.error, now)->rule = judgement->rule;
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
	accord_settle_attempt(delivery, outcome, NULL, error, now);
	conclude(delivery, &conclusion, NULL, now);
}

void
accord_settle_intent(AccordDelivery *delivery, Jsonb *request,
					 TimestampTz now)
{
	AccordSettlement *settlement =
	accord_settle_add(delivery, ACCORD_SEQUEL_SEND);
	MemoryContext old = MemoryContextSwitchTo(accord_settling.context);

	if (request != NULL)
		request = (Jsonb *) DatumGetPointer(
											datumCopy(JsonbPGetDatum(request),
													  false, -1));
	MemoryContextSwitchTo(old);
	delivery->started_at = now;
	if (delivery->attempted_at == 0)
		delivery->attempted_at = now;
	accord_settle_row(settlement, ACCORD_STATE_SENDING, NULL, request);
}

void
accord_settle_schedule(AccordDelivery *delivery, TimestampTz due_at)
{
	AccordSettlement *settlement =
	accord_settle_add(delivery, ACCORD_SEQUEL_PARK);

	settlement->due_at = due_at;
	accord_delivery_landed(accord_settling.desk, delivery, false);
	accord_settle_row(settlement, ACCORD_STATE_SCHEDULED, NULL, NULL);
}

void
accord_settle_replay(AccordDelivery *delivery, const char *key,
					 TimestampTz now, bool keep)
{
	AccordSequel sequel = keep ? ACCORD_SEQUEL_QUEUE : ACCORD_SEQUEL_FREE;
	AccordSettlement *settlement = accord_settle_add(delivery, sequel);
	AccordBacklogRow *row;

	delivery->owed_since = now;
	delivery->attempts = 0;
	delivery->attempted_at = 0;
	settlement->due_at = now;
	row = accord_settle_row(settlement, ACCORD_STATE_REPLAYED, NULL, NULL);
	row->key = key ? MemoryContextStrdup(accord_settling.context, key) : NULL;
}

void
accord_settle_discard(AccordDelivery *delivery, const char *key)
{
	AccordSettlement *settlement =
	accord_settle_add(delivery, ACCORD_SEQUEL_FREE);
	AccordBacklogRow *row;

	accord_settle_attempt(delivery, ACCORD_OUTCOME_DISCARDED, NULL, NULL,
						  GetCurrentTimestamp());
	count_replayed(delivery->replay, ACCORD_OUTCOME_DISCARDED,
				   ACCORD_VERDICT_DONE);
	accord_tally(delivery->endpoint->connection, ACCORD_TALLY_DISCARDED);
	row = accord_settle_row(settlement, ACCORD_STATE_DISCARDED, NULL, NULL);
	row->key = key ? MemoryContextStrdup(accord_settling.context, key) : NULL;
}
