/*
 * encode.c: jsonb written as something else than JSON.
 *
 * Runs in dispatchers, for the bodies of requests, and in backends
 * (accord.encode_form(), accord.encode_xml(), accord.preview()).
 *
 * Invariants: the same value comes to the same bytes every time, so that a
 * repeated request is the same to the letter. Nothing in a value can end the
 * place it is written to: it cannot add a field to a form, an element to a
 * document, or a part or a header line to a multipart body. Members come in the order that
 * jsonb keeps them in. What is appended is UTF-8, whatever the database's
 * encoding.
 *
 * On failure a value that has no such form is described, not raised; nesting
 * too deep, base64 that is none, and text without a form in UTF-8 raise the
 * server's errors.
 */
#include "postgres.h"

#include "common/string.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "encode.h"
#include "json.h"

#define FORM_KEPT "*-._"		/* as HTML's forms leave them */

/* The members of an array or object, one after the other. */
typedef struct Members
{
	JsonbIterator *iterator;
	JsonbValue	name;			/* of an object's */
	JsonbValue	value;
	bool		named;
} Members;

/* A form being written: the name that the next value gets is in "name". */
typedef struct Form
{
	StringInfo	out;
	StringInfoData name;
	AccordFormArrays arrays;
	bool		any;
} Form;

/* A document being written. */
typedef struct Document
{
	StringInfo	out;
	char	   *wrong;			/* NULL: nothing so far */
} Document;

PG_FUNCTION_INFO_V1(accord_encode_form_sql);
PG_FUNCTION_INFO_V1(accord_encode_xml_sql);

static char *
to_utf8(char *text)
{
	if (pg_is_ascii(text))
		return text;
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

/* A scalar's text in UTF-8; that of null is empty. */
static char *
scalar_text(JsonbValue *value)
{
	return value->type == jbvNull ? pstrdup("") :
		to_utf8(accord_json_text(value));
}

static bool
is_array(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsArray(value->val.binary.data);
}

static bool
is_object(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data);
}

static void
begin_members(Members *members, const JsonbValue *container)
{
	members->iterator = JsonbIteratorInit(container->val.binary.data);
	members->named = is_object(container);
	/* its own beginning */
	(void) JsonbIteratorNext(&members->iterator, &members->value, true);
}

static bool
next_member(Members *members)
{
	JsonbIteratorToken token = JsonbIteratorNext(&members->iterator,
												 members->named ?
												 &members->name :
												 &members->value, true);

	if (token == WJB_KEY)
		token = JsonbIteratorNext(&members->iterator, &members->value, true);
	return token == WJB_VALUE || token == WJB_ELEM;
}

/* ---- kinds of bodies ---- */

static const struct
{
	const char *word;
	const char *type;
	bool		holds_key;
}			kinds[] = {
	[ACCORD_BODY_JSON] = {"json", "application/json", true},
	[ACCORD_BODY_CLOUDEVENTS] = {"cloudevents",
	"application/cloudevents+json", true},
	[ACCORD_BODY_CLOUDEVENTS_BINARY] = {"cloudevents-binary",
	"application/json", true},
	[ACCORD_BODY_FORM] = {"form", "application/x-www-form-urlencoded", true},
	[ACCORD_BODY_XML] = {"xml", "application/xml", true},
	[ACCORD_BODY_MULTIPART] = {"multipart", "multipart/form-data", true},
	[ACCORD_BODY_TEXT] = {"text", "text/plain; charset=utf-8", false},
	[ACCORD_BODY_BYTES] = {"bytes", "application/octet-stream", false},
	[ACCORD_BODY_NONE] = {"none", "application/octet-stream", false}
};

bool
accord_encode_kind(const char *word, AccordBodyKind *kind)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(word, kinds[i].word) != 0)
			continue;
		*kind = (AccordBodyKind) i;
		return true;
	}
	return false;
}

const char *
accord_encode_type(AccordBodyKind kind)
{
	return kinds[kind].type;
}

bool
accord_encode_holds_key(AccordBodyKind kind)
{
	return kinds[kind].holds_key;
}

/* ---- percent-encoding ---- */

void
accord_encode_percent(StringInfo out, const char *text, const char *kept)
{
	static const char digits[] = "0123456789ABCDEF";

	for (; *text != '\0'; text++)
	{
		unsigned char c = *text;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			(c >= '0' && c <= '9') || strchr(kept, c) != NULL)
			appendStringInfoChar(out, c);
		else
		{
			appendStringInfoChar(out, '%');
			appendStringInfoChar(out, digits[c >> 4]);
			appendStringInfoChar(out, digits[c & 0xF]);
		}
	}
}

/* As a form has it: a space is a plus. */
static void
append_form_text(StringInfo out, const char *text)
{
	for (;;)
	{
		size_t		len = strcspn(text, " ");

		accord_encode_percent(out, pnstrdup(text, len), FORM_KEPT);
		if (text[len] == '\0')
			return;
		appendStringInfoChar(out, '+');
		text += len + 1;
	}
}

/* ---- forms ---- */

bool
accord_encode_arrays(const char *word, AccordFormArrays *arrays)
{
	static const char *const words[] = {"index", "brackets", "repeat"};

	for (int i = 0; i < lengthof(words); i++)
	{
		if (strcmp(word, words[i]) != 0)
			continue;
		*arrays = (AccordFormArrays) i;
		return true;
	}
	return false;
}

/* Adds a member's name to that of what it is in. */
static void
append_form_name(Form *form, Members *members, int index)
{
	if (members->named)
	{
		bool		nested = form->name.len > 0;

		if (nested)
			appendStringInfoChar(&form->name, '[');
		append_form_text(&form->name, scalar_text(&members->name));
		if (nested)
			appendStringInfoChar(&form->name, ']');
	}
	else if (form->arrays == ACCORD_FORM_INDEX)
		appendStringInfo(&form->name, "[%d]", index);
	else if (form->arrays == ACCORD_FORM_BRACKETS)
		appendStringInfoString(&form->name, "[]");
}

static void
append_form_value(Form *form, JsonbValue *value)
{
	int			len = form->name.len;
	int			n = 0;
	Members		members;

	check_stack_depth();
	if (value->type != jbvBinary)
	{
		if (form->any)
			appendStringInfoChar(form->out, '&');
		form->any = true;
		appendBinaryStringInfo(form->out, form->name.data, form->name.len);
		appendStringInfoChar(form->out, '=');
		append_form_text(form->out, scalar_text(value));
		return;
	}
	begin_members(&members, value);
	while (next_member(&members))
	{
		append_form_name(form, &members, n++);
		append_form_value(form, &members.value);
		form->name.len = len;
		form->name.data[len] = '\0';
	}
}

char	   *
accord_encode_form(StringInfo out, JsonbValue *value, AccordFormArrays arrays)
{
	Form		form = {.out = out,.arrays = arrays};

	if (!is_object(value))
		return pstrdup("a form is made of an object, and this is none");
	initStringInfo(&form.name);
	append_form_value(&form, value);
	return NULL;
}

/* ---- XML ---- */

/* What a name may begin with, beyond ASCII (XML 1.0, fifth edition). */
static bool
is_name_start(pg_wchar c)
{
	static const pg_wchar ranges[][2] = {
		{0xC0, 0xD6}, {0xD8, 0xF6}, {0xF8, 0x2FF}, {0x370, 0x37D},
		{0x37F, 0x1FFF}, {0x200C, 0x200D}, {0x2070, 0x218F},
		{0x2C00, 0x2FEF}, {0x3001, 0xD7FF}, {0xF900, 0xFDCF},
		{0xFDF0, 0xFFFD}, {0x10000, 0xEFFFF}
	};

	if (c < 0x80)
		return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
	for (int i = 0; i < lengthof(ranges); i++)
		if (c >= ranges[i][0] && c <= ranges[i][1])
			return true;
	return false;
}

static bool
is_name_char(pg_wchar c)
{
	return is_name_start(c) || (c >= '0' && c <= '9') || c == '-' ||
		c == '.' || c == 0xB7 || (c >= 0x300 && c <= 0x36F) ||
		(c >= 0x203F && c <= 0x2040);
}

/* A name, in UTF-8, with at most one colon: of a prefix. */
static bool
is_xml_name(const char *name)
{
	bool		start = true;
	bool		prefixed = false;

	while (*name != '\0')
	{
		pg_wchar	c = utf8_to_unicode((const unsigned char *) name);

		if (c == ':' && !start && !prefixed)
			prefixed = start = true;
		else if (start ? !is_name_start(c) : !is_name_char(c))
			return false;
		else
			start = false;
		name += pg_utf_mblen((const unsigned char *) name);
	}
	return !start;
}

bool
accord_encode_xml_name(const char *name)
{
	return is_xml_name(to_utf8(pstrdup(name)));
}

/* Text between tags, or in an attribute; notes what XML cannot hold. */
static void
append_xml_text(Document *document, const char *text)
{
	static const char marks[] = "&<>\"";
	static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&quot;"};

	for (; *text != '\0'; text++)
	{
		unsigned char c = *text;

		if (strchr(marks, c) != NULL)
			appendStringInfoString(document->out,
								   entities[strchr(marks, c) - marks]);
		else if (c == '\t' || c == '\n' || c == '\r')
			appendStringInfo(document->out, "&#%d;", c);
		else if (c < ' ' || (c == 0xEF && (unsigned char) text[1] == 0xBF &&
							 (unsigned char) text[2] >= 0xBE))
		{
			document->wrong = pstrdup("XML cannot hold a control character");
			return;
		}
		else
			appendStringInfoChar(document->out, c);
	}
}

static void
append_attribute(Document *document, const char *name, JsonbValue *value)
{
	if (!is_xml_name(name))
		document->wrong = psprintf("\"%s\" cannot be the name of an attribute",
								   name);
	else if (value->type == jbvBinary)
		document->wrong = psprintf("attribute \"%s\" is not a single value",
								   name);
	else
	{
		appendStringInfo(document->out, " %s=\"", name);
		append_xml_text(document, scalar_text(value));
		appendStringInfoChar(document->out, '"');
	}
}

static void append_element(Document *document, const char *name,
						   JsonbValue *value);

/* The elements of an object, or a text; of an array one after the other. */
static void
append_content(Document *document, JsonbValue *value)
{
	Members		members;

	check_stack_depth();
	if (value->type != jbvBinary)
	{
		append_xml_text(document, scalar_text(value));
		return;
	}
	begin_members(&members, value);
	while (document->wrong == NULL && next_member(&members))
	{
		char	   *name = members.named ? scalar_text(&members.name) : NULL;

		if (name == NULL || strcmp(name, "#") == 0)
			append_content(document, &members.value);
		else if (name[0] != '@')
			append_element(document, name, &members.value);
	}
}

static void
append_attributes(Document *document, JsonbValue *object)
{
	Members		members;

	begin_members(&members, object);
	while (document->wrong == NULL && next_member(&members))
	{
		char	   *name = scalar_text(&members.name);

		if (name[0] == '@')
			append_attribute(document, name + 1, &members.value);
	}
}

/* An array is its element, repeated. */
static void
append_element(Document *document, const char *name, JsonbValue *value)
{
	Members		members;
	int			start;

	check_stack_depth();
	if (is_array(value))
	{
		begin_members(&members, value);
		while (document->wrong == NULL && next_member(&members))
			append_element(document, name, &members.value);
		return;
	}
	if (!is_xml_name(name))
	{
		document->wrong = psprintf("\"%s\" cannot be the name of an element",
								   name);
		return;
	}
	appendStringInfo(document->out, "<%s", name);
	if (is_object(value))
		append_attributes(document, value);
	start = document->out->len;
	appendStringInfoChar(document->out, '>');
	append_content(document, value);
	if (document->out->len > start + 1)
		appendStringInfo(document->out, "</%s>", name);
	else
	{
		document->out->len = start;
		appendStringInfoString(document->out, "/>");
	}
}

char	   *
accord_encode_xml(StringInfo out, JsonbValue *value, const char *root)
{
	Document	document = {.out = out};
	Members		members;
	int			n = 0;

	appendStringInfoString(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
	if (root == NULL && is_object(value))
	{
		begin_members(&members, value);
		while (next_member(&members))
			n++;
		begin_members(&members, value);
		(void) next_member(&members);
	}
	if (root == NULL && n != 1)
		return pstrdup("a document has one element: an object of one member, "
					   "unless its name is given");
	if (root == NULL)
	{
		value = &members.value;
		root = scalar_text(&members.name);
	}
	else
		root = to_utf8(pstrdup(root));
	if (is_array(value))
		return psprintf("a document has one element \"%s\", and this is an "
						"array", root);
	append_element(&document, root, value);
	return document.wrong;
}

/* ---- multipart ---- */

/* A parameter of Content-Disposition, quoted as forms in HTML do. */
static void
append_parameter(StringInfo out, const char *name, const char *value)
{
	appendStringInfo(out, "; %s=\"", name);
	for (; *value != '\0'; value++)
	{
		if (*value == '"')
			appendStringInfoString(out, "%22");
		else if (*value == '\r' || *value == '\n')
			appendStringInfoString(out, *value == '\r' ? "%0D" : "%0A");
		else
			appendStringInfoChar(out, *value);
	}
	appendStringInfoChar(out, '"');
}

static char *
file_member(JsonbValue *file, const char *name)
{
	JsonbValue *value = getKeyJsonValueFromContainer(file->val.binary.data,
													 name, strlen(name), NULL);

	return value == NULL || value->type != jbvString ? NULL :
		scalar_text(value);
}

/* An object that has content and members of a file, and no others. */
static bool
is_file(JsonbValue *value)
{
	static const char *const names[] = {
		"filename", "content_type", "base64", "text"
	};
	Members		members;
	bool		content;

	if (!is_object(value))
		return false;
	content = (file_member(value, "base64") != NULL) !=
		(file_member(value, "text") != NULL);
	begin_members(&members, value);
	while (content && next_member(&members))
	{
		char	   *name = scalar_text(&members.name);
		bool		known = false;

		for (int i = 0; i < lengthof(names); i++)
			known |= strcmp(name, names[i]) == 0;
		content = known && members.value.type == jbvString;
	}
	return content;
}

/* The lines before a part's content. */
static void
append_part_head(StringInfo out, const char *boundary, const char *name,
				 const char *filename, const char *type)
{
	appendStringInfo(out, "--%s\r\nContent-Disposition: form-data", boundary);
	append_parameter(out, "name", name);
	if (filename != NULL)
		append_parameter(out, "filename", filename);
	if (type != NULL)
		appendStringInfo(out, "\r\nContent-Type: %s", type);
	appendStringInfoString(out, "\r\n\r\n");
}

static char *
append_file(StringInfo out, const char *boundary, const char *name,
			JsonbValue *file)
{
	char	   *type = file_member(file, "content_type");
	char	   *base64 = file_member(file, "base64");
	char	   *filename = file_member(file, "filename");

	for (char *c = type; c != NULL && *c != '\0'; c++)
		if ((unsigned char) *c < ' ' || *c == 0x7F)
			return psprintf("content_type of part \"%s\" is not a line of "
							"text", name);
	if (type == NULL && base64 != NULL)
		type = "application/octet-stream";
	append_part_head(out, boundary, name, filename, type);
	if (base64 != NULL)
		accord_encode_bytes(out, base64);
	else
		appendStringInfoString(out, file_member(file, "text"));
	appendStringInfoString(out, "\r\n");
	return NULL;
}

static char *
append_part(StringInfo out, const char *boundary, const char *name,
			JsonbValue *value)
{
	Members		members;
	char	   *wrong = NULL;

	if (is_file(value))
		return append_file(out, boundary, name, value);
	if (is_array(value))
	{
		begin_members(&members, value);
		while (wrong == NULL && next_member(&members))
			wrong = is_array(&members.value) ?
				psprintf("part \"%s\" is an array in an array", name) :
				append_part(out, boundary, name, &members.value);
		return wrong;
	}
	append_part_head(out, boundary, name, NULL,
					 is_object(value) ? "application/json" : NULL);
	appendStringInfo(out, "%s\r\n", scalar_text(value));
	return NULL;
}

char	   *
accord_encode_multipart(StringInfo out, JsonbValue *value,
						const char *boundary)
{
	Members		members;
	char	   *wrong = NULL;

	if (!is_object(value))
		return pstrdup("a multipart body is made of an object, and this is "
					   "none");
	begin_members(&members, value);
	while (wrong == NULL && next_member(&members))
		wrong = append_part(out, boundary, scalar_text(&members.name),
							&members.value);
	appendStringInfo(out, "--%s--\r\n", boundary);
	return wrong;
}

void
accord_encode_bytes(StringInfo out, const char *base64)
{
	Datum		bytes = DirectFunctionCall2(binary_decode,
											CStringGetTextDatum(base64),
											CStringGetTextDatum("base64"));

	appendBinaryStringInfo(out, VARDATA_ANY(DatumGetByteaPP(bytes)),
						   VARSIZE_ANY_EXHDR(DatumGetByteaPP(bytes)));
}

/* ---- accord.encode_form(), accord.encode_xml() ---- */

static Datum
encoded_text(StringInfo out, char *wrong, const char *what)
{
	if (wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the value has no form as %s: %s", what, wrong),
				 errhint("See \"Bodies\" in the documentation for what jsonb "
						 "becomes.")));
	return CStringGetTextDatum(pg_any_to_server(out->data, out->len, PG_UTF8));
}

Datum
accord_encode_form_sql(PG_FUNCTION_ARGS)
{
	Jsonb	   *json = PG_GETARG_JSONB_P(0);
	char	   *word = text_to_cstring(PG_GETARG_TEXT_PP(1));
	AccordFormArrays arrays;
	StringInfoData out;

	if (!accord_encode_arrays(word, &arrays))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays \"%s\" is not a way to name elements", word),
				 errhint("Use index, brackets or repeat.")));
	initStringInfo(&out);
	PG_RETURN_DATUM(encoded_text(&out, accord_encode_form(&out,
														  accord_json_path(json, ""),
														  arrays),
								 "a form"));
}

Datum
accord_encode_xml_sql(PG_FUNCTION_ARGS)
{
	Jsonb	   *json;
	StringInfoData out;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	json = PG_GETARG_JSONB_P(0);
	initStringInfo(&out);
	PG_RETURN_DATUM(encoded_text(&out, accord_encode_xml(&out,
														 accord_json_path(json, ""),
														 PG_ARGISNULL(1) ? NULL :
														 text_to_cstring(PG_GETARG_TEXT_PP(1))),
								 "XML"));
}
