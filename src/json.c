/*
 * json.c: reading jsonb values by path, and making foreign bytes fit to be
 * stored.
 *
 * Runs in backends (configuration, accord.expand()) and in dispatchers, there
 * also outside of transactions: accord_json_clean() looks at nothing but its
 * arguments and the conversion that the server keeps loaded for the database's
 * encoding.
 *
 * Invariants: nothing is kept between calls. Values found point into the
 * jsonb they were found in and live as long as it does. What a channel
 * answered is hostile until it went through accord_json_clean().
 *
 * On failure: what is not there is NULL, what cannot be stored is '?'. Only
 * running out of memory raises.
 */
#include "postgres.h"

#include "compat.h"
#include "fmgr.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

/* The longest UTF-8 character. */
#define UTF8_LENGTH 4

/* The root as a value: of a scalar the scalar itself. */
static JsonbValue *
make_root_value(Jsonb *json)
{
	JsonbValue *value = palloc(sizeof(JsonbValue));

	if (JB_ROOT_IS_SCALAR(json) && JsonbExtractScalar(&json->root, value))
		return value;
	value->type = jbvBinary;
	value->val.binary.data = &json->root;
	value->val.binary.len = VARSIZE(json) - VARHDRSZ;
	return value;
}

/* An array's index: digits only. False when it is none, or far too large. */
static bool
parse_index(const char *text, size_t len, uint32 *index)
{
	*index = 0;
	if (len < 1 || len > 9)
		return false;
	for (size_t i = 0; i < len; i++)
	{
		if (text[i] < '0' || text[i] > '9')
			return false;
		*index = *index * 10 + (text[i] - '0');
	}
	return true;
}

/* One step of a path. */
static JsonbValue *
find_child(JsonbValue *value, const char *step, size_t len)
{
	JsonbContainer *container;
	uint32		index;

	if (value->type != jbvBinary)
		return NULL;
	container = value->val.binary.data;
	if (JsonContainerIsObject(container))
		return getKeyJsonValueFromContainer(container, step, len, NULL);
	if (!parse_index(step, len, &index))
		return NULL;
	return getIthJsonbValueFromContainer(container, index);
}

JsonbValue *
accord_json_path(Jsonb *json, const char *path)
{
	JsonbValue *value = make_root_value(json);

	if (*path == '\0')
		return value;
	for (;;)
	{
		size_t		len = strcspn(path, ".");

		value = find_child(value, path, len);
		if (value == NULL || path[len] == '\0')
			return value;
		path += len + 1;
	}
}

static void
append_escaped(StringInfo out, char c)
{
	static const char escaped[] = "\"\\\b\f\n\r\t";
	static const char letters[] = "\"\\bfnrt";
	const char *known = strchr(escaped, c);

	if (c != '\0' && known != NULL)
		appendStringInfo(out, "\\%c", letters[known - escaped]);
	else
		appendStringInfo(out, "\\u%04x", (int) c);
}

#define EACH_BYTE(byte) (UINT64CONST(0x0101010101010101) * (byte))

/* Whether none of eight characters is a control character, quote or backslash. */
static bool
are_plain(const char *eight)
{
	uint64		word;
	uint64		quotes;
	uint64		slashes;

	memcpy(&word, eight, sizeof(word));
	quotes = word ^ EACH_BYTE('"');
	slashes = word ^ EACH_BYTE('\\');
	/* a byte borrows from the next where it is less than what is subtracted */
	return ((((word - EACH_BYTE(' ')) & ~word) |
			 ((quotes - EACH_BYTE(1)) & ~quotes) |
			 ((slashes - EACH_BYTE(1)) & ~slashes)) & EACH_BYTE(0x80)) == 0;
}

/* What needs no escape, most of it all, is copied as it is. */
static void
append_string(StringInfo out, const char *string, int len)
{
	const char *end = string + len;

	appendStringInfoCharMacro(out, '"');
	while (string < end)
	{
		const char *plain = string;

		while (end - string >= 8 && are_plain(string))
			string += 8;
		while (string < end && (unsigned char) *string >= ' ' &&
			   *string != '"' && *string != '\\')
			string++;
		appendBinaryStringInfo(out, plain, string - plain);
		if (string < end)
			append_escaped(out, *string++);
	}
	appendStringInfoCharMacro(out, '"');
}

/* Two characters, such as what stands between members. */
static inline void
append_pair(StringInfo out, char first, char second)
{
	appendStringInfoCharMacro(out, first);
	appendStringInfoCharMacro(out, second);
}

/*
 * A numeric's first 16 bits, as they are stored; numeric.c has no interface
 * to them. The rest are digits of base 10,000.
 */
#define NUMERIC_FORM 0xC000		/* and what they are in the short form: */
#define NUMERIC_FORM_SHORT 0x8000
#define NUMERIC_NEGATIVE 0x2000
#define NUMERIC_SCALE 0x1F80	/* decimal digits after the point */
#define NUMERIC_WEIGHT 0x007F	/* of the first digit, and its sign */
#define WHOLE_DIGITS 4			/* below 10^16 */

/*
 * The value of a number that is whole, not negative and not too large, as most
 * are. False: it is something else.
 */
static bool
read_whole(Numeric number, uint64 *whole)
{
	const uint16 *words = (const uint16 *) VARDATA(number);
	int			n;
	int			weight;

	*whole = 0;
	if (!VARATT_IS_4B_U(number))
		return false;
	n = (int) (VARSIZE(number) - VARHDRSZ) / (int) sizeof(uint16) - 1;
	weight = words[0] & NUMERIC_WEIGHT;
	if ((words[0] & (NUMERIC_FORM | NUMERIC_NEGATIVE | NUMERIC_SCALE)) !=
		NUMERIC_FORM_SHORT || weight >= WHOLE_DIGITS || n > weight + 1)
		return false;
	/* zeros at the end are not stored, nor is zero */
	for (int i = 0; n > 0 && i <= weight; i++)
		*whole = *whole * 10000 + (i < n ? words[1 + i] : 0);
	return true;
}

static void
append_whole(StringInfo out, uint64 whole)
{
	char		digits[20];
	int			at = sizeof(digits);

	do
	{
		digits[--at] = '0' + whole % 10;
		whole /= 10;
	} while (whole > 0);
	appendBinaryStringInfo(out, &digits[at], sizeof(digits) - at);
}

static void
append_number(StringInfo out, Numeric number)
{
	uint64		whole;

	if (read_whole(number, &whole))
		append_whole(out, whole);
	else
		appendStringInfoString(out,
							   DatumGetCString(DirectFunctionCall1(numeric_out,
																   NumericGetDatum(number))));
}

static void
append_scalar(StringInfo out, const JsonbValue *value)
{

	switch (value->type)
	{
		case jbvNull:
			appendStringInfoString(out, "null");
			break;
		case jbvString:
			append_string(out, value->val.string.val, value->val.string.len);
			break;
		case jbvNumeric:
			append_number(out, value->val.numeric);
			break;
		case jbvBool:
			appendStringInfoString(out, value->val.boolean ? "true" : "false");
			break;
		default:
			elog(ERROR, "unexpected type %d in jsonb", (int) value->type);
	}
}

void
accord_json_append(StringInfo out, Jsonb *json)
{
	JsonbIterator *iterator = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		scalar = false; /* it stands in an array that is none */
	bool		first = true;	/* nothing stands before it on its level */

	enlargeStringInfo(out, VARSIZE(json));
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		bool		ends = token == WJB_END_ARRAY || token == WJB_END_OBJECT;

		if (!first && !ends)
			append_pair(out, ',', ' ');
		first = !ends && token != WJB_ELEM && token != WJB_VALUE;
		if (token == WJB_BEGIN_ARRAY && value.val.array.rawScalar)
			scalar = true;
		else if (token == WJB_BEGIN_ARRAY || token == WJB_BEGIN_OBJECT)
			appendStringInfoCharMacro(out, token == WJB_BEGIN_ARRAY ? '[' : '{');
		else if (token == WJB_KEY)
		{
			append_string(out, value.val.string.val, value.val.string.len);
			append_pair(out, ':', ' ');
		}
		else if (ends && !scalar)
			appendStringInfoCharMacro(out, token == WJB_END_ARRAY ? ']' : '}');
		else if (!ends)
			append_scalar(out, &value);
	}
}

char	   *
accord_json_print(Jsonb *json)
{
	StringInfoData out;

	initStringInfo(&out);
	accord_json_append(&out, json);
	return out.data;
}

/* An array or object, in either of its forms. */
static char *
print_container(JsonbValue *value)
{
	return accord_json_print(JsonbValueToJsonb(value));
}

char	   *
accord_json_text(JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return NULL;
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			return print_container(value);
	}
}

char	   *
accord_json_member(Jsonb *object, const char *name)
{
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(object) ||
		getKeyJsonValueFromContainer(&object->root, name, strlen(name),
									 &value) == NULL ||
		value.type != jbvString)
		return NULL;
	return accord_json_text(&value);
}

/*
 * How many bytes to pass over where no character begins: the lead byte and
 * what follows it as its continuation, so that a character cut in two becomes
 * one '?' rather than several.
 */
static size_t
measure_invalid(const char *bytes, size_t len)
{
	size_t		claimed = pg_encoding_mblen(PG_UTF8, bytes);
	size_t		n = 1;

	while (n < len && n < claimed && ((unsigned char) bytes[n] & 0xC0) == 0x80)
		n++;
	return n;
}

/*
 * Puts the next character, as the database has it, into the buffer
 * (terminated), and returns the number of bytes it was made of.
 */
static size_t
take_character(const char *bytes, size_t len, unsigned char *character)
{
	int			n = pg_encoding_verifymbchar(PG_UTF8, bytes,
											 Min(len, UTF8_LENGTH));
	int			encoding = GetDatabaseEncoding();

	memcpy(character, "?", 2);
	if (n <= 0)
		return measure_invalid(bytes, len);
	if (n == 1 || encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
	{
		memcpy(character, bytes, n);
		character[n] = '\0';
	}
	else if (!accord_unicode_to_server(utf8_to_unicode((const unsigned char *) bytes),
									   character))
		memcpy(character, "?", 2);
	return n;
}

char	   *
accord_json_clean(const char *bytes, size_t len, size_t max)
{
	StringInfoData clean;

	initStringInfo(&clean);
	while (len > 0)
	{
		unsigned char character[MAX_UNICODE_EQUIVALENT_STRING + 1];
		size_t		used = take_character(bytes, len, character);
		size_t		n = strlen((char *) character);

		if (clean.len + n > max)
			break;
		appendBinaryStringInfo(&clean, (char *) character, n);
		bytes += used;
		len -= used;
	}
	return clean.data;
}
