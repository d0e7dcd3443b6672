/*
 * past.c: a captured table, or one of its rows, as it was.
 *
 * Runs in any backend that calls accord.as_of() or accord.row_as_of(). The
 * past is computed backwards from the present, which needs no more of the log
 * than what came after the point: a row that was changed since was, at the
 * point, what the first of those changes found; a row that was not is what it
 * is.
 *
 * Invariants
 *   - Rows and log are read under one snapshot, taken after the safe number
 *     (logread.c), and the point is not beyond that. A row's change and its
 *     event become visible together; so whatever the snapshot shows of later
 *     commits, and of our own transaction, is undone, and what is left is
 *     exactly the commits up to the point: a state that existed.
 *   - "First" is by (seq, ord). The events of a row have one order: who
 *     changes it waits for the commit of who changed it before, and numbers
 *     are drawn before locks are released.
 *   - Memory is about 100 bytes for every row changed since the point; rows
 *     themselves go to a tuplestore, which spills to disk.
 *
 * Locks: AccessShare on the table and on the partitions of the log, until the
 * transaction ends.
 *
 * On failure everything is released with the transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "accord.h"
#include "db.h"
#include "history.h"
#include "image.h"
#include "log.h"
#include "point.h"
#include "row.h"
#include "rowkey.h"

#define FETCH_ROWS 1000			/* of the present, at a time */

/* How columns were called from an event on. */
typedef struct PastShape
{
	int64		seq;
	int32		ord;
	char	  **names;			/* of each column; NULL: it was not there */
} PastShape;

/* The table that is asked about. */
typedef struct PastTable
{
	Oid			relid;
	Oid			rowtype;
	const char *name;			/* qualified and quoted */
	int			id;				/* accord.captured.id */
	int64		seq;			/* the point */
	char	   *condition;		/* of the rows that are captured, or NULL */
	TupleDesc	desc;
	int			n_keys;
	int		   *keys;			/* column numbers - 1 */
	AccordImage *image;			/* of the key's columns */
	Bitmapset  *hidden;			/* column numbers - 1 of what is not captured */
	AccordRowMaker *maker;
	PastShape  *shapes;			/* in their order; none: as they are now */
	int			n_shapes;
} PastTable;

/* A row that was changed after the point, by the first change. */
typedef struct Touched
{
	char	   *key;
	int64		seq;
	int32		ord;
	uint32		hash;
	ItemPointerData tid;		/* of the event */
	int16		slot;
	char		status;			/* simplehash's */
	char		op;				/* its first letter */
} Touched;

static inline uint32
hash_key(const char *key)
{
	return hash_bytes((const unsigned char *) key, strlen(key));
}

#define SH_PREFIX touched
#define SH_ELEMENT_TYPE Touched
#define SH_KEY_TYPE char *
#define SH_KEY key
#define SH_HASH_KEY(tb, key) hash_key(key)
#define SH_EQUAL(tb, a, b) (strcmp((a), (b)) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) ((a)->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* A transaction that committed after the point. */
typedef struct LaterCommit
{
	int64		tx_id;
	int64		seq;
} LaterCommit;

/* What of one slot of the log came after the point. */
typedef struct Later
{
	int			slot;
	Relation	events;
	LaterCommit *commits;		/* by tx_id */
	int			n;
	int			room;
	int			hint;			/* where the last one was found */
	bool		all;			/* every commit in the slot is later */
	int64		own_tx;			/* ours, if its events lie here */
	TupleTableSlot *row;		/* the event that is looked at */
} Later;

typedef struct Past
{
	PastTable	table;
	touched_hash *touched;
	ReturnSetInfo *result;
} Past;

PG_FUNCTION_INFO_V1(accord_as_of);
PG_FUNCTION_INFO_V1(accord_row_as_of);

/* ---- the table and the point --------------------------------------------- */

/* Evaluates a query of our own that returns one row; its columns as Datums. */
static void
query_row(const char *query, int n, Oid *types, Datum *values,
		  Datum *result, bool *nulls, int columns)
{
	if (SPI_execute_with_args(query, n, types, values, NULL, true, 1) !=
		SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not execute \"%s\"", query);
	for (int i = 0; i < columns; i++)
		result[i] = SPI_getbinval(SPI_tuptable->vals[0],
								  SPI_tuptable->tupdesc, i + 1, &nulls[i]);
}

/* The point that the argument is: a time, a number, or a text that is one. */
static int64
point_of(FunctionCallInfo fcinfo, int argument, int64 safe)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, argument);
	Datum		value = PG_GETARG_DATUM(argument);
	int64		seq;
	bool		isnull;

	if (type == TIMESTAMPTZOID)
		seq = accord_point_at(DatumGetTimestampTz(value));
	else
	{
		Oid			types[] = {TEXTOID};
		Datum		result;

		if (type == INT8OID)
			value = CStringGetTextDatum(psprintf(INT64_FORMAT,
												 DatumGetInt64(value)));
		query_row("SELECT accord.point_seq($1)", 1, types, &value, &result,
				  &isnull, 1);
		if (isnull)
			elog(ERROR, "accord.point_seq() returned null");
		seq = DatumGetInt64(result);
	}
	return Min(seq, safe);
}

static int
column_index(PastTable *table, const char *name)
{
	for (int i = 0; i < table->desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(table->desc, i);

		if (!attribute->attisdropped &&
			strcmp(NameStr(attribute->attname), name) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of captured table %s does not exist",
					name, table->name),
			 errhint("Call accord.capture() again with the columns that the "
					 "table has now.")));
}

/* Makes of the array of names of its key's columns what rows are known by. */
static void
set_keys(PastTable *table, Datum array)
{
	Bitmapset  *columns = NULL;
	Datum	   *names;
	bool	   *nulls;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &names, &nulls, &table->n_keys);
	table->keys = palloc(table->n_keys * sizeof(int));
	for (int i = 0; i < table->n_keys; i++)
	{
		table->keys[i] = column_index(table, TextDatumGetCString(names[i]));
		columns = bms_add_member(columns, table->keys[i] + 1);
	}
	table->image = accord_image_prepare(table->desc, columns);
}

static void
set_hidden(PastTable *table, Datum array)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &names, &nulls, &n);
	for (int i = 0; i < n; i++)
		table->hidden = bms_add_member(table->hidden,
									   column_index(table,
													TextDatumGetCString(names[i])));
}

/* Reads what became of the table's columns, when anything did. */
static void
set_shapes(PastTable *table, MemoryContext context)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(table->id)};
	MemoryContext old;

	if (SPI_execute_with_args("SELECT seq, ord, names "
							  "FROM accord.history_shapes($1)",
							  1, types, values, NULL, true, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not read the shapes of table %s", table->name);
	old = MemoryContextSwitchTo(context);
	table->n_shapes = SPI_processed;
	table->shapes = palloc0(Max(table->n_shapes, 1) * sizeof(PastShape));
	for (int i = 0; i < table->n_shapes; i++)
	{
		PastShape  *shape = &table->shapes[i];
		Datum		columns[3];
		Datum	   *names;
		bool	   *nulls;
		bool		isnull;
		int			n;

		for (int c = 0; c < 3; c++)
			columns[c] = SPI_getbinval(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, c + 1, &isnull);
		shape->seq = DatumGetInt64(columns[0]);
		shape->ord = DatumGetInt32(columns[1]);
		shape->names = palloc0(table->desc->natts * sizeof(char *));
		deconstruct_array(DatumGetArrayTypeP(columns[2]), TEXTOID, -1, false,
						  TYPALIGN_INT, &names, &nulls, &n);
		for (int c = 0; c < Min(n, table->desc->natts); c++)
			shape->names[c] = nulls[c] ? NULL : TextDatumGetCString(names[c]);
	}
	MemoryContextSwitchTo(old);
}

/* How columns were called when an event was written. */
static char **
names_at(PastTable *table, int64 seq, int32 ord)
{
	int			i = table->n_shapes - 1;

	while (i > 0 && (table->shapes[i].seq > seq ||
					 (table->shapes[i].seq == seq &&
					  table->shapes[i].ord > ord)))
		i--;
	return i < 0 ? NULL : table->shapes[i].names;
}

/*
 * What accord.history_table() knows of it: raises when the log does not reach
 * back to the point.
 */
static void
look_up(PastTable *table, int64 seq, MemoryContext context)
{
	Oid			types[] = {REGCLASSOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), Int64GetDatum(seq)};
	Datum		result[5];
	bool		nulls[5];
	MemoryContext old;

	query_row("SELECT id, key_columns, hidden, condition, is_shaped "
			  "FROM accord.history_table($1, $2)",
			  2, types, values, result, nulls, 5);
	old = MemoryContextSwitchTo(context);
	table->id = DatumGetInt32(result[0]);
	table->seq = seq;
	table->desc = lookup_rowtype_tupdesc_copy(table->rowtype, -1);
	set_keys(table, result[1]);
	set_hidden(table, result[2]);
	table->condition = nulls[3] ? NULL : TextDatumGetCString(result[3]);
	table->maker = accord_row_prepare(table->rowtype);
	MemoryContextSwitchTo(old);
	if (DatumGetBool(result[4]))
		set_shapes(table, context);
}

/*
 * Who reads the past of a table must be allowed to read its present, all of
 * it: the log knows nothing of row security.
 */
static void
check_readable(PastTable *table)
{
	AclResult	acl = pg_class_aclcheck(table->relid, GetUserId(),
										ACL_SELECT);

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl,
					   get_relkind_objtype(get_rel_relkind(table->relid)),
					   get_rel_name(table->relid));
	if (check_enable_rls(table->relid, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot read the past of table %s: row security "
						"applies to you", table->name),
				 errhint("Ask a role that bypasses row security, such as the "
						 "table's owner.")));
}

/*
 * Prepares the table and the point that the arguments name, and the snapshot
 * under which all is read, as the active one; SPI is connected.
 */
static void
begin_past(FunctionCallInfo fcinfo, PastTable *table, int point)
{
	MemoryContext context = CurrentMemoryContext;
	int64		safe;

	table->rowtype = get_fn_expr_argtype(fcinfo->flinfo, 0);
	table->relid = OidIsValid(table->rowtype) ?
		get_typ_typrelid(table->rowtype) : InvalidOid;
	if (!OidIsValid(table->relid))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the first argument of %s() is not a row of a table",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("Give NULL::schema.table.")));
	if (PG_ARGISNULL(point))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("no point in time is given to %s()",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("Give a time, a commit number, or the name of a "
						 "mark.")));
	table->name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(table->relid)),
											 get_rel_name(table->relid));
	check_readable(table);
	safe = accord_log_safe_seq();
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	look_up(table, point_of(fcinfo, point, safe), context);
}

static void
end_past(void)
{
	SPI_finish();
	PopActiveSnapshot();
}

/* ---- rows ---------------------------------------------------------------- */

/* The key of a row; NULL when it has none. */
static char *
row_key(PastTable *table, const Datum *values, const bool *nulls)
{
	Jsonb	   *object = accord_image_build(table->image, values, nulls, NULL);
	char	   *parts[INDEX_MAX_KEYS];

	for (int i = 0; i < table->n_keys; i++)
		parts[i] = accord_image_text(object,
									 NameStr(TupleDescAttr(table->desc,
														   table->keys[i])->attname));
	return accord_rowkey_make(table->n_keys, parts);
}

static void
deform_row(PastTable *table, HeapTupleHeader row, Datum *values, bool *nulls)
{
	HeapTupleData tuple;

	tuple.t_data = row;
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, table->desc, values, nulls);
}

/* What is not captured was not known at the point. */
static void
hide_columns(PastTable *table, bool *nulls)
{
	int			i = -1;

	while ((i = bms_next_member(table->hidden, i)) >= 0)
		nulls[i] = true;
}

static Jsonb *
event_object(HeapTuple event, TupleDesc desc, AccordEventColumn column)
{
	bool		isnull;
	Datum		value = heap_getattr(event, column, desc, &isnull);

	return isnull ? NULL : DatumGetJsonbP(value);
}

/* Ops by their first letters; a baseline is an insert that changed nothing. */
#define OP_INSERT 'i'
#define OP_EVENT 'e'
#define OP_BASELINE 'b'

/* An insert of accord.baseline() has an empty before. */
static char
insert_kind(bool isnull, Datum before)
{
	Jsonb	   *object = isnull ? NULL : DatumGetJsonbP(before);

	return object != NULL && JB_ROOT_IS_OBJECT(object) &&
		JB_ROOT_COUNT(object) == 0 ? OP_BASELINE : OP_INSERT;
}

/* The row that an event found; NULL: it found none. */
static HeapTuple
row_before(PastTable *table, HeapTuple event, TupleDesc desc, char op,
		   int64 seq, int32 ord)
{
	if (op == OP_INSERT)
		return NULL;
	return accord_row_make(table->maker, names_at(table, seq, ord),
						   event_object(event, desc, ACCORD_EVENT_BEFORE),
						   event_object(event, desc, ACCORD_EVENT_PAYLOAD));
}

static char
first_letter(Datum op)
{
	return VARDATA_ANY(DatumGetTextPP(op))[0];
}

/* The first letter of an event's op. */
static char
event_op(HeapTuple event, TupleDesc desc)
{
	bool		isnull;
	char		op = first_letter(heap_getattr(event, ACCORD_EVENT_OP, desc,
											   &isnull));
	Datum		before;

	if (op != OP_INSERT)
		return op;
	before = heap_getattr(event, ACCORD_EVENT_BEFORE, desc, &isnull);
	return insert_kind(isnull, before);
}

/* ---- what came later ----------------------------------------------------- */

static void
add_commit(Later *later, int64 tx_id, int64 seq)
{
	if (later->n == later->room)
	{
		later->room = Max(1024, 2 * later->room);
		later->commits = later->commits == NULL ?
			palloc_extended(later->room * sizeof(LaterCommit),
							MCXT_ALLOC_HUGE) :
			repalloc_huge(later->commits, later->room * sizeof(LaterCommit));
	}
	later->commits[later->n].tx_id = tx_id;
	later->commits[later->n++].seq = seq;
}

static int
compare_commits(const void *a, const void *b)
{
	const LaterCommit *left = a;
	const LaterCommit *right = b;

	return (left->tx_id > right->tx_id) - (left->tx_id < right->tx_id);
}

static int64
tuple_int64(HeapTuple tuple, int column, TupleDesc desc)
{
	bool		isnull;

	return DatumGetInt64(heap_getattr(tuple, column, desc, &isnull));
}

/* All of a slot's commits, to begin with: tells which are later, and whether
 * that is all of them. */
static void
collect_commits(Later *later, int64 after)
{
	Relation	heap = table_open(accord_db_slot_relid("commit_log",
													   later->slot),
								  AccessShareLock);
	TupleDesc	desc = RelationGetDescr(heap);
	Relation	index;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		sorted = true;

	list_free(RelationGetIndexList(heap));	/* sets rd_pkindex */
	index = index_open(heap->rd_pkindex, AccessShareLock);
	ScanKeyInit(&key, ACCORD_COMMIT_SEQ, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(after));
	scan = systable_beginscan_ordered(heap, index, GetActiveSnapshot(), 1,
									  &key);
	later->all = systable_getnext_ordered(scan, BackwardScanDirection) == NULL;
	systable_endscan_ordered(scan);

	ScanKeyInit(&key, ACCORD_COMMIT_SEQ, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	scan = systable_beginscan(heap, RelationGetRelid(index), !later->all,
							  GetActiveSnapshot(), 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		add_commit(later, tuple_int64(tuple, ACCORD_COMMIT_TX_ID, desc),
				   tuple_int64(tuple, ACCORD_COMMIT_SEQ, desc));
		if (later->n > 1 && later->commits[later->n - 1].tx_id <
			later->commits[later->n - 2].tx_id)
			sorted = false;
	}
	systable_endscan(scan);
	index_close(index, NoLock);
	table_close(heap, NoLock);
	if (!sorted)
		qsort(later->commits, later->n, sizeof(LaterCommit), compare_commits);
}

/*
 * The number of a transaction that committed after the point; 0: it did not.
 * Transactions are asked for nearly in their order.
 */
static int64
later_seq(Later *later, int64 tx_id)
{
	int			low = 0;
	int			high = later->n;

	if (tx_id == later->own_tx)
		return PG_INT64_MAX;
	if (later->hint < later->n)
	{
		LaterCommit *at = &later->commits[later->hint];

		if (at->tx_id == tx_id)
			return at->seq;
		if (at->tx_id < tx_id)
		{
			low = later->hint + 1;
			if (low < high && later->commits[low].tx_id >= tx_id)
				high = low + 1;
		}
		else
			high = later->hint;
	}
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (later->commits[middle].tx_id < tx_id)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == later->n)
		return 0;
	later->hint = low;
	return later->commits[low].tx_id == tx_id ? later->commits[low].seq : 0;
}

/* Notes a row as changed, if it is by an event of our table that is later. */
static void
note_event(Past *past, Later *later, HeapTuple event)
{
	TupleTableSlot *row = later->row;
	int64		seq;
	bool		found;
	char		buffer[ACCORD_MAX_KEY + 1];
	Touched    *touched;
	int32		ord;

	ExecStoreHeapTuple(event, row, false);
	slot_getsomeattrs(row, ACCORD_EVENT_OP);
#define VALUE(column) (row->tts_values[(column) - 1])
#define ISNULL(column) (row->tts_isnull[(column) - 1])
	if (ISNULL(ACCORD_EVENT_TABLE_ID) || ISNULL(ACCORD_EVENT_KEY) ||
		DatumGetInt32(VALUE(ACCORD_EVENT_TABLE_ID)) != past->table.id)
		return;
	seq = later_seq(later, DatumGetInt64(VALUE(ACCORD_EVENT_TX_ID)));
	if (seq == 0 || first_letter(VALUE(ACCORD_EVENT_OP)) == OP_EVENT)
		return;
	ord = DatumGetInt32(VALUE(ACCORD_EVENT_ORD));
	text_to_cstring_buffer(DatumGetTextPP(VALUE(ACCORD_EVENT_KEY)), buffer,
						   sizeof(buffer));
	touched = touched_insert(past->touched, buffer, &found);
	if (!found)
		touched->key = MemoryContextStrdup(past->touched->ctx, buffer);
	else if (touched->seq < seq || (touched->seq == seq && touched->ord < ord))
		return;
	touched->seq = seq;
	touched->ord = ord;
	touched->tid = event->t_self;
	touched->slot = later->slot;
	touched->op = first_letter(VALUE(ACCORD_EVENT_OP));
	if (touched->op == OP_INSERT)
	{
		slot_getsomeattrs(row, ACCORD_EVENT_BEFORE);
		touched->op = insert_kind(ISNULL(ACCORD_EVENT_BEFORE),
								  VALUE(ACCORD_EVENT_BEFORE));
	}
#undef ISNULL
#undef VALUE
}

/*
 * The table's own events, by its index; false when they are so many that
 * reading all of the slot is better.
 */
static bool
read_by_table(Past *past, Later *later)
{
	uint64		left = 2 * (uint64) RelationGetNumberOfBlocks(later->events);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	event;

	ScanKeyInit(&key, ACCORD_EVENT_TABLE_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(past->table.id));
	scan = systable_beginscan(later->events,
							  accord_history_index(later->slot), true,
							  GetActiveSnapshot(), 1, &key);
	while ((event = systable_getnext(scan)) != NULL && left-- > 0)
	{
		CHECK_FOR_INTERRUPTS();
		note_event(past, later, event);
	}
	systable_endscan(scan);
	return event == NULL;
}

/* From the first transaction on that committed later, or all of them. */
static void
read_by_transaction(Past *past, Later *later)
{
	int64		first = later->n > 0 ? later->commits[0].tx_id : PG_INT64_MAX;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	event;

	if (later->own_tx != 0)
		first = Min(first, later->own_tx);
	list_free(RelationGetIndexList(later->events)); /* sets rd_pkindex */
	ScanKeyInit(&key, ACCORD_EVENT_TX_ID, BTGreaterEqualStrategyNumber,
				F_INT8GE, Int64GetDatum(first));
	scan = systable_beginscan(later->events, later->events->rd_pkindex,
							  !later->all, GetActiveSnapshot(), 1, &key);
	while ((event = systable_getnext(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		note_event(past, later, event);
	}
	systable_endscan(scan);
}

/* Notes every row that was changed after the point. */
static void
read_later(Past *past)
{
	int			own_slot;
	int64		own_tx = accord_log_current_tx(&own_slot);

	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
	{
		Later		later = {.slot = i};

		collect_commits(&later, past->table.seq);
		later.own_tx = i == own_slot ? own_tx : 0;
		if (later.n == 0 && later.own_tx == 0)
			continue;
		later.events = table_open(accord_db_slot_relid("event_log", i),
								  AccessShareLock);
		later.row = MakeSingleTupleTableSlot(RelationGetDescr(later.events),
											 &TTSOpsHeapTuple);
		if (!read_by_table(past, &later))
			read_by_transaction(past, &later);
		ExecDropSingleTupleTableSlot(later.row);
		table_close(later.events, NoLock);
		if (later.commits != NULL)
			pfree(later.commits);
	}
}

/* ---- as_of() ------------------------------------------------------------- */

static int
compare_places(const void *a, const void *b)
{
	const Touched *left = *(Touched *const *) a;
	const Touched *right = *(Touched *const *) b;

	if (left->slot != right->slot)
		return left->slot < right->slot ? -1 : 1;
	return ItemPointerCompare(unconstify(ItemPointerData *, &left->tid),
							  unconstify(ItemPointerData *, &right->tid));
}

/* The rows that were changed since, and were there, in the log's order. */
static Touched **
list_touched(Past *past, int *n)
{
	Touched   **list = palloc_extended((past->touched->members + 1) *
									   sizeof(Touched *), MCXT_ALLOC_HUGE);
	touched_iterator iterator;
	Touched    *touched;

	*n = 0;
	touched_start_iterate(past->touched, &iterator);
	while ((touched = touched_iterate(past->touched, &iterator)) != NULL)
		if (touched->op != OP_INSERT)
			list[(*n)++] = touched;
	qsort(list, *n, sizeof(Touched *), compare_places);
	return list;
}

/* Puts the rows out as they were before their first later change. */
static void
put_touched(Past *past, MemoryContext scratch)
{
	int			n;
	Touched   **list = list_touched(past, &n);
	Relation	events = NULL;
	TupleTableSlot *row = NULL;
	int			slot = -1;

	for (int i = 0; i < n; i++)
	{
		MemoryContext old;
		bool		should_free;

		CHECK_FOR_INTERRUPTS();
		if (list[i]->slot != slot)
		{
			if (row != NULL)
				ExecDropSingleTupleTableSlot(row);
			if (events != NULL)
				table_close(events, NoLock);
			slot = list[i]->slot;
			events = table_open(accord_db_slot_relid("event_log", slot),
								AccessShareLock);
			row = table_slot_create(events, NULL);
		}
		if (!table_tuple_fetch_row_version(events, &list[i]->tid,
										   GetActiveSnapshot(), row))
			elog(ERROR, "could not read an event of \"%s\" again",
				 RelationGetRelationName(events));
		old = MemoryContextSwitchTo(scratch);
		tuplestore_puttuple(past->result->setResult,
							row_before(&past->table,
									   ExecFetchSlotHeapTuple(row, false,
															  &should_free),
									   RelationGetDescr(events),
									   list[i]->op, list[i]->seq,
									   list[i]->ord));
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
	}
	if (row != NULL)
		ExecDropSingleTupleTableSlot(row);
	if (events != NULL)
		table_close(events, NoLock);
}

/* Puts a row of the present out, unless it was changed since the point. */
static void
put_present(Past *past, HeapTupleHeader row)
{
	Datum		values[MaxTupleAttributeNumber];
	bool		nulls[MaxTupleAttributeNumber];
	char	   *key;

	deform_row(&past->table, row, values, nulls);
	if (past->touched->members > 0 &&
		(key = row_key(&past->table, values, nulls)) != NULL &&
		touched_lookup(past->touched, key) != NULL)
		return;
	hide_columns(&past->table, nulls);
	tuplestore_putvalues(past->result->setResult, past->table.desc, values,
						 nulls);
}

/* The rows that are there now, under the active snapshot. */
static void
read_present(Past *past, MemoryContext scratch)
{
	PastTable  *table = &past->table;
	char	   *query = psprintf("SELECT (t.*)::%s FROM %s%s AS t WHERE %s",
								 table->name,
								 get_rel_relkind(table->relid) ==
								 RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
								 table->name,
								 table->condition ? table->condition : "true");
	Portal		portal = SPI_cursor_open_with_args(NULL, query, 0, NULL, NULL,
												   NULL, true,
												   CURSOR_OPT_NO_SCROLL);

	for (;;)
	{
		MemoryContext old;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(scratch);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;
			Datum		row = SPI_getbinval(SPI_tuptable->vals[i],
											SPI_tuptable->tupdesc, 1, &isnull);

			put_present(past, DatumGetHeapTupleHeader(row));
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
}

/* accord.as_of(NULL::table, point) */
Datum
accord_as_of(PG_FUNCTION_ARGS)
{
	Past	   *past = palloc0(sizeof(Past));
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord rows",
												  ALLOCSET_DEFAULT_SIZES);

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC | MAT_SRF_BLESS);
	past->result = (ReturnSetInfo *) fcinfo->resultinfo;
	past->touched = touched_create(AllocSetContextCreate(CurrentMemoryContext,
														 "pg_accord keys",
														 ALLOCSET_DEFAULT_SIZES),
								   1024, NULL);
	begin_past(fcinfo, &past->table, 1);
	read_later(past);
	put_touched(past, scratch);
	read_present(past, scratch);
	end_past();
	PG_RETURN_NULL();
}

/* ---- row_as_of() --------------------------------------------------------- */

/* The first change of a row after the point. */
typedef struct FirstChange
{
	int64		seq;
	int32		ord;
	HeapTuple	event;			/* NULL: there is none */
} FirstChange;

/* Looks for it in one slot. */
static void
find_first(PastTable *table, AccordPointReader *reader, int slot, Datum key,
		   FirstChange *first)
{
	Relation	events = table_open(accord_db_slot_relid("event_log", slot),
									AccessShareLock);
	TupleDesc	desc = RelationGetDescr(events);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	event;

	accord_history_keys(keys, table->id, key);
	scan = systable_beginscan(events, accord_history_index(slot), true,
							  GetActiveSnapshot(), 2, keys);
	while ((event = systable_getnext(scan)) != NULL)
	{
		int64		seq =
		accord_point_seq(reader, slot,
						 tuple_int64(event, ACCORD_EVENT_TX_ID, desc),
						 tuple_int64(event, ACCORD_EVENT_RECORDED_AT, desc));
		bool		isnull;
		int32		ord = DatumGetInt32(heap_getattr(event, ACCORD_EVENT_ORD,
													 desc, &isnull));

		if (seq <= table->seq || event_op(event, desc) == OP_EVENT ||
			(first->event != NULL &&
			 (seq > first->seq || (seq == first->seq && ord > first->ord))))
			continue;
		first->seq = seq;
		first->ord = ord;
		first->event = heap_copytuple(event);
	}
	systable_endscan(scan);
	table_close(events, NoLock);
}

/* The parts of a key; false when it does not have so many. */
static bool
split_key(const char *key, int n, char **parts)
{
	const char *p = key;

	if (n == 1)
	{
		parts[0] = pstrdup(key);
		return true;
	}
	for (int i = 0; i < n; i++)
	{
		char	   *part = palloc(strlen(p) + 1);
		char	   *end = part;

		parts[i] = part;
		if (p[0] == '\\' && p[1] == 'N')
		{
			parts[i] = NULL;
			p += 2;
		}
		for (; *p != '\0' && *p != ','; p++)
		{
			if (*p == '\\' && p[1] != '\0')
				p++;
			*end++ = *p;
		}
		*end = '\0';
		if (*p != (i == n - 1 ? '\0' : ','))
			return false;
		if (i < n - 1)
			p++;
	}
	return true;
}

/* The row of that key as it is now; NULL when there is none. */
static HeapTuple
present_row(PastTable *table, const char *key, MemoryContext context)
{
	char	   *parts[INDEX_MAX_KEYS];
	StringInfoData query;
	HeapTuple	result;
	Datum		values[MaxTupleAttributeNumber];
	bool		nulls[MaxTupleAttributeNumber];
	bool		isnull;
	MemoryContext old;

	if (!split_key(key, table->n_keys, parts))
		return NULL;
	initStringInfo(&query);
	appendStringInfo(&query, "SELECT (t.*)::%s FROM %s%s AS t WHERE (%s)",
					 table->name,
					 get_rel_relkind(table->relid) ==
					 RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
					 table->name,
					 table->condition ? table->condition : "true");
	for (int i = 0; i < table->n_keys; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(table->desc,
													table->keys[i]);

		appendStringInfo(&query, " AND t.%s ",
						 quote_identifier(NameStr(attribute->attname)));
		if (parts[i] == NULL)
			appendStringInfoString(&query, "IS NULL");
		else
			appendStringInfo(&query, "%s %s::%s",
							 accord_history_equality(attribute->atttypid),
							 quote_literal_cstr(parts[i]),
							 format_type_with_typemod(attribute->atttypid,
													  attribute->atttypmod));
	}
	if (SPI_execute(query.data, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not execute \"%s\"", query.data);
	if (SPI_processed == 0)
		return NULL;
	deform_row(table,
			   DatumGetHeapTupleHeader(SPI_getbinval(SPI_tuptable->vals[0],
													 SPI_tuptable->tupdesc, 1,
													 &isnull)),
			   values, nulls);
	hide_columns(table, nulls);
	old = MemoryContextSwitchTo(context);
	result = heap_form_tuple(table->desc, values, nulls);
	MemoryContextSwitchTo(old);
	return result;
}

/* accord.row_as_of(NULL::table, key, point) */
Datum
accord_row_as_of(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	PastTable	table = {0};
	char	   *key;
	AccordPointReader *reader;
	FirstChange first = {0};
	HeapTuple	result;

	key = PG_ARGISNULL(1) ? NULL :
		accord_history_key(PG_GETARG_DATUM(1),
						   get_fn_expr_argtype(fcinfo->flinfo, 1));
	if (key == NULL)
		PG_RETURN_NULL();
	begin_past(fcinfo, &table, 2);
	reader = accord_point_open();
	for (int i = 0; i < ACCORD_LOG_SLOTS; i++)
		find_first(&table, reader, i, CStringGetTextDatum(key), &first);
	accord_point_close(reader);
	if (first.event == NULL)
		result = present_row(&table, key, context);
	else
	{
		Relation	events = table_open(accord_db_relid("event_log_0"),
										AccessShareLock);
		MemoryContext old = MemoryContextSwitchTo(context);

		result = row_before(&table, first.event, RelationGetDescr(events),
							event_op(first.event, RelationGetDescr(events)),
							first.seq, first.ord);
		MemoryContextSwitchTo(old);
		table_close(events, NoLock);
	}
	end_past();
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(HeapTupleGetDatum(result));
}
