/*
 * history.c: the captured events of a row, or of transactions.
 *
 * Runs in any backend that reads history. What history(), blame(), diff(),
 * revert() and undelete() say is SQL over these; here the events are found by
 * index, whatever the planner's statistics, and put into commit order with
 * what is known of their commits.
 *
 * Invariants: an event without a commit is one of the reader's own transaction
 * and comes last, without a number. Both functions see what the calling
 * statement sees, but commits that are numbered and not yet safe to order
 * (logread.c): of one row these cannot be followed by others, as who changes
 * a row waits for the commit of who changed it before.
 *
 * Locks: AccessShare on the partitions opened, until the transaction ends.
 *
 * On failure the scans are released with the transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/table.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "accord.h"
#include "db.h"
#include "history.h"
#include "image.h"
#include "log.h"
#include "point.h"
#include "rowkey.h"
#include "value.h"

/* Output columns that come from the event, then those from its commit. */
static const AccordEventColumn event_columns[] = {
	ACCORD_EVENT_TABLE_ID, ACCORD_EVENT_KEY, ACCORD_EVENT_TX_ID,
	ACCORD_EVENT_SLOT, ACCORD_EVENT_ORD, ACCORD_EVENT_EVENT_ID,
	ACCORD_EVENT_OCCURRED_AT, ACCORD_EVENT_RECORDED_AT, ACCORD_EVENT_OP,
	ACCORD_EVENT_SOURCE, ACCORD_EVENT_PAYLOAD, ACCORD_EVENT_BEFORE
};
static const AccordCommitColumn commit_columns[] = {
	ACCORD_COMMIT_SEQ, ACCORD_COMMIT_COMMITTED_AT, ACCORD_COMMIT_ROLE,
	ACCORD_COMMIT_ACTOR, ACCORD_COMMIT_APPLICATION_NAME,
	ACCORD_COMMIT_CLIENT_ADDR, ACCORD_COMMIT_REASON,
	ACCORD_COMMIT_CORRELATION_ID
};

/* Of these, in the same order: passed by value? The others are varlenas. */
static const bool commit_byval[] = {
	FLOAT8PASSBYVAL, FLOAT8PASSBYVAL, true, false, false, false, false, false
};

#define N_EVENT lengthof(event_columns)
#define N_COMMIT lengthof(commit_columns)

typedef struct RowEvent
{
	int64		seq;			/* PG_INT64_MAX: not committed */
	int32		ord;
	Datum		values[N_EVENT + N_COMMIT];
	bool		nulls[N_EVENT + N_COMMIT];
} RowEvent;

typedef struct RowEvents
{
	RowEvent   *events;
	int			n;
	int			room;
} RowEvents;

/* What accord.image_of() keeps from row to row. */
typedef struct ImageOf
{
	uint64		version;		/* of the row's type */
	TupleDesc	desc;
	AccordImage *image;
	Datum	   *values;
	bool	   *nulls;
} ImageOf;

PG_FUNCTION_INFO_V1(accord_row_events);
PG_FUNCTION_INFO_V1(accord_commit_events);
PG_FUNCTION_INFO_V1(accord_key_of);
PG_FUNCTION_INFO_V1(accord_equality);
PG_FUNCTION_INFO_V1(accord_image_of);
PG_FUNCTION_INFO_V1(accord_current_place);
PG_FUNCTION_INFO_V1(accord_changes);

Oid
accord_history_index(int slot)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "event_log_%d_table_key", slot);
	return accord_db_relid(name);
}

void
accord_history_keys(ScanKeyData *keys, int table_id, Datum key)
{
	ScanKeyInit(&keys[0], ACCORD_EVENT_TABLE_ID, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(table_id));
	ScanKeyEntryInitialize(&keys[1], 0, ACCORD_EVENT_KEY,
						   BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, key);
}

static RowEvent *
add_event(RowEvents *list)
{
	if (list->n == list->room)
	{
		list->room = Max(16, 2 * list->room);
		list->events = list->events == NULL ?
			palloc_extended(list->room * sizeof(RowEvent),
							MCXT_ALLOC_HUGE) :
			repalloc_huge(list->events, list->room * sizeof(RowEvent));
	}
	return &list->events[list->n++];
}

/* What the commit's row says; without one, nulls. */
static void
fill_commit(RowEvent *event, TupleTableSlot *commit)
{
	for (int i = 0; i < N_COMMIT; i++)
	{
		event->nulls[N_EVENT + i] = true;
		if (commit == NULL)
			continue;
		event->values[N_EVENT + i] = slot_getattr(commit, commit_columns[i],
												  &event->nulls[N_EVENT + i]);
		if (!event->nulls[N_EVENT + i])
			event->values[N_EVENT + i] =
				datumCopy(event->values[N_EVENT + i], commit_byval[i], -1);
	}
	event->seq = commit == NULL ? PG_INT64_MAX :
		DatumGetInt64(event->values[N_EVENT]);
}

/* The events of a row that lie in one slot. */
static void
collect_slot(RowEvents *list, AccordPointReader *reader, int slot,
			 int table_id, Datum key)
{
	Relation	heap = table_open(accord_db_slot_relid("event_log", slot),
								  AccessShareLock);
	TupleDesc	desc = RelationGetDescr(heap);
	Relation	index = index_open(accord_history_index(slot),
								   AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	accord_history_keys(keys, table_id, key);
	scan = systable_beginscan_ordered(heap, index, GetActiveSnapshot(), 2,
									  keys);
	while ((tuple = systable_getnext_ordered(scan,
											 ForwardScanDirection)) != NULL)
	{
		RowEvent   *event = add_event(list);
		bool		isnull;
		int64		tx_id;
		TimestampTz at;

		CHECK_FOR_INTERRUPTS();
		tuple = heap_copytuple(tuple);
		for (int i = 0; i < N_EVENT; i++)
			event->values[i] = heap_getattr(tuple, event_columns[i], desc,
											&event->nulls[i]);
		event->ord = DatumGetInt32(heap_getattr(tuple, ACCORD_EVENT_ORD, desc,
												&isnull));
		tx_id = DatumGetInt64(heap_getattr(tuple, ACCORD_EVENT_TX_ID, desc,
										   &isnull));
		at = DatumGetTimestampTz(heap_getattr(tuple, ACCORD_EVENT_RECORDED_AT,
											  desc, &isnull));
		fill_commit(event, accord_point_commit(reader, slot, tx_id, at));
	}
	systable_endscan_ordered(scan);
	index_close(index, NoLock);
	table_close(heap, NoLock);
}

static int
compare_events(const void *a, const void *b)
{
	const RowEvent *left = a;
	const RowEvent *right = b;

	if (left->seq != right->seq)
		return left->seq < right->seq ? -1 : 1;
	return (left->ord > right->ord) - (left->ord < right->ord);
}

/* accord.row_events(table_id, key): of one row, in commit order */
Datum
accord_row_events(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	AccordPointReader *reader = accord_point_open();
	RowEvents	list = {0};

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
		collect_slot(&list, reader, i, PG_GETARG_INT32(0),
					 PointerGetDatum(PG_GETARG_TEXT_PP(1)));
	accord_point_close(reader);
	if (list.n > 1)
		qsort(list.events, list.n, sizeof(RowEvent), compare_events);
	for (int i = 0; i < list.n; i++)
		tuplestore_putvalues(result->setResult, result->setDesc,
							 list.events[i].values, list.events[i].nulls);
	PG_RETURN_NULL();
}

/* The captured events of one commit. */
static void
emit_commit(ReturnSetInfo *result, AccordLogReader *reader, int64 seq)
{
	AccordCommit commit;
	TupleTableSlot *row;
	RowEvent	event;

	if (!accord_log_seek(reader, seq, &commit))
		return;
	for (int i = 0; i < N_COMMIT; i++)
		event.values[N_EVENT + i] = slot_getattr(commit.row,
												 commit_columns[i],
												 &event.nulls[N_EVENT + i]);
	while ((row = accord_log_next_event(reader)) != NULL)
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		slot_getattr(row, ACCORD_EVENT_TABLE_ID, &isnull);
		if (isnull)
			continue;
		for (int i = 0; i < N_EVENT; i++)
			event.values[i] = slot_getattr(row, event_columns[i],
										   &event.nulls[i]);
		tuplestore_putvalues(result->setResult, result->setDesc,
							 event.values, event.nulls);
	}
}

/* accord.commit_events(seqs): in the order of the array */
Datum
accord_commit_events(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(nowhere, 0);
	Datum	   *seqs;
	bool	   *nulls;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT8OID, sizeof(int64),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &seqs, &nulls, &n);
	for (int i = 0; i < n; i++)
		if (!nulls[i])
			emit_commit(result, reader, DatumGetInt64(seqs[i]));
	accord_log_close(reader);
	PG_RETURN_NULL();
}

/* The members of a row as the parts of a key. */
static char *
key_of_values(TupleDesc desc, Datum *values, bool *nulls)
{
	AccordImage *image = accord_image_prepare(desc, NULL);
	Jsonb	   *object = accord_image_build(image, values, nulls, NULL);
	char	  **parts = palloc(desc->natts * sizeof(char *));

	for (int i = 0; i < desc->natts; i++)
		parts[i] = accord_image_text(object,
									 NameStr(TupleDescAttr(desc, i)->attname));
	return accord_rowkey_make(desc->natts, parts);
}

static char *
key_of_row(HeapTupleHeader row)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(row),
												   HeapTupleHeaderGetTypMod(row));
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	HeapTupleData tuple;

	tuple.t_data = row;
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, desc, values, nulls);
	return key_of_values(desc, values, nulls);
}

char	   *
accord_history_key(Datum value, Oid type)
{
	TupleDesc	desc;
	bool		isnull = false;

	switch (getBaseType(type))
	{
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return TextDatumGetCString(value);
		case UNKNOWNOID:
			return pstrdup(DatumGetCString(value));
		default:
			break;
	}
	if (type_is_rowtype(type))
		return key_of_row(DatumGetHeapTupleHeader(value));
	desc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(desc, 1, "key", type, -1, 0);
	return key_of_values(desc, &value, &isnull);
}

char	   *
accord_history_equality(Oid type)
{
	Oid			equality = lookup_type_cache(type, TYPECACHE_EQ_OPR)->eq_opr;
	HeapTuple	tuple;
	Form_pg_operator operator;
	char	   *result;

	if (!OidIsValid(equality))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("could not identify an equality operator for type %s",
						format_type_be(type)),
				 errhint("Capture the table with key columns of a type that "
						 "can be compared.")));
	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(equality));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", equality);
	operator = (Form_pg_operator) GETSTRUCT(tuple);
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(operator->oprnamespace)),
					  NameStr(operator->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/* accord.equality(type) */
Datum
accord_equality(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(accord_history_equality(PG_GETARG_OID(0))));
}

/* accord.key_of(value) */
Datum
accord_key_of(PG_FUNCTION_ARGS)
{
	char	   *key = accord_history_key(PG_GETARG_DATUM(0),
										 get_fn_expr_argtype(fcinfo->flinfo,
															 0));

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(key));
}

/* accord.image_of(row) */
Datum
accord_image_of(PG_FUNCTION_ARGS)
{
	HeapTupleHeader row;
	ImageOf    *made = fcinfo->flinfo->fn_extra;
	HeapTupleData tuple;

	if (!type_is_rowtype(get_fn_expr_argtype(fcinfo->flinfo, 0)))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the argument of accord.image_of() is not a row"),
				 errhint("Give a row of a table.")));
	row = PG_GETARG_HEAPTUPLEHEADER(0);
	if (made == NULL ||
		made->version != assign_record_type_identifier(HeapTupleHeaderGetTypeId(row),
													   HeapTupleHeaderGetTypMod(row)))
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		fcinfo->flinfo->fn_extra = made = palloc(sizeof(ImageOf));
		made->version = assign_record_type_identifier(HeapTupleHeaderGetTypeId(row),
													  HeapTupleHeaderGetTypMod(row));
		made->desc = lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(row),
												 HeapTupleHeaderGetTypMod(row));
		made->image = accord_image_prepare(made->desc, NULL);
		made->values = palloc(made->desc->natts * sizeof(Datum));
		made->nulls = palloc(made->desc->natts * sizeof(bool));
		MemoryContextSwitchTo(old);
	}
	tuple.t_data = row;
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, made->desc, made->values, made->nulls);
	PG_RETURN_JSONB_P(accord_image_build(made->image, made->values,
										 made->nulls, NULL));
}

/* accord.current_place(): slot and tx_id of our own events */
Datum
accord_current_place(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};
	int			slot;
	int64		tx_id = accord_log_current_tx(&slot);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.current_place() does not return a row");
	values[0] = Int16GetDatum(slot);
	values[1] = Int64GetDatum(tx_id);
	nulls[0] = nulls[1] = tx_id == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* An object's member as a member of another name; nothing if it has none. */
static void
put_side(AccordBuild *build, const char *name, Jsonb *object,
		 const char *member)
{
	Jsonb	   *value = accord_value_member(object, member);

	if (value == NULL)
		return;
	accord_build_key(build, name);
	accord_build_value(build, value);
}

/*
 * accord.changes(op, payload, before): of each column that the event is about
 * its value before and after; null when it is about none.
 */
Datum
accord_changes(PG_FUNCTION_ARGS)
{
	Jsonb	   *payload = PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1);
	Jsonb	   *before = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	char	   *op = PG_ARGISNULL(0) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(0));
	Jsonb	   *about = payload == NULL || strcmp(op, "update") == 0 ?
	before : payload;
	AccordValueScan scan;
	AccordBuild build;

	if (!accord_value_is_object(about) || JB_ROOT_COUNT(about) == 0)
		PG_RETURN_NULL();
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_value_scan(&scan, about);
	while (accord_value_next(&scan))
	{
		accord_build_key(&build, scan.name);
		accord_build_object(&build);
		put_side(&build, "new", payload, scan.name);
		put_side(&build, "old", before, scan.name);
		accord_build_end_object(&build);
	}
	accord_build_end_object(&build);
	PG_RETURN_JSONB_P(accord_build_done(&build));
}
