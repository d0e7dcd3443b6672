/*
 * flow.c: properties of the pure parts of traffic control (limit.c, breaker.c,
 * gauge.c) over random schedules, and tables of what servers say.
 *
 * Runs by itself, without a server; test/unit/run links it with the files it
 * tests. The clock is an argument everywhere. The dice are seeded: a failure
 * says with what, and SEED=... repeats it.
 *
 * Prints every check that failed, then a tally, and fails if any did.
 */
#include "postgres.h"

#include <math.h>
#include <time.h>

#include "breaker.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "gauge.h"
#include "limit.h"

/* 2026-06-15 12:00:00 UTC */
#define NOW (INT64CONST(834840000) * USECS_PER_SEC)
#define SECOND USECS_PER_SEC
#define UNIX_NOW_MS (NOW / 1000 + INT64CONST(946684800000))
#define MOST 20000

static int	passed;
static int	failed;
static pg_prng_state dice;
static uint64 seed;

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
random_below(int64 limit)
{
	return (int64) (pg_prng_double(&dice) * (double) limit);
}

/* ---- token buckets ---- */

/*
 * Whether in any window, from one request to another, no more passed than
 * burst + rate * time. A window that begins and ends with a request is the
 * worst of its length.
 */
static bool
keeps_bound(const TimestampTz *sent, int n, double per_us, int64 burst)
{
	/* allowed(j) - allowed(i) >= j - i + 1 - burst, by a running minimum */
	double		least = 1e300;

	for (int j = 0; j < n; j++)
	{
		double		level = (double) (sent[j] - NOW) * per_us - j;

		least = Min(least, -level);
		/* a rounding of a nanosecond for each request */
		if (level + least + burst - 1 < -1e-3 - j * 1e-3 * per_us)
			return false;
	}
	return true;
}

/* Requests come in fits and starts; whoever is told a time comes then. */
static void
try_bucket(int64 amount, int64 period_us, int64 burst)
{
	static TimestampTz sent[MOST];
	AccordRate	rate = accord_limit_rate(amount, period_us, burst);
	AccordBucket bucket = {0};
	double		per_us = (double) amount / (double) period_us;
	TimestampTz now = NOW;
	int			n = 0;
	bool		consistent = true;
	bool		honest = true;

	while (n < 2000)
	{
		TimestampTz ready = accord_limit_ready(&rate, &bucket, now);
		int64		tokens = accord_limit_tokens(&rate, &bucket, now);

		consistent &= (ready == ACCORD_LIMIT_NOW) == (tokens >= 1);
		consistent &= tokens <= burst;
		if (ready == ACCORD_LIMIT_NOW)
		{
			accord_limit_take(&rate, &bucket, now);
			if (random_below(10) == 0)
			{
				/* not used after all: as if it had not been taken */
				accord_limit_return(&rate, &bucket);
				continue;
			}
			sent[n++] = now;
		}
		else
		{
			honest &= ready > now;
			now = random_below(3) == 0 ? now + random_below(ready - now) : ready;
			if (now == ready)
				honest &= accord_limit_ready(&rate, &bucket, now) ==
					ACCORD_LIMIT_NOW;
		}
		if (random_below(200) == 0)
			now += random_below(3 * period_us);
	}
	check(keeps_bound(sent, n, per_us, burst), "bucket: the bound holds in every window");
	check(consistent, "bucket: ready and tokens agree");
	check(honest, "bucket: who comes at the time he was told is let pass");
}

/*
 * Somebody always wants one: the rate is reached, but for the microsecond that
 * each may have to wait because time has no finer grain.
 */
static void
try_throughput(int64 amount, int64 period_us, int64 burst)
{
	AccordRate	rate = accord_limit_rate(amount, period_us, burst);
	AccordBucket bucket = {0};
	TimestampTz now = NOW;
	int64		wanted = 5000;

	for (int64 n = 0; n < wanted; n++)
	{
		TimestampTz ready = accord_limit_ready(&rate, &bucket, now);

		now = Max(now, ready);
		accord_limit_take(&rate, &bucket, now);
	}
	check(fabs((double) (now - NOW) * amount / period_us - (wanted - burst)) <=
		  wanted * (0.01 + 1.0 * amount / period_us) + 2,
		  "bucket: the rate is reached");
}

/* The limit is changed, and the clock set back: it goes on all the same. */
static void
try_changes(void)
{
	AccordRate	slow = accord_limit_rate(1, 86400 * SECOND, 4);
	AccordRate	fast = accord_limit_rate(1000, SECOND, 1);
	AccordBucket bucket = {0};
	TimestampTz ready;

	for (int i = 0; i < 4; i++)
	{
		check(accord_limit_ready(&slow, &bucket, NOW) == ACCORD_LIMIT_NOW,
			  "bucket: a burst passes at once");
		accord_limit_take(&slow, &bucket, NOW);
	}
	check_int(accord_limit_ready(&slow, &bucket, NOW), NOW + 86400 * SECOND,
			  "bucket: then it is empty");
	ready = accord_limit_ready(&fast, &bucket, NOW);
	check_int(ready, NOW + 1000, "bucket: a limit that is raised");
	check_int(accord_limit_ready(&fast, &bucket, ready), ACCORD_LIMIT_NOW,
			  "bucket: ... lets go at the time it said");
	ready = accord_limit_ready(&slow, &bucket, NOW - 3600 * SECOND);
	check(ready <= NOW + 86400 * SECOND, "bucket: a clock that went back");
}

/* ---- what servers say ---- */

static const struct
{
	const char *name;
	const char *value;
	int64		remaining;
	int64		reset_ms;
}			hints[] = {
	{"RateLimit", "\"default\";r=50;t=30", 50, 30000},
	{"ratelimit", "\"burst\";r=3;t=1, \"day\";r=1000;t=3600", 3, 1000},
	{"RateLimit", "\"day\";r=1000;t=3600, \"burst\";r=0;t=2", 0, 2000},
	{"RateLimit", "\"a,b;r=1\";r=7;t=4", 7, 4000},
	{"RateLimit", "limit=100, remaining=12, reset=5", 12, 5000},
	{"RateLimit", "\"p\";r=9", 9, -1},
	{"RateLimit", "", -1, -1},
	{"RateLimit", "garbage", -1, -1},
	{"RateLimit", "\"unclosed;r=1", -1, -1},
	{"RateLimit-Remaining", "4", 4, -1},
	{"RateLimit-Reset", "60", -1, 60000},
	{"X-RateLimit-Remaining", "0", 0, -1},
	{"x-ratelimit-reset", "1.5", -1, 1500},
	{"X-RateLimit-Reset", "EPOCH_S", -1, 90000},
	{"X-RateLimit-Reset", "EPOCH_MS", -1, 90000},
	{"X-RateLimit-Reset", "Mon, 15 Jun 2026 12:01:30 GMT", -1, 90000},
	{"X-RateLimit-Reset", "1000000000", -1, 0},
	{"X-Rate-Limit-Remaining", " 17 ", 17, -1},
	{"X-Rate-Limit-Reset", "3", -1, 3000},
	{"X-RateLimit-Remaining", "-1", -1, -1},
	{"X-RateLimit-Remaining", "many", -1, -1},
	{"X-RateLimit-Remaining", "", -1, -1},
	{"X-RateLimit-Remaining", "999999999999999999999", -1, -1},
	{"X-RateLimit-Limit", "100", -1, -1},
	{"Retry-After", "5", -1, -1},
	{"X-RateLimit", "5", -1, -1}
};

static void
check_hints(void)
{
	for (int i = 0; i < lengthof(hints); i++)
	{
		AccordHint	hint = {-1, -1};
		char		value[100];
		char		what[200];
		bool		heard;

		strlcpy(value, hints[i].value, sizeof(value));
		if (strcmp(value, "EPOCH_S") == 0)
			snprintf(value, sizeof(value), "%lld",
					 (long long) (UNIX_NOW_MS / 1000 + 90));
		if (strcmp(value, "EPOCH_MS") == 0)
			snprintf(value, sizeof(value), "%lld",
					 (long long) (UNIX_NOW_MS + 90000));
		heard = accord_limit_hint(hints[i].name, strlen(hints[i].name), value,
								  NOW, &hint);
		snprintf(what, sizeof(what), "hint %s: %s", hints[i].name, value);
		check_int(hint.remaining, hints[i].remaining, what);
		check_int(hint.reset_ms, hints[i].reset_ms, what);
		check_int(heard, hints[i].remaining >= 0 || hints[i].reset_ms >= 0,
				  what);
	}
	{
		AccordHint	hint = {-1, -1};

		accord_limit_hint("X-RateLimit-Remaining", 21, "5", NOW, &hint);
		accord_limit_hint("RateLimit", 9, "\"a\";r=2;t=7", NOW, &hint);
		accord_limit_hint("X-RateLimit-Reset", 17, "4", NOW, &hint);
		check_int(hint.remaining, 2, "hints: the least remaining counts");
		check_int(hint.reset_ms, 7000, "hints: and the latest reset");
	}
}

/* A budget is never exceeded before its reset, nor a pause broken. */
static void
try_allowance(void)
{
	AccordAllowance allowance = {0};
	TimestampTz now = NOW;
	TimestampTz pause = 0;
	TimestampTz until = 0;
	int64		left = 0;
	bool		kept = true;
	bool		moving = true;

	for (int i = 0; i < 3000; i++)
	{
		TimestampTz allowed = accord_limit_allowed(&allowance, now);

		kept &= allowed == ACCORD_LIMIT_NOW || allowed > now;
		if (allowed == ACCORD_LIMIT_NOW)
		{
			kept &= now >= pause;
			if (now < until)
				kept &= --left >= 0;
			accord_limit_spend(&allowance, now);
		}
		switch (random_below(20))
		{
			case 0:
				{
					AccordHint	hint = {random_below(50), random_below(5000)};
					int			in_flight = (int) random_below(10);

					accord_limit_heed(&allowance, &hint, in_flight, now);
					until = now + hint.reset_ms * 1000;
					left = Max(hint.remaining - in_flight, 0);
					break;
				}
			case 1:
				{
					int64		ms = random_below(2000);

					accord_limit_refused(&allowance, ms, -1, 100, 10000, 0.5,
										 now, now);
					moving &= allowance.not_before >= pause;
					pause = Max(pause, now + ms * 1000);
					break;
				}
			case 2:
				accord_limit_passed(&allowance);
				break;
			default:
				now += random_below(100000);
		}
	}
	check(kept, "allowance: neither pause nor budget is broken");
	check(moving, "allowance: a pause is never shortened");
}

static void
check_refusals(void)
{
	AccordAllowance allowance = {0};
	TimestampTz now = NOW;
	int64		last = 0;

	for (int i = 1; i <= 12; i++)
	{
		int64		ms;
		int64		bound = Min(INT64CONST(100) << (i - 1), 10000);

		accord_limit_refused(&allowance, -1, -1, 100, 10000, 1.0, now, now);
		ms = (allowance.not_before - now) / 1000;
		check_int(ms, bound, "refused: it doubles up to the cap");
		/* those that were under way say nothing new */
		accord_limit_refused(&allowance, -1, -1, 100, 10000, 1.0, now - 1,
							 now + 1);
		check_int((allowance.not_before - now) / 1000, ms,
				  "refused: many at once are one");
		last = ms;
		now = allowance.not_before;
	}
	accord_limit_refused(&allowance, -1, -1, 100, 10000, 0.0, now, now);
	check_int((allowance.not_before - now) / 1000, last / 2,
			  "refused: half of it is by dice");
	accord_limit_passed(&allowance);
	now = allowance.not_before;
	accord_limit_refused(&allowance, -1, -1, 100, 10000, 1.0, now, now);
	check_int((allowance.not_before - now) / 1000, 100,
			  "refused: it begins anew once one has passed");
	accord_limit_refused(&allowance, PG_INT64_MAX, -1, 100, 10000, 1.0, now,
						 now);
	check_int((allowance.not_before - now) / 1000, 86400000,
			  "refused: no pause is longer than a day");
}

/* ---- breaker ---- */

/* A model by the letter of breaker.h runs beside it. */
static void
try_breaker(const AccordBreakerPolicy *policy, double odds)
{
	AccordBreaker breaker = {0};
	TimestampTz now = NOW;
	int			in_a_row = 0;
	int			openings = 0;
	int			in_flight = 0;
	bool		probing = false;
	bool		right = true;
	bool		quiet = true;

	for (int i = 0; i < 5000; i++)
	{
		AccordBreakerState before = breaker.state;
		bool		ticked = accord_breaker_tick(&breaker, now);

		right &= ticked == (before == ACCORD_BREAKER_OPEN &&
							now >= breaker.probe_at);
		if (breaker.state == ACCORD_BREAKER_OPEN)
			quiet &= !accord_breaker_allows(&breaker);
		if (accord_breaker_allows(&breaker) && random_below(2) == 0)
		{
			bool		probe = accord_breaker_sent(&breaker);

			right &= probe == (breaker.state == ACCORD_BREAKER_HALF_OPEN);
			right &= !(probe && probing);
			probing |= probe;
			in_flight += !probe;
		}
		else if (in_flight > 0 || probing)
		{
			bool		probe = probing && (in_flight == 0 || random_below(2) == 0);
			AccordBreakerResult result = random_below(20) == 0 ?
			ACCORD_BREAKER_NEUTRAL :
			pg_prng_double(&dice) < odds ? ACCORD_BREAKER_FAILURE :
			ACCORD_BREAKER_SUCCESS;
			AccordBreakerState was = breaker.state;
			bool		changed = accord_breaker_result(&breaker, policy, result,
														probe, 1.0, now);

			right &= changed == (breaker.state != was);
			if (probe)
				probing = false;
			else
				in_flight--;
			if (was == ACCORD_BREAKER_CLOSED && result != ACCORD_BREAKER_NEUTRAL)
			{
				in_a_row = result == ACCORD_BREAKER_FAILURE ? in_a_row + 1 : 0;
				if (policy->ratio == 0)
					right &= (breaker.state == ACCORD_BREAKER_OPEN) ==
						(in_a_row >= policy->failures);
				else if (policy->failures > 0 && in_a_row >= policy->failures)
					right &= breaker.state == ACCORD_BREAKER_OPEN;
			}
			else if (was == ACCORD_BREAKER_HALF_OPEN && probe)
				right &= breaker.state == (result == ACCORD_BREAKER_SUCCESS ?
										   ACCORD_BREAKER_CLOSED : result == ACCORD_BREAKER_FAILURE ?
										   ACCORD_BREAKER_OPEN : ACCORD_BREAKER_HALF_OPEN);
			else if (was != ACCORD_BREAKER_CLOSED)
				right &= breaker.state == was;
			if (breaker.state == ACCORD_BREAKER_OPEN && was != breaker.state)
			{
				int64		ms = policy->cooldown_ms;

				for (int j = 0; j < openings && ms < policy->cap_ms; j++)
					ms *= 2;
				right &= breaker.probe_at == now + Min(ms, policy->cap_ms) * 1000;
				openings++;
				in_a_row = 0;
			}
			if (breaker.state == ACCORD_BREAKER_CLOSED)
			{
				openings = 0;
				if (was != ACCORD_BREAKER_CLOSED)
					in_a_row = 0;
			}
		}
		now += random_below(policy->cooldown_ms * 300);
	}
	check(right, "breaker: it does what the model does");
	check(quiet, "breaker: open, it lets nothing pass");
}

static void
check_ratio(void)
{
	AccordBreakerPolicy policy = {0, 0.5, 10, 60000, 1000, 8000};
	AccordBreaker breaker = {0};
	TimestampTz now = NOW;
	bool		open = false;

	for (int i = 0; i < 4; i++)
		accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_SUCCESS, false,
							  1, now);
	for (int i = 0; i < 5; i++)
		open |= accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_FAILURE,
									  false, 1, now);
	check(!open, "breaker: not before the minimum of attempts");
	check(accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_FAILURE, false,
								1, now), "breaker: half of ten, it opens");
	check_int(breaker.probe_at, NOW + 1000000, "breaker: ... for the cooldown");

	/* what is older than the window does not count */
	accord_breaker_reset(&breaker);
	for (int i = 0; i < 9; i++)
		accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_FAILURE, false,
							  1, now);
	check(!accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_FAILURE,
								 false, 1, now + 61 * SECOND),
		  "breaker: the window moves");
	check(!accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_FAILURE,
								 false, 1, now - 3600 * SECOND),
		  "breaker: a clock that goes back begins it anew");
	policy.ratio = 0;
	breaker.state = ACCORD_BREAKER_OPEN;
	check(accord_breaker_result(&breaker, &policy, ACCORD_BREAKER_NEUTRAL, false,
								1, now) && breaker.state == ACCORD_BREAKER_CLOSED,
		  "breaker: without a policy it closes");
}

/* ---- gauge ---- */

static void
check_gauge(void)
{
	AccordGauge gauge = {0};
	TimestampTz now = NOW;
	double		rate;

	for (int i = 0; i < 100 * 600; i++)
	{
		now += SECOND / 100;
		accord_gauge_attempt(&gauge, i % 10 != 0, 20.0 + i % 100, now);
	}
	check(accord_gauge_bucket(0) == 0 && accord_gauge_bucket(0.5) == 0 &&
		  accord_gauge_bucket(0.51) == 1 && accord_gauge_bucket(1000) == 10 &&
		  accord_gauge_bucket(30001) == ACCORD_GAUGE_BOUNDS,
		  "gauge: a latency is in the first class that reaches it");
	rate = accord_gauge_delivered(&gauge, 0, now);
	check(rate > 89 && rate < 91, "gauge: 90 a second, over a minute");
	rate = accord_gauge_failed(&gauge, 1, now);
	check(rate > 8 && rate < 10.1, "gauge: 10 fail a second, over five");
	rate = accord_gauge_latency(&gauge, 0.5, now);
	check(rate >= 70 && rate <= 85, "gauge: the median, to a fifth");
	rate = accord_gauge_latency(&gauge, 0.99, now);
	check(rate >= 118 && rate <= 145, "gauge: the 99th percentile");
	check(accord_gauge_delivered(&gauge, 0, now + 60 * SECOND) < 90 / 2.7 &&
		  accord_gauge_delivered(&gauge, 0, now + 60 * SECOND) > 90 / 2.8,
		  "gauge: it fades");
	check(accord_gauge_latency(&gauge, 0.5, now + 601 * SECOND) < 0,
		  "gauge: old latencies are forgotten");
	for (int i = 0; i < 200000; i++)
		accord_gauge_attempt(&gauge, true, 1e9, now);
	check(accord_gauge_latency(&gauge, 0.5, now) > 100000,
		  "gauge: neither long times nor many overflow");
}

int
main(void)
{
	static const int64 rates[][3] = {
		{1, SECOND, 1}, {10, 60 * SECOND, 10}, {7, SECOND, 3},
		{1000, SECOND, 5}, {100000, SECOND, 500}, {30000, SECOND, 1},
		{1, 86400 * SECOND, 4}, {1000000, 1000, 1000000}
	};
	AccordBreakerPolicy in_a_row = {5, 0, 1, 60000, 1000, 8000};
	AccordBreakerPolicy both = {8, 0.6, 20, 60000, 500, 4000};

	seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) :
		(uint64) time(NULL);
	pg_prng_seed(&dice, seed);
	for (int i = 0; i < lengthof(rates); i++)
	{
		for (int j = 0; j < 5; j++)
			try_bucket(rates[i][0], rates[i][1], rates[i][2]);
		try_throughput(rates[i][0], rates[i][1], Min(rates[i][2], 2500));
	}
	try_changes();
	check_hints();
	for (int i = 0; i < 20; i++)
		try_allowance();
	check_refusals();
	for (int i = 1; i < 10; i++)
	{
		try_breaker(&in_a_row, i / 10.0);
		try_breaker(&both, i / 10.0);
	}
	check_ratio();
	check_gauge();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}

void
ACCORD_EXCEPTIONAL_CONDITION(condition, file, line)
{
	printf("FAILED  assertion %s, %s:%d\n", condition, file, line);
	exit(1);
}
