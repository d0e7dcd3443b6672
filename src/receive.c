/*
 * receive.c: accord.receive(): a message from outside takes effect once.
 *
 * Runs in the application's backends, inside their transactions. A message is
 * looked for in the inbox first: the same content gives the stored result, and
 * nothing is written; other content is an error. A new one becomes an event,
 * or a change of its target, which the table's trigger makes an event of where
 * the table is captured, and this file otherwise. Then it is put into the
 * inbox, together with its result: one row, never updated.
 *
 * Invariants
 *   - From the look into the inbox to the row's being there the message is
 *     claimed (keys.c): of several sessions with the same one, one works.
 *   - An event carries its source, and so is not sent back there; but a
 *     message that lost is answered by an event addressed to its channel
 *     alone, with the row as it stands.
 *   - A result is stored only where it does not follow from the message:
 *     applied as it came is stored as null.
 *
 * On failure the (sub)transaction aborts, and the message was not received.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "accord.h"
#include "compat.h"
#include "config.h"
#include "image.h"
#include "json.h"
#include "log.h"
#include "managed.h"
#include "outbox.h"
#include "receive.h"
#include "target.h"

static const char *const status_words[] = {
	[ACCORD_RECEIVED_APPLIED] = "applied",
	[ACCORD_RECEIVED_PARTLY] = "partly",
	[ACCORD_RECEIVED_LOST] = "lost",
	[ACCORD_RECEIVED_IGNORED] = "ignored"
};

PG_FUNCTION_INFO_V1(accord_receive);
PG_FUNCTION_INFO_V1(accord_receive_batch);

/*
 * Results
 */

static JsonbValue *
string_value(JsonbValue *value, const char *string)
{
	value->type = jbvString;
	value->val.string.val = unconstify(char *, string);
	value->val.string.len = strlen(string);
	return value;
}

static void
add_name(AccordJsonbState *state, const char *name)
{
	JsonbValue	value;

	accord_jsonb_push(state, WJB_KEY, string_value(&value, name));
}

static void
add_string(AccordJsonbState *state, const char *name, const char *string)
{
	JsonbValue	value;

	add_name(state, name);
	accord_jsonb_push(state, WJB_VALUE, string_value(&value, string));
}

/* Nothing when there is none. */
static void
add_json(AccordJsonbState *state, const char *name, Jsonb *json)
{
	if (json == NULL)
		return;
	add_name(state, name);
	accord_jsonb_push(state, WJB_VALUE, accord_json_path(json, ""));
}

static void
add_duplicate(AccordJsonbState *state)
{
	JsonbValue	yes = {.type = jbvBool,.val.boolean = true};

	add_name(state, "duplicate");
	accord_jsonb_push(state, WJB_VALUE, &yes);
}

static char *
time_string(TimestampTz time)
{
	char		buffer[MAXDATELEN + 1];
	int			utc = 0;

	return pstrdup(JsonEncodeDateTime(buffer, TimestampTzGetDatum(time),
									  TIMESTAMPTZOID, &utc));
}

/* The result of a message that was applied as it came. */
static Jsonb *
plain_result(const AccordMessage *message, const AccordKeyEntry *entry,
			 bool repeated)
{
	AccordJsonbState state = {0};

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	add_string(&state, "status", status_words[ACCORD_RECEIVED_APPLIED]);
	if (entry->has_event)
		add_string(&state, "event_id",
				   DatumGetCString(DirectFunctionCall1(uuid_out,
													   UUIDPGetDatum(&entry->event_id))));
	if (OidIsValid(message->target))
		add_json(&state, "applied", message->changes);
	if (repeated)
		add_duplicate(&state);
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

/* Any other. */
static Jsonb *
full_result(const AccordMessage *message, const AccordKeyEntry *entry,
			const AccordApplied *applied, TimestampTz clamped_from)
{
	AccordJsonbState state = {0};

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	add_string(&state, "status", status_words[applied->status]);
	if (entry->has_event)
		add_string(&state, "event_id",
				   DatumGetCString(DirectFunctionCall1(uuid_out,
													   UUIDPGetDatum(&entry->event_id))));
	if (applied->status == ACCORD_RECEIVED_PARTLY)
		add_json(&state, "applied", applied->applied);
	else if (applied->status == ACCORD_RECEIVED_APPLIED &&
			 OidIsValid(message->target))
		add_json(&state, "applied", applied->applied ? applied->applied :
				 message->changes);
	add_json(&state, "lost", applied->lost);
	if (applied->status == ACCORD_RECEIVED_LOST ||
		applied->status == ACCORD_RECEIVED_PARTLY)
		add_json(&state, "row", applied->row);
	if (clamped_from != 0)
		add_string(&state, "clamped_from", time_string(clamped_from));
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

/* The stored result, marked as that of a repetition. */
static Jsonb *
repeated_result(const AccordMessage *message, const AccordKeyEntry *entry)
{
	AccordJsonbState state = {0};
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (entry->result == NULL)
		return plain_result(message, entry, true);
	iterator = JsonbIteratorInit(&entry->result->root);
	/* the object as it is, with one more member before its end */
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_END_OBJECT)
			add_duplicate(&state);
		accord_jsonb_push(&state, token,
						  token < WJB_BEGIN_ARRAY ? &value : NULL);
	}
	return JsonbValueToJsonb(state.result);
}

/*
 * Events
 */

#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
#define SET_TEXT(column, value) \
	do { if ((value) != NULL) SET(column, PointerGetDatum(value)); } while (0)
#define SET_JSON(column, value) SET_TEXT(column, value)

/* Appends the event, and notes it in the entry. */
static void
append_event(Datum *values, bool *nulls, AccordKeyEntry *entry)
{
	accord_outbox_check(values, nulls);
	(void) accord_log_append(values, nulls);
	entry->tx_id = DatumGetInt64(values[ACCORD_EVENT_TX_ID - 1]);
	entry->has_event = true;
	memcpy(&entry->event_id, DatumGetUUIDP(values[ACCORD_EVENT_EVENT_ID - 1]),
		   sizeof(pg_uuid_t));
}

/* A message under a topic is an event as it is. */
static void
append_message(const AccordSource *source, const AccordMessage *message,
			   AccordKeyEntry *entry)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	SET(ACCORD_EVENT_SOURCE, CStringGetTextDatum(source->name));
	SET(ACCORD_EVENT_OP, message->op ? PointerGetDatum(message->op) :
		CStringGetTextDatum("event"));
	SET_TEXT(ACCORD_EVENT_TOPIC, message->topic);
	SET_TEXT(ACCORD_EVENT_KEY, message->key);
	SET_TEXT(ACCORD_EVENT_ACCOUNT, message->account);
	SET_JSON(ACCORD_EVENT_PAYLOAD, message->changes);
	if (message->has_occurred_at)
		SET(ACCORD_EVENT_OCCURRED_AT,
			TimestampTzGetDatum(message->occurred_at));
	append_event(values, nulls, entry);
}

/* The parts that events about a target's row have in common. */
static void
fill_row_event(const AccordMessage *message, const AccordTargetEvents *events,
			   const AccordApplied *applied, Datum *values, bool *nulls)
{
	Jsonb	   *row = applied->row ? applied->row : applied->before;
	char	   *account = NULL;

	if (events->account != NULL && row != NULL)
		account = accord_image_text(row, events->account);
	memset(nulls, true, ACCORD_EVENT_COLUMNS * sizeof(bool));
	SET(ACCORD_EVENT_TOPIC, message->topic != NULL && events->table_id == 0 ?
		PointerGetDatum(message->topic) : CStringGetTextDatum(events->topic));
	SET_TEXT(ACCORD_EVENT_KEY, applied->key);
	SET_TEXT(ACCORD_EVENT_ACCOUNT, message->account);
	if (account != NULL && account[0] != '\0')
		SET(ACCORD_EVENT_ACCOUNT, CStringGetTextDatum(account));
	SET_JSON(ACCORD_EVENT_PAYLOAD, applied->row);
}

/* What a message did to a table that is not captured. */
static void
append_change(const AccordSource *source, const AccordMessage *message,
			  const AccordTargetEvents *events, const AccordApplied *applied,
			  AccordKeyEntry *entry)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	fill_row_event(message, events, applied, values, nulls);
	SET(ACCORD_EVENT_SOURCE, CStringGetTextDatum(source->name));
	SET(ACCORD_EVENT_OP, CStringGetTextDatum(applied->op));
	SET_JSON(ACCORD_EVENT_BEFORE, applied->before);
	if (message->has_occurred_at)
		SET(ACCORD_EVENT_OCCURRED_AT,
			TimestampTzGetDatum(message->occurred_at));
	append_event(values, nulls, entry);
}

/* Tells the channel, and no other, what stands where its message lost. */
static void
append_correction(const AccordSource *source, const AccordMessage *message,
				  const AccordTargetEvents *events,
				  const AccordApplied *applied, AccordKeyEntry *entry)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];
	Datum		channel = CStringGetTextDatum(source->name);
	AccordKeyEntry correction = {0};
	int			level;

	if (accord_config_channel(accord_config_get(), source->name) == NULL)
		return;					/* nobody there to be told */
	fill_row_event(message, events, applied, values, nulls);
	SET(ACCORD_EVENT_OP, CStringGetTextDatum(applied->row ? "update" :
											 "delete"));
	SET(ACCORD_EVENT_CHANNELS,
		PointerGetDatum(construct_array(&channel, 1, TEXTOID, -1, false,
										TYPALIGN_INT)));
	/* an event with that source would not be sent there */
	level = NewGUCNestLevel();
	(void) set_config_option("accord.source", "", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	append_event(values, nulls, &correction);
	AtEOXact_GUC(true, level);
	entry->tx_id = correction.tx_id;
	if (!entry->has_event)
		entry->event_id = correction.event_id;
	entry->has_event = true;
}

#undef SET
#undef SET_TEXT
#undef SET_JSON

/*
 * Receiving
 */

/* A time from too far in the future is refused, or brought nearer. */
static TimestampTz
clamp_time(const AccordSource *source, AccordMessage *message)
{
	TimestampTz given = message->occurred_at;
	TimestampTz latest = GetCurrentTimestamp() + source->skew;

	if (!message->has_occurred_at || given <= latest)
		return 0;
	if (source->refuse_ahead)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_FIELD_OVERFLOW),
				 errmsg("message \"%s\" of source \"%s\" is from the future: %s",
						text_to_cstring(message->event_id), source->name,
						timestamptz_to_str(given)),
				 errhint("Set that clock right, or allow more by "
						 "accord.source.skew.")));
	message->occurred_at = latest;
	return given;
}

static void
receive_change(const AccordSource *source, const AccordMessage *message,
			   AccordApplied *applied, AccordKeyEntry *entry)
{
	AccordTargetEvents events = accord_target_events(message->target);
	int64		before = accord_log_captured();

	accord_target_apply(message, source, applied);
	entry->tx_id = accord_log_tx_id();
	if (events.table_id != 0)
		entry->has_event = accord_log_captured_since(before, events.table_id,
													 &entry->event_id);
	else if (applied->op != NULL && applied->status != ACCORD_RECEIVED_LOST)
		append_change(source, message, &events, applied, entry);
	if (applied->status == ACCORD_RECEIVED_LOST ||
		applied->status == ACCORD_RECEIVED_PARTLY)
		append_correction(source, message, &events, applied, entry);
}

/* A message that is claimed: does it, stores what came of it, and returns it. */
static Jsonb *
receive_new(const AccordSource *source, AccordKeys *keys,
			AccordMessage *message, Datum scope, AccordKeyEntry *entry)
{
	AccordApplied applied = {0};
	TimestampTz clamped_from = 0;
	Jsonb	   *result;

	/* a managed table's stamps are made of the time as it is given */
	if (!OidIsValid(message->target) ||
		!accord_managed_is(message->target))
		clamped_from = clamp_time(source, message);
	if (OidIsValid(message->target))
		receive_change(source, message, &applied, entry);
	else
		append_message(source, message, entry);
	if (applied.clamped)
		clamped_from = message->occurred_at;
	if (applied.status == ACCORD_RECEIVED_APPLIED && applied.applied == NULL &&
		clamped_from == 0)
		result = plain_result(message, entry, false);
	else
		result = entry->result = full_result(message, entry, &applied,
											 clamped_from);
	accord_keys_store(keys, scope, PointerGetDatum(message->event_id), entry);
	return result;
}

Jsonb	   *
accord_receive_message(const AccordSource *source, AccordKeys *keys,
					   AccordMessage *message)
{
	Datum		scope = CStringGetTextDatum(source->name);
	AccordKeyEntry ours = {0};
	AccordKeyEntry entry;

	accord_message_check(message);
	accord_message_fingerprint(message, ours.fingerprint);
	if (accord_keys_claim(keys, scope, PointerGetDatum(message->event_id),
						  true, &entry) == ACCORD_KEY_FREE)
		return receive_new(source, keys, message, scope, &ours);
	if (memcmp(entry.fingerprint, ours.fingerprint,
			   ACCORD_FINGERPRINT_LENGTH) != 0)
		ereport(ERROR,
				(errcode(ACCORD_ERRCODE_OTHER_CONTENT),
				 errmsg("message \"%s\" of source \"%s\" was received before "
						"with other content",
						text_to_cstring(message->event_id), source->name),
				 errdetail("The first one was received at %s.",
						   timestamptz_to_str(entry.at)),
				 errhint("Its sender must give another event an id of its "
						 "own.")));
	return repeated_result(message, &entry);
}

static void
get_source(Datum name, bool isnull, AccordSource *source)
{
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("source of a message is null"),
				 errhint("Give the name of a source or channel.")));
	accord_log_require_preload();
	accord_source_get(TextDatumGetCString(name), source);
}

/*
 * accord.receive(source, event_id, topic, key, changes, occurred_at, revision,
 * op, target, account, base)
 */
Datum
accord_receive(PG_FUNCTION_ARGS)
{
	static const AccordMessageMember arguments[] = {
		ACCORD_MESSAGE_EVENT_ID, ACCORD_MESSAGE_TOPIC, ACCORD_MESSAGE_KEY,
		ACCORD_MESSAGE_CHANGES, ACCORD_MESSAGE_OCCURRED_AT,
		ACCORD_MESSAGE_REVISION, ACCORD_MESSAGE_OP, ACCORD_MESSAGE_TARGET,
		ACCORD_MESSAGE_ACCOUNT, ACCORD_MESSAGE_BASE
	};
	Datum		values[ACCORD_MESSAGE_MEMBERS];
	bool		nulls[ACCORD_MESSAGE_MEMBERS];
	AccordSource source;
	AccordMessage message;
	AccordKeys *keys;
	Jsonb	   *result;

	for (int i = 0; i < lengthof(arguments); i++)
	{
		nulls[arguments[i]] = PG_ARGISNULL(i + 1);
		values[arguments[i]] = PG_GETARG_DATUM(i + 1);
	}
	get_source(PG_GETARG_DATUM(0), PG_ARGISNULL(0), &source);
	accord_message_from_values(&message, values, nulls);
	keys = accord_keys_open(ACCORD_KEYS_INBOX);
	result = accord_receive_message(&source, keys, &message);
	accord_keys_close(keys);
	PG_RETURN_JSONB_P(result);
}

/* One message of a batch; what it takes up is freed with it. */
static void
receive_element(const AccordSource *source, AccordKeys *keys, JsonbValue *element,
				ReturnSetInfo *set, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	AccordMessage message;
	Datum		value;
	bool		isnull = false;

	accord_message_from_json(&message, element);
	value = JsonbPGetDatum(accord_receive_message(source, keys, &message));
	tuplestore_putvalues(set->setResult, set->setDesc, &value, &isnull);
	MemoryContextSwitchTo(old);
	MemoryContextReset(context);
}

/* accord.receive_batch(source, messages) */
Datum
accord_receive_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	AccordSource source;
	Jsonb	   *messages;
	AccordKeys *keys;
	MemoryContext context;
	int			n;

	get_source(PG_GETARG_DATUM(0), PG_ARGISNULL(0), &source);
	if (PG_ARGISNULL(1) || !JB_ROOT_IS_ARRAY(PG_GETARG_JSONB_P(1)) ||
		JB_ROOT_IS_SCALAR(PG_GETARG_JSONB_P(1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("messages of source \"%s\" are not a JSON array",
						source.name),
				 errhint("Give an array of objects with event_id, topic or "
						 "target, key, changes, ...")));
	messages = PG_GETARG_JSONB_P(1);
	n = JB_ROOT_COUNT(messages);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	keys = accord_keys_open(ACCORD_KEYS_INBOX);
	context = AllocSetContextCreate(CurrentMemoryContext, "pg_accord message",
									ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < n; i++)
		receive_element(&source, keys,
						getIthJsonbValueFromContainer(&messages->root, i), set,
						context);
	MemoryContextDelete(context);
	accord_keys_close(keys);
	return (Datum) 0;
}
