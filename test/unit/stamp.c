/*
 * stamp.c: the order of stamps is total, and is that of numbers where it is
 * one of revisions.
 *
 * Runs by itself; test/unit/run links it with stamp.c. Prints what failed,
 * then a tally, and fails if any did.
 */
#include "postgres.h"

#include "stamp.h"

static int	passed;
static int	failed;

static void
check(bool right, const char *what)
{
	if (right)
		passed++;
	else
	{
		failed++;
		printf("FAILED  %s\n", what);
	}
}

static AccordStamp
make(int rank, int64 clock, const char *source, const char *event,
	 const char *revision)
{
	AccordStamp stamp = {rank, clock, source, source ? source : "here", event,
	revision};

	return stamp;
}

/* In order, by everything that counts: each is less than all after it. */
static void
test_order(void)
{
	AccordStamp stamps[] = {
		make(0, PG_INT64_MIN, "z", "z", NULL),
		make(0, -1, "z", "z", NULL),
		make(0, 5, NULL, "1", NULL),	/* "here" */
		make(0, 5, "heretic", "1", NULL),
		make(0, 5, "hero", "0", NULL),
		make(0, 5, "hero", "1", NULL),
		make(0, 5, "hero", "10", NULL),
		make(0, 5, "hero", "2", NULL),
		make(0, 5, "\xC3\xA4", "0", NULL),	/* bytes, not letters */
		make(0, PG_INT64_MAX, "a", "a", NULL),
		make(1, PG_INT64_MIN, "a", "a", NULL),
		make(2, 0, "a", "a", NULL)
	};

	for (int i = 0; i < lengthof(stamps); i++)
		for (int j = 0; j < lengthof(stamps); j++)
		{
			int			order = accord_stamp_compare(&stamps[i], &stamps[j]);

			check(order == (i > j) - (i < j), "the order of stamps");
		}
}

static void
test_revisions(void)
{
	static const char *const revisions[] = {
		NULL, "-100", "-20.5", "-20.05", "-1", "0", "0.001", "0.01", "1",
		"1.5", "1.50001", "9", "10", "99", "100", "12345678901234567890",
		"12345678901234567890.1", "99999999999999999999"
	};

	for (int i = 0; i < lengthof(revisions); i++)
		for (int j = 0; j < lengthof(revisions); j++)
			check(accord_stamp_compare_revisions(revisions[i], revisions[j]) ==
				  (i > j) - (i < j), "the order of revisions");
	check(accord_stamp_compare_revisions("1.0", "1") == 0, "1.0 is 1");
	check(accord_stamp_compare_revisions("001", "1.000") == 0, "001 is 1");
	check(accord_stamp_compare_revisions("-0", "0.0") == 0, "-0 is 0");
	check(accord_stamp_is_revision("12"), "12");
	check(accord_stamp_is_revision("-12.5"), "-12.5");
	check(!accord_stamp_is_revision("NaN"), "NaN is no revision");
	check(!accord_stamp_is_revision("Infinity"), "Infinity is none");
	check(!accord_stamp_is_revision(""), "nothing is none");
	check(!accord_stamp_is_revision("."), "a point is none");
}

/* Within a source: by revision, then by clock unless there are revisions. */
static void
test_own(void)
{
	AccordStamp stamps[] = {
		make(0, 1, "s", "b", NULL),
		make(0, 2, "s", "a", NULL),
		make(0, 2, "s", "b", NULL),
		make(0, 9, "s", "a", "1"),
		make(0, 1, "s", "b", "1"),	/* the clock does not count */
		make(0, 1, "s", "a", "2")
	};
	AccordStamp here = make(0, 1, NULL, "", NULL);
	AccordStamp named = make(0, 1, "here", "", NULL);

	for (int i = 0; i < lengthof(stamps); i++)
		for (int j = 0; j < lengthof(stamps); j++)
			check(accord_stamp_compare_own(&stamps[i], &stamps[j]) ==
				  (i > j) - (i < j), "the order of a source's own");
	check(accord_stamp_same_source(&here, &here), "the application is itself");
	check(!accord_stamp_same_source(&here, &named), "and no source");
	check(accord_stamp_same_source(&stamps[0], &stamps[5]), "a source");
}

int
main(void)
{
	test_order();
	test_revisions();
	test_own();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
