/*
 * latest.c: tests of src/latest.c against an exact model, without a server.
 *
 * A log of random kinds is dealt with in passes, as a replay does: each pass
 * notes all of it, then asks about each place. Over all passes exactly the
 * newest place of each kind must be named, once, whatever memory allows.
 *
 * Prints every check that failed, then a tally, and fails if any did.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "latest.h"

#define MOST 20000

static int	passed;
static int	failed;
static AccordKind log_kinds[MOST];
static int	named[MOST];

static void
check(bool right, const char *what, int64 detail)
{
	if (right)
		passed++;
	else
	{
		failed++;
		printf("FAILED  %s (%lld)\n", what, (long long) detail);
	}
}

static uint64
scramble(uint64 x)
{
	x = (x ^ (x >> 33)) * UINT64CONST(0xff51afd7ed558ccd);
	x = (x ^ (x >> 33)) * UINT64CONST(0xc4ceb9fe1a85ec53);
	return x ^ (x >> 33);
}

/* A log of n places over so many kinds; some kinds share their 64-bit hash. */
static void
make_log(pg_prng_state *dice, int n, int kinds)
{
	for (int i = 0; i < n; i++)
	{
		uint64		kind = pg_prng_uint64_range(dice, 0, kinds - 1);

		log_kinds[i].hash = scramble(kind / 2 + 1);
		log_kinds[i].check = (uint32) (kind % 2);
		named[i] = 0;
	}
}

static bool
is_newest(int place, int n)
{
	for (int i = place + 1; i < n; i++)
		if (log_kinds[i].hash == log_kinds[place].hash &&
			log_kinds[i].check == log_kinds[place].check)
			return false;
	return true;
}

/* One pass; false: it was the last. *low is where the next one begins. */
static bool
run_pass(int n, uint32 max, uint64 *low, uint64 high, bool fixed)
{
	AccordLatest latest;

	accord_latest_init(&latest, *low, high, max, fixed);
	for (int i = 0; i < n; i++)
		accord_latest_note(&latest, log_kinds[i], i / 3 + 1, i % 3, false);
	for (int i = 0; i < n; i++)
		named[i] += accord_latest_is(&latest, log_kinds[i], i / 3 + 1, i % 3);
	check(latest.used <= latest.size / 4 * 3 + 1, "no more than fits",
		  latest.used);
	check(latest.fixed || latest.size <= latest.limit, "within the limit",
		  latest.size);
	high = latest.high;
	*low = high + 1;
	accord_latest_free(&latest);
	return high != PG_UINT64_MAX;
}

static void
test_passes(pg_prng_state *dice, int n, int kinds, uint32 max)
{
	uint64		low = 0;
	int			passes = 1;
	bool		right = true;

	make_log(dice, n, kinds);
	while (run_pass(n, max, &low, PG_UINT64_MAX, false))
		passes++;
	for (int i = 0; i < n; i++)
		right &= named[i] == is_newest(i, n);
	check(right, "each kind's newest place is named once", kinds);
	check(kinds <= 512 ? passes == 1 : passes >= 1, "as few passes as can be",
		  passes);
	check((uint32) kinds < 4 * max || passes > 1, "several when memory is short",
		  passes);
}

/* After a restart a pass is about the same kinds, however many there are. */
static void
test_fixed(pg_prng_state *dice)
{
	uint64		low = PG_UINT64_MAX / 4;
	uint64		high = PG_UINT64_MAX / 4 * 3;
	bool		right = true;

	make_log(dice, 6000, 5000);
	check(run_pass(6000, 10, &low, high, true), "it ends before the last", 0);
	check(low == high + 1, "where it ended before", 0);
	for (int i = 0; i < 6000; i++)
		right &= named[i] == (log_kinds[i].hash >= PG_UINT64_MAX / 4 &&
							  log_kinds[i].hash <= high && is_newest(i, 6000));
	check(right, "all kinds of a fixed range", 0);
}

/* What is known only: newer places count, other kinds do not. */
static void
test_known(void)
{
	AccordKind	a = {1000, 1};
	AccordKind	b = {1000, 2};
	AccordLatest latest;

	accord_latest_init(&latest, 0, PG_UINT64_MAX, 100, false);
	accord_latest_note(&latest, a, 5, 1, false);
	accord_latest_note(&latest, b, 6, 1, true);
	check(latest.used == 1, "an unknown kind is not entered", latest.used);
	check(!accord_latest_is(&latest, b, 6, 1), "and is not there", 0);
	accord_latest_note(&latest, a, 5, 0, true);
	check(accord_latest_is(&latest, a, 5, 1), "an older place changes nothing",
		  0);
	accord_latest_note(&latest, a, 7, 0, true);
	check(!accord_latest_is(&latest, a, 5, 1), "a newer one does", 0);
	check(accord_latest_is(&latest, a, 7, 0), "and is the latest", 0);
	accord_latest_free(&latest);
}

int
main(void)
{
	pg_prng_state dice;

	pg_prng_seed(&dice, 20261128);
	for (int i = 0; i < 20; i++)
		test_passes(&dice, 3000, 1 << (i % 12), 100 * (1 + i % 7));
	test_passes(&dice, MOST, 15000, 1000);
	test_fixed(&dice);
	test_known();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
