/*
 * template.c: URI templates as RFC 6570 has them, over jsonb values.
 *
 * Runs in backends (configuration, accord.expand()) and in dispatchers, for
 * the path and the headers of every request.
 *
 * Invariants: one parser serves the check and the expansion, so that what is
 * accepted cannot fail to expand. Templates and values come in the database's
 * encoding; what is percent-encoded are the bytes of their UTF-8 form, and a
 * prefix counts characters. Names of members are encoded like values, which
 * is stricter than the RFC: a payload must not be able to add a parameter by
 * calling a member "a&b".
 *
 * On failure: a malformed template is described, not raised, except by
 * accord.expand(); a value that has no UTF-8 form raises the server's error,
 * which the caller attributes to the event.
 */
#include "postgres.h"

#include "common/string.h"
#include "fmgr.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "template.h"
#include "utils/builtins.h"

#define ALPHA "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define DIGIT "0123456789"
#define HEXADECIMAL DIGIT "ABCDEFabcdef"
#define UNRESERVED ALPHA DIGIT "-._~"
#define RESERVED ":/?#[]@!$&'()*+,;="
#define RESERVED_OPERATORS "=,!@|"

/* What an operator means (RFC 6570, appendix A). */
typedef struct Operator
{
	char symbol;				/* after the "{"; 0: none */
	bool		named;			/* values follow their names */
	bool		reserved;		/* reserved characters are left alone */
	bool		required;		/* all its variables must be defined */
	const char *first;			/* before the first defined value */
	const char *separator;		/* before the others */
	const char *empty;			/* between a name and an empty value */
} Operator;

static const Operator operators[] = {
	{'\0', false, false, true, "", ",", ""},
	{'+', false, true, true, "", ",", ""},
	{'#', false, true, false, "#", ",", ""},
	{'.', false, false, false, ".", ".", ""},
	{'/', false, false, false, "/", "/", ""},
	{';', true, false, false, ";", ";", ""},
	{'?', true, false, false, "?", "&", "="},
	{'&', true, false, false, "&", "&", "="}
};

/* A variable of an expression. */
typedef struct VariableSpec
{
	const char *name;			/* not terminated */
	size_t		len;
	int			prefix;			/* characters; 0: all */
	bool		explode;
} VariableSpec;

/* A defined member of a list (without a name) or of an object. */
typedef struct Member
{
	char	   *name;
	char	   *text;
} Member;

/* An expansion under way. */
typedef struct Expansion
{
	StringInfoData out;
	bool		raw;
	AccordTemplateLookup lookup;
	void	   *arg;
	char	   *missing;
	const Operator *operator;	/* of the current expression */
	bool		any;			/* ... which has a defined value already */
} Expansion;

PG_FUNCTION_INFO_V1(accord_expand);

/* ---- parsing ---- */

static bool
is_in(char c, const char *set)
{
	return c != '\0' && strchr(set, c) != NULL;
}

static bool
is_triplet(const char *p)
{
	return p[0] == '%' && is_in(p[1], HEXADECIMAL) && is_in(p[2], HEXADECIMAL);
}

/* Takes the operator, if there is one. */
static const Operator *
parse_operator(const char **p)
{
	for (int i = 1; i < lengthof(operators); i++)
	{
		if (**p == operators[i].symbol)
		{
			(*p)++;
			return &operators[i];
		}
	}
	return &operators[0];
}

/* Takes a name; a dot must stand between two of its other characters. */
static bool
parse_name(const char **p)
{
	const char *start = *p;
	const char *last = NULL;

	for (;; (*p)++)
	{
		if (is_triplet(*p))
			*p += 2;
		else if (**p == '.')
		{
			if (last == NULL || *last == '.')
				break;
		}
		else if (!is_in(**p, ALPHA DIGIT "_"))
			break;
		last = *p;
	}
	return *p > start && *last != '.';
}

/* Takes the number of a prefix: 1 to 9999. */
static bool
parse_prefix(const char **p, int *prefix)
{
	const char *start = *p;

	*prefix = 0;
	if (**p == '0')
		return false;
	for (; is_in(**p, DIGIT) && *p < start + 4; (*p)++)
		*prefix = *prefix * 10 + (**p - '0');
	return *p > start && !is_in(**p, DIGIT);
}

/* Takes a variable; returns NULL, or what is wrong at *p. */
static const char *
parse_variable(const char **p, VariableSpec *spec)
{
	memset(spec, 0, sizeof(VariableSpec));
	spec->name = *p;
	if (!parse_name(p))
		return "invalid variable name";
	spec->len = *p - spec->name;
	if (**p == ':')
	{
		(*p)++;
		if (!parse_prefix(p, &spec->prefix))
			return "invalid prefix length";
	}
	else if (**p == '*')
	{
		(*p)++;
		spec->explode = true;
	}
	return is_in(**p, ",}") ? NULL : "unexpected character";
}

/* Takes an expression from after its "{"; NULL, or what is wrong at *p. */
static const char *
check_expression(const char **p)
{
	VariableSpec spec;

	if (**p == '}')
		return "empty expression";
	if (is_in(**p, RESERVED_OPERATORS))
		return "reserved operator";
	parse_operator(p);
	for (;; (*p)++)
	{
		const char *wrong = parse_variable(p, &spec);

		if (wrong != NULL)
			return wrong;
		if (**p == '}')
		{
			(*p)++;
			return NULL;
		}
	}
}

static char *
describe_place(const char *wrong, const char *template, const char *place)
{
	return psprintf("%s at character %d", wrong,
					pg_mbstrlen_with_len(template, place - template) + 1);
}

char	   *
accord_template_check(const char *template)
{
	const char *p = template;

	for (;;)
	{
		const char *open;
		const char *wrong;

		p += strcspn(p, "{}");
		if (*p == '\0')
			return NULL;
		open = p++;
		if (*open == '}')
			return describe_place("unexpected \"}\"", template, open);
		wrong = check_expression(&p);
		if (wrong != NULL && *p == '\0')
			return describe_place("unclosed \"{\"", template, open);
		if (wrong != NULL)
			return describe_place(wrong, template, p);
	}
}

char	   *
accord_template_next_variable(const char **template)
{
	const char *p = *template;
	VariableSpec spec;

	/* A comma stands between variables only where the next brace closes. */
	if (*p == ',' && p[strcspn(p, "{}")] == '}')
		p++;
	else
	{
		p += strcspn(p, "{");
		if (*p == '\0')
			return NULL;
		p++;
		(void) parse_operator(&p);
	}
	if (parse_variable(&p, &spec) != NULL)
		elog(ERROR, "variables are asked of a template that was not checked");
	*template = p;
	return pnstrdup(spec.name, spec.len);
}

/* ---- expanding ---- */

/* Text as it is encoded: UTF-8, or as it is for a raw expansion. */
static char *
convert_text(const Expansion *expansion, char *text)
{
	if (expansion->raw || pg_is_ascii(text))
		return text;
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

/* Appends converted text, percent-encoded. */
static void
append_encoded(Expansion *expansion, const char *text, bool reserved)
{
	if (expansion->raw)
	{
		appendStringInfoString(&expansion->out, text);
		return;
	}
	for (; *text != '\0'; text++)
	{
		if (is_in(*text, UNRESERVED) ||
			(reserved && (is_in(*text, RESERVED) || is_triplet(text))))
			appendStringInfoChar(&expansion->out, *text);
		else
			appendStringInfo(&expansion->out, "%%%02X",
							 (unsigned char) *text);
	}
}

/* Before each defined variable, and each member of an exploded one. */
static void
append_separator(Expansion *expansion)
{
	appendStringInfoString(&expansion->out, expansion->any ?
						   expansion->operator->separator :
						   expansion->operator->first);
	expansion->any = true;
}

/* A named operator's name, and what stands between it and the value. */
static void
append_name(Expansion *expansion, const char *name, const char *text)
{
	append_encoded(expansion, name, true);
	appendStringInfoString(&expansion->out, *text != '\0' ? "=" :
						   expansion->operator->empty);
}

/* Cuts text after so many characters of its encoding. */
static void
cut_text(char *text, int characters, int encoding)
{
	size_t		len = strlen(text);
	size_t		end = 0;

	while (characters-- > 0 && end < len)
		end += pg_encoding_mblen(encoding, text + end);
	if (end < len)
		text[end] = '\0';
}

static void
append_scalar(Expansion *expansion, const VariableSpec *spec,
			  const char *name, JsonbValue *value)
{
	const Operator *operator = expansion->operator;
	char	   *text = convert_text(expansion, accord_json_text(value));

	if (spec->prefix > 0)
		cut_text(text, spec->prefix,
				 expansion->raw ? GetDatabaseEncoding() : PG_UTF8);
	append_separator(expansion);
	if (operator->named)
		append_name(expansion, name, text);
	append_encoded(expansion, text, operator->reserved);
}

/*
 * The members of an array or object that are not null; *n of them. Containers
 * among them, which the RFC does not have, are inserted as JSON.
 */
static Member *
collect_members(const Expansion *expansion, JsonbValue *value, int *n)
{
	Jsonb	   *json = JsonbValueToJsonb(value);
	JsonbIterator *iterator = JsonbIteratorInit(&json->root);
	Member	   *members = palloc(JB_ROOT_COUNT(json) * sizeof(Member));
	JsonbValue	item;
	JsonbIteratorToken token;
	char	   *name = NULL;

	*n = 0;
	while ((token = JsonbIteratorNext(&iterator, &item, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = convert_text(expansion, accord_json_text(&item));
		if ((token == WJB_VALUE || token == WJB_ELEM) &&
			item.type != jbvNull)
		{
			members[*n].name = name;
			members[*n].text = convert_text(expansion,
											accord_json_text(&item));
			(*n)++;
		}
	}
	return members;
}

/* {x*}: each member stands for itself. */
static void
append_exploded(Expansion *expansion, const char *name,
				const Member *members, int n)
{
	const Operator *operator = expansion->operator;

	for (int i = 0; i < n; i++)
	{
		append_separator(expansion);
		if (members[i].name != NULL)
		{
			append_encoded(expansion, members[i].name, operator->reserved);
			appendStringInfoString(&expansion->out,
								   operator->named && *members[i].text == '\0' ?
								   operator->empty : "=");
		}
		else if (operator->named)
			append_name(expansion, name, members[i].text);
		append_encoded(expansion, members[i].text, operator->reserved);
	}
}

/* {x}: the members, and their names, between commas. */
static void
append_joined(Expansion *expansion, const char *name,
			  const Member *members, int n)
{
	const Operator *operator = expansion->operator;

	append_separator(expansion);
	if (operator->named)
	{
		append_encoded(expansion, name, true);
		appendStringInfoChar(&expansion->out, '=');
	}
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoChar(&expansion->out, ',');
		if (members[i].name != NULL)
		{
			append_encoded(expansion, members[i].name, operator->reserved);
			appendStringInfoChar(&expansion->out, ',');
		}
		append_encoded(expansion, members[i].text, operator->reserved);
	}
}

/* False when the variable is undefined: absent, null, or without members. */
static bool
append_variable(Expansion *expansion, const VariableSpec *spec,
				const char *name)
{
	JsonbValue *value = expansion->lookup(name, expansion->arg);
	Member	   *members;
	int			n;

	if (value == NULL || value->type == jbvNull)
		return false;
	if (IsAJsonbScalar(value))
	{
		append_scalar(expansion, spec, name, value);
		return true;
	}
	members = collect_members(expansion, value, &n);
	if (n == 0)
		return false;
	if (spec->explode)
		append_exploded(expansion, name, members, n);
	else
		append_joined(expansion, name, members, n);
	return true;
}

/* Expands an expression from after its "{"; returns the end of it. */
static const char *
append_expression(Expansion *expansion, const char *p)
{
	expansion->operator = parse_operator(&p);
	expansion->any = false;
	for (;; p++)
	{
		VariableSpec spec;
		char	   *name;

		if (parse_variable(&p, &spec) != NULL)
			elog(ERROR, "template is expanded that was not checked");
		name = pnstrdup(spec.name, spec.len);
		if (!append_variable(expansion, &spec, name) &&
			expansion->operator->required && expansion->missing == NULL)
			expansion->missing = name;
		if (*p == '}')
			return p + 1;
	}
}

char	   *
accord_template_expand(const char *template, bool raw,
					   AccordTemplateLookup lookup, void *arg,
					   char **missing)
{
	Expansion	expansion;
	const char *p;

	memset(&expansion, 0, sizeof(expansion));
	initStringInfo(&expansion.out);
	expansion.raw = raw;
	expansion.lookup = lookup;
	expansion.arg = arg;
	p = convert_text(&expansion, pstrdup(template));
	while (*p != '\0')
	{
		size_t		len = strcspn(p, "{");

		append_encoded(&expansion, pnstrdup(p, len), true);
		p += len;
		if (*p == '{')
			p = append_expression(&expansion, p + 1);
	}
	if (missing != NULL)
		*missing = expansion.missing;
	return expansion.out.data;
}

/* ---- accord.expand() ---- */

/* A member of that very name, else the value at that path. */
static JsonbValue *
find_member(const char *name, void *arg)
{
	Jsonb	   *variables = arg;
	JsonbValue *value = NULL;

	if (JB_ROOT_IS_OBJECT(variables))
		value = getKeyJsonValueFromContainer(&variables->root, name,
											 strlen(name), NULL);
	return value != NULL ? value : accord_json_path(variables, name);
}

Datum
accord_expand(PG_FUNCTION_ARGS)
{
	char	   *template = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Jsonb	   *variables = PG_GETARG_JSONB_P(1);
	char	   *wrong = accord_template_check(template);
	char	   *expanded;

	if (wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("template \"%s\" is malformed: %s", template, wrong),
				 errhint("Write variables as {name}, {+name} or {?name,name}; "
						 "a name consists of letters, digits, \"_\" and \".\".")));
	expanded = accord_template_expand(template, false, find_member, variables,
									  NULL);
	PG_RETURN_TEXT_P(cstring_to_text(expanded));
}
