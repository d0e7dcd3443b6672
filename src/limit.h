/*
 * limit.h: exports of limit.c
 *
 * Layer 1: how fast a channel may be called. Pure: no I/O, no memory, and the
 * clock is an argument.
 */
#ifndef ACCORD_LIMIT_H
#define ACCORD_LIMIT_H

#include "datatype/timestamp.h"

/* "May be sent at once", where a time is returned. */
#define ACCORD_LIMIT_NOW INT64CONST(0)

/*
 * A rate: over any span of w seconds at most burst + w * amount / period
 * requests. In nanoseconds, so that 30,000 a second are not rounded to less.
 */
typedef struct AccordRate
{
	int64		interval_ns;	/* from one token to the next */
	int64		tolerance_ns;	/* (burst - 1) intervals */
} AccordRate;

/*
 * A token bucket, kept as the time at which it would be full again: the
 * generic cell rate algorithm (ITU-T I.371, virtual scheduling). All zero: a
 * full one.
 */
typedef struct AccordBucket
{
	int64		full_at_ns;		/* nanoseconds since 2000-01-01 */
} AccordBucket;

/* amount (from 1) tokens in period_us (from 1), burst (from 1). */
extern AccordRate accord_limit_rate(int64 amount, int64 period_us, int64 burst);

/*
 * The time from which a token can be taken: ACCORD_LIMIT_NOW when that is now.
 * A bucket that is further in debt than this rate allows (the limit was
 * changed, or the clock went back) owes from now on no more than one that was
 * just emptied.
 */
extern TimestampTz accord_limit_ready(const AccordRate *rate,
									  AccordBucket *bucket, TimestampTz now);

/* Takes one; to be called when it is ready. */
extern void accord_limit_take(const AccordRate *rate, AccordBucket *bucket,
							  TimestampTz now);

/* Gives back one that was taken and not used. */
extern void accord_limit_return(const AccordRate *rate, AccordBucket *bucket);

/* How many could be taken now. */
extern int64 accord_limit_tokens(const AccordRate *rate,
								 const AccordBucket *bucket, TimestampTz now);

/* What an answer's headers say about the server's own limit. */
typedef struct AccordHint
{
	int64		remaining;		/* requests; -1: not said */
	int64		reset_ms;		/* until there are more; -1: not said */
} AccordHint;

/*
 * One header of an answer. Understood are, whatever the case of their letters:
 * RateLimit (draft-ietf-httpapi-ratelimit-headers: a list of policies with r
 * and t, the one with the fewest left counts; and the older form with
 * remaining= and reset=), and Remaining and Reset after RateLimit-,
 * X-RateLimit- and X-Rate-Limit-. A reset is seconds (a fraction is
 * understood), or, when it is too large for that, seconds or milliseconds
 * since 1970, as seen at now; or an HTTP-date. Of several the least remaining
 * and the latest reset count. True: it was one of these, and well-formed;
 * everything else leaves *hint as it is.
 */
extern bool accord_limit_hint(const char *name, size_t name_len,
							  const char *value, TimestampTz now,
							  AccordHint *hint);

/*
 * What the server itself allows still: a pause it asked for, and a budget
 * until a certain time. All zero: it said nothing.
 */
typedef struct AccordAllowance
{
	TimestampTz not_before;		/* paused until then; 0: no */
	TimestampTz until;			/* the budget is for the time before it; 0:
								 * there is none */
	int64		left;			/* requests of the budget */
	int			refusals;		/* answers 429 in a row */
} AccordAllowance;

/*
 * An answer came with that hint, in_flight requests of its kind being under
 * way, which the server may or may not have counted: they are taken off.
 * Without remaining or reset nothing changes. A reset is believed up to one
 * day.
 */
extern void accord_limit_heed(AccordAllowance *allowance,
							  const AccordHint *hint, int in_flight,
							  TimestampTz now);

/*
 * A request was refused as too early. Until retry_after_ms later nothing is
 * to be sent; when that is not said (-1) or over already (0: a clock that is
 * ahead, a second cut off), until the hint's reset, reset_ms later; when that
 * is not said or over either, for a time that doubles with each refusal in a
 * row: half of it fixed, half by dice (uniform in [0, 1)), between base_ms and
 * cap_ms. A pause is never shortened, and at most one day. Refusals of
 * requests sent before the pause began count as one: sent_at is when this one
 * was.
 */
extern void accord_limit_refused(AccordAllowance *allowance,
								 int64 retry_after_ms, int64 reset_ms,
								 int64 base_ms, int64 cap_ms, double dice,
								 TimestampTz sent_at, TimestampTz now);

/* One was not refused. */
extern void accord_limit_passed(AccordAllowance *allowance);

/* As accord_limit_ready(). */
extern TimestampTz accord_limit_allowed(const AccordAllowance *allowance,
										TimestampTz now);

/* A request is sent: it costs one of the budget. */
extern void accord_limit_spend(AccordAllowance *allowance, TimestampTz now);

#endif							/* ACCORD_LIMIT_H */
