/*
 * capture.c: rows of captured tables that change become events.
 *
 * Runs in the application's backends, as a trigger that accord.capture()
 * attaches: AFTER, for each row, so that what is written is what is stored,
 * whatever other triggers made of it, and only if it was stored. The trigger's
 * argument is the table's own number (accord.captured.id), so that dump and
 * restore, pg_upgrade and renaming keep its history. It is enabled for writes
 * of origin only: rows that arrive by logical replication were captured where
 * they were made.
 *
 * Invariants
 *   - What is known of a table (names, types, key) is made once per session
 *     and trigger, in a memory context of its own, and again after the
 *     relation cache said that the table changed. Nothing is looked up for a
 *     row.
 *   - An update that changes none of the captured columns is no event.
 *   - An update that changes the key, or the account, is two: the delete of
 *     the old one and the insert of the new one, in this order, next to each
 *     other; the insert alone has `before`.
 *
 * On failure the statement raises, and the transaction decides.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "clock.h"
#include "capture.h"
#include "db.h"
#include "guc.h"
#include "image.h"
#include "log.h"
#include "rowkey.h"

typedef enum CaptureOp
{
	CAPTURE_INSERT,
	CAPTURE_UPDATE,
	CAPTURE_DELETE,
	CAPTURE_TRUNCATE
} CaptureOp;

#define CAPTURE_OPS (CAPTURE_TRUNCATE + 1)

static const char *const op_names[] = {
	[CAPTURE_INSERT] = "insert",
	[CAPTURE_UPDATE] = "update",
	[CAPTURE_DELETE] = "delete",
	[CAPTURE_TRUNCATE] = "truncate"
};

struct AccordCapture
{
	int			id;				/* accord.captured.id */
	Datum		topic;
	AccordImage *image;
	int			n_columns;		/* of the image */
	bool	   *is_identity;	/* of these: part of the key, or the account */
	int			n_keys;
	int		   *keys;			/* which of the image's columns, in order */
	int			account;		/* which of them names the account, or -1 */
	Datum		ops[CAPTURE_OPS];	/* their names */
	bool		refuses_truncate;
};

/* What is known of a table's trigger. */
typedef struct CacheEntry
{
	Oid			trigger;		/* hash key */
	Oid			relid;
	bool		made;			/* what follows is there */
	bool		stale;			/* the table changed since */
	MemoryContext context;		/* holds what follows */
	AccordCapture *capture;
} CacheEntry;

static HTAB *captures = NULL;

PG_FUNCTION_INFO_V1(accord_capture_row);
PG_FUNCTION_INFO_V1(accord_capture_truncate);

/* ---- what is known of a table -------------------------------------------- */

/* Relation cache callback. What is in use goes on being used by this call. */
static void
mark_stale(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	CacheEntry *entry;

	hash_seq_init(&scan, captures);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (!OidIsValid(relid) || entry->relid == relid)
			entry->stale = true;
}

static void
create_cache(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(CacheEntry);
	ctl.hcxt = TopMemoryContext;
	captures = hash_create("pg_accord captures", 64, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(mark_stale, (Datum) 0);
}

/* An array of names as C strings; NULL when the column is null. */
static char **
name_list(const Datum *values, const bool *nulls, AccordCapturedColumn column,
		  int *n)
{
	Datum	   *names;
	bool	   *name_nulls;
	char	  **result;

	*n = 0;
	if (nulls[column - 1])
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(values[column - 1]), TEXTOID, -1,
					  false, TYPALIGN_INT, &names, &name_nulls, n);
	result = palloc((*n + 1) * sizeof(char *));
	for (int i = 0; i < *n; i++)
		result[i] = TextDatumGetCString(names[i]);
	return result;
}

/* A column's number; 0: there is none of this name. */
static AttrNumber
find_column(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped &&
			strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) == 0)
			return i + 1;
	return 0;
}

static AttrNumber
require_column(TupleDesc desc, const char *table, const char *name)
{
	AttrNumber	number = find_column(desc, name);

	if (number == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of captured table \"%s\" does not exist",
						name, table),
				 errhint("Call accord.capture() again with the columns that "
						 "the table has now.")));
	return number;
}

/* Which columns are captured: those included, or all but those excluded. */
static Bitmapset *
choose_columns(TupleDesc desc, const char *table, const Datum *values,
			   const bool *nulls)
{
	Bitmapset  *chosen = NULL;
	char	  **names;
	int			n;

	names = name_list(values, nulls, ACCORD_CAPTURED_COLUMNS, &n);
	for (int i = 0; i < n; i++)
		chosen = bms_add_member(chosen,
								require_column(desc, table, names[i]));
	if (names != NULL)
		return chosen;
	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped)
			chosen = bms_add_member(chosen, i + 1);
	names = name_list(values, nulls, ACCORD_CAPTURED_EXCLUDED, &n);
	for (int i = 0; i < n; i++)
		chosen = bms_del_member(chosen, find_column(desc, names[i]));
	return chosen;
}

/* Which of the image's columns has this name; it is there. */
static int
find_image_column(const AccordCapture *capture, TupleDesc desc,
				  const char *name)
{
	for (int i = 0; i < capture->n_columns; i++)
	{
		int			at = accord_image_index(capture->image, i);

		if (strcmp(NameStr(TupleDescAttr(desc, at)->attname), name) == 0)
			return i;
	}
	elog(ERROR, "column \"%s\" is not captured", name);
	return -1;
}

/* What is the same in all its events. */
static void
fill_constants(AccordCapture *capture, const Datum *values)
{
	char	   *on_truncate =
	TextDatumGetCString(values[ACCORD_CAPTURED_ON_TRUNCATE - 1]);

	capture->topic =
		PointerGetDatum(DatumGetTextPCopy(values[ACCORD_CAPTURED_TOPIC - 1]));
	capture->refuses_truncate = strcmp(on_truncate, "refuse") == 0;
	for (int op = 0; op < CAPTURE_OPS; op++)
		capture->ops[op] = CStringGetTextDatum(op_names[op]);
}

/* Makes an entry of the table's row of accord.captured. */
static void
fill_capture(AccordCapture *capture, TupleDesc desc, const char *table,
			 const Datum *values, const bool *nulls)
{
	Bitmapset  *columns = choose_columns(desc, table, values, nulls);
	char	   *account = NULL;
	char	  **keys;

	keys = name_list(values, nulls, ACCORD_CAPTURED_KEY_COLUMNS,
					 &capture->n_keys);
	for (int i = 0; i < capture->n_keys; i++)
		columns = bms_add_member(columns, require_column(desc, table, keys[i]));
	if (!nulls[ACCORD_CAPTURED_ACCOUNT_COLUMN - 1])
	{
		account = TextDatumGetCString(values[ACCORD_CAPTURED_ACCOUNT_COLUMN - 1]);
		columns = bms_add_member(columns, require_column(desc, table, account));
	}
	capture->image = accord_image_prepare(desc, columns);
	capture->n_columns = accord_image_columns(capture->image);
	capture->is_identity = palloc0(capture->n_columns * sizeof(bool));
	capture->keys = palloc(capture->n_keys * sizeof(int));
	for (int i = 0; i < capture->n_keys; i++)
	{
		capture->keys[i] = find_image_column(capture, desc, keys[i]);
		capture->is_identity[capture->keys[i]] = true;
	}
	capture->account = account == NULL ? -1 :
		find_image_column(capture, desc, account);
	if (capture->account >= 0)
		capture->is_identity[capture->account] = true;
	fill_constants(capture, values);
}

/*
 * Reads the table's row of accord.captured as it is now: a transaction's
 * snapshot may be older than the trigger it already sees.
 */
AccordCapture *
accord_capture_open(int id, TupleDesc desc, const char *table)
{
	Relation	captured = table_open(accord_db_relid("captured"),
									  AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	AccordCapture *capture = NULL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	list_free(RelationGetIndexList(captured));	/* sets rd_pkindex */
	ScanKeyInit(&key, ACCORD_CAPTURED_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(id));
	scan = systable_beginscan(captured, captured->rd_pkindex, true, snapshot,
							  1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[ACCORD_CAPTURED_COLUMNS_END];
		bool		nulls[ACCORD_CAPTURED_COLUMNS_END];

		heap_deform_tuple(tuple, RelationGetDescr(captured), values, nulls);
		capture = palloc0(sizeof(AccordCapture));
		capture->id = id;
		fill_capture(capture, desc, table, values, nulls);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(captured, AccessShareLock);
	return capture;
}

static void
make_entry(CacheEntry *entry, Relation rel, const Trigger *trigger)
{
	MemoryContext old;
	int			id = pg_strtoint32(trigger->tgargs[0]);

	if (entry->context == NULL)
		entry->context = AllocSetContextCreate(TopMemoryContext,
											   "pg_accord capture",
											   ALLOCSET_SMALL_SIZES);
	MemoryContextReset(entry->context);
	entry->made = false;
	entry->stale = false;		/* may be set again meanwhile */
	entry->relid = RelationGetRelid(rel);
	old = MemoryContextSwitchTo(entry->context);
	entry->capture = accord_capture_open(id, RelationGetDescr(rel),
										 RelationGetRelationName(rel));
	MemoryContextSwitchTo(old);
	if (entry->capture == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is captured as number %d, of which "
						"accord.captured knows nothing",
						RelationGetRelationName(rel), id),
				 errhint("Call accord.capture() for the table, or drop its "
						 "trigger \"%s\".", trigger->tgname)));
	entry->made = true;
}

static AccordCapture *
find_capture(TriggerData *data)
{
	CacheEntry *entry;
	bool		found;

	if (captures == NULL)
		create_cache();
	entry = hash_search(captures, &data->tg_trigger->tgoid, HASH_ENTER,
						&found);
	if (!found)
	{
		entry->context = NULL;
		entry->made = false;
	}
	if (!entry->made || entry->stale)
		make_entry(entry, data->tg_relation, data->tg_trigger);
	return entry->capture;
}

/* ---- events -------------------------------------------------------------- */

static char *
make_key(const AccordCapture *capture, TupleTableSlot *row, Jsonb *image)
{
	char	   *parts[MaxTupleAttributeNumber];

	for (int i = 0; i < capture->n_keys; i++)
		parts[i] = accord_image_column_text(capture->image, capture->keys[i], image,
											row->tts_values, row->tts_isnull);
	return accord_rowkey_make(capture->n_keys, parts);
}

/* The account an event concerns; NULL when it concerns none. */
static char *
make_account(const AccordCapture *capture, TupleTableSlot *row, Jsonb *image)
{
	char	   *account;

	if (capture->account < 0)
		return NULL;
	account = accord_image_column_text(capture->image, capture->account, image,
									   row->tts_values, row->tts_isnull);
	if (account == NULL || account[0] == '\0' ||
		strlen(account) > ACCORD_MAX_ACCOUNT)
		return NULL;			/* there is no account of that name */
	return account;
}

/* An event about a row: all of it is the payload, or for what is gone `before`. */
static void
describe_event(const AccordCapture *capture, CaptureOp op,
			   TupleTableSlot *row, Datum *values, bool *nulls)
{
	bool		is_gone = op == CAPTURE_DELETE || op == CAPTURE_TRUNCATE;
	Jsonb	   *image;
	char	   *key;
	char	   *account;
	TimestampTz stamped = accord_clock_published(row->tts_tableOid);

	slot_getallattrs(row);
	image = accord_image_build(capture->image, row->tts_values,
							   row->tts_isnull, NULL);
	key = make_key(capture, row, image);
	account = make_account(capture, row, image);
	memset(nulls, true, ACCORD_EVENT_COLUMNS * sizeof(bool));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_TABLE_ID, Int32GetDatum(capture->id));
	SET(ACCORD_EVENT_TOPIC, capture->topic);
	SET(ACCORD_EVENT_OP, capture->ops[op]);
	SET(is_gone ? ACCORD_EVENT_BEFORE : ACCORD_EVENT_PAYLOAD,
		JsonbPGetDatum(image));
	if (key != NULL)
		SET(ACCORD_EVENT_KEY, CStringGetTextDatum(key));
	if (account != NULL)
		SET(ACCORD_EVENT_ACCOUNT, CStringGetTextDatum(account));
	if (accord_source != NULL && accord_source[0] != '\0')
		SET(ACCORD_EVENT_SOURCE, CStringGetTextDatum(accord_source));
	/* of a managed table: the time by which the change counts here */
	if (stamped != 0)
		SET(ACCORD_EVENT_OCCURRED_AT, TimestampTzGetDatum(stamped));
#undef SET
}

/* before, when given, is what an update changed. */
static void
append_event(const AccordCapture *capture, CaptureOp op, TupleTableSlot *row,
			 Jsonb *before)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	describe_event(capture, op, row, values, nulls);
	if (before != NULL)
	{
		values[ACCORD_EVENT_BEFORE - 1] = JsonbPGetDatum(before);
		nulls[ACCORD_EVENT_BEFORE - 1] = false;
	}
	accord_log_append(values, nulls);
}

/*
 * A baseline event is an insert that changed nothing, and is addressed to
 * nobody: the row was there before.
 */
void
accord_capture_baseline(const AccordCapture *capture, TupleTableSlot *row)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];
	bool	   *none = palloc0(capture->n_columns * sizeof(bool));

	describe_event(capture, CAPTURE_INSERT, row, values, nulls);
	values[ACCORD_EVENT_BEFORE - 1] =
		JsonbPGetDatum(accord_image_build(capture->image, row->tts_values,
										  row->tts_isnull, none));
	nulls[ACCORD_EVENT_BEFORE - 1] = false;
	values[ACCORD_EVENT_CHANNELS - 1] =
		PointerGetDatum(construct_empty_array(TEXTOID));
	nulls[ACCORD_EVENT_CHANNELS - 1] = false;
	accord_log_append(values, nulls);
}

char	   *
accord_capture_key(const AccordCapture *capture, TupleTableSlot *row)
{
	slot_getallattrs(row);
	return make_key(capture, row,
					accord_image_build(capture->image, row->tts_values,
									   row->tts_isnull, NULL));
}

static void
capture_update(const AccordCapture *capture, TupleTableSlot *old_row,
			   TupleTableSlot *new_row)
{
	bool		changed[MaxTupleAttributeNumber];
	bool		moved = false;
	Jsonb	   *before;

	slot_getallattrs(old_row);
	slot_getallattrs(new_row);
	if (accord_image_compare(capture->image, old_row->tts_values,
							 old_row->tts_isnull, new_row->tts_values,
							 new_row->tts_isnull, changed) == 0)
		return;
	for (int i = 0; i < capture->n_columns; i++)
		moved |= changed[i] && capture->is_identity[i];
	if (moved)
		append_event(capture, CAPTURE_DELETE, old_row, NULL);
	before = accord_image_build(capture->image, old_row->tts_values,
								old_row->tts_isnull, changed);
	append_event(capture, moved ? CAPTURE_INSERT : CAPTURE_UPDATE, new_row,
				 before);
}

/*
 * Where there is a condition, updates by which a row comes to meet it, or
 * ceases to, have triggers of their own.
 */
static bool
has_part(const Trigger *trigger, const char *part)
{
	return trigger->tgnargs > 1 && strcmp(trigger->tgargs[1], part) == 0;
}

/* The row trigger: AFTER INSERT, UPDATE, DELETE. */
Datum
accord_capture_row(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	AccordCapture *capture;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		data->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("accord.capture_row() was not called by a trigger of "
						"accord.capture()"),
				 errhint("Call accord.capture() to have a table captured.")));
	capture = find_capture(data);
	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		append_event(capture, CAPTURE_INSERT, data->tg_trigslot, NULL);
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event) ||
			 has_part(data->tg_trigger, "leave"))
		append_event(capture, CAPTURE_DELETE, data->tg_trigslot, NULL);
	else if (has_part(data->tg_trigger, "enter"))
		append_event(capture, CAPTURE_INSERT, data->tg_newslot, NULL);
	else
		capture_update(capture, data->tg_trigslot, data->tg_newslot);
	return PointerGetDatum(NULL);
}

/* Whether the changes of its rows are captured. */
static bool
is_captured(Relation rel)
{
	static const char prefix[] = ACCORD_CAPTURE_TRIGGER;

	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers;
		 i++)
		if (strncmp(rel->trigdesc->triggers[i].tgname, prefix,
					sizeof(prefix) - 1) == 0)
			return true;
	return false;
}

/*
 * The trigger before TRUNCATE: each row that goes is an event. The table is
 * locked exclusively by now, so the latest snapshot sees all that is in it.
 */
Datum
accord_capture_truncate(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	AccordCapture *capture;
	TableScanDesc scan;
	TupleTableSlot *row;
	MemoryContext per_row;
	MemoryContext old;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BY_TRUNCATE(data->tg_event) ||
		data->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("accord.capture_truncate() was not called by a "
						"trigger of accord.capture()"),
				 errhint("Call accord.capture() to have a table captured.")));
	if (!is_captured(data->tg_relation))
		return PointerGetDatum(NULL);	/* a partition that was detached */
	capture = find_capture(data);
	if (capture->refuses_truncate)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot truncate captured table \"%s\"",
						RelationGetRelationName(data->tg_relation)),
				 errhint("DELETE its rows, or have truncation captured: "
						 "accord.capture(..., on_truncate => 'events').")));
	if (data->tg_relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		return PointerGetDatum(NULL);	/* its partitions have triggers too */

	per_row = AllocSetContextCreate(CurrentMemoryContext, "truncated row",
									ALLOCSET_DEFAULT_SIZES);
	PushActiveSnapshot(GetLatestSnapshot());
	row = table_slot_create(data->tg_relation, NULL);
	scan = table_beginscan(data->tg_relation, GetActiveSnapshot(), 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(per_row);
		append_event(capture, CAPTURE_TRUNCATE, row, NULL);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
	PopActiveSnapshot();
	MemoryContextDelete(per_row);
	return PointerGetDatum(NULL);
}
