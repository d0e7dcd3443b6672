/*
 * config_check_column.c: the columns of a row of the configuration that is
 * checked: read and set; templates, headers and paths in them.
 *
 * Runs in whatever backend edits the configuration, within config_check.c.
 *
 * Invariant: nothing is kept; results are allocated where the caller is.
 *
 * On failure it raises, naming the column, and says what to write instead.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "auth_check.h"
#include "config.h"
#include "config_check_private.h"
#include "template.h"

/* What a template may name; those with true may be followed by a path. */
static const struct
{
	const char *name;
	bool		document;
}			variables[] = {
	{"key", false}, {"topic", false}, {"op", false}, {"account", false},
	{"channel", false}, {"event_id", false}, {"source", false},
	{"payload", true}, {"before", true}, {"headers", true}, {"vars", true}
};

#define MAX_HEADERS 60			/* of a channel, a route, an event */

Datum
accord_check_column(AccordRowCheck *check, HeapTuple row, const char *name,
					bool *isnull)
{
	return heap_getattr(row, SPI_fnumber(check->desc, name), check->desc,
						isnull);
}

char	   *
accord_check_text(AccordRowCheck *check, const char *name)
{
	bool		isnull;
	Datum		value = accord_check_column(check, check->row, name, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

Jsonb	   *
accord_check_json(AccordRowCheck *check, const char *name)
{
	bool		isnull;
	Datum		value = accord_check_column(check, check->row, name, &isnull);

	return isnull ? NULL : DatumGetJsonbP(value);
}

void
accord_check_set(AccordRowCheck *check, const char *name, Datum value)
{
	int			number = SPI_fnumber(check->desc, name);
	bool		isnull = false;

	check->row = heap_modify_tuple_by_cols(check->row, check->desc, 1, &number,
										   &value, &isnull);
}

bool
accord_check_changed(AccordRowCheck *check, const char *name)
{
	bool		isnull;
	bool		old_null;
	Datum		value = accord_check_column(check, check->row, name, &isnull);
	Datum		old;

	if (check->old == NULL)
		return true;
	old = accord_check_column(check, check->old, name, &old_null);
	if (isnull || old_null)
		return isnull != old_null;
	return strcmp(TextDatumGetCString(value), TextDatumGetCString(old)) != 0;
}

bool
accord_check_variable(const char *name)
{
	for (int i = 0; i < lengthof(variables); i++)
	{
		size_t		len = strlen(variables[i].name);

		if (strncmp(name, variables[i].name, len) == 0 &&
			(name[len] == '\0' ||
			 (name[len] == '.' && variables[i].document)))
			return true;
	}
	return false;
}

/* Templates that are expanded when a request is made may name more. */
static bool
is_remote_variable(const char *column, const char *name)
{
	if (strcmp(column, "poll") == 0 && strncmp(name, "answer", 6) == 0)
		return true;
	return (strcmp(column, "path") == 0 || strcmp(column, "headers") == 0 ||
			strcmp(column, "lookup") == 0 || strcmp(column, "poll") == 0) &&
		(strncmp(name, "remote.", 7) == 0 || strncmp(name, "needs.", 6) == 0);
}

void
accord_check_template(const char *relation, const char *column,
					  const char *template)
{
	char	   *wrong = accord_template_check(template);
	const char *rest = template;
	char	   *name;

	if (wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" of %s is not a URI template: %s", column,
						template, relation, wrong),
				 errhint("Write variables as in RFC 6570, such as "
						 "\"/listings/{key}/rates/{payload.date}\".")));
	while ((name = accord_template_next_variable(&rest)) != NULL)
		if (!accord_check_variable(name) && !is_remote_variable(column, name))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s \"%s\" of %s names \"%s\", which no event has",
							column, template, relation, name),
					 errhint(ACCORD_VARIABLES_HINT)));
}

void
accord_check_reserved(const char *relation, const char *column,
					  const char *name,
					  bool credential)
{
	if (accord_http_header_reserved(name, strlen(name), credential))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("header \"%s\" in %s of %s is reserved", name, column,
						relation),
				 errhint("Use another header; credentials go into auth.")));
}

static void
check_header(const char *relation, const char *column, const char *name,
			 const char *value, bool templates)
{
	if (!accord_auth_is_token(name))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" in %s of %s is not the name of a header",
						name, column, relation),
				 errhint("Use letters, digits and dashes.")));
	accord_check_reserved(relation, column, name, false);
	if (value == NULL || accord_auth_has_control(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header \"%s\" in %s of %s is not a line of text",
						name, column, relation),
				 errhint("Give a string without line breaks.")));
	if (templates)
		accord_check_template(relation, column, value);
}

void
accord_config_check_headers(const char *relation, const char *column,
							Jsonb *headers, bool templates)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of %s is not an object", column, relation),
				 errhint("Write '{\"Name\": \"value\"}'.")));
	if (JB_ROOT_COUNT(headers) > MAX_HEADERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of %s has more than %d headers", column, relation,
						MAX_HEADERS),
				 errhint("Put what is more into the body.")));
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
			check_header(relation, column, name,
						 value.type == jbvString ?
						 pnstrdup(value.val.string.val,
								  value.val.string.len) : NULL, templates);
	}
}

void
accord_check_path(const char *relation, const char *column, const char *path)
{
	accord_check_template(relation, column, path);
	if (path[0] != '\0' && path[0] != '/' && path[0] != '?' &&
		strncmp(path, "{/", 2) != 0 && strncmp(path, "{?", 2) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" of %s does not begin with \"/\"", column,
						path, relation),
				 errhint("It is appended to the channel's base_url.")));
	if (accord_auth_has_control(path) || strpbrk(path, " #\\") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" of %s holds a character that a URL cannot",
						column, path, relation),
				 errhint("Percent-encode it.")));
}
