/*
 * message.c: a message from outside, as accord.receive() takes it.
 *
 * Runs in the application's backends. A message comes as arguments, as a JSON
 * object (the batch form), or member by member (a webhook's mapping); what it
 * says is the same, and so is its fingerprint.
 *
 * Invariants: nothing is kept; members point into what they were made of, or
 * are palloc'd. The fingerprint depends on nothing but the content: no
 * setting, no collation, no OID.
 *
 * On failure the error names the member.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/namespace.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "json.h"
#include "keys.h"
#include "message.h"

#define MAX_EVENT_ID 1000		/* bytes */
#define MILLISECONDS_FROM 1e11	/* seconds of the year 5138 */
#define MAX_QUOTED 60			/* bytes of a value that an error tells */

/* A member whose value may be none of its type, for name_member(). */
typedef struct Unreadable
{
	const char *member;
	JsonbValue *value;
	const char *what;			/* it should be */
	const char *hint;
} Unreadable;

static const char *const members[] = {
	[ACCORD_MESSAGE_EVENT_ID] = "event_id",
	[ACCORD_MESSAGE_TOPIC] = "topic",
	[ACCORD_MESSAGE_TARGET] = "target",
	[ACCORD_MESSAGE_KEY] = "key",
	[ACCORD_MESSAGE_OP] = "op",
	[ACCORD_MESSAGE_CHANGES] = "changes",
	[ACCORD_MESSAGE_OCCURRED_AT] = "occurred_at",
	[ACCORD_MESSAGE_REVISION] = "revision",
	[ACCORD_MESSAGE_ACCOUNT] = "account",
	[ACCORD_MESSAGE_BASE] = "base"
};

int
accord_message_member(const char *name, int len)
{
	for (int i = 0; i < lengthof(members); i++)
		if (strlen(members[i]) == len && memcmp(members[i], name, len) == 0)
			return i;
	return -1;
}

void
accord_message_from_values(AccordMessage *message, const Datum *values,
						   const bool *nulls)
{
	memset(message, 0, sizeof(AccordMessage));
#define TAKE_TEXT(field, member) \
	message->field = nulls[member] ? NULL : DatumGetTextPP(values[member])
	TAKE_TEXT(event_id, ACCORD_MESSAGE_EVENT_ID);
	TAKE_TEXT(topic, ACCORD_MESSAGE_TOPIC);
	TAKE_TEXT(key, ACCORD_MESSAGE_KEY);
	TAKE_TEXT(op, ACCORD_MESSAGE_OP);
	TAKE_TEXT(account, ACCORD_MESSAGE_ACCOUNT);
#undef TAKE_TEXT
	if (!nulls[ACCORD_MESSAGE_TARGET])
		message->target = DatumGetObjectId(values[ACCORD_MESSAGE_TARGET]);
	if (!nulls[ACCORD_MESSAGE_CHANGES])
		message->changes = DatumGetJsonbP(values[ACCORD_MESSAGE_CHANGES]);
	if (!nulls[ACCORD_MESSAGE_BASE])
		message->base = DatumGetJsonbP(values[ACCORD_MESSAGE_BASE]);
	if (!nulls[ACCORD_MESSAGE_REVISION])
		message->revision = DatumGetNumeric(values[ACCORD_MESSAGE_REVISION]);
	message->has_occurred_at = !nulls[ACCORD_MESSAGE_OCCURRED_AT];
	if (message->has_occurred_at)
		message->occurred_at =
			DatumGetTimestampTz(values[ACCORD_MESSAGE_OCCURRED_AT]);
}

/*
 * Member by member
 */

static double
to_double(Numeric number)
{
	return DatumGetFloat8(DirectFunctionCall1(numeric_float8,
											  NumericGetDatum(number)));
}

/* The beginning of a value, for an error. */
static char *
quoted(JsonbValue *value)
{
	char	   *text = accord_json_text(value);
	int			len = strlen(text);

	text[pg_mbcliplen(text, len, MAX_QUOTED)] = '\0';
	return text;
}

/*
 * The types' own messages tell the text alone. A callback may not tell more
 * than that another message goes instead; what has nothing to do with the
 * text, such as a cancellation, stays as it is.
 */
static void
name_member(void *arg)
{
	const Unreadable *given = arg;

	if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
		return;
	errmsg("%s \"%s\" of a message is not %s", given->member,
		   quoted(given->value), given->what);
	errhint("%s", given->hint);
}

/* A member's value, read by a function that may raise in its own words. */
static Datum
read_member(const char *member, JsonbValue *value,
			Datum (*read) (JsonbValue *value), const char *what,
			const char *hint)
{
	Unreadable	given = {
		.member = member,
		.value = value,
		.what = what,
		.hint = hint
	};
	ErrorContextCallback callback = {
		.previous = error_context_stack,
		.callback = name_member,
		.arg = &given
	};
	Datum		result;

	error_context_stack = &callback;
	result = read(value);
	error_context_stack = callback.previous;
	return result;
}

static Datum
read_time(JsonbValue *value)
{
	if (value->type == jbvNumeric)
	{
		double		seconds = to_double(value->val.numeric);

		if (fabs(seconds) >= MILLISECONDS_FROM)
			seconds /= 1000;
		return DirectFunctionCall1(float8_timestamptz, Float8GetDatum(seconds));
	}
	return DirectFunctionCall3(timestamptz_in,
							   CStringGetDatum(accord_json_text(value)),
							   ObjectIdGetDatum(InvalidOid),
							   Int32GetDatum(-1));
}

static TimestampTz
parse_time(JsonbValue *value)
{
	return DatumGetTimestampTz(read_member("occurred_at", value, read_time,
										   "a time",
										   "Give a timestamp, such as "
										   "2026-05-01T12:00:00Z, or the "
										   "seconds or milliseconds since "
										   "1970."));
}

static Datum
read_revision(JsonbValue *value)
{
	if (value->type == jbvNumeric)
		return NumericGetDatum(value->val.numeric);
	return DirectFunctionCall3(numeric_in,
							   CStringGetDatum(accord_json_text(value)),
							   ObjectIdGetDatum(InvalidOid),
							   Int32GetDatum(-1));
}

static Numeric
parse_revision(JsonbValue *value)
{
	return DatumGetNumeric(read_member("revision", value, read_revision,
									   "a number",
									   "Give what its sender numbers the "
									   "versions of a thing by."));
}

static Oid
parse_target(JsonbValue *value)
{
	return DatumGetObjectId(DirectFunctionCall1(regclassin,
												CStringGetDatum(accord_json_text(value))));
}

void
accord_message_set(AccordMessage *message, AccordMessageMember member,
				   JsonbValue *value)
{
	if (value->type == jbvNull)
		return;
	switch (member)
	{
		case ACCORD_MESSAGE_EVENT_ID:
			message->event_id = cstring_to_text(accord_json_text(value));
			break;
		case ACCORD_MESSAGE_TOPIC:
			message->topic = cstring_to_text(accord_json_text(value));
			break;
		case ACCORD_MESSAGE_TARGET:
			message->target = parse_target(value);
			break;
		case ACCORD_MESSAGE_KEY:
			message->key = cstring_to_text(accord_json_text(value));
			break;
		case ACCORD_MESSAGE_OP:
			message->op = cstring_to_text(accord_json_text(value));
			break;
		case ACCORD_MESSAGE_CHANGES:
			message->changes = JsonbValueToJsonb(value);
			break;
		case ACCORD_MESSAGE_OCCURRED_AT:
			message->occurred_at = parse_time(value);
			message->has_occurred_at = true;
			break;
		case ACCORD_MESSAGE_REVISION:
			message->revision = parse_revision(value);
			break;
		case ACCORD_MESSAGE_ACCOUNT:
			message->account = cstring_to_text(accord_json_text(value));
			break;
		case ACCORD_MESSAGE_BASE:
			message->base = JsonbValueToJsonb(value);
			break;
		case ACCORD_MESSAGE_MEMBERS:
			break;
	}
}

void
accord_message_from_json(AccordMessage *message, JsonbValue *object)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			member = -1;

	memset(message, 0, sizeof(AccordMessage));
	if (object->type != jbvBinary ||
		!JsonContainerIsObject(object->val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a message of a batch is not a JSON object"),
				 errhint("Give an array of objects with event_id, topic or "
						 "target, key, changes, ...")));
	iterator = JsonbIteratorInit(object->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			member = accord_message_member(value.val.string.val,
										   value.val.string.len);
			if (member < 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("a message has no member \"%.*s\"",
								value.val.string.len, value.val.string.val),
						 errhint("Use event_id, topic, target, key, op, "
								 "changes, occurred_at, revision, account "
								 "and base.")));
		}
		else if (token == WJB_VALUE)
			accord_message_set(message, member, &value);
	}
}

void
accord_message_check(const AccordMessage *message)
{
	if (message->event_id == NULL || VARSIZE_ANY_EXHDR(message->event_id) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("a message has no event_id"),
				 errhint("Give the id by which its sender knows it: what is "
						 "repeated is recognised by it.")));
	if (VARSIZE_ANY_EXHDR(message->event_id) > MAX_EVENT_ID)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("event_id of a message is longer than %d bytes",
						MAX_EVENT_ID),
				 errhint("Use a hash of it.")));
	if (message->topic == NULL && !OidIsValid(message->target))
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("message \"%s\" has neither topic nor target",
						text_to_cstring(message->event_id)),
				 errhint("Say what it is about: a topic, or a table as "
						 "target.")));
}

/*
 * Content
 */

static void
add_bytes(StringInfo content, const char *bytes, Size len)
{
	appendStringInfo(content, "%zu:", len);
	appendBinaryStringInfo(content, bytes, (int) len);
}

static void
add_text(StringInfo content, text * value)
{
	if (value == NULL)
		appendStringInfoString(content, "-;");
	else
		add_bytes(content, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
}

static void
add_json(StringInfo content, Jsonb *value)
{
	if (value == NULL)
		appendStringInfoString(content, "-;");
	else
		add_bytes(content, VARDATA(value), VARSIZE(value) - VARHDRSZ);
}

static void
add_target(StringInfo content, Oid target)
{
	char	   *name;

	if (!OidIsValid(target))
	{
		appendStringInfoString(content, "-;");
		return;
	}
	name = get_rel_name(target);
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("target of a message (OID %u) does not exist", target),
				 errhint("Give a table as target.")));
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(target)),
									  name);
	add_bytes(content, name, strlen(name));
}

/* jsonb is stored in one form whatever the order and blanks it came in. */
void
accord_message_fingerprint(const AccordMessage *message, uint8 *fingerprint)
{
	StringInfoData content;

	initStringInfo(&content);
	add_text(&content, message->topic);
	add_target(&content, message->target);
	add_text(&content, message->key);
	add_text(&content, message->op);
	add_text(&content, message->account);
	add_json(&content, message->changes);
	add_json(&content, message->base);
	if (message->has_occurred_at)
		appendStringInfo(&content, INT64_FORMAT ";", message->occurred_at);
	else
		appendStringInfoString(&content, "-;");
	if (message->revision != NULL)
		appendStringInfoString(&content, numeric_normalize(message->revision));
	accord_keys_fingerprint(content.data, content.len, fingerprint);
	pfree(content.data);
}
