/*
 * past_row.c: one row of a captured table as it was.
 *
 * Runs in any backend that calls accord.row_as_of(). The row was, at the
 * point, what the first change after it found; with none it is what it is now
 * (past.c says why).
 *
 * Locks: AccessShare on the table and on the partitions of the log, until the
 * transaction ends.
 *
 * On failure everything is released with the transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/table.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "db.h"
#include "history.h"
#include "log.h"
#include "past_table.h"
#include "point.h"


PG_FUNCTION_INFO_V1(accord_row_as_of);

/* The first change of a row after the point. */
typedef struct FirstChange
{
	int64		seq;
	int32		ord;
	HeapTuple	event;			/* NULL: there is none */
} FirstChange;

/* Looks for it in one slot. */
static void
find_first(AccordPastTable *table, AccordPointReader *reader, int slot, Datum key,
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
						 accord_past_int64(event, ACCORD_EVENT_TX_ID, desc),
						 accord_past_int64(event, ACCORD_EVENT_RECORDED_AT, desc));
		bool		isnull;
		int32		ord = DatumGetInt32(heap_getattr(event, ACCORD_EVENT_ORD,
													 desc, &isnull));

		if (seq <= table->seq || accord_past_op(event, desc) == ACCORD_PAST_EVENT ||
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
present_row(AccordPastTable *table, const char *key, MemoryContext context)
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
	accord_past_deform(table,
					   DatumGetHeapTupleHeader(SPI_getbinval(SPI_tuptable->vals[0],
															 SPI_tuptable->tupdesc, 1,
															 &isnull)),
					   values, nulls);
	accord_past_hide(table, nulls);
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
	AccordPastTable table = {0};
	char	   *key;
	AccordPointReader *reader;
	FirstChange first = {0};
	HeapTuple	result;

	key = PG_ARGISNULL(1) ? NULL :
		accord_history_key(PG_GETARG_DATUM(1),
						   get_fn_expr_argtype(fcinfo->flinfo, 1));
	if (key == NULL)
		PG_RETURN_NULL();
	accord_past_begin(fcinfo, &table, 2);
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

		result = accord_past_before(&table, first.event, RelationGetDescr(events),
									accord_past_op(first.event, RelationGetDescr(events)),
									first.seq, first.ord);
		MemoryContextSwitchTo(old);
		table_close(events, NoLock);
	}
	accord_past_end();
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(HeapTupleGetDatum(result));
}
