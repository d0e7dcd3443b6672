/*
 * rowevent.c: an event about a row of a captured table.
 *
 * Runs in the application's backends: in the triggers of captured tables
 * (capture.c), and in accord.baseline() (baseline.c).
 *
 * Invariants
 *   - payload is the row as it is, before what it was: for an update, and the
 *     second half of a change of the key, the old values of what changed; for
 *     what is gone all of it.
 *   - A row that an update made meet the condition is an insert, and `before`
 *     what the columns that changed, and those of the key, were: so it is
 *     never empty, and told from the insert of a new row.
 *   - A row that an update made cease to meet it is a delete, like one that
 *     is gone. What its columns became by that is told by an event right
 *     before, under a topic of ours, so that no channel gets it: without it
 *     the update could not be undone.
 *   - An update that changes none of the captured columns is no event.
 *   - An update that changes the key, or the account, is two: the delete of
 *     the old one and the insert of the new one, in this order, next to each
 *     other; the insert alone has `before`.
 *   - Where the rows of one table come in several layouts (partitions), their
 *     images have the same members.
 *
 * On failure the statement raises.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "clock.h"
#include "compat.h"
#include "db.h"
#include "guc.h"
#include "image.h"
#include "json.h"
#include "log.h"
#include "rowevent.h"
#include "rowkey.h"

static const char *const op_names[] = {
	[ACCORD_ROW_INSERT] = "insert",
	[ACCORD_ROW_UPDATE] = "update",
	[ACCORD_ROW_DELETE] = "delete",
	[ACCORD_ROW_TRUNCATE] = "truncate"
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
	Datum		ops[ACCORD_ROW_OPS];	/* their names */
	bool		refuses_truncate;
};

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
	for (int op = 0; op < ACCORD_ROW_OPS; op++)
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
accord_rowevent_open(int id, TupleDesc desc, const char *table)
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

static char *
make_key(const AccordCapture *capture, TupleTableSlot *row, Jsonb *object)
{
	char	   *parts[MaxTupleAttributeNumber];

	for (int i = 0; i < capture->n_keys; i++)
		parts[i] = accord_image_column_text(capture->image, capture->keys[i],
											object, row->tts_values,
											row->tts_isnull);
	return accord_rowkey_make(capture->n_keys, parts);
}

/* The account an event concerns; NULL when it concerns none. */
static char *
make_account(const AccordCapture *capture, TupleTableSlot *row, Jsonb *object)
{
	char	   *account;

	if (capture->account < 0)
		return NULL;
	account = accord_image_column_text(capture->image, capture->account,
									   object, row->tts_values,
									   row->tts_isnull);
	if (account == NULL || account[0] == '\0' ||
		strlen(account) > ACCORD_MAX_ACCOUNT)
		return NULL;			/* there is no account of that name */
	return account;
}

int
accord_rowevent_table(const AccordCapture *capture)
{
	return capture->id;
}

bool
accord_rowevent_refuses_truncate(const AccordCapture *capture)
{
	return capture->refuses_truncate;
}

void
accord_rowevent_image(const AccordCapture *capture, TupleTableSlot *row,
					  AccordRowImage *image)
{
	slot_getallattrs(row);
	image->object = accord_image_build(capture->image, row->tts_values,
									   row->tts_isnull, NULL);
	image->key = make_key(capture, row, image->object);
	image->account = make_account(capture, row, image->object);
	image->relid = row->tts_tableOid;
}

/* Fills in all that is told of the row, and where it came from. */
static void
describe_event(const AccordCapture *capture, AccordRowOp op,
			   const AccordRowImage *row, Jsonb *before, Datum *values,
			   bool *nulls)
{
	bool		is_gone = op == ACCORD_ROW_DELETE || op == ACCORD_ROW_TRUNCATE;
	TimestampTz stamped = accord_clock_published(row->relid);

	memset(nulls, true, ACCORD_EVENT_COLUMNS * sizeof(bool));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_TABLE_ID, Int32GetDatum(capture->id));
	SET(ACCORD_EVENT_TOPIC, capture->topic);
	SET(ACCORD_EVENT_OP, capture->ops[op]);
	SET(is_gone ? ACCORD_EVENT_BEFORE : ACCORD_EVENT_PAYLOAD,
		JsonbPGetDatum(row->object));
	if (before != NULL)
		SET(ACCORD_EVENT_BEFORE, JsonbPGetDatum(before));
	if (row->key != NULL)
		SET(ACCORD_EVENT_KEY, CStringGetTextDatum(row->key));
	if (row->account != NULL)
		SET(ACCORD_EVENT_ACCOUNT, CStringGetTextDatum(row->account));
	if (accord_source != NULL && accord_source[0] != '\0')
		SET(ACCORD_EVENT_SOURCE, CStringGetTextDatum(accord_source));
	/* of a managed table: the time by which the change counts here */
	if (stamped != 0)
		SET(ACCORD_EVENT_OCCURRED_AT, TimestampTzGetDatum(stamped));
#undef SET
}

void
accord_rowevent_append(const AccordCapture *capture, AccordRowOp op,
					   const AccordRowImage *row, Jsonb *before)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	describe_event(capture, op, row, before, values, nulls);
	accord_log_append(values, nulls);
}

void
accord_rowevent_baseline(const AccordCapture *capture,
						 const AccordRowImage *row)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];
	AccordJsonbState state = {0};
	Jsonb	   *nothing;

	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	nothing = accord_jsonb_end(&state, WJB_END_OBJECT);
	describe_event(capture, ACCORD_ROW_INSERT, row, nothing, values, nulls);
	values[ACCORD_EVENT_CHANNELS - 1] =
		PointerGetDatum(construct_empty_array(TEXTOID));
	nulls[ACCORD_EVENT_CHANNELS - 1] = false;
	accord_log_append(values, nulls);
}

void
accord_rowevent_update(const AccordCapture *capture, TupleTableSlot *old_row,
					   TupleTableSlot *new_row)
{
	bool		changed[MaxTupleAttributeNumber];
	bool		is_other = false;
	AccordRowImage image;
	Jsonb	   *before;

	slot_getallattrs(old_row);
	slot_getallattrs(new_row);
	if (accord_image_compare(capture->image, old_row->tts_values,
							 old_row->tts_isnull, new_row->tts_values,
							 new_row->tts_isnull, changed) == 0)
		return;
	for (int i = 0; i < capture->n_columns; i++)
		is_other |= changed[i] && capture->is_identity[i];
	if (is_other)
	{
		accord_rowevent_image(capture, old_row, &image);
		accord_rowevent_append(capture, ACCORD_ROW_DELETE, &image, NULL);
	}
	before = accord_image_build(capture->image, old_row->tts_values,
								old_row->tts_isnull, changed);
	accord_rowevent_image(capture, new_row, &image);
	accord_rowevent_append(capture,
						   is_other ? ACCORD_ROW_INSERT : ACCORD_ROW_UPDATE,
						   &image, before);
}

void
accord_rowevent_enter(const AccordCapture *capture, TupleTableSlot *old_row,
					  TupleTableSlot *new_row)
{
	bool		told[MaxTupleAttributeNumber];
	AccordRowImage image;
	Jsonb	   *before;

	slot_getallattrs(old_row);
	slot_getallattrs(new_row);
	(void) accord_image_compare(capture->image, old_row->tts_values,
								old_row->tts_isnull, new_row->tts_values,
								new_row->tts_isnull, told);
	for (int i = 0; i < capture->n_keys; i++)
		told[capture->keys[i]] = true;
	before = accord_image_build(capture->image, old_row->tts_values,
								old_row->tts_isnull, told);
	accord_rowevent_image(capture, new_row, &image);
	accord_rowevent_append(capture, ACCORD_ROW_INSERT, &image, before);
}

/* Tells, for those who undo, what an update made of a row's columns. */
static void
append_left(const AccordCapture *capture, const AccordRowImage *row,
			Jsonb *became)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_TABLE_ID, Int32GetDatum(capture->id));
	SET(ACCORD_EVENT_TOPIC, CStringGetTextDatum(ACCORD_TOPIC_LEFT));
	SET(ACCORD_EVENT_OP, CStringGetTextDatum("event"));
	SET(ACCORD_EVENT_PAYLOAD, JsonbPGetDatum(became));
	if (row->key != NULL)
		SET(ACCORD_EVENT_KEY, CStringGetTextDatum(row->key));
#undef SET
	accord_log_append(values, nulls);
}

void
accord_rowevent_leave(const AccordCapture *capture, TupleTableSlot *old_row,
					  TupleTableSlot *new_row)
{
	bool		changed[MaxTupleAttributeNumber];
	AccordRowImage image;

	slot_getallattrs(old_row);
	slot_getallattrs(new_row);
	(void) accord_image_compare(capture->image, old_row->tts_values,
								old_row->tts_isnull, new_row->tts_values,
								new_row->tts_isnull, changed);
	accord_rowevent_image(capture, old_row, &image);
	append_left(capture, &image,
				accord_image_build(capture->image, new_row->tts_values,
								   new_row->tts_isnull, changed));
	accord_rowevent_append(capture, ACCORD_ROW_DELETE, &image, NULL);
}

static bool
same_text(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/* The members of an object that another one has with another value. */
static Jsonb *
differing_members(Jsonb *object, Jsonb *other, int *n)
{
	JsonbIterator *iterator = JsonbIteratorInit(&object->root);
	AccordJsonbState state = {0};
	JsonbValue	value;
	JsonbIteratorToken token;

	*n = 0;
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		JsonbValue	key;
		JsonbValue *theirs;

		if (token != WJB_KEY)
			continue;
		key = value;
		(void) JsonbIteratorNext(&iterator, &value, true);
		theirs = getKeyJsonValueFromContainer(&other->root,
											  key.val.string.val,
											  key.val.string.len, NULL);
		if (theirs != NULL &&
			same_text(accord_json_text(&value), accord_json_text(theirs)))
			continue;
		accord_jsonb_push(&state, WJB_KEY, &key);
		accord_jsonb_push(&state, WJB_VALUE, &value);
		(*n)++;
	}
	return accord_jsonb_end(&state, WJB_END_OBJECT);
}

void
accord_rowevent_move(const AccordCapture *capture,
					 const AccordRowImage *old_row, TupleTableSlot *new_row)
{
	AccordRowImage image;
	bool		is_other;
	Jsonb	   *before;
	int			n;

	accord_rowevent_image(capture, new_row, &image);
	before = differing_members(old_row->object, image.object, &n);
	if (n == 0)
		return;
	is_other = !same_text(old_row->key, image.key) ||
		!same_text(old_row->account, image.account);
	if (is_other)
		accord_rowevent_append(capture, ACCORD_ROW_DELETE, old_row, NULL);
	accord_rowevent_append(capture,
						   is_other ? ACCORD_ROW_INSERT : ACCORD_ROW_UPDATE,
						   &image, before);
}
