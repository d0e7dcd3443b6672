/*
 * link.c: reads the Link header: where the next page is.
 *
 * Pure: no I/O, no memory, no clock.
 *
 * Invariants: never reads beyond the value's end; takes time in proportion to
 * its length. As RFC 8288 has it, of several "rel" of one link the first
 * counts, names are compared whatever their case, and quoted strings may hold
 * commas, semicolons and escapes.
 *
 * On failure (a value that is not well formed) there is no link from there on.
 */
#include "postgres.h"

#include "link.h"

/* Blanks, as HTTP has them. */
static const char *
skip_blanks(const char *p)
{
	while (*p == ' ' || *p == '\t')
		p++;
	return p;
}

/* What ends a word that is not quoted. */
static bool
ends_word(char c)
{
	return c == '\0' || c == ' ' || c == '\t' || c == ';' || c == ',' ||
		c == '=';
}

/*
 * Takes a parameter's value, quoted or not; NULL: it is not well formed. What
 * is between the quotes is given as it stands: relation types hold nothing
 * that would be escaped.
 */
static const char *
take_value(const char *p, const char **value, size_t *len)
{
	if (*p != '"')
	{
		*value = p;
		while (!ends_word(*p))
			p++;
		*len = p - *value;
		return p;
	}
	*value = ++p;
	for (; *p != '"'; p++)
	{
		if (*p == '\\' && p[1] != '\0')
			p++;
		else if (*p == '\0')
			return NULL;
	}
	*len = p - *value;
	return p + 1;
}

/* Whether one of the types, separated by blanks, is the one wanted. */
static bool
has_type(const char *types, size_t len, const char *rel)
{
	size_t		wanted = strlen(rel);
	const char *end = types + len;

	while (types < end)
	{
		const char *start = types = skip_blanks(types);

		while (types < end && *types != ' ' && *types != '\t')
			types++;
		if (types - start == wanted && pg_strncasecmp(start, rel, wanted) == 0)
			return true;
	}
	return false;
}

static bool
is_named(const char *name, size_t len, const char *wanted)
{
	return strlen(wanted) == len && pg_strncasecmp(name, wanted, len) == 0;
}

/*
 * Takes the parameters of a link, up to the comma or the end; NULL: they are
 * not well formed. Tells whether the link is one of the type.
 */
static const char *
take_parameters(const char *p, const char *rel, bool *found)
{
	bool		related = false;
	bool		anchored = false;

	*found = false;
	for (;;)
	{
		const char *name;
		const char *value = NULL;
		size_t		name_len;
		size_t		len = 0;

		p = skip_blanks(p);
		if (*p != ';')
			break;
		name = p = skip_blanks(p + 1);
		while (!ends_word(*p))
			p++;
		name_len = p - name;
		p = skip_blanks(p);
		if (*p == '=')
			p = take_value(skip_blanks(p + 1), &value, &len);
		if (p == NULL)
			return NULL;
		if (is_named(name, name_len, "anchor"))
			anchored = true;
		else if (!related && value != NULL && is_named(name, name_len, "rel"))
		{
			related = true;
			*found = has_type(value, len, rel);
		}
	}
	*found &= !anchored;
	return *p == ',' || *p == '\0' ? p : NULL;
}

bool
accord_link_find(const char *value, const char *rel, const char **target,
				 size_t *len)
{
	const char *p = value;

	while (p != NULL)
	{
		const char *start;
		bool		found;

		/* an element may be empty */
		while (*(p = skip_blanks(p)) == ',')
			p++;
		if (*p != '<')
			return false;
		start = ++p;
		while (*p != '>' && *p != '\0')
			p++;
		if (*p == '\0')
			return false;
		*target = start;
		*len = p - start;
		p = take_parameters(p + 1, rel, &found);
		if (p != NULL && found)
			return true;
	}
	return false;
}
