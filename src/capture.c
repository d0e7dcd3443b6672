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
 *   - A row that an update moves to another partition is deleted there and
 *     inserted here; both together are one update. What was deleted is kept
 *     until the insert comes, or the query ends without one.
 *   - The events of a row are in the order of its changes (nest.c).
 *
 * On failure the statement raises, and the transaction decides.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "capture.h"
#include "compat.h"
#include "invalidation.h"
#include "nest.h"
#include "rowevent.h"

/* What is known of a table's trigger. */
typedef struct CacheEntry
{
	Oid			trigger;		/* hash key */
	Oid			relid;
	bool		made;			/* what follows is there */
	bool		stale;			/* the table changed since */
	MemoryContext context;		/* holds what follows */
	AccordCapture *capture;
	bool		nests;			/* other triggers may change rows in turn */
} CacheEntry;

static HTAB *captures = NULL;

PG_FUNCTION_INFO_V1(accord_capture_row);
PG_FUNCTION_INFO_V1(accord_capture_truncate);

/* ---- rows that move ------------------------------------------------------ */

/* What was deleted from a partition to be inserted into another one. */
typedef struct Moved
{
	AccordRowImage row;
	int			table_id;
	int			depth;			/* of triggers, where that is */
	const AccordCapture *capture;	/* of the partition it was in */
	MemoryContext context;		/* holds all of it */
	MemoryContextCallback forget;
} Moved;

static Moved *moved = NULL;
static ExecutorFinish_hook_type next_executor_finish = NULL;

static void
forget_moved(void *arg)
{
	if (moved == arg)
		moved = NULL;
}

/* How many triggers are being executed; 1: that of the outermost statement. */
static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/* Was the row version deleted by an update that put it elsewhere? */
static bool
is_moved(TupleTableSlot *row)
{
	bool		must_free;
	HeapTuple	tuple;
	bool		result;

	if (!TTS_IS_HEAPTUPLE(row) && !TTS_IS_BUFFERTUPLE(row))
		return false;
	tuple = ExecFetchSlotHeapTuple(row, false, &must_free);
	result = HeapTupleHeaderIndicatesMovedPartitions(tuple->t_data);
	if (must_free)
		heap_freetuple(tuple);
	return result;
}

/* Nothing came to take the place of what was deleted: it is just deleted. */
static void
settle_moved(void)
{
	Moved	   *gone = moved;

	if (gone == NULL)
		return;
	moved = NULL;
	accord_rowevent_append(gone->capture, ACCORD_ROW_DELETE, &gone->row, NULL);
	MemoryContextDelete(gone->context);
}

/*
 * Keeps a row until it is inserted elsewhere. The subtransaction takes it with
 * it when it fails.
 */
static void
keep_moved(const AccordCapture *capture, TupleTableSlot *row)
{
	MemoryContext context = AllocSetContextCreate(CurTransactionContext,
												  "pg_accord moved row",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Moved	   *kept = palloc0(sizeof(Moved));

	accord_rowevent_image(capture, row, &kept->row);
	MemoryContextSwitchTo(old);
	kept->table_id = accord_rowevent_table(capture);
	kept->depth = trigger_depth();
	kept->capture = capture;
	kept->context = context;
	kept->forget.func = forget_moved;
	kept->forget.arg = kept;
	MemoryContextRegisterResetCallback(context, &kept->forget);
	settle_moved();
	moved = kept;
}

/* Is this insert the other half of what is kept? */
static bool
takes_place_of_moved(const AccordCapture *capture)
{
	return moved != NULL && moved->depth == trigger_depth() &&
		moved->table_id == accord_rowevent_table(capture);
}

/* The triggers of a query have been executed. */
static void
finish_query(QueryDesc *query)
{
	if (next_executor_finish != NULL)
		next_executor_finish(query);
	else
		standard_ExecutorFinish(query);
	if (moved != NULL && moved->depth == trigger_depth() + 1)
		settle_moved();
	if (trigger_depth() == 0)
		accord_nest_forget();
}

void
accord_capture_init(void)
{
	next_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish_query;
}

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
	accord_invalidation_heed(mark_stale, (Datum) 0);
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
	if (entry->made && moved != NULL && moved->capture == entry->capture)
		settle_moved();
	MemoryContextReset(entry->context);
	entry->made = false;
	entry->stale = false;		/* may be set again meanwhile */
	entry->relid = RelationGetRelid(rel);
	old = MemoryContextSwitchTo(entry->context);
	entry->capture = accord_rowevent_open(id, RelationGetDescr(rel),
										  RelationGetRelationName(rel));
	MemoryContextSwitchTo(old);
	entry->nests = accord_nest_possible(rel);
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

/* nests: whether other triggers of the table may change its rows in turn. */
static AccordCapture *
find_capture(TriggerData *data, bool *nests)
{
	static CacheEntry *entry = NULL;	/* of the row before; none is removed */
	bool		found;

	if (captures == NULL)
		create_cache();
	if (entry == NULL || entry->trigger != data->tg_trigger->tgoid)
	{
		entry = hash_search(captures, &data->tg_trigger->tgoid, HASH_ENTER,
							&found);
		if (!found)
		{
			entry->context = NULL;
			entry->made = false;
		}
	}
	if (!entry->made || entry->stale)
		make_entry(entry, data->tg_relation, data->tg_trigger);
	*nests = entry->nests;
	return entry->capture;
}

/* ---- events -------------------------------------------------------------- */

/* ---- triggers ------------------------------------------------------------ */

/*
 * Where there is a condition, updates by which a row comes to meet it, or
 * ceases to, have triggers of their own.
 */
static bool
has_part(const Trigger *trigger, const char *part)
{
	return trigger->tgnargs > 1 && strcmp(trigger->tgargs[1], part) == 0;
}

/* entered: the row as it was before an update made it meet the condition. */
static void
capture_insert(const AccordCapture *capture, TupleTableSlot *row,
			   TupleTableSlot *entered)
{
	AccordRowImage image;

	if (takes_place_of_moved(capture))
	{
		Moved	   *old_row = moved;

		moved = NULL;
		accord_rowevent_move(capture, &old_row->row, row);
		MemoryContextDelete(old_row->context);
		return;
	}
	if (entered != NULL)
	{
		accord_rowevent_enter(capture, entered, row);
		return;
	}
	accord_rowevent_image(capture, row, &image);
	accord_rowevent_append(capture, ACCORD_ROW_INSERT, &image, NULL);
}

static void
capture_delete(const AccordCapture *capture, TupleTableSlot *row)
{
	AccordRowImage image;

	accord_rowevent_image(capture, row, &image);
	accord_rowevent_append(capture, ACCORD_ROW_DELETE, &image, NULL);
}

/*
 * A change of a row, whatever statement made it; NULL: there was, or is, none.
 * left: what an update made of a row that does not meet the condition now.
 */
static void
capture_change(const AccordCapture *capture, TupleTableSlot *old_row,
			   TupleTableSlot *new_row, TupleTableSlot *entered,
			   TupleTableSlot *left)
{
	if (moved != NULL && !(old_row == NULL && takes_place_of_moved(capture)) &&
		moved->depth == trigger_depth())
		settle_moved();
	if (old_row == NULL && new_row != NULL)
		capture_insert(capture, new_row, entered);
	else if (old_row != NULL && new_row == NULL)
	{
		if (is_moved(old_row))
			keep_moved(capture, old_row);
		else if (left != NULL)
			accord_rowevent_leave(capture, old_row, left);
		else
			capture_delete(capture, old_row);
	}
	else if (old_row != NULL)
		accord_rowevent_update(capture, old_row, new_row);
}

/* The row trigger: AFTER INSERT, UPDATE, DELETE. */
Datum
accord_capture_row(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleTableSlot *old_row;
	TupleTableSlot *new_row;
	TupleTableSlot *entered;
	TupleTableSlot *left;
	AccordCapture *capture;
	bool		nests;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		data->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("accord.capture_row() was not called by a trigger of "
						"accord.capture()"),
				 errhint("Call accord.capture() to have a table captured.")));
	capture = find_capture(data, &nests);
	entered = has_part(data->tg_trigger, "enter") ? data->tg_trigslot : NULL;
	left = has_part(data->tg_trigger, "leave") ? data->tg_newslot : NULL;
	old_row = TRIGGER_FIRED_BY_INSERT(data->tg_event) || entered != NULL ?
		NULL : data->tg_trigslot;
	new_row = TRIGGER_FIRED_BY_INSERT(data->tg_event) ? data->tg_trigslot :
		TRIGGER_FIRED_BY_DELETE(data->tg_event) || left != NULL ?
		NULL : data->tg_newslot;
	if (nests)
	{
		if (accord_nest_is_early(data->tg_relation, old_row))
			return PointerGetDatum(NULL);
		new_row = accord_nest_latest(data->tg_relation, new_row);
	}
	capture_change(capture, old_row, new_row, entered, left);
	if (new_row != NULL && new_row != data->tg_trigslot &&
		new_row != data->tg_newslot)
		ExecDropSingleTupleTableSlot(new_row);
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
	AccordRowImage image;
	bool		nests;
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
	capture = find_capture(data, &nests);
	if (accord_rowevent_refuses_truncate(capture))
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
	scan = accord_table_beginscan(data->tg_relation, GetActiveSnapshot());
	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(per_row);
		accord_rowevent_image(capture, row, &image);
		accord_rowevent_append(capture, ACCORD_ROW_TRUNCATE, &image, NULL);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
	PopActiveSnapshot();
	MemoryContextDelete(per_row);
	return PointerGetDatum(NULL);
}
