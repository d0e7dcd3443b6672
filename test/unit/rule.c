/*
 * rule.c: tests of rule.c: lists of statuses, patterns, and which rule decides.
 *
 * Besides examples, random rules and answers are compared with what the words
 * say, written down anew: of the rules whose conditions all hold, the first.
 *
 * Runs by itself, without a server. The seed is fixed; SEED=... chooses
 * another, and a failure says which it was. Prints every check that failed,
 * then a tally, and fails if any did.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "rule.h"

#define ROUNDS 20000
#define MAX_RULES 6

static int	passed;
static int	failed;
static pg_prng_state dice;
static uint64 seed = 20261128;

static void
check(bool right, const char *what, const char *detail)
{
	if (right)
		passed++;
	else if (++failed <= 20)
		printf("FAILED  %s: %s (SEED=%llu)\n", what, detail,
			   (unsigned long long) seed);
}

static int
below(int limit)
{
	return (int) (pg_prng_double(&dice) * limit);
}

/* ---- statuses ---- */

static const struct
{
	const char *text;
	int			n;				/* 0: refused */
	int			in;				/* a status that is in it */
	int			out;			/* one that is not */
}			lists[] = {
	{"409", 1, 409, 408},
	{"4xx", 1, 499, 500},
	{"200-299", 1, 204, 300},
	{"200-200", 1, 200, 201},
	{"409,412", 2, 412, 410},
	{" 409 , 5xx ", 2, 503, 410},
	{"404, 410-412, 2xx", 3, 411, 405},
	{"", 0, 0, 0},
	{"9", 0, 0, 0},
	{"4x9", 0, 0, 0},
	{"40", 0, 0, 0},
	{"4099", 0, 0, 0},
	{"600", 0, 0, 0},
	{"099", 0, 0, 0},
	{"409,", 0, 0, 0},
	{",409", 0, 0, 0},
	{"409 412", 0, 0, 0},
	{"299-200", 0, 0, 0},
	{"200-", 0, 0, 0},
	{"200-2xx", 0, 0, 0},
	{"4XX", 0, 0, 0},
	{"409;412", 0, 0, 0},
	{"-1", 0, 0, 0},
	{"200,201,202,203,204,205,206,207,208,209,210,211,212,213,214,215", 16,
	215, 216},
	{"200,201,202,203,204,205,206,207,208,209,210,211,212,213,214,215,216", 0,
	0, 0}
};

static bool
is_in(const AccordStatusRange *ranges, int n, int status)
{
	for (int i = 0; i < n; i++)
		if (status >= ranges[i].low && status <= ranges[i].high)
			return true;
	return false;
}

static void
test_statuses(void)
{
	for (int i = 0; i < lengthof(lists); i++)
	{
		AccordStatusRange ranges[ACCORD_RULE_RANGES];
		int			n = accord_rule_status(lists[i].text, ranges);

		check(n == lists[i].n, "ranges of a status", lists[i].text);
		if (n == 0)
			continue;
		check(is_in(ranges, n, lists[i].in), "status within", lists[i].text);
		check(!is_in(ranges, n, lists[i].out), "status without",
			  lists[i].text);
	}
}

/* ---- patterns ---- */

static const struct
{
	const char *pattern;
	const char *text;
	bool		meets;
}			patterns[] = {
	{"*", "", true}, {"*", "anything", true}, {"", "", true}, {"", "a", false},
	{"a", "a", true}, {"a", "A", false}, {"a*", "abc", true},
	{"*c", "abc", true}, {"a*c", "abc", true}, {"a*c", "ac", true},
	{"a*c", "abd", false}, {"*b*", "abc", true}, {"a*b*c", "axxbyyc", true},
	{"a*b*c", "axxcyyb", false}, {"**", "", true}, {"*a", "aab", false},
	{"*ab", "aab", true}, {"a*a", "a", false}
};

/* By recursion, as it is said. */
static bool
meets(const char *pattern, const char *text)
{
	if (*pattern == '\0')
		return *text == '\0';
	if (*pattern == '*')
		return meets(pattern + 1, text) ||
			(*text != '\0' && meets(pattern, text + 1));
	return *pattern == *text && meets(pattern + 1, text + 1);
}

static void
test_patterns(void)
{
	for (int i = 0; i < lengthof(patterns); i++)
		check(accord_rule_glob(patterns[i].pattern, patterns[i].text) ==
			  patterns[i].meets, "pattern", patterns[i].pattern);
	for (int i = 0; i < ROUNDS; i++)
	{
		char		pattern[8];
		char		text[9];
		int			n = below(lengthof(pattern));
		int			m = below(lengthof(text));

		for (int j = 0; j < n; j++)
			pattern[j] = "ab*"[below(3)];
		for (int j = 0; j < m; j++)
			text[j] = "ab"[below(2)];
		pattern[n] = text[m] = '\0';
		check(accord_rule_glob(pattern, text) == meets(pattern, text),
			  "a random pattern", pattern);
	}
}

/* ---- which rule ---- */

/* An answer's header and body are one letter each; a path is a letter. */
typedef struct World
{
	char		header[2];
	char		body;
	int			bodies_asked;
} World;

static const char *
header_of(const char *name, void *arg)
{
	World	   *world = arg;

	return strcmp(name, "X-Code") == 0 && world->header[0] != '\0' ?
		world->header : NULL;
}

static bool
body_has(const void *path, void *arg)
{
	World	   *world = arg;

	world->bodies_asked++;
	return *(const char *) path == world->body;
}

/* What the conditions say, condition by condition. */
static bool
holds(const AccordRule *rule, const AccordRuleAnswer *answer,
	  const World *world)
{
	if (rule->route != 0 && rule->route != answer->route)
		return false;
	if (rule->item != answer->item || rule->transport != answer->transport)
		return false;
	if (rule->n_ranges > 0 &&
		!is_in(rule->ranges, rule->n_ranges, answer->status))
		return false;
	if (rule->n_headers > 0 && (world->header[0] == '\0' ||
								!meets(rule->headers[0].pattern,
									   world->header)))
		return false;
	return rule->body == NULL || *(char *) rule->body == world->body;
}

static void
make_rule(AccordRule *rule, AccordRuleHeader *header)
{
	static const char *const statuses[] = {"200", "2xx", "409,412", "4xx",
	"200-599"};
	static const char *const values[] = {"a", "b", "*"};
	static const char *const bodies[] = {"x", "y"};

	memset(rule, 0, sizeof(*rule));
	rule->route = below(3);
	rule->item = below(4) == 0;
	rule->transport = below(4) == 0 ? ACCORD_TRANSPORT_TIMEOUT :
		ACCORD_TRANSPORT_OK;
	if (below(2) == 0)
		rule->n_ranges = accord_rule_status(statuses[below(5)], rule->ranges);
	if (below(3) == 0)
	{
		header->name = (char *) "X-Code";
		header->pattern = (char *) values[below(3)];
		rule->headers = header;
		rule->n_headers = 1;
	}
	if (below(3) == 0)
		rule->body = (void *) bodies[below(2)];
}

static void
test_choice(void)
{
	static const int statuses[] = {200, 204, 404, 409, 412, 500};

	for (int round = 0; round < ROUNDS; round++)
	{
		AccordRule	rules[MAX_RULES];
		AccordRuleHeader headers[MAX_RULES];
		AccordRule *list[MAX_RULES];
		World		world = {{"\0ab"[below(3)], '\0'}, "xyz"[below(3)], 0};
		AccordRuleAnswer answer = {
			.route = 1 + below(2),
			.item = below(4) == 0,
			.transport = below(4) == 0 ? ACCORD_TRANSPORT_TIMEOUT :
			ACCORD_TRANSPORT_OK,
			.status = statuses[below(6)],
			.header = header_of,
			.body = body_has,
			.arg = &world
		};
		const AccordRule *expected = NULL;
		int			n = below(MAX_RULES + 1);
		int			in_need = 0;	/* of the body, before one decides */
		char		text[64];

		for (int i = 0; i < n; i++)
		{
			list[i] = &rules[i];
			make_rule(&rules[i], &headers[i]);
			if (expected == NULL && rules[i].body != NULL)
			{
				AccordRule	bare = rules[i];

				bare.body = NULL;
				in_need += holds(&bare, &answer, &world);
			}
			if (expected == NULL && holds(&rules[i], &answer, &world))
				expected = &rules[i];
		}
		snprintf(text, sizeof(text), "round %d", round);
		check(accord_rule_find(list, n, &answer) == expected,
			  "the first whose conditions hold", text);
		check(world.bodies_asked == in_need,
			  "a body is asked for only where nothing else rules it out", text);
	}
}

/* ---- words ---- */

static void
test_words(void)
{
	AccordTransport transport = ACCORD_TRANSPORT_INVALID;

	for (int i = 0; i < ACCORD_RULE_NONE; i++)
		check(accord_rule_outcome(accord_rule_word(i)) == i, "outcome",
			  accord_rule_word(i));
	check(accord_rule_outcome("fine") == ACCORD_RULE_NONE, "outcome", "fine");
	check(accord_rule_transport("timeout", &transport) &&
		  transport == ACCORD_TRANSPORT_TIMEOUT, "transport", "timeout");
	check(!accord_rule_transport("invalid", &transport), "transport",
		  "invalid is none of an answer");
}

int
main(int argc, char **argv)
{
	if (getenv("SEED") != NULL)
		seed = strtoull(getenv("SEED"), NULL, 10);
	pg_prng_seed(&dice, seed);
	test_statuses();
	test_patterns();
	test_choice();
	test_words();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
