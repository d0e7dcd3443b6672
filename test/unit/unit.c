/*
 * unit.c: tests of the pure modules, without a server.
 *
 * Runs by itself; test/unit/run links it with json.c, retry.c and template.c,
 * and with the server's own libraries for programs, which bring palloc() and
 * strings.
 * What else these files ask of the server is at the end: the database is one
 * in UTF-8, and raising an error ends the program.
 *
 * Prints every check that failed, then a tally, and fails if any did.
 */
#include "postgres.h"

#include "fmgr.h"
#include "json.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "retry.h"
#include "template.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#define NONE INT64CONST(-1)
#define DAY_MS INT64CONST(86400000)

/* 2026-06-15 12:00:00 UTC */
#define NOW (INT64CONST(834840000) * USECS_PER_SEC)

static int	passed;
static int	failed;

static void
check(bool right, const char *what, const char *detail)
{
	if (right)
		passed++;
	else
	{
		failed++;
		printf("FAILED  %s: %s\n", what, detail);
	}
}

static void
check_int(int64 got, int64 expected, const char *what, const char *detail)
{
	char		text[256];

	snprintf(text, sizeof(text), "%s: got %lld, expected %lld", detail,
			 (long long) got, (long long) expected);
	check(got == expected, what, text);
}

static void
check_text(const char *got, const char *expected, const char *what)
{
	char		text[512];

	snprintf(text, sizeof(text), "got %s, expected %s", got ? got : "NULL",
			 expected ? expected : "NULL");
	check(got == NULL || expected == NULL ? got == expected :
		  strcmp(got, expected) == 0, what, text);
}

/* ---- outcomes ---- */

static const struct
{
	int			status;
	AccordOutcome outcome;
	AccordOutcome of_delete;
	AccordOutcome with_retry_after;
	AccordSent	sent;
}			statuses[] = {
#define SAME(status, outcome, sent) {status, outcome, outcome, outcome, sent}
	SAME(200, ACCORD_OUTCOME_DELIVERED, ACCORD_SENT_YES),
	SAME(201, ACCORD_OUTCOME_DELIVERED, ACCORD_SENT_YES),
	SAME(204, ACCORD_OUTCOME_DELIVERED, ACCORD_SENT_YES),
	SAME(299, ACCORD_OUTCOME_DELIVERED, ACCORD_SENT_YES),
	SAME(300, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(301, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(304, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(307, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(400, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(401, ACCORD_OUTCOME_UNAUTHORIZED, ACCORD_SENT_YES),
	SAME(402, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(403, ACCORD_OUTCOME_UNAUTHORIZED, ACCORD_SENT_YES),
	{404, ACCORD_OUTCOME_REJECTED, ACCORD_OUTCOME_DELIVERED,
	ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES},
	SAME(405, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(407, ACCORD_OUTCOME_UNAUTHORIZED, ACCORD_SENT_YES),
	SAME(408, ACCORD_OUTCOME_RETRY, ACCORD_SENT_UNKNOWN),
	SAME(409, ACCORD_OUTCOME_RETRY, ACCORD_SENT_YES),
	{410, ACCORD_OUTCOME_REJECTED, ACCORD_OUTCOME_DELIVERED,
	ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES},
	SAME(412, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(413, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(421, ACCORD_OUTCOME_RETRY, ACCORD_SENT_YES),
	SAME(422, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(423, ACCORD_OUTCOME_RETRY, ACCORD_SENT_YES),
	SAME(425, ACCORD_OUTCOME_RETRY, ACCORD_SENT_YES),
	SAME(429, ACCORD_OUTCOME_RETRY_AFTER, ACCORD_SENT_YES),
	SAME(451, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(500, ACCORD_OUTCOME_RETRY, ACCORD_SENT_UNKNOWN),
	SAME(501, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(502, ACCORD_OUTCOME_RETRY, ACCORD_SENT_UNKNOWN),
	{503, ACCORD_OUTCOME_RETRY, ACCORD_OUTCOME_RETRY,
	ACCORD_OUTCOME_RETRY_AFTER, ACCORD_SENT_YES},
	SAME(504, ACCORD_OUTCOME_RETRY, ACCORD_SENT_UNKNOWN),
	SAME(505, ACCORD_OUTCOME_REJECTED, ACCORD_SENT_YES),
	SAME(524, ACCORD_OUTCOME_RETRY, ACCORD_SENT_UNKNOWN),
	SAME(599, ACCORD_OUTCOME_RETRY, ACCORD_SENT_UNKNOWN),
	/* no status that could be an answer's */
	SAME(0, ACCORD_OUTCOME_CUT_OFF, ACCORD_SENT_UNKNOWN),
	SAME(101, ACCORD_OUTCOME_CUT_OFF, ACCORD_SENT_UNKNOWN),
	SAME(600, ACCORD_OUTCOME_CUT_OFF, ACCORD_SENT_UNKNOWN),
	SAME(999, ACCORD_OUTCOME_CUT_OFF, ACCORD_SENT_UNKNOWN),
	SAME(-1, ACCORD_OUTCOME_CUT_OFF, ACCORD_SENT_UNKNOWN)
};

static void
test_statuses(void)
{
	for (int i = 0; i < lengthof(statuses); i++)
	{
		AccordResult result = {ACCORD_TRANSPORT_OK, ACCORD_SENT_YES,
		statuses[i].status, false, NONE};
		char	   *status = psprintf("%d", statuses[i].status);

		check_int(accord_retry_outcome(&result), statuses[i].outcome,
				  "outcome", status);
		check_int(accord_retry_sent(&result), statuses[i].sent,
				  "sent", status);
		result.is_delete = true;
		check_int(accord_retry_outcome(&result), statuses[i].of_delete,
				  "outcome of a DELETE", status);
		result.is_delete = false;
		result.retry_after_ms = 0;
		check_int(accord_retry_outcome(&result), statuses[i].with_retry_after,
				  "outcome with Retry-After", status);
	}
}

static const struct
{
	AccordTransport transport;
	AccordOutcome outcome;
}			transports[] = {
	{ACCORD_TRANSPORT_UNREACHABLE, ACCORD_OUTCOME_UNREACHABLE},
	{ACCORD_TRANSPORT_REFUSED, ACCORD_OUTCOME_UNREACHABLE},
	{ACCORD_TRANSPORT_TIMEOUT, ACCORD_OUTCOME_TIMEOUT},
	{ACCORD_TRANSPORT_STALLED, ACCORD_OUTCOME_STALLED},
	{ACCORD_TRANSPORT_CUT_OFF, ACCORD_OUTCOME_CUT_OFF},
	{ACCORD_TRANSPORT_GARBAGE, ACCORD_OUTCOME_CUT_OFF},
	{ACCORD_TRANSPORT_INVALID, ACCORD_OUTCOME_INVALID}
};

/* A status that came before the answer broke off decides nothing. */
static void
test_transports(void)
{
	for (int i = 0; i < lengthof(transports); i++)
	{
		for (AccordSent sent = ACCORD_SENT_NO; sent <= ACCORD_SENT_YES; sent++)
		{
			AccordResult result = {transports[i].transport, sent, 500, true,
			1000};
			char	   *transport = psprintf("%d", transports[i].transport);

			check_int(accord_retry_outcome(&result), transports[i].outcome,
					  "outcome of transport", transport);
			check_int(accord_retry_sent(&result), sent, "sent of transport",
					  transport);
		}
	}
}

static void
test_words(void)
{
	static const char *const words[] = {
		"delivered", "accepted", "conflict", "retry", "retry_after", "rejected", "unauthorized",
		"unreachable", "timeout", "stalled", "cut_off", "unclear", "invalid",
		"skipped",
		"superseded", "expired", "discarded", "lost"
	};
	static const char *const sent_words[] = {"no", "unknown", "yes"};

	for (int i = 0; i < lengthof(words); i++)
		check_text(accord_retry_word(i), words[i], "word");
	for (int i = 0; i < lengthof(sent_words); i++)
		check_text(accord_retry_sent_word(i), sent_words[i], "sent word");
}

/* ---- verdicts ---- */

/* base, cap, attempts, age, command, ambiguous_retry, keyed, window,
 * hold_dead */
static const AccordRetryPolicy state = {1000, 600000, 20, DAY_MS,
false, false, false, 0, false, false};
static const AccordRetryPolicy bare = {1000, 600000, 20, DAY_MS,
true, false, false, 0, false, false};
static const AccordRetryPolicy keyed = {1000, 600000, 20, DAY_MS,
true, false, true, 0, false, false};
static const AccordRetryPolicy windowed = {1000, 600000, 20, DAY_MS,
true, false, true, 60000, false, false};
static const AccordRetryPolicy windowed_state = {1000, 600000, 20, DAY_MS,
false, false, true, 60000, false, false};
static const AccordRetryPolicy daring = {1000, 600000, 20, DAY_MS,
true, true, false, 0, false, false};
static const AccordRetryPolicy holding = {1000, 600000, 20, DAY_MS,
false, false, false, 0, true, false};

static const struct
{
	const char *what;
	const AccordRetryPolicy *policy;
	AccordOutcome outcome;
	AccordSent	sent;
	int			attempts;
	int64		age_ms;
	int64		since_first_ms;
	AccordVerdict verdict;
}			verdicts[] = {
#define RETRY ACCORD_VERDICT_RETRY
#define HOLD ACCORD_VERDICT_HOLD
#define DEAD ACCORD_VERDICT_DEAD
#define DONE ACCORD_VERDICT_DONE
#define NO ACCORD_SENT_NO
#define UNKNOWN ACCORD_SENT_UNKNOWN
#define YES ACCORD_SENT_YES
	/* final outcomes, whatever the policy */
	{"delivered", &state, ACCORD_OUTCOME_DELIVERED, YES, 1, 0, 0, DONE},
	{"delivered late", &bare, ACCORD_OUTCOME_DELIVERED, YES, 99, 9 * DAY_MS,
	9 * DAY_MS, DONE},
	{"skipped", &bare, ACCORD_OUTCOME_SKIPPED, NO, 1, 0, 0, DONE},
	{"given up, and held", &holding, ACCORD_OUTCOME_REJECTED, YES, 1, 0, 0, HOLD},
	{"the last attempt, and held", &holding, ACCORD_OUTCOME_RETRY, YES, 20, 0, 0, HOLD},
	{"not given up yet", &holding, ACCORD_OUTCOME_RETRY, YES, 19, 0, 0, RETRY},
	{"superseded", &holding, ACCORD_OUTCOME_SUPERSEDED, NO, 0, 0, 0, DONE},
	{"expired", &bare, ACCORD_OUTCOME_EXPIRED, NO, 0, DAY_MS, 0, DONE},
	{"discarded", &bare, ACCORD_OUTCOME_DISCARDED, UNKNOWN, 1, 0, 0, DONE},
	{"rejected", &state, ACCORD_OUTCOME_REJECTED, YES, 1, 0, 0, DEAD},
	{"rejected command", &bare, ACCORD_OUTCOME_REJECTED, YES, 1, 0, 0, DEAD},
	{"invalid", &bare, ACCORD_OUTCOME_INVALID, NO, 1, 0, 0, DEAD},
	/* state: repeated until the attempts or the age are used up */
	{"retry", &state, ACCORD_OUTCOME_RETRY, UNKNOWN, 1, 0, 0, RETRY},
	{"retry after", &state, ACCORD_OUTCOME_RETRY_AFTER, YES, 1, 0, 0, RETRY},
	{"unauthorized", &state, ACCORD_OUTCOME_UNAUTHORIZED, YES, 1, 0, 0, RETRY},
	{"unreachable", &state, ACCORD_OUTCOME_UNREACHABLE, NO, 1, 0, 0, RETRY},
	{"timeout", &state, ACCORD_OUTCOME_TIMEOUT, UNKNOWN, 1, 0, 0, RETRY},
	{"stalled", &state, ACCORD_OUTCOME_STALLED, UNKNOWN, 1, 0, 0, RETRY},
	{"cut off", &state, ACCORD_OUTCOME_CUT_OFF, UNKNOWN, 1, 0, 0, RETRY},
	{"lost", &state, ACCORD_OUTCOME_LOST, UNKNOWN, 1, 0, 0, RETRY},
	{"past its key's window", &windowed_state, ACCORD_OUTCOME_TIMEOUT,
	UNKNOWN, 5, 70000, 70000, RETRY},
	{"last attempt but one", &state, ACCORD_OUTCOME_RETRY, YES, 19, 0, 0,
	RETRY},
	{"last attempt", &state, ACCORD_OUTCOME_RETRY, YES, 20, 0, 0, DEAD},
	{"young enough", &state, ACCORD_OUTCOME_RETRY, YES, 1, DAY_MS - 1, 0,
	RETRY},
	{"too old", &state, ACCORD_OUTCOME_RETRY, YES, 1, DAY_MS, 0, DEAD},
	{"unauthorized too long", &state, ACCORD_OUTCOME_UNAUTHORIZED, YES, 20, 0,
	0, DEAD},
	/* a command without a key: only what was certainly not executed */
	{"not sent", &bare, ACCORD_OUTCOME_UNREACHABLE, NO, 7, 0, 0, RETRY},
	{"not sent, timeout", &bare, ACCORD_OUTCOME_TIMEOUT, NO, 1, 0, 0, RETRY},
	{"not processed", &bare, ACCORD_OUTCOME_RETRY, YES, 1, 0, 0, RETRY},
	{"throttled", &bare, ACCORD_OUTCOME_RETRY_AFTER, YES, 1, 0, 0, RETRY},
	{"unauthorized command", &bare, ACCORD_OUTCOME_UNAUTHORIZED, YES, 1, 0, 0,
	RETRY},
	{"answered 500", &bare, ACCORD_OUTCOME_RETRY, UNKNOWN, 1, 0, 0, HOLD},
	{"sent, timeout", &bare, ACCORD_OUTCOME_TIMEOUT, UNKNOWN, 1, 0, 0, HOLD},
	{"sent, stalled", &bare, ACCORD_OUTCOME_STALLED, UNKNOWN, 1, 0, 0, HOLD},
	{"sent, cut off", &bare, ACCORD_OUTCOME_CUT_OFF, UNKNOWN, 1, 0, 0, HOLD},
	{"sent, lost", &bare, ACCORD_OUTCOME_LOST, UNKNOWN, 1, 0, 0, HOLD},
	{"in doubt, last", &bare, ACCORD_OUTCOME_LOST, UNKNOWN, 20, 9 * DAY_MS, 0,
	HOLD},
	{"not sent, last", &bare, ACCORD_OUTCOME_UNREACHABLE, NO, 20, 0, 0, DEAD},
	/* its route says: repeat */
	{"daring", &daring, ACCORD_OUTCOME_TIMEOUT, UNKNOWN, 1, 0, 0, RETRY},
	{"daring, last", &daring, ACCORD_OUTCOME_TIMEOUT, UNKNOWN, 20, 0, 0, DEAD},
	/* a key makes a repeat safe, as long as the channel remembers it */
	{"keyed", &keyed, ACCORD_OUTCOME_LOST, UNKNOWN, 3, DAY_MS - 1, DAY_MS - 1,
	RETRY},
	{"in its window", &windowed, ACCORD_OUTCOME_CUT_OFF, UNKNOWN, 3, 0, 59999,
	RETRY},
	{"past its window", &windowed, ACCORD_OUTCOME_CUT_OFF, UNKNOWN, 3, 0,
	60000, HOLD},
	{"past it, first", &windowed, ACCORD_OUTCOME_CUT_OFF, UNKNOWN, 1, 0,
	60000, HOLD},
	{"past it, but first and not sent", &windowed, ACCORD_OUTCOME_UNREACHABLE,
	NO, 1, 0, 60000, RETRY},
	{"past it, an earlier one may count", &windowed,
	ACCORD_OUTCOME_UNREACHABLE, NO, 2, 0, 60000, HOLD}
};

static void
test_verdicts(void)
{
	for (int i = 0; i < lengthof(verdicts); i++)
		check_int(accord_retry_verdict(verdicts[i].policy, verdicts[i].outcome,
									   verdicts[i].sent, verdicts[i].attempts,
									   verdicts[i].age_ms,
									   verdicts[i].since_first_ms),
				  verdicts[i].verdict, "verdict", verdicts[i].what);
}

static void
test_repeatable(void)
{
	check(accord_retry_repeatable(&windowed, 0, 0), "repeatable", "first");
	check(accord_retry_repeatable(&windowed, 1, 59999), "repeatable",
		  "in the window");
	check(!accord_retry_repeatable(&windowed, 1, 60000), "repeatable",
		  "past the window");
	check(accord_retry_repeatable(&keyed, 9, 9 * DAY_MS), "repeatable",
		  "no window");
	check(accord_retry_repeatable(&bare, 9, 9 * DAY_MS), "repeatable",
		  "no key: its verdict said so");
	check(accord_retry_repeatable(&windowed_state, 9, 9 * DAY_MS),
		  "repeatable", "state");
}

/* ---- delays ---- */

static void
test_delays(void)
{
	static const double top = 1.0 - 1e-12;
	AccordRetryPolicy large = state;
	int64		sum = 0;

	check_int(accord_retry_delay(&state, 1, NONE, 0.0), 0, "delay", "least");
	check_int(accord_retry_delay(&state, 1, NONE, top), 1000, "delay", "1st");
	check_int(accord_retry_delay(&state, 2, NONE, top), 2000, "delay", "2nd");
	check_int(accord_retry_delay(&state, 4, NONE, top), 8000, "delay", "4th");
	check_int(accord_retry_delay(&state, 4, NONE, 0.5), 4000, "delay", "mean");
	check_int(accord_retry_delay(&state, 10, NONE, top), 512000, "delay",
			  "below the cap");
	check_int(accord_retry_delay(&state, 11, NONE, top), 600000, "delay",
			  "cap");
	check_int(accord_retry_delay(&state, PG_INT32_MAX, NONE, top), 600000,
			  "delay", "many attempts");
	check_int(accord_retry_delay(&state, 0, NONE, top), 1000, "delay", "0th");
	check_int(accord_retry_delay(&state, 1, 5000, 0.0), 5000, "delay",
			  "not before Retry-After");
	check_int(accord_retry_delay(&state, 4, 5000, top), 8000, "delay",
			  "after Retry-After");
	check_int(accord_retry_delay(&state, 1, 9 * DAY_MS, 0.0), DAY_MS, "delay",
			  "Retry-After of days");
	check_int(accord_retry_delay(&state, 1, DAY_MS, 0.0), DAY_MS, "delay",
			  "Retry-After beyond the cap");
	large.base_ms = large.cap_ms = PG_INT64_MAX / 4;
	check(accord_retry_delay(&large, 60, NONE, top) <= large.cap_ms, "delay",
		  "huge");
	for (int i = 0; i < 1000; i++)
		sum += accord_retry_delay(&state, 1, NONE, i / 1000.0);
	check(sum > 499000 && sum < 501000, "delay", "uniform");
}

/* ---- Retry-After ---- */

static const struct
{
	const char *value;
	int64		ms;
}			retry_afters[] = {
	{"0", 0},
	{"1", 1000},
	{"120", 120000},
	{" \t120 \t", 120000},
	{"007", 7000},
	{"2.0", 2000},
	{"0.25", 250},
	{"1.2345", 1234},
	{"1.23456789012345678901234567890", 1234},
	{"86400", DAY_MS},
	{"99999999999999999999999999999", INT64CONST(2147483647000)},
	{"9223372036854775807", INT64CONST(2147483647000)},
	{"", NONE},
	{" ", NONE},
	{"-1", NONE},
	{"+1", NONE},
	{"1.", NONE},
	{".5", NONE},
	{"1e3", NONE},
	{"0x10", NONE},
	{"12 s", NONE},
	{"1,2", NONE},
	{"soon", NONE},
	/* the three forms, one minute ahead */
	{"Mon, 15 Jun 2026 12:01:00 GMT", 60000},
	{"Monday, 15-Jun-26 12:01:00 GMT", 60000},
	{"Mon Jun 15 12:01:00 2026", 60000},
	{"  Mon, 15 Jun 2026 12:01:00 GMT  ", 60000},
	/* the RFC's own examples are long past */
	{"Sun, 06 Nov 1994 08:49:37 GMT", 0},
	{"Sunday, 06-Nov-94 08:49:37 GMT", 0},
	{"Sun Nov  6 08:49:37 1994", 0},
	{"Mon, 15 Jun 2026 12:00:00 GMT", 0},
	{"Mon, 15 Jun 2026 11:59:59 GMT", 0},
	/* the calendar */
	{"Tue, 16 Jun 2026 12:00:00 GMT", DAY_MS},
	{"Wed Jul  1 00:00:00 2026", 15 * DAY_MS + DAY_MS / 2},
	{"Tue, 15 Jun 2027 12:00:00 GMT", 365 * DAY_MS},
	{"Thu, 15 Jun 2028 12:00:00 GMT", 731 * DAY_MS},
	{"Tue, 29 Feb 2028 12:00:00 GMT", 624 * DAY_MS},
	{"Wed, 01 Mar 2028 12:00:00 GMT", 625 * DAY_MS},
	{"Fri, 01 Jan 2100 12:00:00 GMT", 26863 * DAY_MS},
	{"Mon, 01 Mar 2100 12:00:00 GMT", 26922 * DAY_MS},
	{"Mon, 15 Jun 2026 12:00:60 GMT", 60000},
	/* a year of two digits is the nearest */
	{"Monday, 15-Jun-76 12:00:00 GMT", 18263 * DAY_MS},
	{"Wednesday, 15-Jun-77 12:00:00 GMT", 0},
	{"Thursday, 15-Jun-28 12:00:00 GMT", 731 * DAY_MS},
	{"Thursday, 15-Jun-99 12:00:00 GMT", 0},
	/* no dates */
	{"Thu, 29 Feb 2100 12:00:00 GMT", NONE},
	{"Thu, 29 Feb 2027 12:00:00 GMT", NONE},
	{"Mon, 31 Jun 2026 12:00:00 GMT", NONE},
	{"Mon, 00 Jun 2026 12:00:00 GMT", NONE},
	{"Mon, 15 Jun 2026 24:00:00 GMT", NONE},
	{"Mon, 15 Jun 2026 12:60:00 GMT", NONE},
	{"Mon, 15 Jun 2026 12:00:61 GMT", NONE},
	{"Mon, 15 Jun 2026 12:01:00", NONE},
	{"Mon, 15 Jun 2026 12:01:00 CET", NONE},
	{"Mon, 15 Jun 2026 12:01:00 GMT+1", NONE},
	{"Mon, 15 Jun 26 12:01:00 GMT", NONE},
	{"Mon, 5 Jun 2026 12:01:00 GMT", NONE},
	{"Mo, 15 Jun 2026 12:01:00 GMT", NONE},
	{"Lun, 15 Jun 2026 12:01:00 GMT", NONE},
	{"15 Jun 2026 12:01:00 GMT", NONE},
	{"Mon, 15 Juin 2026 12:01:00 GMT", NONE},
	{"2026-06-15T12:01:00Z", NONE},
	{"Mon, ", NONE},
	{"Mon", NONE}
};

static void
test_retry_after(void)
{
	for (int i = 0; i < lengthof(retry_afters); i++)
		check_int(accord_retry_after_parse(retry_afters[i].value, NOW),
				  retry_afters[i].ms, "Retry-After", retry_afters[i].value);
	check_int(accord_retry_after_parse("Mon, 15 Jun 2026 12:00:01 GMT",
									   NOW + 1), 1000, "Retry-After",
			  "rounded up");
	check_int(accord_retry_after_parse("Sat, 01 Jan 2000 00:00:01 GMT", 0),
			  1000, "Retry-After", "the epoch");
	check_int(accord_retry_after_parse("Friday, 31-Dec-99 23:59:59 GMT", 0),
			  0, "Retry-After", "the century before");
}

/* ---- templates ---- */

/* The variables are their own names in capitals; "u..." is undefined. */
static JsonbValue *
find_variable(const char *name, void *arg)
{
	JsonbValue *value = palloc0(sizeof(JsonbValue));

	(*(int *) arg)++;
	if (name[0] == 'u')
		return NULL;
	value->type = name[0] == 'n' ? jbvNull : jbvString;
	value->val.string.val = name[0] == 'e' ? pstrdup("") :
		psprintf("<%s\xC3\xA9\r\n/>", name);
	value->val.string.len = strlen(value->val.string.val);
	return value;
}

static const struct
{
	const char *template;
	bool		raw;
	const char *expansion;
	const char *missing;
}			expansions[] = {
	{"", false, "", NULL},
	{"/a b", false, "/a%20b", NULL},
	{"a b %", true, "a b %", NULL},
	{"{x}", false, "%3Cx%C3%A9%0D%0A%2F%3E", NULL},
	{"{+x}", false, "%3Cx%C3%A9%0D%0A/%3E", NULL},
	{"Bearer {x}", true, "Bearer <x\xC3\xA9\r\n/>", NULL},
	{"{x:2}{?x:3}", false, "%3Cx?x=%3Cx%C3%A9", NULL},
	{"{x:2}{?x:3}", true, "<x?x=<x\xC3\xA9", NULL},
	{"/{u}", false, "/", "u"},
	{"/{e}/x", false, "//x", NULL},
	{"/{+u.x}{u.y}", false, "/", "u.x"},
	{"{n}", true, "", "n"},
	{"{e,u,n}", false, "", "u"},
	/* where a variable may be left out, it is not missing */
	{"/x{?u}{&u}{#u}{;u}{/u}{.u}", false, "/x", NULL}
};

static void
test_expansions(void)
{
	for (int i = 0; i < lengthof(expansions); i++)
	{
		int			calls = 0;
		char	   *missing = "not set";

		check_text(accord_template_check(expansions[i].template), NULL,
				   expansions[i].template);
		check_text(accord_template_expand(expansions[i].template,
										  expansions[i].raw, find_variable,
										  &calls, &missing),
				   expansions[i].expansion, expansions[i].template);
		check_text(missing, expansions[i].missing, "missing");
	}
}

static const struct
{
	const char *template;
	const char *wrong;
}			malformed[] = {
	{"{x", "unclosed \"{\" at character 1"},
	{"/\xC3\xA9/{x,", "unclosed \"{\" at character 4"},
	{"a}", "unexpected \"}\" at character 2"},
	{"{}", "empty expression at character 2"},
	{"{|x}", "reserved operator at character 2"},
	{"{x-y}", "unexpected character at character 3"},
	{"{x}{x:0}", "invalid prefix length at character 7"},
	{"{%4g}", "invalid variable name at character 2"}
};

/* Every end of every template is survived, and only whole ones are passed. */
static void
test_malformed(void)
{
	static const char whole[] = "/{a.b_1:9999}{+%41*,c}{?x*,y:1}";

	for (int i = 0; i < lengthof(malformed); i++)
		check_text(accord_template_check(malformed[i].template),
				   malformed[i].wrong, malformed[i].template);
	for (size_t len = 0; len < sizeof(whole); len++)
	{
		char	   *part = pnstrdup(whole, len);
		int			depth = 0;

		for (char *p = part; *p != '\0'; p++)
			depth += (*p == '{') - (*p == '}');
		check((accord_template_check(part) == NULL) == (depth == 0),
			  "part of a template", part);
	}
}

/* Their variables, each followed by a blank. */
static const struct
{
	const char *template;
	const char *names;
}			variables[] = {
	{"", ""},
	{"/a,b", ""},
	{",", ""},
	{"/{a}", "a "},
	{",{a},{b.c}", "a b.c "},
	{"{?a:3,b*,c}/{+d}{#e,f},", "a b c d e f "},
	{"{%41},{a}{a}", "%41 a a "}
};

static void
test_variables(void)
{
	for (int i = 0; i < lengthof(variables); i++)
	{
		const char *rest = variables[i].template;
		char	   *names = pstrdup("");
		char	   *name;

		while ((name = accord_template_next_variable(&rest)) != NULL)
			names = psprintf("%s%s ", names, name);
		check_text(names, variables[i].names, variables[i].template);
	}
}

/* ---- foreign bytes ---- */

static const struct
{
	const char *bytes;
	size_t		len;
	size_t		max;
	const char *clean;
}			foreign[] = {
#define BYTES(literal) literal, sizeof(literal) - 1
	{BYTES(""), 10, ""},
	{BYTES("plain"), 10, "plain"},
	{BYTES("plain"), 5, "plain"},
	{BYTES("plain"), 4, "plai"},
	{BYTES("plain"), 0, ""},
	{BYTES("a\0b\0"), 10, "a?b?"},
	{BYTES("a\r\n\x01\x7F"), 10, "a\r\n\x01\x7F"},
	{BYTES("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), 9,
	"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
	/* cut where a character ends */
	{BYTES("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), 8,
	"\xC3\xA9\xE2\x82\xAC"},
	{BYTES("\xC3\xA9\xE2\x82\xAC"), 4, "\xC3\xA9"},
	{BYTES("\xC3\xA9"), 1, ""},
	/* cut where none does, by somebody else */
	{BYTES("x\xE2\x82"), 10, "x?"},
	{BYTES("x\xF0\x9F\x98"), 10, "x?"},
	{BYTES("\xE2\x82z"), 10, "?z"},
	/* stray, overlong, surrogate, beyond Unicode, no UTF-8 at all */
	{BYTES("\x80\xBF"), 10, "??"},
	{BYTES("\xC0\xAF!"), 10, "?!"},
	{BYTES("\xED\xA0\x80!"), 10, "?!"},
	{BYTES("\xF4\x90\x80\x80!"), 10, "?!"},
	{BYTES("\xFF\xFE"), 10, "??"},
	{BYTES("caf\xE9 cr\xE8me"), 20, "caf? cr?me"}
};

static void
test_foreign_bytes(void)
{
	for (int i = 0; i < lengthof(foreign); i++)
	{
		/* of just that size, so that a read past its end is found */
		char	   *bytes = malloc(Max(foreign[i].len, 1));

		memcpy(bytes, foreign[i].bytes, foreign[i].len);
		check_text(accord_json_clean(bytes, foreign[i].len, foreign[i].max),
				   foreign[i].clean, "foreign bytes");
		free(bytes);
	}
}

int
main(void)
{
	test_statuses();
	test_transports();
	test_words();
	test_verdicts();
	test_repeatable();
	test_delays();
	test_retry_after();
	test_expansions();
	test_malformed();
	test_variables();
	test_foreign_bytes();
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}

#include "server.h"
