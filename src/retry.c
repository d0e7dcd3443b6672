/*
 * retry.c: what an attempt's result means, and when to try again.
 *
 * Runs in dispatchers, for every attempt. Everything is decided by the tables
 * below, so that the policy can be read in one place and tested without a
 * server: the clock and the dice are arguments.
 *
 * Invariants: pure, no I/O, nothing allocated, nothing raised, nothing kept.
 * In doubt a result is taken for temporary, because a delivery that is tried
 * once too often is bounded by max_attempts and max_age, while one given up
 * too early is lost; and in doubt a command is taken for executed, because a
 * message sent twice cannot be taken back.
 *
 * On failure there is nothing to clean up: what cannot be understood (a status
 * outside of HTTP, a date in no known form) has a row or a value of its own.
 */
#include "postgres.h"

#include "retry.h"

#define MS_PER_DAY INT64CONST(86400000)
#define DAYS_PER_GREGORIAN_YEAR 365.2425

/* ---- results ---- */

/* What a status means beside its outcome. */
#define ROW_GONE 1				/* for a DELETE: delivered, it is gone */
#define ROW_TIMED 2				/* with a Retry-After: retry_after */
#define ROW_DOUBTFUL 4			/* the request may have been executed */

typedef struct StatusRow
{
	int			status;
	AccordOutcome outcome;
	int			flags;
} StatusRow;

/* Statuses that mean something else than their class. */
static const StatusRow status_rows[] = {
	{401, ACCORD_OUTCOME_UNAUTHORIZED, 0},
	{403, ACCORD_OUTCOME_UNAUTHORIZED, 0},
	{404, ACCORD_OUTCOME_REJECTED, ROW_GONE},
	{407, ACCORD_OUTCOME_UNAUTHORIZED, 0},
	{408, ACCORD_OUTCOME_RETRY, ROW_DOUBTFUL},
	{409, ACCORD_OUTCOME_RETRY, 0}, /* its key is still in flight, or a
									 * conflict that passes */
	{410, ACCORD_OUTCOME_REJECTED, ROW_GONE},
	{421, ACCORD_OUTCOME_RETRY, 0}, /* asked over the wrong connection */
	{423, ACCORD_OUTCOME_RETRY, 0}, /* locked by somebody */
	{425, ACCORD_OUTCOME_RETRY, 0}, /* refused as possibly replayed */
	{429, ACCORD_OUTCOME_RETRY_AFTER, 0},
	{501, ACCORD_OUTCOME_REJECTED, 0},
	{503, ACCORD_OUTCOME_RETRY, ROW_TIMED},
	{505, ACCORD_OUTCOME_REJECTED, 0}
};

/* All others, by their first digit. */
static const StatusRow class_rows[] = {
	[2] = {200, ACCORD_OUTCOME_DELIVERED, 0},
	[3] = {300, ACCORD_OUTCOME_REJECTED, 0},
	[4] = {400, ACCORD_OUTCOME_REJECTED, 0},
	[5] = {500, ACCORD_OUTCOME_RETRY, ROW_DOUBTFUL}
};

/* A final answer with a status that HTTP does not know. */
static const StatusRow unknown_row = {0, ACCORD_OUTCOME_CUT_OFF, ROW_DOUBTFUL};

/* Transfers that did not bring a complete answer. */
static const AccordOutcome transport_outcomes[] = {
	[ACCORD_TRANSPORT_OK] = ACCORD_OUTCOME_DELIVERED,	/* by its status */
	[ACCORD_TRANSPORT_UNREACHABLE] = ACCORD_OUTCOME_UNREACHABLE,
	/* An administrator can cure it, and the events need not be lost. */
	[ACCORD_TRANSPORT_REFUSED] = ACCORD_OUTCOME_UNREACHABLE,
	[ACCORD_TRANSPORT_TIMEOUT] = ACCORD_OUTCOME_TIMEOUT,
	[ACCORD_TRANSPORT_STALLED] = ACCORD_OUTCOME_STALLED,
	[ACCORD_TRANSPORT_CUT_OFF] = ACCORD_OUTCOME_CUT_OFF,
	[ACCORD_TRANSPORT_GARBAGE] = ACCORD_OUTCOME_CUT_OFF,
	[ACCORD_TRANSPORT_INVALID] = ACCORD_OUTCOME_INVALID
};

static const char *const outcome_words[] = {
	[ACCORD_OUTCOME_DELIVERED] = "delivered",
	[ACCORD_OUTCOME_ACCEPTED] = "accepted",
	[ACCORD_OUTCOME_CONFLICT] = "conflict",
	[ACCORD_OUTCOME_RETRY] = "retry",
	[ACCORD_OUTCOME_RETRY_AFTER] = "retry_after",
	[ACCORD_OUTCOME_REJECTED] = "rejected",
	[ACCORD_OUTCOME_UNAUTHORIZED] = "unauthorized",
	[ACCORD_OUTCOME_UNREACHABLE] = "unreachable",
	[ACCORD_OUTCOME_TIMEOUT] = "timeout",
	[ACCORD_OUTCOME_STALLED] = "stalled",
	[ACCORD_OUTCOME_CUT_OFF] = "cut_off",
	[ACCORD_OUTCOME_UNCLEAR] = "unclear",
	[ACCORD_OUTCOME_INVALID] = "invalid",
	[ACCORD_OUTCOME_SKIPPED] = "skipped",
	[ACCORD_OUTCOME_SUPERSEDED] = "superseded",
	[ACCORD_OUTCOME_EXPIRED] = "expired",
	[ACCORD_OUTCOME_DISCARDED] = "discarded",
	[ACCORD_OUTCOME_LOST] = "lost"
};

static const char *const sent_words[] = {
	[ACCORD_SENT_NO] = "no",
	[ACCORD_SENT_UNKNOWN] = "unknown",
	[ACCORD_SENT_YES] = "yes"
};

/* What follows from an outcome; RETRY stands for "as the policy has it". */
static const AccordVerdict outcome_verdicts[] = {
	[ACCORD_OUTCOME_DELIVERED] = ACCORD_VERDICT_DONE,
	[ACCORD_OUTCOME_ACCEPTED] = ACCORD_VERDICT_ACCEPT,
	[ACCORD_OUTCOME_CONFLICT] = ACCORD_VERDICT_VERIFY,
	[ACCORD_OUTCOME_RETRY] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_RETRY_AFTER] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_REJECTED] = ACCORD_VERDICT_DEAD,
	[ACCORD_OUTCOME_UNAUTHORIZED] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_UNREACHABLE] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_TIMEOUT] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_STALLED] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_CUT_OFF] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_UNCLEAR] = ACCORD_VERDICT_RETRY,
	[ACCORD_OUTCOME_INVALID] = ACCORD_VERDICT_DEAD,
	[ACCORD_OUTCOME_SKIPPED] = ACCORD_VERDICT_DONE,
	[ACCORD_OUTCOME_SUPERSEDED] = ACCORD_VERDICT_DONE,
	[ACCORD_OUTCOME_EXPIRED] = ACCORD_VERDICT_DONE,
	[ACCORD_OUTCOME_DISCARDED] = ACCORD_VERDICT_DONE,
	[ACCORD_OUTCOME_LOST] = ACCORD_VERDICT_RETRY
};

static const StatusRow *
find_status(int status)
{
	for (int i = 0; i < lengthof(status_rows); i++)
	{
		if (status_rows[i].status == status)
			return &status_rows[i];
	}
	if (status < 200 || status > 599)
		return &unknown_row;
	return &class_rows[status / 100];
}

AccordOutcome
accord_retry_outcome(const AccordResult *result)
{
	const StatusRow *row;

	if (result->transport != ACCORD_TRANSPORT_OK)
		return transport_outcomes[result->transport];
	row = find_status(result->status);
	if ((row->flags & ROW_GONE) && result->is_delete)
		return ACCORD_OUTCOME_DELIVERED;
	if ((row->flags & ROW_TIMED) && result->retry_after_ms >= 0)
		return ACCORD_OUTCOME_RETRY_AFTER;
	return row->outcome;
}

AccordSent
accord_retry_sent(const AccordResult *result)
{
	if (result->transport == ACCORD_TRANSPORT_OK &&
		(find_status(result->status)->flags & ROW_DOUBTFUL))
		return ACCORD_SENT_UNKNOWN;
	return result->sent;
}

const char *
accord_retry_word(AccordOutcome outcome)
{
	return outcome_words[outcome];
}

const char *
accord_retry_sent_word(AccordSent sent)
{
	return sent_words[sent];
}

/* ---- verdicts and delays ---- */

/* Whether an earlier attempt that was executed could now be executed again. */
static bool
has_key_expired(const AccordRetryPolicy *policy, int64 since_first_ms)
{
	return policy->window_ms > 0 && since_first_ms >= policy->window_ms;
}

bool
accord_retry_repeatable(const AccordRetryPolicy *policy, int attempts,
						int64 since_first_ms)
{
	if (!policy->command || policy->ambiguous_retry || attempts == 0)
		return true;
	return !policy->keyed || !has_key_expired(policy, since_first_ms);
}

/*
 * Whether a command that ended so may be sent once more. Of a keyed one that
 * was tried before, an earlier attempt may be the one that was executed, so
 * that its key must still be known whatever became of this attempt.
 */
static bool
is_command_safe(const AccordRetryPolicy *policy, AccordSent sent,
				int attempts, int64 since_first_ms)
{
	bool		in_doubt = sent == ACCORD_SENT_UNKNOWN;

	if (in_doubt && !policy->keyed && !policy->ambiguous_retry)
		return false;
	return (attempts <= 1 && !in_doubt) ||
		accord_retry_repeatable(policy, attempts, since_first_ms);
}

AccordVerdict
accord_retry_verdict(const AccordRetryPolicy *policy, AccordOutcome outcome,
					 AccordSent sent, int attempts, int64 age_ms,
					 int64 since_first_ms)
{
	AccordVerdict verdict = outcome_verdicts[outcome];
	bool		over = attempts >= policy->max_attempts ||
	age_ms >= policy->max_age_ms;

	if (verdict == ACCORD_VERDICT_RETRY && policy->command &&
		!is_command_safe(policy, sent, attempts, since_first_ms))
		return policy->verify && !over ? ACCORD_VERDICT_VERIFY :
			ACCORD_VERDICT_HOLD;
	if ((verdict == ACCORD_VERDICT_RETRY ||
		 verdict == ACCORD_VERDICT_VERIFY) && over)
		verdict = ACCORD_VERDICT_DEAD;
	return verdict == ACCORD_VERDICT_DEAD && policy->hold_dead ?
		ACCORD_VERDICT_HOLD : verdict;
}

int64
accord_retry_delay(const AccordRetryPolicy *policy, int attempts,
				   int64 retry_after_ms, double dice)
{
	int64		bound = Min(policy->base_ms, policy->cap_ms);
	int64		delay;

	for (int i = 1; i < attempts && bound > 0 && bound < policy->cap_ms; i++)
		bound = bound > policy->cap_ms / 2 ? policy->cap_ms : bound * 2;
	delay = Min((int64) (dice * (double) (bound + 1)), bound);
	return Max(delay, Min(retry_after_ms, MS_PER_DAY));
}

/* ---- Retry-After ---- */

/* A date as read; two_digits: its year has no century. */
typedef struct HttpDate
{
	int			year;
	int			month;			/* from 0 */
	int			day;
	int			hour;
	int			minute;
	int			second;
	bool		two_digits;
} HttpDate;

/*
 * RFC 9110, section 5.6.7. The letters are match_field()'s. strptime() would
 * read the names of the server's language.
 */
static const char *const date_formats[] = {
	"%w, %d %b %Y %H:%M:%S GMT",
	"%W, %d-%b-%y %H:%M:%S GMT",
	"%w %b %e %H:%M:%S %Y"
};

static const char *const short_days[] = {
	"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"
};

static const char *const long_days[] = {
	"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
	"Sunday"
};

static const char *const months[] = {
	"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct",
	"Nov", "Dec"
};

static const int month_days[] = {
	31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31
};

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Exactly so many digits. */
static bool
match_number(const char **text, int digits, int *number)
{
	*number = 0;
	for (int i = 0; i < digits; i++, (*text)++)
	{
		if (!is_digit(**text))
			return false;
		*number = *number * 10 + (**text - '0');
	}
	return true;
}

/* One of n names; *index is its place. */
static bool
match_name(const char **text, const char *const *names, int n, int *index)
{
	for (int i = 0; i < n; i++)
	{
		size_t		len = strlen(names[i]);

		if (strncmp(*text, names[i], len) == 0)
		{
			*text += len;
			*index = i;
			return true;
		}
	}
	return false;
}

/* A day of the month whose first digit may be a blank. */
static bool
match_padded_day(const char **text, int *day)
{
	if (**text != ' ')
		return match_number(text, 2, day);
	(*text)++;
	return match_number(text, 1, day);
}

static bool
match_field(char field, const char **text, HttpDate *date)
{
	int			weekday;		/* is not compared with the date */

	switch (field)
	{
		case 'w':
			return match_name(text, short_days, lengthof(short_days),
							  &weekday);
		case 'W':
			return match_name(text, long_days, lengthof(long_days), &weekday);
		case 'd':
			return match_number(text, 2, &date->day);
		case 'e':
			return match_padded_day(text, &date->day);
		case 'b':
			return match_name(text, months, lengthof(months), &date->month);
		case 'Y':
			return match_number(text, 4, &date->year);
		case 'y':
			date->two_digits = true;
			return match_number(text, 2, &date->year);
		case 'H':
			return match_number(text, 2, &date->hour);
		case 'M':
			return match_number(text, 2, &date->minute);
		case 'S':
			return match_number(text, 2, &date->second);
		default:
			return false;
	}
}

/* Whether nothing but white space follows. */
static bool
is_blank(const char *text)
{
	return text[strspn(text, " \t")] == '\0';
}

static bool
match_date(const char *format, const char *text, HttpDate *date)
{
	memset(date, 0, sizeof(HttpDate));
	for (; *format != '\0'; format++)
	{
		if (*format == '%')
		{
			format++;
			if (!match_field(*format, &text, date))
				return false;
		}
		else if (*text++ != *format)
			return false;
	}
	return is_blank(text);
}

static bool
is_leap(int year)
{
	return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

/* A minute may have a leap second. */
static bool
is_date(const HttpDate *date)
{
	int			days = month_days[date->month];

	if (date->month == 1 && is_leap(date->year))
		days++;
	return date->day >= 1 && date->day <= days && date->hour < 24 &&
		date->minute < 60 && date->second <= 60;
}

/* The year of that last two digits that is nearest to now. */
static int
complete_year(int year, TimestampTz now)
{
	double		days = (double) now / USECS_PER_DAY;
	int			current = 2000 + (int) (days / DAYS_PER_GREGORIAN_YEAR);

	year += current - current % 100;
	if (year > current + 50)
		return year - 100;
	return year <= current - 50 ? year + 100 : year;
}

/* Days of all years before this one, counted from the year 1. */
static int64
days_before(int year)
{
	int64		past = year - 1;

	return past * 365 + past / 4 - past / 100 + past / 400;
}

static TimestampTz
make_timestamp(const HttpDate *date)
{
	int64		days = days_before(date->year) - days_before(2000);
	int64		seconds = (date->hour * 60 + date->minute) * 60 + date->second;

	for (int month = 0; month < date->month; month++)
		days += month_days[month];
	if (date->month > 1 && is_leap(date->year))
		days++;
	days += date->day - 1;
	return days * USECS_PER_DAY + seconds * USECS_PER_SEC;
}

/* -1: no date */
static int64
parse_date(const char *text, TimestampTz now)
{
	for (int i = 0; i < lengthof(date_formats); i++)
	{
		HttpDate	date;
		TimestampTz when;

		if (!match_date(date_formats[i], text, &date))
			continue;
		if (date.two_digits)
			date.year = complete_year(date.year, now);
		if (!is_date(&date))
			return -1;
		when = make_timestamp(&date);
		return when <= now ? 0 : (when - now + 999) / 1000;
	}
	return -1;
}

/* -1: no number; too large a one is the largest that makes sense */
static int64
parse_seconds(const char *text)
{
	int64		ms = 0;
	int64		scale = 100;

	if (!is_digit(*text))
		return -1;
	for (; is_digit(*text); text++)
		ms = Min(ms * 10 + (*text - '0') * 1000,
				 PG_INT32_MAX * INT64CONST(1000));
	/* Several shops send fractions, which the RFC does not have. */
	if (*text == '.' && is_digit(text[1]))
	{
		for (text++; is_digit(*text); text++, scale /= 10)
			ms += (*text - '0') * scale;
	}
	return is_blank(text) ? ms : -1;
}

int64
accord_retry_after_parse(const char *value, TimestampTz now)
{
	int64		ms;

	value += strspn(value, " \t");
	ms = parse_seconds(value);
	return ms >= 0 ? ms : parse_date(value, now);
}
