/*
 * retry.h: exports of retry.c
 *
 * Layer 1, pure: what an attempt's result means, and when to try again. No
 * I/O; the clock and the dice are arguments.
 */
#ifndef ACCORD_RETRY_H
#define ACCORD_RETRY_H

#include "datatype/timestamp.h"

/* How far a request got. */
typedef enum AccordSent
{
	ACCORD_SENT_NO,				/* no byte of it left: safe to repeat */
	ACCORD_SENT_UNKNOWN,		/* sent, no complete answer */
	ACCORD_SENT_YES				/* answered */
} AccordSent;

/* How the transfer itself ended (http.c maps curl's codes to these). */
typedef enum AccordTransport
{
	ACCORD_TRANSPORT_OK,		/* a complete answer */
	ACCORD_TRANSPORT_UNREACHABLE,	/* name, connection or TLS failed */
	ACCORD_TRANSPORT_REFUSED,	/* address in a refused network */
	ACCORD_TRANSPORT_TIMEOUT,	/* took longer than the channel's timeout */
	ACCORD_TRANSPORT_STALLED,	/* no byte for stall_timeout */
	ACCORD_TRANSPORT_CUT_OFF,	/* answer missing or ended early */
	ACCORD_TRANSPORT_GARBAGE,	/* answer is not HTTP, or its headers exceed
								 * the limit */
	ACCORD_TRANSPORT_INVALID	/* the request itself cannot be made (bad URL) */
} AccordTransport;

/* What is concluded from an attempt; the words of attempt_log.outcome. */
typedef enum AccordOutcome
{
	ACCORD_OUTCOME_DELIVERED,
	ACCORD_OUTCOME_ACCEPTED,	/* taken, but not done yet: it is asked again */
	ACCORD_OUTCOME_CONFLICT,	/* there already, or of another version: it is
								 * looked up */
	ACCORD_OUTCOME_RETRY,		/* the channel failed: later */
	ACCORD_OUTCOME_RETRY_AFTER, /* the channel said when */
	ACCORD_OUTCOME_REJECTED,	/* permanent */
	ACCORD_OUTCOME_UNAUTHORIZED,	/* 401, 403, 407 */
	ACCORD_OUTCOME_UNREACHABLE,
	ACCORD_OUTCOME_TIMEOUT,
	ACCORD_OUTCOME_STALLED,
	ACCORD_OUTCOME_CUT_OFF,
	ACCORD_OUTCOME_UNCLEAR,		/* a rule: it may or may not have been done */
	ACCORD_OUTCOME_INVALID,		/* poison: no request could be made of it */
	ACCORD_OUTCOME_SKIPPED,		/* there was nothing to send */
	ACCORD_OUTCOME_SUPERSEDED,	/* a newer one of its kind goes instead */
	ACCORD_OUTCOME_EXPIRED,		/* its time was over before it was sent */
	ACCORD_OUTCOME_DISCARDED,	/* by a person, or its channel or route is
								 * gone */
	ACCORD_OUTCOME_LOST			/* sent before a crash, its answer unknown */
} AccordOutcome;

/* What becomes of the delivery. */
typedef enum AccordVerdict
{
	ACCORD_VERDICT_DONE,		/* delivered or nothing to do */
	ACCORD_VERDICT_RETRY,		/* again, at accord_retry_delay() */
	ACCORD_VERDICT_ACCEPT,		/* the channel is asked what became of it */
	ACCORD_VERDICT_VERIFY,		/* the channel is asked whether it has it */
	ACCORD_VERDICT_HOLD,		/* a person decides */
	ACCORD_VERDICT_DEAD			/* dead letter */
} AccordVerdict;

typedef struct AccordResult
{
	AccordTransport transport;
	AccordSent	sent;
	int			status;			/* HTTP status, 0 when none came */
	bool		is_delete;		/* the request's method was DELETE */
	int64		retry_after_ms; /* from Retry-After; -1 when absent */
} AccordResult;

typedef struct AccordRetryPolicy
{
	int64		base_ms;		/* first delay's upper bound */
	int64		cap_ms;			/* every delay's upper bound */
	int			max_attempts;	/* then dead */
	int64		max_age_ms;		/* since the event's commit; then dead */
	bool		command;		/* not to be repeated blindly */
	bool		ambiguous_retry;	/* ... but the route says retry */
	bool		keyed;			/* the channel honours an idempotency key */
	int64		window_ms;		/* ... for this long after the first attempt;
								 * 0: for ever */
	bool		hold_dead;		/* a person decides, rather than dead */
	bool		verify;			/* of a command in doubt the channel is asked
								 * whether it was done */
} AccordRetryPolicy;

/* The outcome of a transfer: one pure table. */
extern AccordOutcome accord_retry_outcome(const AccordResult *result);

/*
 * How far the request's effect got, for the verdict: an answer that leaves it
 * open whether the work was done (408, 500, 502, 504 and those 5xx that are
 * not in the table) counts as UNKNOWN; "not processed" (503) stays YES.
 */
extern AccordSent accord_retry_sent(const AccordResult *result);

/* The word for it, as stored. */
extern const char *accord_retry_word(AccordOutcome outcome);
extern const char *accord_retry_sent_word(AccordSent sent);

/*
 * What becomes of a delivery after its attempt number "attempts" (from 1)
 * ended so, age_ms after the event's commit and since_first_ms after its
 * first attempt. sent is accord_retry_sent()'s. A command that may have been
 * executed is held unless its key or its route allows a repeat, or it can be
 * asked for; a hold comes before a death by attempts or age.
 */
extern AccordVerdict accord_retry_verdict(const AccordRetryPolicy *policy,
										  AccordOutcome outcome,
										  AccordSent sent, int attempts,
										  int64 age_ms, int64 since_first_ms);

/*
 * Whether a delivery that was attempted so often before may be sent now.
 * False for a command whose key the channel may have forgotten since the
 * verdict: while it waited, its idempotency window ended. A person decides.
 */
extern bool accord_retry_repeatable(const AccordRetryPolicy *policy,
									int attempts, int64 since_first_ms);

/*
 * Milliseconds until the next attempt, after "attempts" of them: exponential
 * with full jitter, uniform in [0, min(cap, base * 2^(attempts-1))], and never
 * before retry_after_ms (-1: none given; honoured up to one day). dice is
 * uniform in [0, 1).
 */
extern int64 accord_retry_delay(const AccordRetryPolicy *policy, int attempts,
								int64 retry_after_ms, double dice);

/*
 * Milliseconds meant by a Retry-After header (RFC 9110 section 10.2.3): a
 * number of seconds or an HTTP-date in any of its three forms, as seen at
 * now. -1 when it is neither; a date that has passed is 0.
 */
extern int64 accord_retry_after_parse(const char *value, TimestampTz now);

#endif							/* ACCORD_RETRY_H */
