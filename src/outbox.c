/*
 * outbox.c: INSERT INTO accord.outbox.
 *
 * Runs in the application's backends, as INSTEAD OF triggers of the view. A
 * row is checked in full before anything is written: what is wrong with it is
 * said now, not at delivery.
 *
 * A view's triggers cannot be ENABLE ALWAYS: with session_replication_role =
 * replica they are passed over, and the event would be lost without a word. So
 * every query is looked at before it begins, and COPY by lifecycle.c.
 *
 * On failure the statement raises and the transaction decides.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "parser/parsetree.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "compat.h"
#include "config.h"
#include "db.h"
#include "log.h"
#include "outbox.h"

#define MAX_EVENT_BYTES (256 * 1024 * 1024) /* payload, before and headers */

/* Columns of accord.outbox, in order, as columns of event_log. */
static const AccordEventColumn outbox_columns[] = {
	ACCORD_EVENT_EVENT_ID, ACCORD_EVENT_TOPIC, ACCORD_EVENT_KEY,
	ACCORD_EVENT_OP, ACCORD_EVENT_PAYLOAD, ACCORD_EVENT_BEFORE,
	ACCORD_EVENT_SOURCE, ACCORD_EVENT_ACCOUNT, ACCORD_EVENT_CHANNELS,
	ACCORD_EVENT_DELIVER_AT, ACCORD_EVENT_EXPIRES_AT, ACCORD_EVENT_PRIORITY,
	ACCORD_EVENT_IDEMPOTENCY_KEY, ACCORD_EVENT_HEADERS,
	ACCORD_EVENT_OCCURRED_AT, ACCORD_EVENT_RECORDED_AT, ACCORD_EVENT_TX_ID,
	ACCORD_EVENT_ORD
};

/* Columns that nobody may give. */
static const struct
{
	AccordEventColumn column;
	const char *name;
}			given_columns[] = {
	{ACCORD_EVENT_EVENT_ID, "event_id"},
	{ACCORD_EVENT_RECORDED_AT, "recorded_at"},
	{ACCORD_EVENT_TX_ID, "tx_id"},
	{ACCORD_EVENT_ORD, "ord"}
};

PG_FUNCTION_INFO_V1(accord_outbox_insert);
PG_FUNCTION_INFO_V1(accord_outbox_refuse);
PG_FUNCTION_INFO_V1(accord_control_append);

/* A text column; NULL when null. */
static char *
text_of(const Datum *values, const bool *nulls, AccordEventColumn column)
{
	return nulls[column - 1] ? NULL : TextDatumGetCString(values[column - 1]);
}

static void
refuse_given(const bool *nulls)
{
	for (int i = 0; i < lengthof(given_columns); i++)
		if (!nulls[given_columns[i].column - 1])
			ereport(ERROR,
					(errcode(ERRCODE_GENERATED_ALWAYS),
					 errmsg("cannot insert a value into column \"%s\" of "
							"accord.outbox", given_columns[i].name),
					 errhint("Leave it out and read it by RETURNING; to "
							 "recognise a repeated event give "
							 "idempotency_key.")));
}

static void
check_topic(const char *topic)
{
	if (topic == NULL || topic[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("event in accord.outbox has no topic"),
				 errhint("Give what kind of thing it is about, such as "
						 "'rate.changed'.")));
	if (strlen(topic) > ACCORD_MAX_TOPIC)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("topic \"%.40s...\" is longer than %d bytes", topic,
						ACCORD_MAX_TOPIC),
				 errhint("Put what tells one thing from another into key.")));
	if (strncmp(topic, "accord.", 7) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("topic \"%s\" is reserved", topic),
				 errhint("Choose a topic that does not begin with "
						 "\"accord.\".")));
	for (const char *p = topic; *p != '\0'; p++)
		if ((unsigned char) *p <= ' ' || *p == 0x7F || *p == '*')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("topic \"%s\" holds a blank, a control character "
							"or \"*\"", topic),
					 errhint("Use letters, digits, dots and dashes.")));
}

/* Columns whose length is limited, in bytes, and what to do about it. */
static const struct
{
	AccordEventColumn column;
	const char *name;
	Size		limit;
	const char *hint;
}			limited_columns[] = {

	{ACCORD_EVENT_KEY, "key", ACCORD_MAX_KEY,
	"Put the bulk of it into payload."},
	{ACCORD_EVENT_SOURCE, "source", 63, "Give the name of a channel."},
	{ACCORD_EVENT_ACCOUNT, "account", 1020, "Give the name of an account."},
	{ACCORD_EVENT_CHANNELS, "channels", 65536,
	"Leave it null and have the routes decide."},
	{ACCORD_EVENT_IDEMPOTENCY_KEY, "idempotency_key", 1000,
	"Use a hash of it."}
};

/* Bytes of a value as it is sent, wherever it is stored now. */
static Size
raw_size(const Datum *values, const bool *nulls, AccordEventColumn column)
{
	return nulls[column - 1] ? 0 :
		toast_raw_datum_size(values[column - 1]) - VARHDRSZ;
}

/*
 * A row that no dispatcher could hold would stop it at every start: so what
 * may be long is limited, each column and all together.
 */
static void
check_sizes(const Datum *values, const bool *nulls)
{
	Size		total = raw_size(values, nulls, ACCORD_EVENT_PAYLOAD) +
	raw_size(values, nulls, ACCORD_EVENT_BEFORE) +
	raw_size(values, nulls, ACCORD_EVENT_HEADERS);

	for (int i = 0; i < lengthof(limited_columns); i++)
		if (raw_size(values, nulls, limited_columns[i].column) >
			limited_columns[i].limit)
			ereport(ERROR,
					(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
					 errmsg("%s of an event in accord.outbox is longer than "
							"%zu bytes", limited_columns[i].name,
							limited_columns[i].limit),
					 errhint("%s", limited_columns[i].hint)));
	if (total > MAX_EVENT_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("an event in accord.outbox is larger than %d MB",
						MAX_EVENT_BYTES / 1024 / 1024),
				 errhint("Store the bulk elsewhere, and have the event name "
						 "it.")));
}

static void
check_op(const char *op)
{
	if (accord_config_op(op) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("op \"%s\" of an event is not known", op),
				 errhint("Use insert, update, delete, truncate or event.")));
}

static void
check_times(const Datum *values, const bool *nulls)
{
	int			priority = nulls[ACCORD_EVENT_PRIORITY - 1] ?
	ACCORD_PRIORITY_NORMAL : DatumGetInt16(values[ACCORD_EVENT_PRIORITY - 1]);

	if (priority < 0 || priority >= ACCORD_PRIORITIES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("priority %d of an event is not known", priority),
				 errhint("Use 0 (urgent), 1 (normal) or 2 (bulk).")));
	if (!nulls[ACCORD_EVENT_DELIVER_AT - 1] &&
		!nulls[ACCORD_EVENT_EXPIRES_AT - 1] &&
		DatumGetTimestampTz(values[ACCORD_EVENT_EXPIRES_AT - 1]) <=
		DatumGetTimestampTz(values[ACCORD_EVENT_DELIVER_AT - 1]))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an event expires before it is to be delivered"),
				 errhint("Give expires_at a time after deliver_at.")));
}

/* Explicit addresses must exist: an event for nobody would be lost. */
static void
check_channels(Datum channels)
{
	ArrayType  *array = DatumGetArrayTypeP(channels);
	Datum	   *names;
	bool	   *nulls;
	int			n;
	AccordConfig *config;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &names, &nulls,
					  &n);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channels of an event is an empty array"),
				 errhint("Leave it null to have the routes decide.")));
	config = accord_config_get();
	for (int i = 0; i < n; i++)
	{
		if (nulls[i] ||
			accord_config_channel(config,
								  TextDatumGetCString(names[i])) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("channel \"%s\" does not exist",
							nulls[i] ? "null" : TextDatumGetCString(names[i])),
					 errhint("INSERT INTO accord.channel first, or correct "
							 "the name in channels.")));
	}
}

void
accord_outbox_check(const Datum *values, const bool *nulls)
{
	check_topic(text_of(values, nulls, ACCORD_EVENT_TOPIC));
	check_sizes(values, nulls);
	check_op(text_of(values, nulls, ACCORD_EVENT_OP));
	check_times(values, nulls);
	if (!nulls[ACCORD_EVENT_CHANNELS - 1])
		check_channels(values[ACCORD_EVENT_CHANNELS - 1]);
	if (!nulls[ACCORD_EVENT_HEADERS - 1])
		accord_config_check_headers("accord.outbox", "headers",
									DatumGetJsonbP(values[ACCORD_EVENT_HEADERS - 1]),
									false);
}

Datum
accord_outbox_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	Datum		row[lengthof(outbox_columns)];
	bool		row_nulls[lengthof(outbox_columns)];
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "accord.outbox_insert() was not called by a trigger");
	desc = RelationGetDescr(trigger->tg_relation);
	if (desc->natts != lengthof(outbox_columns))
		elog(ERROR, "accord.outbox has %d columns, this library knows %d",
			 desc->natts, (int) lengthof(outbox_columns));
	heap_deform_tuple(trigger->tg_trigtuple, desc, row, row_nulls);

	memset(nulls, true, sizeof(nulls));
	for (int i = 0; i < lengthof(outbox_columns); i++)
	{
		values[outbox_columns[i] - 1] = row[i];
		nulls[outbox_columns[i] - 1] = row_nulls[i];
	}
	if (nulls[ACCORD_EVENT_OP - 1])
	{
		values[ACCORD_EVENT_OP - 1] = CStringGetTextDatum("event");
		nulls[ACCORD_EVENT_OP - 1] = false;
	}
	refuse_given(nulls);
	accord_outbox_check(values, nulls);
	if (!accord_log_append(values, nulls))
		return PointerGetDatum(NULL);	/* a repetition: INSERT 0 0 */

	for (int i = 0; i < lengthof(outbox_columns); i++)
	{
		row[i] = values[outbox_columns[i] - 1];
		row_nulls[i] = nulls[outbox_columns[i] - 1];
	}
	return PointerGetDatum(heap_form_tuple(desc, row, row_nulls));
}

Datum
accord_outbox_refuse(PG_FUNCTION_ARGS)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot UPDATE or DELETE in accord.outbox"),
			 errhint("An event is for good; INSERT one that says what is true "
					 "now, or give up its deliveries with accord.discard().")));
	PG_RETURN_NULL();
}

static ExecutorStart_hook_type next_executor_start = NULL;

void
accord_outbox_refuse_replica(Oid relid)
{
	if (SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA ||
		!OidIsValid(relid) || relid != accord_db_relid_if_any("outbox"))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot insert into accord.outbox while "
					"session_replication_role is replica"),
			 errdetail("Its trigger does not fire there, and the event "
					   "would be lost."),
			 errhint("Set session_replication_role to origin for the "
					 "INSERT; changes that are replicated were written "
					 "down where they were made.")));
}

static void
start_query(QueryDesc *query, int flags)
{
	PlannedStmt *plan = query->plannedstmt;
	int			relation = -1;

	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		while ((relation = accord_next_result_relation(plan, relation)) > 0)
			accord_outbox_refuse_replica(rt_fetch(relation,
												  plan->rtable)->relid);
	if (next_executor_start != NULL)
		next_executor_start(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

void
accord_outbox_init(void)
{
	next_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = start_query;
}

/* accord.control_append(topic, payload): a decision, as an event of ours. */
Datum
accord_control_append(PG_FUNCTION_ARGS)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	values[ACCORD_EVENT_TOPIC - 1] = PG_GETARG_DATUM(0);
	nulls[ACCORD_EVENT_TOPIC - 1] = false;
	values[ACCORD_EVENT_PAYLOAD - 1] = PG_GETARG_DATUM(1);
	nulls[ACCORD_EVENT_PAYLOAD - 1] = false;
	values[ACCORD_EVENT_OP - 1] = CStringGetTextDatum("event");
	nulls[ACCORD_EVENT_OP - 1] = false;
	accord_log_append(values, nulls);
	PG_RETURN_VOID();
}
