/*
 * stamp.c: what puts the changes of one thing into one order.
 *
 * Pure: no I/O, no clock, no memory; tested in test/unit without a server.
 *
 * A stamp consists of what its author gave and of what a policy says about
 * the author, never of what happened on the way: not of arrival, of
 * transaction numbers, of collations, or of a session's time zone. So any two
 * databases that know two changes order them alike.
 *
 * Sources may number their own changes. Such a revision is compared with
 * revisions of the same source only. Across sources the clock decides, where
 * a source's latest revision counts as made at the latest time that the
 * source has given (merge.c): a revision cannot be older than the one before
 * it, whatever its clock says. Were the revision to decide within a source
 * and each change's own clock across sources, three changes could each be
 * before the next.
 */
#include "postgres.h"

#include <ctype.h>

#include "stamp.h"

int
accord_stamp_compare(const AccordStamp *a, const AccordStamp *b)
{
	int			order;

	if (a->rank != b->rank)
		return a->rank < b->rank ? -1 : 1;
	if (a->clock != b->clock)
		return a->clock < b->clock ? -1 : 1;
	order = strcmp(a->name, b->name);
	if (order == 0)
		order = strcmp(a->event, b->event);
	return (order > 0) - (order < 0);
}

bool
accord_stamp_same_source(const AccordStamp *a, const AccordStamp *b)
{
	if (a->source == NULL || b->source == NULL)
		return a->source == b->source;
	return strcmp(a->source, b->source) == 0;
}

int
accord_stamp_compare_own(const AccordStamp *a, const AccordStamp *b)
{
	int			order = accord_stamp_compare_revisions(a->revision, b->revision);

	if (order != 0)
		return order;
	if (a->revision == NULL && a->clock != b->clock)
		return a->clock < b->clock ? -1 : 1;
	order = strcmp(a->event, b->event);
	return (order > 0) - (order < 0);
}

bool
accord_stamp_is_revision(const char *text)
{
	const char *p = text;
	int			digits = 0;

	if (*p == '-')
		p++;
	for (; isdigit((unsigned char) *p); p++)
		digits++;
	if (*p == '.')
		for (p++; isdigit((unsigned char) *p); p++)
			digits++;
	return *p == '\0' && digits > 0;
}

/* The digits before the point, without leading zeros. */
static const char *
whole_part(const char *text, size_t *len)
{
	if (*text == '-')
		text++;
	while (*text == '0')
		text++;
	*len = strspn(text, "0123456789");
	return text;
}

/* The digits after the point, without trailing zeros. */
static const char *
fraction(const char *text, size_t *len)
{
	const char *point = strchr(text, '.');

	*len = 0;
	if (point == NULL)
		return text;
	*len = strlen(point + 1);
	while (*len > 0 && point[*len] == '0')
		(*len)--;
	return point + 1;
}

/* Compares without the signs. */
static int
compare_magnitudes(const char *a, const char *b)
{
	size_t		a_len;
	size_t		b_len;
	const char *a_digits = whole_part(a, &a_len);
	const char *b_digits = whole_part(b, &b_len);
	int			order;

	if (a_len != b_len)
		return a_len < b_len ? -1 : 1;
	order = memcmp(a_digits, b_digits, a_len);
	if (order != 0)
		return order < 0 ? -1 : 1;
	a_digits = fraction(a, &a_len);
	b_digits = fraction(b, &b_len);
	order = memcmp(a_digits, b_digits, Min(a_len, b_len));
	if (order != 0)
		return order < 0 ? -1 : 1;
	return (a_len > b_len) - (a_len < b_len);
}

/* -1, 0, 1 */
static int
sign_of(const char *text)
{
	size_t		whole;
	size_t		rest;

	whole_part(text, &whole);
	fraction(text, &rest);
	if (whole == 0 && rest == 0)
		return 0;
	return *text == '-' ? -1 : 1;
}

int
accord_stamp_compare_revisions(const char *a, const char *b)
{
	int			a_sign;
	int			b_sign;

	if (a == NULL || b == NULL)
		return (a != NULL) - (b != NULL);
	a_sign = sign_of(a);
	b_sign = sign_of(b);
	if (a_sign != b_sign)
		return a_sign < b_sign ? -1 : 1;
	return a_sign >= 0 ? compare_magnitudes(a, b) : compare_magnitudes(b, a);
}
