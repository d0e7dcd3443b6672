/*
 * breaker.c: the circuit breaker of an endpoint.
 *
 * Runs in dispatchers, for every attempt. While it is closed, failures are
 * counted, in a row and over a moving window; when there are too many it
 * opens, and nothing passes. After a while it is half-open: a single probe
 * passes, and decides.
 *
 * Invariants: pure, no I/O, nothing allocated, nothing raised, nothing kept.
 * While it is not closed only the probe's result counts: what was sent before
 * it opened says nothing new.
 *
 * On failure there is nothing to clean up.
 */
#include "postgres.h"

#include "breaker.h"

static const char *const state_words[] = {
	[ACCORD_BREAKER_CLOSED] = "closed",
	[ACCORD_BREAKER_OPEN] = "open",
	[ACCORD_BREAKER_HALF_OPEN] = "half_open"
};

const char *
accord_breaker_word(AccordBreakerState state)
{
	return state_words[state];
}

bool
accord_breaker_tick(AccordBreaker *breaker, TimestampTz now)
{
	if (breaker->state != ACCORD_BREAKER_OPEN || now < breaker->probe_at)
		return false;
	breaker->state = ACCORD_BREAKER_HALF_OPEN;
	breaker->probing = false;
	return true;
}

bool
accord_breaker_allows(const AccordBreaker *breaker)
{
	return breaker->state == ACCORD_BREAKER_CLOSED ||
		(breaker->state == ACCORD_BREAKER_HALF_OPEN && !breaker->probing);
}

bool
accord_breaker_sent(AccordBreaker *breaker)
{
	if (breaker->state != ACCORD_BREAKER_HALF_OPEN || breaker->probing)
		return false;
	breaker->probing = true;
	return true;
}

/* Opens it for a time that doubles with every opening since it was closed. */
static void
open_it(AccordBreaker *breaker, const AccordBreakerPolicy *policy, double dice,
		TimestampTz now)
{
	int64		ms = Min(policy->cooldown_ms, policy->cap_ms);

	for (int i = 0; i < breaker->trips && ms > 0 && ms < policy->cap_ms; i++)
		ms = ms > policy->cap_ms / 2 ? policy->cap_ms : ms * 2;
	ms = ms / 2 + (int64) (dice * (double) (ms - ms / 2));
	breaker->state = ACCORD_BREAKER_OPEN;
	breaker->probing = false;
	breaker->consecutive = 0;
	breaker->trips = Min(breaker->trips + 1, 1000);
	breaker->probe_at = now + ms * 1000;
}

bool
accord_breaker_reset(AccordBreaker *breaker)
{
	bool		changed = breaker->state != ACCORD_BREAKER_CLOSED;

	memset(breaker, 0, sizeof(*breaker));
	return changed;
}

/* The place of a part, also of one before 2000, whose number is negative. */
static int
place_of(int64 part)
{
	return (int) ((uint64) part % ACCORD_BREAKER_PARTS);
}

/* Moves the window on to now; a clock that went back begins it anew. */
static int
window_part(AccordBreaker *breaker, int64 window_ms, TimestampTz now)
{
	int64		span = Max(window_ms * 1000 / ACCORD_BREAKER_PARTS, 1);
	int64		part = now / span;

	if (part < breaker->part || part >= breaker->part + ACCORD_BREAKER_PARTS)
	{
		memset(breaker->attempts, 0, sizeof(breaker->attempts));
		memset(breaker->failed, 0, sizeof(breaker->failed));
		breaker->part = part;
	}
	while (breaker->part < part)
	{
		breaker->part++;
		breaker->attempts[place_of(breaker->part)] = 0;
		breaker->failed[place_of(breaker->part)] = 0;
	}
	return place_of(part);
}

/*
 * Whether failures are too large a part of the window. Compared as the table
 * keeps the ratio: 3 of 5 are 0.6 then, while 0.6 as a float4 that was widened
 * is more.
 */
static bool
exceeds_ratio(const AccordBreaker *breaker, const AccordBreakerPolicy *policy)
{
	uint64		attempts = 0;
	uint64		failed = 0;

	if (policy->ratio <= 0)
		return false;
	for (int i = 0; i < ACCORD_BREAKER_PARTS; i++)
	{
		attempts += breaker->attempts[i];
		failed += breaker->failed[i];
	}
	return attempts >= (uint64) Max(policy->minimum, 1) &&
		(float4) failed / (float4) attempts >= (float4) policy->ratio;
}

/* A result while it is closed. True: it opened. */
static bool
count_result(AccordBreaker *breaker, const AccordBreakerPolicy *policy,
			 bool failure, double dice, TimestampTz now)
{
	int			part = window_part(breaker, policy->window_ms, now);

	breaker->attempts[part]++;
	breaker->failed[part] += failure;
	breaker->consecutive = failure ? breaker->consecutive + 1 : 0;
	if (!failure || !((policy->failures > 0 &&
					   breaker->consecutive >= policy->failures) ||
					  exceeds_ratio(breaker, policy)))
		return false;
	open_it(breaker, policy, dice, now);
	return true;
}

bool
accord_breaker_result(AccordBreaker *breaker,
					  const AccordBreakerPolicy *policy,
					  AccordBreakerResult result, bool probe, double dice,
					  TimestampTz now)
{
	if (policy->failures == 0 && policy->ratio <= 0)
		return accord_breaker_reset(breaker);
	if (breaker->state == ACCORD_BREAKER_CLOSED)
		return result != ACCORD_BREAKER_NEUTRAL &&
			count_result(breaker, policy, result == ACCORD_BREAKER_FAILURE,
						 dice, now);
	if (!probe || breaker->state != ACCORD_BREAKER_HALF_OPEN)
		return false;
	breaker->probing = false;
	if (result == ACCORD_BREAKER_NEUTRAL)
		return false;
	if (result == ACCORD_BREAKER_SUCCESS)
		return accord_breaker_reset(breaker);
	open_it(breaker, policy, dice, now);
	return true;
}
