/*
 * unit_flow.c: limit.c and breaker.c against exact models.
 *
 * Beside flow.c, which tries what they are used for: here every answer of
 * theirs is foretold, over random schedules, by a model that is written down
 * from the headers and shares no arithmetic with them (whole numbers instead
 * of rounded intervals, a list of results instead of a window in parts).
 *
 * Runs by itself, without a server. The seed is fixed, so that a failure is
 * seen again; SEED=... chooses another, and a failure says which it was.
 *
 * Prints every check that failed, then a tally, and fails if any did.
 */
#include "postgres.h"

#include "breaker.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "limit.h"

/* 2026-06-15 12:00:00 UTC */
#define NOW (INT64CONST(834840000) * USECS_PER_SEC)
#define SECOND USECS_PER_SEC
#define DAY_MS INT64CONST(86400000)
#define ALMOST_1 0.999999
#define NONE INT64CONST(-1)

typedef __int128 Wide;

static int	passed;
static int	failed;
static pg_prng_state dice;
static uint64 seed = 20260615;

static void
check(bool right, const char *what)
{
	if (right)
		passed++;
	else if (++failed <= 20)
		printf("FAILED  %s (SEED=%llu)\n", what, (unsigned long long) seed);
}

static void
check_int(int64 got, int64 expected, const char *what)
{
	char		text[300];

	snprintf(text, sizeof(text), "%s: got %lld, expected %lld", what,
			 (long long) got, (long long) expected);
	check(got == expected, text);
}

static int64
below(int64 limit)
{
	return limit <= 0 ? 0 : (int64) (pg_prng_double(&dice) * (double) limit);
}

static bool
one_in(int n)
{
	return below(n) == 0;
}

/* ---- token buckets ---- */

typedef struct Limit
{
	int64		amount;
	int64		period_us;
	int64		burst;
} Limit;

static const Limit limits[] = {
	{1, SECOND, 1}, {3, SECOND, 1}, {7, SECOND, 3}, {10, 60 * SECOND, 10},
	{999, SECOND, 20}, {30000, SECOND, 2}, {30000, SECOND, 1},
	{99999, SECOND, 10}, {100000, SECOND, 500}, {100000, SECOND, 2},
	{40, 86400 * SECOND, 4}, {2, 1, 100}
};

/*
 * What passed since this limit holds: height is the greatest of amount * time
 * - period * number over all that passed. One more at a time is within the
 * bound of every window, burst + amount * w / period, exactly if room() is
 * not negative.
 */
typedef struct Passage
{
	const Limit *limit;
	int64		n;
	Wide		height;
} Passage;

static Wide
level_at(const Passage *passage, TimestampTz at)
{
	return (Wide) passage->limit->amount * (at - NOW) -
		(Wide) passage->limit->period_us * passage->n;
}

static Wide
room(const Passage *passage, TimestampTz at)
{
	if (passage->n == 0)
		return 0;
	return level_at(passage, at) - passage->height +
		(Wide) (passage->limit->burst - 1) * passage->limit->period_us;
}

static void
pass(Passage *passage, TimestampTz at)
{
	Wide		level = level_at(passage, at);

	if (passage->n == 0 || level > passage->height)
		passage->height = level;
	passage->n++;
}

/* Microseconds lost by intervals in whole nanoseconds, and by the clock's. */
static int64
loss(const Passage *passage)
{
	return 2 + passage->n / 1000;
}

static void
try_bucket(const Limit *limit)
{
	AccordRate	rate = accord_limit_rate(limit->amount, limit->period_us,
										 limit->burst);
	AccordBucket bucket = {0};
	Passage		passage = {limit, 0, 0};
	TimestampTz now = NOW;
	int			eagerness = 2 + (int) below(3000);
	bool		bound = true;
	bool		generous = true;
	bool		consistent = true;

	while (passage.n < 6000)
	{
		int64		tokens = accord_limit_tokens(&rate, &bucket, now);
		TimestampTz ready = accord_limit_ready(&rate, &bucket, now);

		consistent &= tokens >= 0 && tokens <= limit->burst &&
			(ready == ACCORD_LIMIT_NOW) == (tokens > 0);
		if (ready == ACCORD_LIMIT_NOW)
		{
			bound &= room(&passage, now) >= 0;
			pass(&passage, now);
			accord_limit_take(&rate, &bucket, now);
			consistent &= accord_limit_tokens(&rate, &bucket, now) ==
				tokens - 1;
		}
		else
		{
			/* whatever had come just before would have been too much */
			generous &= ready > now && (ready - loss(&passage) < now ||
										room(&passage, ready - loss(&passage)) < 0);
			now = one_in(3) ? now + below(ready - now) : ready;
		}
		if (one_in(eagerness))
			now += below(3 * limit->period_us);
	}
	check(bound, "bucket: in no window more than burst + rate * time");
	check(generous, "bucket: none waits that the bound would let pass");
	check(consistent, "bucket: tokens() is what ready() and take() do");
}

/*
 * Somebody always wants one. With a burst of 1 a token that is taken late by
 * a part of a microsecond is late for good, which is only seen from 10,000 a
 * second on; from a burst of 2 on nothing is lost.
 */
static void
try_throughput(const Limit *limit)
{
	AccordRate	rate = accord_limit_rate(limit->amount, limit->period_us,
										 limit->burst);
	AccordBucket bucket = {0};
	TimestampTz now = NOW;
	int64		n = 0;
	int64		wanted = 100000;
	Wide		due;

	if (limit->burst == 1 && limit->amount > limit->period_us / 100)
		return;
	for (; n < wanted; n++)
	{
		now = Max(now, accord_limit_ready(&rate, &bucket, now));
		accord_limit_take(&rate, &bucket, now);
	}
	due = limit->burst + (Wide) limit->amount * (now - NOW) / limit->period_us;
	check(n <= due && n * 100 >= due * 99, "bucket: the rate, within 1 %");
}

/*
 * The limit changes and the clock is set back. From then on the bound holds
 * anew, and who waits need not do so longer than after an emptied bucket.
 */
static void
try_changes(void)
{
	const Limit *limit = &limits[0];
	AccordRate	rate = accord_limit_rate(limit->amount, limit->period_us,
										 limit->burst);
	AccordBucket bucket = {0};
	Passage		passage = {limit, 0, 0};
	TimestampTz now = NOW;
	bool		bound = true;
	bool		bounded = true;
	bool		consistent = true;

	for (int i = 0; i < 20000; i++)
	{
		int64		tokens;
		TimestampTz ready;

		if (one_in(50))
		{
			limit = &limits[below(lengthof(limits))];
			rate = accord_limit_rate(limit->amount, limit->period_us,
									 limit->burst);
			if (one_in(3))
				now -= below(one_in(2) ? SECOND : 400 * DAY_MS * 1000);
			/* before 2000 a division rounds differently, by a microsecond */
			if (now < DAY_MS * 1000)
				now = NOW;
			passage = (Passage) {limit, 0, 0};
		}
		tokens = accord_limit_tokens(&rate, &bucket, now);
		ready = accord_limit_ready(&rate, &bucket, now);
		consistent &= tokens >= 0 && tokens <= limit->burst &&
			(ready == ACCORD_LIMIT_NOW) == (tokens > 0);
		if (ready == ACCORD_LIMIT_NOW)
		{
			bound &= room(&passage, now) >= 0;
			pass(&passage, now);
			accord_limit_take(&rate, &bucket, now);
			continue;
		}
		bounded &= ready > now && ready - now <= rate.interval_ns / 1000 + 1;
		if (one_in(4))
			now += below(ready - now);
		else
		{
			now = ready;
			bounded &= accord_limit_ready(&rate, &bucket, now) ==
				ACCORD_LIMIT_NOW;
		}
	}
	check(bound, "bucket, changed: the bound holds since");
	check(bounded, "bucket, changed: none waits longer than for one token");
	check(consistent, "bucket, changed: tokens() and ready() agree");
}

/* ---- what servers say ---- */

static const struct
{
	const char *name;
	const char *value;
	int64		remaining;
	int64		reset_ms;
}			hints[] = {
	/* IETF draft, RFC 9651 */
	{"RateLimit", "\"default\";r=50;t=30", 50, 30000},
	{"RateLimit", "\"a\"; r=50; t=30", 50, 30000},
	{"RateLimit", "\"a\";t=30;r=50", 50, 30000},
	{"RateLimit", "\"a\";r=5;t=9;pk=:cHsdsRa894==:", 5, 9000},
	{"RateLimit", "  \"a\";r=0;t=0  ", 0, 0},
	{"RateLimit", "\"a\";r=9;t=1,\"b\";r=4;t=60,\"c\";r=7;t=3600", 4, 60000},
	{"RateLimit", "\"s\";r=0;t=1, \"d\";r=0;t=3600", 0, 3600000},
	{"RateLimit", "\"d\";r=0;t=3600, \"s\";r=0;t=1", 0, 3600000},
	{"RateLimit", "\"a\";t=5, \"b\";r=3;t=6", 3, 6000},
	{"RateLimit", "\"x\\\";r=1;t=1\";r=8;t=2", 8, 2000},
	{"RateLimit", "\"a\";r=-1;t=5", NONE, NONE},
	{"RateLimit", "\"a\";r=;t=", NONE, NONE},
	{"RateLimit", "\"a\";r", NONE, NONE},
	{"RateLimit", "\"a\";t=5", NONE, NONE},
	{"RateLimit", ";;;,,,;", NONE, NONE},
	/* its older form */
	{"RateLimit", "limit=10, remaining=4, reset=3", 4, 3000},
	{"RATELIMIT", "LIMIT=10,REMAINING=4,RESET=3", 4, 3000},
	{"RateLimit", "limit=10; remaining=4; reset=3", 4, 3000},
	{"RateLimit", "limit=10, remaining=4, reset=x", 4, NONE},
	{"RateLimit", "limit=10, remaining=-4", NONE, NONE},
	/* one number a header */
	{"ratelimit-remaining", "0", 0, NONE},
	{"RateLimit-Reset", "0", NONE, 0},
	{"RateLimit-Reset", "-5", NONE, NONE},
	{"RateLimit-Limit", "100, 100;w=60", NONE, NONE},
	{"RateLimit-Policy", "\"a\";q=100;w=60", NONE, NONE},
	{"X-RateLimit-Remaining", "4999", 4999, NONE},
	{"X-RateLimit-Remaining", "\t12\t", 12, NONE},
	{"X-RateLimit-Remaining", "4, 5", NONE, NONE},
	{"X-RateLimit-Remaining", "12a", NONE, NONE},
	{"X-RateLimit-Remaining", "0x10", NONE, NONE},
	{"X-RateLimit-Remaining", "1e3", NONE, NONE},
	{"X-RateLimit-Remaining", "1.2.3", NONE, NONE},
	{"X-RateLimit-Remaining", "+3", NONE, NONE},
	{"X-RateLimit-Remaining", "3.9", 3, NONE},
	{"X-RateLimit-Remaining", "99999999999999999999", 1000000000000000, NONE},
	{"X-RateLimit-Reset", "30", NONE, 30000},
	{"X-RateLimit-Reset", "0.25", NONE, 250},
	{"X-RateLimit-Reset", "1781524890", NONE, 90000},
	{"X-RateLimit-Reset", "1781524890.5", NONE, 90500},
	{"X-RateLimit-Reset", "1781524890000", NONE, 90000},
	{"X-RateLimit-Reset", "1781524799", NONE, 0},
	{"X-RateLimit-Reset", "1781524799999", NONE, 0},
	{"X-RateLimit-Reset", "Mon, 15 Jun 2026 12:01:30 GMT", NONE, 90000},
	{"X-RateLimit-Reset", "Mon Jun 15 12:01:30 2026", NONE, 90000},
	{"X-RateLimit-Reset", "Mon, 15 Jun 2026 11:00:00 GMT", NONE, 0},
	{"X-RateLimit-Reset", "99999999999999999999", NONE, 1000000000000000},
	{"X-RateLimit-Reset", "", NONE, NONE},
	{"X-RateLimit-Reset", "tomorrow", NONE, NONE},
	{"X-Rate-Limit-Remaining", "1", 1, NONE},
	{"x-rate-limit-reset", "1781524890", NONE, 90000},
	{"X-RateLimit-Remaining-Day", "3", NONE, NONE},
	{"X-RateLimit-", "3", NONE, NONE},
	{"RateLimit-", "3", NONE, NONE},
	{"X-Remaining", "3", NONE, NONE},
	{"Remaining", "3", NONE, NONE},
	{"RateLimi", "\"a\";r=1;t=1", NONE, NONE},
	{"", "1", NONE, NONE}
};

static bool
hear(const char *name, const char *value, AccordHint *hint)
{
	return accord_limit_hint(name, strlen(name), value, NOW, hint);
}

static void
check_hints(void)
{
	for (int i = 0; i < lengthof(hints); i++)
	{
		AccordHint	hint = {NONE, NONE};
		AccordHint	known = {1, DAY_MS};
		char		what[200];
		bool		heard = hear(hints[i].name, hints[i].value, &hint);

		snprintf(what, sizeof(what), "hint %s: %s", hints[i].name,
				 hints[i].value);
		check_int(hint.remaining, hints[i].remaining, what);
		check_int(hint.reset_ms, hints[i].reset_ms, what);
		check(heard == (hints[i].remaining != NONE ||
						hints[i].reset_ms != NONE), what);
		/* what is known already becomes neither more nor sooner */
		hear(hints[i].name, hints[i].value, &known);
		check(known.remaining <= 1 && known.reset_ms >= DAY_MS, what);
	}
}

static void
check_hints_together(void)
{
	AccordHint	hint = {NONE, NONE};

	hear("RateLimit-Remaining", "3", &hint);
	hear("X-RateLimit-Remaining", "9", &hint);
	check_int(hint.remaining, 3, "hints: more remaining does not count");
	hear("X-Rate-Limit-Remaining", "2", &hint);
	check_int(hint.remaining, 2, "hints: less remaining counts");
	hear("RateLimit-Reset", "8", &hint);
	hear("X-RateLimit-Reset", "5", &hint);
	check_int(hint.reset_ms, 8000, "hints: an earlier reset does not count");
	/* the name need not end where it ends */
	check(accord_limit_hint("RateLimit-Reset: 9", 15, "9", NOW, &hint) &&
		  hint.reset_ms == 9000, "hints: the name's length is heeded");
}

/* Words of such headers in any order: it says something sensible or nothing. */
static void
try_garbage(void)
{
	static const char *const words[] = {
		"\"", "\\", ";", ",", "=", "r", "t", "remaining", "reset", "-", ".",
		" ", "\t", "1", "999999999999", "0", "Mon, 15 Jun", ":", "\xff"
	};
	static const char *const names[] = {
		"RateLimit", "X-RateLimit-Reset", "RateLimit-Remaining"
	};
	bool		sensible = true;

	for (int i = 0; i < 100000; i++)
	{
		char		value[200] = "";
		AccordHint	hint = {NONE, NONE};
		bool		heard;

		for (int j = (int) below(12); j > 0; j--)
			strlcat(value, words[below(lengthof(words))], sizeof(value));
		heard = hear(names[below(lengthof(names))], value, &hint);
		sensible &= heard == (hint.remaining != NONE || hint.reset_ms != NONE);
		sensible &= hint.remaining >= NONE && hint.reset_ms >= NONE &&
			hint.remaining <= INT64CONST(1000000000000000) &&
			hint.reset_ms <= INT64CONST(1000000000000000);
	}
	check(sensible, "hints: garbage says something sensible or nothing");
}

/* ---- allowances ---- */

/* A time with all its borders: not said, over already, and beyond a day. */
static int64
any_ms(void)
{
	switch (below(6))
	{
		case 0:
			return 0;
		case 1:
			return 3 * DAY_MS;
		case 2:
			return below(5000);
		default:
			return NONE;
	}
}

/* What a refusal is to make of the pause: between least and most. */
static void
foretell_pause(int refusals, int64 said, int64 base, int64 cap, int64 *least,
			   int64 *most)
{
	if (said > 0)
	{
		*least = *most = Min(said, DAY_MS);
		return;
	}
	*most = base;
	for (int i = 1; i < refusals && *most < cap; i++)
		*most *= 2;
	*most = Min(*most, cap);
	*least = Max(*most / 2, base);
}

static void
try_refusals(void)
{
	AccordAllowance allowance = {0};
	TimestampTz now = NOW;
	TimestampTz end = 0;
	int			refusals = 0;
	int64		base = 1 + below(300);
	int64		cap = base + below(100000);
	bool		right = true;
	bool		kept = true;

	for (int i = 0; i < 2000; i++)
	{
		int64		retry_after = any_ms();
		int64		reset = any_ms();
		int64		said = retry_after > 0 ? retry_after : reset;
		TimestampTz sent_at = now - below(one_in(2) ? 10 : 2000000);
		bool		anew = refusals == 0 || sent_at >= end;
		int64		least;
		int64		most;
		TimestampTz allowed;

		if (one_in(4))
		{
			accord_limit_passed(&allowance);
			refusals = 0;
			continue;
		}
		refusals += anew;
		foretell_pause(refusals, said, base, cap, &least, &most);
		accord_limit_refused(&allowance, retry_after, reset, base, cap,
							 pg_prng_double(&dice), sent_at, now);
		if (!anew && said <= 0)
			right &= allowance.not_before == end;
		else
			right &= allowance.not_before >= Max(end, now + least * 1000) &&
				allowance.not_before <= Max(end, now + most * 1000);
		kept &= allowance.not_before >= end;
		end = allowance.not_before;
		allowed = accord_limit_allowed(&allowance, now);
		kept &= allowed == (end > now ? end : ACCORD_LIMIT_NOW);
		now = one_in(3) ? end + below(1000) : now + below(1000);
	}
	check(right, "refused: as long as foretold, and a burst of them is one");
	check(kept, "refused: a pause is kept, and never shortened");
}

/* One refusal of a fresh allowance, in milliseconds. */
static int64
pause_of(int64 retry_after, int64 reset, int refusals, double thrown)
{
	AccordAllowance allowance = {.refusals = refusals - 1};

	accord_limit_refused(&allowance, retry_after, reset, 100, 10000, thrown,
						 NOW, NOW);
	return (allowance.not_before - NOW) / 1000;
}

static void
check_refusals(void)
{
	check_int(pause_of(NONE, NONE, 1, 0), 100, "refused: base at least");
	check_int(pause_of(NONE, NONE, 1, ALMOST_1), 100, "refused: base at first");
	check_int(pause_of(NONE, NONE, 4, 0), 400, "refused: half is fixed");
	check_int(pause_of(NONE, NONE, 4, ALMOST_1), 799, "refused: half by dice");
	check_int(pause_of(NONE, NONE, 50, 0), 5000, "refused: half of the cap");
	check_int(pause_of(NONE, NONE, PG_INT32_MAX, ALMOST_1), 9999,
			  "refused: the cap");
	check_int(pause_of(7, 9000, 5, 0.5), 7, "refused: Retry-After is first");
	check_int(pause_of(NONE, 9000, 5, 0.5), 9000, "refused: then the reset");
	check_int(pause_of(0, 9000, 5, 0.5), 9000, "refused: 0 says nothing");
	check_int(pause_of(0, 0, 1, 0.5), 100, "refused: ... so it backs off");
	check_int(pause_of(NONE, 0, 1, 0.5), 100, "refused: ... of a reset too");
	check_int(pause_of(PG_INT64_MAX, NONE, 1, 0), DAY_MS, "refused: a day");
	check_int(pause_of(NONE, PG_INT64_MAX, 1, 0), DAY_MS,
			  "refused: a day, of a reset");
}

/* Pauses and budgets at once, sent as fast as they allow. */
static void
try_budget(void)
{
	AccordAllowance allowance = {0};
	TimestampTz now = NOW;
	TimestampTz pause = 0;
	TimestampTz until = 0;
	int64		left = 0;
	bool		right = true;

	for (int i = 0; i < 5000; i++)
	{
		TimestampTz expected = ACCORD_LIMIT_NOW;

		if (one_in(8))
		{
			AccordHint	hint = {below(9) - 1, any_ms()};
			int			in_flight = (int) below(4);

			accord_limit_heed(&allowance, &hint, in_flight, now);
			if (hint.remaining >= 0 && hint.reset_ms >= 0)
			{
				until = now + Min(hint.reset_ms, DAY_MS) * 1000;
				left = Max(hint.remaining - in_flight, 0);
			}
		}
		if (one_in(30))
		{
			accord_limit_refused(&allowance, 1 + below(3000), NONE, 100, 1000,
								 0.5, now, now);
			pause = allowance.not_before;
		}
		if (now < pause)
			expected = pause;
		if (now < until && left == 0)
			expected = Max(expected, until);
		right &= accord_limit_allowed(&allowance, now) == expected;
		if (expected == ACCORD_LIMIT_NOW)
		{
			accord_limit_spend(&allowance, now);
			if (now < until)
				left--;
		}
		switch (below(4))
		{
			case 0:
				now = expected == ACCORD_LIMIT_NOW ? now : expected;
				break;
			case 1:
				now = expected == ACCORD_LIMIT_NOW ? now : expected - 1;
				break;
			default:
				now += below(200000);
		}
	}
	check(right, "allowance: pause and budget hold as the model's");
}

/* ---- breaker ---- */

#define MOST_RESULTS 4000
#define MOST_IN_FLIGHT 8

/* The policy; its ratio in whole hundredths, to be compared exactly. */
typedef struct Trial
{
	AccordBreakerPolicy policy;
	int			percent;
} Trial;

typedef struct Model
{
	const Trial *trial;
	AccordBreakerState state;
	int64		parts[MOST_RESULTS];	/* of the results since it closed */
	bool		failures[MOST_RESULTS];
	int			n;
	int			in_a_row;
	int			openings;
	bool		in_flight[MOST_IN_FLIGHT];	/* true: a probe */
	int			n_in_flight;
	int			probes;			/* of them */
} Model;

static int64
part_of(const Model *model, TimestampTz now)
{
	return now / (model->trial->policy.window_ms * 1000 /
				  ACCORD_BREAKER_PARTS);
}

/* Whether it is to open by this result. */
static bool
must_open(Model *model, bool failure, TimestampTz now)
{
	const AccordBreakerPolicy *policy = &model->trial->policy;
	int64		part = part_of(model, now);
	int			attempts = 0;
	int			failures = 0;

	if (model->n > 0 && model->parts[model->n - 1] > part)
		model->n = 0;			/* the clock went back */
	model->parts[model->n] = part;
	model->failures[model->n++] = failure;
	model->in_a_row = failure ? model->in_a_row + 1 : 0;
	for (int i = 0; i < model->n; i++)
	{
		if (model->parts[i] <= part - ACCORD_BREAKER_PARTS)
			continue;
		attempts++;
		failures += model->failures[i];
	}
	if (!failure)
		return false;
	return (policy->failures > 0 && model->in_a_row >= policy->failures) ||
		(model->trial->percent > 0 && attempts >= policy->minimum &&
		 failures * 100 >= model->trial->percent * attempts);
}

static bool
opens_so_long(const Model *model, int64 ms, double thrown)
{
	const AccordBreakerPolicy *policy = &model->trial->policy;
	int64		most = policy->cooldown_ms;

	for (int i = 0; i < model->openings && most < policy->cap_ms; i++)
		most *= 2;
	most = Min(most, policy->cap_ms);
	if (thrown == 0)
		return ms == most / 2;
	return ms >= most / 2 && ms < most &&
		(thrown < ALMOST_1 || ms >= most - 1 - most / 1000000);
}

static double
throw_dice(void)
{
	return one_in(3) ? 0 : one_in(2) ? ALMOST_1 : pg_prng_double(&dice);
}

/* One of those in flight comes back; the model says what is to happen. */
static bool
come_back(AccordBreaker *breaker, Model *model, int failing, TimestampTz now)
{
	int			which = (int) below(model->n_in_flight);
	bool		probe = model->in_flight[which];
	bool		half_open = model->state == ACCORD_BREAKER_HALF_OPEN;
	AccordBreakerState was = model->state;
	double		thrown = throw_dice();
	AccordBreakerResult result = one_in(8) ? ACCORD_BREAKER_NEUTRAL :
		below(100) < failing ? ACCORD_BREAKER_FAILURE : ACCORD_BREAKER_SUCCESS;
	bool		right = true;
	bool		changed = accord_breaker_result(breaker, &model->trial->policy,
												result, probe, thrown, now);

	model->in_flight[which] = model->in_flight[--model->n_in_flight];
	model->probes -= probe;
	if (result == ACCORD_BREAKER_NEUTRAL)
		;
	else if (was == ACCORD_BREAKER_CLOSED)
	{
		if (must_open(model, result == ACCORD_BREAKER_FAILURE, now))
			model->state = ACCORD_BREAKER_OPEN;
	}
	else if (half_open && probe)
		model->state = result == ACCORD_BREAKER_FAILURE ?
			ACCORD_BREAKER_OPEN : ACCORD_BREAKER_CLOSED;
	right &= breaker->state == model->state &&
		changed == (model->state != was);
	if (changed && model->state == ACCORD_BREAKER_OPEN)
	{
		right &= opens_so_long(model, (breaker->probe_at - now) / 1000, thrown);
		model->openings++;
	}
	if (changed)
		model->n = model->in_a_row = 0;
	if (changed && model->state == ACCORD_BREAKER_CLOSED)
		model->openings = 0;
	return right;
}

static void
try_breaker(const Trial *trial, int failing)
{
	static Model model;
	AccordBreaker breaker = {0};
	TimestampTz now = NOW;
	bool		right = true;
	bool		quiet = true;
	bool		single = true;

	memset(&model, 0, sizeof(model));
	model.trial = trial;
	for (int i = 0; i < 20000; i++)
	{
		bool		due = model.state == ACCORD_BREAKER_OPEN &&
			now >= breaker.probe_at;
		bool		allows;

		right &= accord_breaker_tick(&breaker, now) == due;
		if (due)
			model.state = ACCORD_BREAKER_HALF_OPEN;
		allows = accord_breaker_allows(&breaker);
		quiet &= !(model.state == ACCORD_BREAKER_OPEN && allows);
		single &= allows == (model.state == ACCORD_BREAKER_CLOSED ||
							 (model.state == ACCORD_BREAKER_HALF_OPEN &&
							  model.probes == 0));
		if (allows && model.n_in_flight < MOST_IN_FLIGHT && one_in(2))
		{
			bool		probe = accord_breaker_sent(&breaker);

			single &= probe == (model.state == ACCORD_BREAKER_HALF_OPEN);
			model.in_flight[model.n_in_flight++] = probe;
			model.probes += probe;
			single &= model.probes <= 1;
		}
		else if (model.n_in_flight > 0)
			right &= come_back(&breaker, &model, failing, now);
		if (model.n > MOST_RESULTS - 2)
		{
			right &= !accord_breaker_reset(&breaker);
			model.n = model.in_a_row = 0;
		}
		if (model.state == ACCORD_BREAKER_OPEN && one_in(3))
			now = breaker.probe_at - one_in(2);
		else if (one_in(500))
			now -= below(3 * trial->policy.window_ms * 1000);
		else if (one_in(100))
			now += below(2 * trial->policy.window_ms * 1000);
		else
			now += below(trial->policy.window_ms * 20);
	}
	check(right, "breaker: its state is the model's");
	check(quiet, "breaker: open, it lets nothing pass before probe_at");
	check(single, "breaker: half-open, one probe at a time, and always one");
}

/* Failures and successes of one moment: whether they open it. */
static bool
opens(double ratio, int minimum, int failures, int successes)
{
	AccordBreakerPolicy policy = {0, ratio, minimum, 60000, 1000, 8000};
	AccordBreaker breaker = {0};

	for (int i = 0; i < successes; i++)
		accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_SUCCESS, false,
							  0.5, NOW);
	for (int i = 0; i < failures; i++)
		accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_FAILURE, false,
							  0.5, NOW);
	return breaker.state == ACCORD_BREAKER_OPEN;
}

/* All ratios of two digits, as numbers and as the configuration keeps them. */
static void
check_ratios(void)
{
	bool		right = true;

	for (int percent = 1; percent <= 100; percent++)
	{
		for (int n = 1; n <= 100; n++)
		{
			int			needed = (percent * n + 99) / 100;
			double		ratio = percent / 100.0;

			right &= opens(ratio, n, needed, n - needed);
			right &= opens((float4) ratio, n, needed, n - needed);
			right &= !opens(ratio, n, needed - 1, n - needed + 1);
			right &= !opens((float4) ratio, n, needed - 1, n - needed + 1);
			right &= !opens(ratio, n + 1, needed, n - needed);
		}
	}
	check(right, "breaker: the ratio opens it exactly when it is reached");
}

static void
check_breaker(void)
{
	AccordBreakerPolicy policy = {3, 0.5, 2, 60000, 1000, 8000};
	AccordBreaker breaker = {0};

	check(strcmp(accord_breaker_word(ACCORD_BREAKER_CLOSED), "closed") == 0 &&
		  strcmp(accord_breaker_word(ACCORD_BREAKER_OPEN), "open") == 0 &&
		  strcmp(accord_breaker_word(ACCORD_BREAKER_HALF_OPEN),
				 "half_open") == 0, "breaker: its words");
	/* a machine without a clock of its own begins in 1970 */
	for (int i = 0; i < 100; i++)
		accord_breaker_result(&breaker, &policy, i % 3 == 2 ?
							  ACCORD_BREAKER_FAILURE : ACCORD_BREAKER_SUCCESS,
							  false, 0, i * 10 * SECOND - NOW);
	check(breaker.state == ACCORD_BREAKER_CLOSED && breaker.trips == 0 &&
		  breaker.probe_at == 0, "breaker: before 2000");
	policy.minimum = 1000;
	for (int i = 0; i < 3; i++)
		accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_FAILURE, false,
							  0, NOW);
	check(accord_breaker_reset(&breaker), "breaker: closed by hand");
	check(!accord_breaker_reset(&breaker), "breaker: it was closed");
	check(accord_breaker_allows(&breaker) && breaker.trips == 0,
		  "breaker: closed by hand, it knows nothing");
}

int
main(void)
{
	static const Trial trials[] = {
		{{1, 0, 1, 60000, 1000, 8000}, 0},
		{{5, 0, 1, 60000, 700, 5000}, 0},
		{{0, 0.5, 20, 60000, 1000, 1000}, 50},
		{{0, 0.6, 5, 2000, 3, 1001}, 60},
		{{0, 1.0, 3, 10000, 50, 100000000}, 100},
		{{8, 0.55, 20, 60000, 500, 4000}, 55}
	};

	if (getenv("SEED"))
		seed = strtoull(getenv("SEED"), NULL, 10);
	pg_prng_seed(&dice, seed);
	for (int i = 0; i < lengthof(limits); i++)
	{
		for (int j = 0; j < 10; j++)
			try_bucket(&limits[i]);
		try_throughput(&limits[i]);
	}
	for (int i = 0; i < 10; i++)
	{
		try_changes();
		try_refusals();
		try_budget();
	}
	check_hints();
	check_hints_together();
	try_garbage();
	check_refusals();
	for (int i = 0; i < lengthof(trials); i++)
	{
		for (int failing = 5; failing <= 95; failing += 15)
			try_breaker(&trials[i], failing);
	}
	check_ratios();
	check_breaker();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}

void
ACCORD_EXCEPTIONAL_CONDITION(condition, file, line)
{
	printf("FAILED  assertion %s, %s:%d\n", condition, file, line);
	exit(1);
}
