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

#include "accord.h"
#include "db.h"
#include "guc.h"
#include "image.h"
#include "log.h"
#include "rowkey.h"

typedef struct Capture
{
	Oid			trigger;		/* hash key */
	Oid			relid;
	bool		made;			/* what follows is there */
	bool		stale;			/* the table changed since */
	MemoryContext context;		/* holds what follows */
	int			id;				/* accord.captured.id */
	Datum		topic;
	AccordImage *image;
	int			n_columns;		/* of the image */
	bool	   *is_identity;	/* of these: part of the key, or the account */
	int			n_keys;
	char	  **keys;			/* names of the key columns */
	char	   *account;		/* ... of the account's column, or NULL */
	bool		refuses_truncate;
} Capture;

static HTAB *captures = NULL;

PG_FUNCTION_INFO_V1(accord_capture_row);
PG_FUNCTION_INFO_V1(accord_capture_truncate);

/* ---- what is known of a table -------------------------------------------- */

/* Relation cache callback. What is in use goes on being used by this call. */
static void
mark_stale(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	Capture    *capture;

	hash_seq_init(&scan, captures);
	while ((capture = hash_seq_search(&scan)) != NULL)
		if (!OidIsValid(relid) || capture->relid == relid)
			capture->stale = true;
}

static void
create_cache(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Capture);
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
require_column(Relation rel, const char *name)
{
	AttrNumber	number = find_column(RelationGetDescr(rel), name);

	if (number == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of captured table \"%s\" does not exist",
						name, RelationGetRelationName(rel)),
				 errhint("Call accord.capture() again with the columns that "
						 "the table has now.")));
	return number;
}

/* Which columns are captured: those included, or all but those excluded. */
static Bitmapset *
choose_columns(Relation rel, const Datum *values, const bool *nulls)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Bitmapset  *chosen = NULL;
	char	  **names;
	int			n;

	names = name_list(values, nulls, ACCORD_CAPTURED_COLUMNS, &n);
	for (int i = 0; i < n; i++)
		chosen = bms_add_member(chosen, require_column(rel, names[i]));
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

/* Notes which of the image's columns decide whose event it is. */
static void
mark_identity(Capture *capture, Relation rel)
{
	capture->n_columns = accord_image_columns(capture->image);
	capture->is_identity = palloc0(capture->n_columns * sizeof(bool));
	for (int i = 0; i < capture->n_columns; i++)
	{
		int			at = accord_image_index(capture->image, i);
		const char *name = NameStr(TupleDescAttr(RelationGetDescr(rel),
												 at)->attname);

		for (int k = 0; k < capture->n_keys; k++)
			if (strcmp(capture->keys[k], name) == 0)
				capture->is_identity[i] = true;
		if (capture->account != NULL && strcmp(capture->account, name) == 0)
			capture->is_identity[i] = true;
	}
}

/* Makes an entry of the table's row of accord.captured. */
static void
fill_capture(Capture *capture, Relation rel, const Datum *values,
			 const bool *nulls)
{
	Bitmapset  *columns = choose_columns(rel, values, nulls);

	capture->topic = PointerGetDatum(DatumGetTextPCopy(values[ACCORD_CAPTURED_TOPIC - 1]));
	capture->keys = name_list(values, nulls, ACCORD_CAPTURED_KEY_COLUMNS,
							  &capture->n_keys);
	for (int i = 0; i < capture->n_keys; i++)
		columns = bms_add_member(columns,
								 require_column(rel, capture->keys[i]));
	capture->account = NULL;
	if (!nulls[ACCORD_CAPTURED_ACCOUNT_COLUMN - 1])
	{
		capture->account = TextDatumGetCString(values[ACCORD_CAPTURED_ACCOUNT_COLUMN - 1]);
		columns = bms_add_member(columns,
								 require_column(rel, capture->account));
	}
	capture->refuses_truncate =
		strcmp(TextDatumGetCString(values[ACCORD_CAPTURED_ON_TRUNCATE - 1]),
			   "refuse") == 0;
	capture->image = accord_image_prepare(RelationGetDescr(rel), columns);
	mark_identity(capture, rel);
}

/*
 * Reads the table's row of accord.captured as it is now: a transaction's
 * snapshot may be older than the trigger it already sees.
 */
static bool
read_captured(Capture *capture, Relation rel)
{
	Relation	captured = table_open(accord_db_relid("captured"),
									  AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Datum		values[ACCORD_CAPTURED_COLUMNS_END];
	bool		nulls[ACCORD_CAPTURED_COLUMNS_END];

	list_free(RelationGetIndexList(captured));	/* sets rd_pkindex */
	ScanKeyInit(&key, ACCORD_CAPTURED_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(capture->id));
	scan = systable_beginscan(captured, captured->rd_pkindex, true, snapshot,
							  1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		heap_deform_tuple(tuple, RelationGetDescr(captured), values, nulls);
		fill_capture(capture, rel, values, nulls);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(captured, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

static void
make_capture(Capture *capture, Relation rel, const Trigger *trigger)
{
	MemoryContext old;

	if (capture->context == NULL)
		capture->context = AllocSetContextCreate(TopMemoryContext,
												 "pg_accord capture",
												 ALLOCSET_SMALL_SIZES);
	MemoryContextReset(capture->context);
	capture->made = false;
	capture->stale = false;		/* may be set again meanwhile */
	capture->relid = RelationGetRelid(rel);
	capture->id = pg_strtoint32(trigger->tgargs[0]);
	old = MemoryContextSwitchTo(capture->context);
	if (!read_captured(capture, rel))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is captured as number %d, of which "
						"accord.captured knows nothing",
						RelationGetRelationName(rel), capture->id),
				 errhint("Call accord.capture() for the table, or drop its "
						 "trigger \"%s\".", trigger->tgname)));
	MemoryContextSwitchTo(old);
	capture->made = true;
}

static Capture *
find_capture(TriggerData *data)
{
	Capture    *capture;
	bool		found;

	if (captures == NULL)
		create_cache();
	capture = hash_search(captures, &data->tg_trigger->tgoid, HASH_ENTER,
						  &found);
	if (!found)
	{
		capture->context = NULL;
		capture->made = false;
	}
	if (!capture->made || capture->stale)
		make_capture(capture, data->tg_relation, data->tg_trigger);
	return capture;
}

/* ---- events -------------------------------------------------------------- */

/* Who the event is about: its key, and its account. */
static void
set_identity(const Capture *capture, Jsonb *row, Datum *values, bool *nulls)
{
	char	   *parts[INDEX_MAX_KEYS];
	char	   *key;
	char	   *account;

	for (int i = 0; i < capture->n_keys; i++)
		parts[i] = accord_image_text(row, capture->keys[i]);
	key = accord_rowkey_make(capture->n_keys, parts);
	if (key != NULL)
	{
		values[ACCORD_EVENT_KEY - 1] = CStringGetTextDatum(key);
		nulls[ACCORD_EVENT_KEY - 1] = false;
	}
	account = capture->account == NULL ? NULL :
		accord_image_text(row, capture->account);
	if (account != NULL && account[0] != '\0' &&
		strlen(account) <= ACCORD_MAX_ACCOUNT)
	{
		values[ACCORD_EVENT_ACCOUNT - 1] = CStringGetTextDatum(account);
		nulls[ACCORD_EVENT_ACCOUNT - 1] = false;
	}
}

/*
 * Appends an event about the row: about payload when there is one, else about
 * before. Either may be NULL.
 */
static void
append_event(const Capture *capture, const char *op, Jsonb *payload,
			 Jsonb *before)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_TABLE_ID, Int32GetDatum(capture->id));
	SET(ACCORD_EVENT_TOPIC, capture->topic);
	SET(ACCORD_EVENT_OP, CStringGetTextDatum(op));
	if (payload != NULL)
		SET(ACCORD_EVENT_PAYLOAD, JsonbPGetDatum(payload));
	if (before != NULL)
		SET(ACCORD_EVENT_BEFORE, JsonbPGetDatum(before));
	if (accord_source != NULL && accord_source[0] != '\0')
		SET(ACCORD_EVENT_SOURCE, CStringGetTextDatum(accord_source));
#undef SET
	set_identity(capture, payload != NULL ? payload : before, values, nulls);
	accord_log_append(values, nulls);
}

static Jsonb *
whole_image(const Capture *capture, TupleTableSlot *row)
{
	slot_getallattrs(row);
	return accord_image_build(capture->image, row->tts_values,
							  row->tts_isnull, NULL);
}

static void
capture_update(const Capture *capture, TupleTableSlot *old_row,
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
		append_event(capture, "delete", NULL, whole_image(capture, old_row));
	before = accord_image_build(capture->image, old_row->tts_values,
								old_row->tts_isnull, changed);
	append_event(capture, moved ? "insert" : "update",
				 whole_image(capture, new_row), before);
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
	Capture    *capture;

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
		append_event(capture, "insert",
					 whole_image(capture, data->tg_trigslot), NULL);
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event) ||
			 has_part(data->tg_trigger, "leave"))
		append_event(capture, "delete", NULL,
					 whole_image(capture, data->tg_trigslot));
	else if (has_part(data->tg_trigger, "enter"))
		append_event(capture, "insert",
					 whole_image(capture, data->tg_newslot), NULL);
	else
		capture_update(capture, data->tg_trigslot, data->tg_newslot);
	return PointerGetDatum(NULL);
}

/*
 * The trigger before TRUNCATE: each row that goes is an event. The table is
 * locked exclusively by now, so the latest snapshot sees all that is in it.
 */
Datum
accord_capture_truncate(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	Capture    *capture;
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
		append_event(capture, "truncate", NULL, whole_image(capture, row));
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
	PopActiveSnapshot();
	MemoryContextDelete(per_row);
	return PointerGetDatum(NULL);
}
