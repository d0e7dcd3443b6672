/*
 * rule.c: which of a channel's rules an answer meets.
 *
 * Runs in dispatchers, for answers of channels that have rules, and in backends
 * that edit them. Rules stand in the order in which they are asked; the first
 * of which all conditions hold decides. What costs most is asked last: a body
 * is parsed only for a rule that status and headers have not ruled out.
 *
 * Invariants: pure, no I/O, nothing allocated, nothing raised, nothing kept. A
 * rule that names no transport is about answers alone: it never turns a broken
 * connection into a success.
 *
 * On failure there is nothing to clean up: what meets no rule is left to the
 * built-in ones (retry.c).
 */
#include "postgres.h"

#include "rule.h"

static const char *const outcome_words[] = {
	[ACCORD_RULE_DELIVERED] = "delivered",
	[ACCORD_RULE_DUPLICATE] = "duplicate",
	[ACCORD_RULE_GONE] = "gone",
	[ACCORD_RULE_ACCEPTED] = "accepted",
	[ACCORD_RULE_CONFLICT] = "conflict",
	[ACCORD_RULE_RETRY] = "retry",
	[ACCORD_RULE_RETRY_AFTER] = "retry_after",
	[ACCORD_RULE_UNCLEAR] = "unclear",
	[ACCORD_RULE_REJECTED] = "rejected",
	[ACCORD_RULE_UNAUTHORIZED] = "unauthorized",
	[ACCORD_RULE_PER_ITEM] = "per_item"
};

static const char *const transport_words[] = {
	[ACCORD_TRANSPORT_OK] = "answered",
	[ACCORD_TRANSPORT_UNREACHABLE] = "unreachable",
	[ACCORD_TRANSPORT_REFUSED] = "refused",
	[ACCORD_TRANSPORT_TIMEOUT] = "timeout",
	[ACCORD_TRANSPORT_STALLED] = "stalled",
	[ACCORD_TRANSPORT_CUT_OFF] = "cut_off",
	[ACCORD_TRANSPORT_GARBAGE] = "garbage"
};

AccordRuleOutcome
accord_rule_outcome(const char *word)
{
	for (int i = 0; i < lengthof(outcome_words); i++)
		if (strcmp(word, outcome_words[i]) == 0)
			return i;
	return ACCORD_RULE_NONE;
}

const char *
accord_rule_word(AccordRuleOutcome outcome)
{
	return outcome_words[outcome];
}

bool
accord_rule_transport(const char *word, AccordTransport *transport)
{
	for (int i = 0; i < lengthof(transport_words); i++)
		if (strcmp(word, transport_words[i]) == 0)
		{
			*transport = i;
			return true;
		}
	return false;
}

/*
 * The greedy glob: on a mismatch the last star takes one character more.
 * Earlier stars never need to be tried again, so this is O(pattern * text).
 */
bool
accord_rule_glob(const char *pattern, const char *text)
{
	const char *star = NULL;
	const char *resume = NULL;

	while (*text != '\0')
	{
		if (*pattern == '*')
		{
			star = ++pattern;
			resume = text;
		}
		else if (*pattern == *text)
		{
			pattern++;
			text++;
		}
		else if (star != NULL)
		{
			pattern = star;
			text = ++resume;
		}
		else
			return false;
	}
	while (*pattern == '*')
		pattern++;
	return *pattern == '\0';
}

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Three digits, moved past; -1: it is something else. */
static int
read_status(const char **text)
{
	const char *p = *text;

	if (p[0] < '1' || p[0] > '5' || !is_digit(p[1]) || !is_digit(p[2]))
		return -1;
	*text += 3;
	return (p[0] - '0') * 100 + (p[1] - '0') * 10 + (p[2] - '0');
}

/* "409", "4xx" or "200-299", moved past. */
static bool
read_range(const char **text, AccordStatusRange *range)
{
	const char *p = *text;

	if (p[0] >= '1' && p[0] <= '5' && p[1] == 'x' && p[2] == 'x')
	{
		range->low = (p[0] - '0') * 100;
		range->high = range->low + 99;
		*text += 3;
		return true;
	}
	range->low = range->high = read_status(text);
	if (range->low >= 0 && **text == '-')
	{
		(*text)++;
		range->high = read_status(text);
	}
	return range->low >= 0 && range->high >= range->low;
}

int
accord_rule_status(const char *text, AccordStatusRange *ranges)
{
	int			n = 0;

	for (;;)
	{
		text += strspn(text, " ");
		if (n == ACCORD_RULE_RANGES || !read_range(&text, &ranges[n]))
			return 0;
		n++;
		text += strspn(text, " ");
		if (*text == '\0')
			return n;
		if (*text++ != ',')
			return 0;
	}
}

static bool
meets_status(const AccordRule *rule, int status)
{
	for (int i = 0; i < rule->n_ranges; i++)
		if (status >= rule->ranges[i].low && status <= rule->ranges[i].high)
			return true;
	return rule->n_ranges == 0;
}

static bool
meets_headers(const AccordRule *rule, const AccordRuleAnswer *answer)
{
	for (int i = 0; i < rule->n_headers; i++)
	{
		const char *value = answer->header == NULL ? NULL :
		answer->header(rule->headers[i].name, answer->arg);

		if (value == NULL || !accord_rule_glob(rule->headers[i].pattern, value))
			return false;
	}
	return true;
}

const AccordRule *
accord_rule_find(AccordRule *const *rules, int n,
				 const AccordRuleAnswer *answer)
{
	for (int i = 0; i < n; i++)
	{
		const AccordRule *rule = rules[i];

		if ((rule->route == 0 || rule->route == answer->route) &&
			rule->item == answer->item &&
			rule->transport == answer->transport &&
			meets_status(rule, answer->status) &&
			meets_headers(rule, answer) &&
			(rule->body == NULL || answer->body(rule->body, answer->arg)))
			return rule;
	}
	return NULL;
}
