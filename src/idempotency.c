/*
 * idempotency.c: an idempotency key is used once.
 *
 * Runs in the application's backends, inside their transactions. keys.c
 * decides between sessions: whoever comes first works, the others wait for
 * that transaction to end and then find the key used, or use it themselves if
 * it aborted; at every isolation level.
 *
 * On failure the transaction aborts and the key is free again.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "idempotency.h"
#include "keys.h"

/* What makes two events the same: everything their author gave. */
static const AccordEventColumn content_columns[] = {
	ACCORD_EVENT_TOPIC, ACCORD_EVENT_KEY, ACCORD_EVENT_OP,
	ACCORD_EVENT_SOURCE, ACCORD_EVENT_ACCOUNT, ACCORD_EVENT_CHANNELS,
	ACCORD_EVENT_DELIVER_AT, ACCORD_EVENT_PAYLOAD, ACCORD_EVENT_BEFORE,
	ACCORD_EVENT_HEADERS, ACCORD_EVENT_EXPIRES_AT, ACCORD_EVENT_PRIORITY
};

/* A column's text form, the same in every session whatever its settings. */
static char *
stable_text(Oid type, Datum value)
{
	Oid			output;
	bool		varlena;

	if (type == TIMESTAMPTZOID)
		return psprintf(INT64_FORMAT, DatumGetTimestampTz(value));
	getTypeOutputInfo(type, &output, &varlena);
	return OidOutputFunctionCall(output, value);
}

/* SHA-256 over the columns' text forms, each with its length or as null. */
static void
content_fingerprint(const Datum *values, const bool *nulls, uint8 *fingerprint)
{
	StringInfoData content;
	Relation	rel = table_open(accord_db_relid("event_log"), AccessShareLock);

	initStringInfo(&content);
	for (int i = 0; i < lengthof(content_columns); i++)
	{
		int			column = content_columns[i];
		char	   *text;

		if (nulls[column - 1])
		{
			appendStringInfoString(&content, "-;");
			continue;
		}
		text = stable_text(TupleDescAttr(RelationGetDescr(rel),
										 column - 1)->atttypid,
						   values[column - 1]);
		appendStringInfo(&content, "%zu:%s;", strlen(text), text);
	}
	table_close(rel, AccessShareLock);
	accord_keys_fingerprint(content.data, content.len, fingerprint);
	pfree(content.data);
}

bool
accord_idempotency_claim(const Datum *values, const bool *nulls)
{
	Datum		scope = CStringGetTextDatum("outbox");
	Datum		key = values[ACCORD_EVENT_IDEMPOTENCY_KEY - 1];
	AccordKeys *keys = accord_keys_open(ACCORD_KEYS_IDEMPOTENCY);
	AccordKeyEntry ours = {0};
	AccordKeyEntry entry;
	AccordKeyState state;

	content_fingerprint(values, nulls, ours.fingerprint);
	ours.has_event = true;
	memcpy(&ours.event_id, DatumGetUUIDP(values[ACCORD_EVENT_EVENT_ID - 1]),
		   sizeof(pg_uuid_t));
	state = accord_keys_claim(keys, scope, key, true, &entry);
	if (state == ACCORD_KEY_FREE)
		accord_keys_store(keys, scope, key, &ours);
	accord_keys_close(keys);

	if (state == ACCORD_KEY_USED &&
		memcmp(entry.fingerprint, ours.fingerprint,
			   ACCORD_FINGERPRINT_LENGTH) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("idempotency key \"%s\" was used for an event with "
						"other content",
						TextDatumGetCString(key)),
				 errhint("Repeat the same event to have it discarded, or use "
						 "a new key for a new event.")));
	return state == ACCORD_KEY_FREE;
}
