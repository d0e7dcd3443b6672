/*
 * limit.c: how fast a channel may be called.
 *
 * Runs in dispatchers, for every request. A token bucket is one number, the
 * time at which it is full again; what a server says of its own limits is a
 * pause and a budget. Both are asked "from when?" and told "one is sent".
 *
 * Invariants: pure, no I/O, nothing allocated, nothing raised, nothing kept.
 * A bucket that is asked before each token is taken passes, over any span of
 * w seconds, at most burst + w * rate requests (the generic cell rate
 * algorithm of ITU-T I.371 in its virtual scheduling form).
 *
 * On failure there is nothing to clean up: a header that cannot be understood
 * says nothing.
 */
#include "postgres.h"

#include <math.h>

#include "limit.h"
#include "retry.h"

#define NS_PER_US INT64CONST(1000)
#define MS_PER_DAY INT64CONST(86400000)

/* Milliseconds from 1970 to 2000, where PostgreSQL's time begins. */
#define UNIX_EPOCH_MS INT64CONST(946684800000)

/* Numbers from here on are a time since 1970, in seconds, or milliseconds. */
#define TIME_IN_SECONDS 1e9
#define TIME_IN_MS 1e11

/*
 * Token buckets
 */

AccordRate
accord_limit_rate(int64 amount, int64 period_us, int64 burst)
{
	AccordRate	rate;
	int64		longest;

	/* rounded up: never faster than asked for */
	rate.interval_ns = (period_us * NS_PER_US + amount - 1) / amount;
	/* a bucket that needs a century to fill is as good as one of any size */
	longest = PG_INT64_MAX / 4 / rate.interval_ns;
	rate.tolerance_ns = (Min(burst, longest) - 1) * rate.interval_ns;
	return rate;
}

/* When the bucket is full, as this rate has it. */
static int64
full_at(const AccordRate *rate, const AccordBucket *bucket, int64 now_ns)
{
	return Min(bucket->full_at_ns,
			   now_ns + rate->tolerance_ns + rate->interval_ns);
}

TimestampTz
accord_limit_ready(const AccordRate *rate, AccordBucket *bucket,
				   TimestampTz now)
{
	int64		now_ns = now * NS_PER_US;
	int64		ready;

	/* kept, or it would move on with the time */
	bucket->full_at_ns = full_at(rate, bucket, now_ns);
	ready = bucket->full_at_ns - rate->tolerance_ns;
	return ready <= now_ns ? ACCORD_LIMIT_NOW :
		(ready + NS_PER_US - 1) / NS_PER_US;
}

void
accord_limit_take(const AccordRate *rate, AccordBucket *bucket,
				  TimestampTz now)
{
	int64		now_ns = now * NS_PER_US;
	int64		full = full_at(rate, bucket, now_ns);

	bucket->full_at_ns = Max(full, now_ns) + rate->interval_ns;
}

void
accord_limit_return(const AccordRate *rate, AccordBucket *bucket)
{
	bucket->full_at_ns -= rate->interval_ns;
}

int64
accord_limit_tokens(const AccordRate *rate, const AccordBucket *bucket,
					TimestampTz now)
{
	int64		now_ns = now * NS_PER_US;
	int64		missing = Max(full_at(rate, bucket, now_ns) - now_ns, 0);

	return (rate->tolerance_ns + rate->interval_ns - missing) /
		rate->interval_ns;
}

/*
 * What servers say
 */

/* One header's statement. */
typedef struct Statement
{
	double		remaining;		/* negative: none */
	double		reset;			/* milliseconds; negative: none */
} Statement;

/* A number that is not negative, and nothing after it; else -1. */
static double
parse_number(const char *text, size_t len)
{
	double		number = 0;
	double		scale = 0;

	while (len > 0 && (text[len - 1] == ' ' || text[len - 1] == '\t'))
		len--;
	while (len > 0 && (*text == ' ' || *text == '\t'))
		text++, len--;
	if (len == 0 || *text == '.' || len > 20)
		return -1;
	for (; len > 0; text++, len--)
	{
		if (*text == '.' && scale == 0)
			scale = 1;
		else if (*text < '0' || *text > '9')
			return -1;
		else if (scale == 0)
			number = number * 10 + (*text - '0');
		else
			number += (*text - '0') * (scale /= 10);
	}
	return number;
}

/* Milliseconds until a reset that is given as a number. */
static double
reset_of_number(double number, TimestampTz now)
{
	double		now_ms = (double) (now / 1000 + UNIX_EPOCH_MS);

	if (number < TIME_IN_SECONDS)
		return number * 1000;
	if (number < TIME_IN_MS)
		number *= 1000;
	return Max(number - now_ms, 0);
}

static double
parse_reset(const char *value, TimestampTz now)
{
	double		number = parse_number(value, strlen(value));

	return number >= 0 ? reset_of_number(number, now) :
		(double) accord_retry_after_parse(value, now);
}

/* The end of a parameter: the next comma or semicolon outside of quotes. */
static const char *
end_of_part(const char *text)
{
	bool		quoted = false;

	for (; *text != '\0'; text++)
	{
		if (*text == '"')
			quoted = !quoted;
		else if (*text == '\\' && quoted && text[1] != '\0')
			text++;
		else if (!quoted && (*text == ',' || *text == ';'))
			break;
	}
	return text;
}

/* "name=number": the number when the part has that name, else -1. */
static double
part_number(const char *part, const char *end, const char *name)
{
	size_t		len = strlen(name);

	while (part < end && (*part == ' ' || *part == '\t'))
		part++;
	if (end - part <= (int) len || pg_strncasecmp(part, name, len) != 0 ||
		part[len] != '=')
		return -1;
	return parse_number(part + len + 1, end - part - len - 1);
}

/* Whether fewer are left, or as many for longer; nothing said: many. */
static bool
is_scarcer(const Statement *policy, const Statement *than)
{
	if (than->remaining < 0 || policy->remaining < than->remaining)
		return true;
	return policy->remaining == than->remaining &&
		policy->reset > than->reset;
}

/* The field RateLimit, in both of its forms. */
static Statement
parse_field(const char *value, TimestampTz now)
{
	Statement	field = {-1, -1};
	Statement	item = {-1, -1};
	Statement	old = {-1, -1};

	while (*value != '\0')
	{
		const char *end = end_of_part(value);
		double		r = part_number(value, end, "r");
		double		t = part_number(value, end, "t");
		double		remaining = part_number(value, end, "remaining");
		double		reset = part_number(value, end, "reset");

		item.remaining = r >= 0 ? r : item.remaining;
		item.reset = t >= 0 ? t * 1000 : item.reset;
		old.remaining = remaining >= 0 ? remaining : old.remaining;
		old.reset = reset >= 0 ? reset_of_number(reset, now) : old.reset;
		if (*end != ';')
		{
			if (item.remaining >= 0 && is_scarcer(&item, &field))
				field = item;
			item.remaining = item.reset = -1;
		}
		value = *end == '\0' ? end : end + 1;
	}
	return field.remaining >= 0 ? field : old;
}

/* What follows one of the prefixes; NULL: none does. */
static const char *
name_after_prefix(const char *name, size_t *len)
{
	static const char *const prefixes[] = {
		"RateLimit-", "X-RateLimit-", "X-Rate-Limit-"
	};

	for (int i = 0; i < lengthof(prefixes); i++)
	{
		size_t		prefix = strlen(prefixes[i]);

		if (*len > prefix && pg_strncasecmp(name, prefixes[i], prefix) == 0)
		{
			*len -= prefix;
			return name + prefix;
		}
	}
	return NULL;
}

static bool
is_name(const char *name, size_t len, const char *word)
{
	return len == strlen(word) && pg_strncasecmp(name, word, len) == 0;
}

bool
accord_limit_hint(const char *name, size_t name_len, const char *value,
				  TimestampTz now, AccordHint *hint)
{
	Statement	said = {-1, -1};
	size_t		len = name_len;
	const char *rest = name_after_prefix(name, &len);

	if (is_name(name, name_len, "RateLimit"))
		said = parse_field(value, now);
	else if (rest != NULL && is_name(rest, len, "Remaining"))
		said.remaining = parse_number(value, strlen(value));
	else if (rest != NULL && is_name(rest, len, "Reset"))
		said.reset = parse_reset(value, now);
	if (said.remaining < 0 && said.reset < 0)
		return false;
	if (said.remaining >= 0)
	{
		int64		left = (int64) Min(floor(said.remaining), 1e15);

		hint->remaining = hint->remaining < 0 ? left :
			Min(hint->remaining, left);
	}
	if (said.reset >= 0)
		hint->reset_ms = Max(hint->reset_ms,
							 (int64) Min(ceil(said.reset), 1e15));
	return true;
}

/*
 * What is allowed still
 */

void
accord_limit_heed(AccordAllowance *allowance, const AccordHint *hint,
				  int in_flight, TimestampTz now)
{
	if (hint->remaining < 0 || hint->reset_ms < 0)
		return;
	allowance->until = now + Min(hint->reset_ms, MS_PER_DAY) * 1000;
	allowance->left = Max(hint->remaining - in_flight, 0);
}

/* A time that doubles with each refusal, half of it by dice. */
static int64
backoff(int refusals, int64 base_ms, int64 cap_ms, double dice)
{
	int64		ms = Min(base_ms, cap_ms);

	for (int i = 1; i < refusals && ms > 0 && ms < cap_ms; i++)
		ms = ms > cap_ms / 2 ? cap_ms : ms * 2;
	return Max(ms / 2 + (int64) (dice * (double) (ms - ms / 2)),
			   Min(base_ms, cap_ms));
}

void
accord_limit_refused(AccordAllowance *allowance, int64 retry_after_ms,
					 int64 reset_ms, int64 base_ms, int64 cap_ms, double dice,
					 TimestampTz sent_at, TimestampTz now)
{
	int64		ms = retry_after_ms > 0 ? retry_after_ms : reset_ms;

	/* a time that is over already says nothing: it was refused after it */
	if (ms <= 0)
		ms = -1;
	/* what was sent before the last pause began belongs to its refusal */
	if (allowance->refusals == 0 || sent_at >= allowance->not_before)
		allowance->refusals++;
	else if (ms < 0)
		return;
	if (ms < 0)
		ms = backoff(allowance->refusals, base_ms, cap_ms, dice);
	allowance->not_before = Max(allowance->not_before,
								now + Min(ms, MS_PER_DAY) * 1000);
}

void
accord_limit_passed(AccordAllowance *allowance)
{
	allowance->refusals = 0;
}

TimestampTz
accord_limit_allowed(const AccordAllowance *allowance, TimestampTz now)
{
	TimestampTz allowed = ACCORD_LIMIT_NOW;

	if (allowance->not_before > now)
		allowed = allowance->not_before;
	if (allowance->until > now && allowance->left <= 0)
		allowed = Max(allowed, allowance->until);
	return allowed;
}

void
accord_limit_spend(AccordAllowance *allowance, TimestampTz now)
{
	if (allowance->until > now && allowance->left > 0)
		allowance->left--;
}
