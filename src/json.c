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

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "buffer.h"
#include "compat.h"
#include "json.h"
#include "whole.h"

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
static inline bool
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

static inline bool
is_plain(char c)
{
	return (unsigned char) c >= ' ' && c != '"' && c != '\\';
}

/* How many characters from the first one on need no escape. */
static inline int
count_plain(const char *string, int len)
{
	int			n = 0;

	while (len - n >= 8 && are_plain(string + n))
		n += 8;
	/* the last few together with some of those before */
	if (n < len && n >= 8 && len - n < 8 && are_plain(string + len - 8))
		return len;
	while (n < len && is_plain(string[n]))
		n++;
	return n;
}

/* What needs no escape, most of it all, is copied as it is. */
static void
append_string(StringInfo out, const char *string, int len)
{
	int			plain = count_plain(string, len);
	char	   *to = accord_buffer_room(out, len + 2);

	to[0] = '"';
	memcpy(to + 1, string, plain);
	out->len += 1 + plain;
	while (plain < len)
	{
		int			more;

		append_escaped(out, string[plain++]);
		more = count_plain(string + plain, len - plain);
		accord_buffer_bytes(out, string + plain, more);
		plain += more;
	}
	accord_buffer_char(out, '"');
}

/* Two characters, such as what stands between members. */
static inline void
append_pair(StringInfo out, char first, char second)
{
	char	   *to = accord_buffer_room(out, 2);

	to[0] = first;
	to[1] = second;
	out->len += 2;
}

#define WHOLE_DIGITS 20			/* decimal ones of any uint64 */

static void
append_number(StringInfo out, Numeric number)
{
	uint64		whole;

	if (accord_whole_read(number, &whole))
		out->len += pg_ulltoa_n(whole, accord_buffer_room(out, WHOLE_DIGITS));
	else
		appendStringInfoString(out,
							   DatumGetCString(DirectFunctionCall1(numeric_out,
																   NumericGetDatum(number))));
}

static void append_container(StringInfo out, const JsonbContainer *container);

/* A value that is stored in a container's data, at an offset. */
static void
append_entry(StringInfo out, JEntry entry, const char *data, uint32 offset,
			 int len)
{
	if (JBE_ISSTRING(entry))
		append_string(out, data + offset, len);
	else if (JBE_ISNUMERIC(entry))
		append_number(out, (Numeric) (data + INTALIGN(offset)));
	else if (JBE_ISNULL(entry))
		accord_buffer_bytes(out, "null", 4);
	else if (JBE_ISBOOL_TRUE(entry))
		accord_buffer_bytes(out, "true", 4);
	else if (JBE_ISBOOL_FALSE(entry))
		accord_buffer_bytes(out, "false", 5);
	else
		append_container(out, (const JsonbContainer *) (data + INTALIGN(offset)));
}

/* The length of what begins at the offset; moves that to what follows. */
static inline int
pass_entry(JEntry entry, uint32 *offset)
{
	uint32		start = *offset;

	JBE_ADVANCE_OFFSET(*offset, entry);
	return *offset - start;
}

/*
 * The entries are read one after the other, as they are stored: names first,
 * then values. A scalar stands in an array that is none.
 */
static void
append_container(StringInfo out, const JsonbContainer *container)
{
	uint32		n = JsonContainerSize(container);
	bool		is_object = JsonContainerIsObject(container);
	bool		is_bare = JsonContainerIsScalar(container);
	const JEntry *names = container->children;
	const JEntry *values = names + (is_object ? n : 0);
	const char *data = (const char *) (values + n);
	uint32		name_offset = 0;
	uint32		offset = is_object ? getJsonbOffset(container, n) : 0;

	check_stack_depth();
	if (!is_bare)
		accord_buffer_char(out, is_object ? '{' : '[');
	for (uint32 i = 0; i < n; i++)
	{
		uint32		start = offset;

		if (i > 0)
			append_pair(out, ',', ' ');
		if (is_object)
		{
			const char *name = data + name_offset;

			append_string(out, name, pass_entry(names[i], &name_offset));
			append_pair(out, ':', ' ');
		}
		append_entry(out, values[i], data, start,
					 pass_entry(values[i], &offset));
	}
	if (!is_bare)
		accord_buffer_char(out, is_object ? '}' : ']');
}

void
accord_json_append(StringInfo out, Jsonb *json)
{
	(void) accord_buffer_room(out, VARSIZE(json));
	append_container(out, &json->root);
	accord_buffer_end(out);
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
