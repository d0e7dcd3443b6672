/*
 * baseline.c: rows that are older than the capture of their table.
 *
 * Runs in the session that calls accord.baseline(), for a range of a table's
 * blocks at a time (58_capture.sql goes through the tables). A row of which
 * the log says nothing gets an event that says that it is there.
 *
 * Invariants
 *   - Rows are read FOR SHARE: whoever changes one meanwhile waits until this
 *     transaction has its place in the commit order, and comes after it; whom
 *     this one waited for came before it, and the row is read as they left it.
 *     So the last event about a row says what it is.
 *   - Row versions that are made while the capture lasts are captured, so it
 *     does not matter that updates move rows from one block to another.
 *
 * On failure the statement raises; what earlier transactions wrote stands.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "accord.h"
#include "rowevent.h"

PG_FUNCTION_INFO_V1(accord_baseline_blocks);

/* Does the log know the row, since its table was captured last? */
static bool
is_known(SPIPlanPtr plan, int table_id, const char *key)
{
	Datum		values[2] = {Int32GetDatum(table_id), (Datum) 0};

	if (key == NULL)
		return false;
	values[1] = CStringGetTextDatum(key);
	if (SPI_execute_plan(plan, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for events in accord.event_log");
	return SPI_processed > 0;
}

static SPIPlanPtr
prepare_search(void)
{
	static Oid	types[] = {INT4OID, TEXTOID};

	return SPI_prepare("SELECT 1 FROM accord.event_log "
					   "WHERE table_id OPERATOR(pg_catalog.=) $1 "
					   "AND key COLLATE \"C\" OPERATOR(pg_catalog.=) $2 "
					   "AND op OPERATOR(pg_catalog.<>) 'event' "
					   "AND recorded_at OPERATOR(pg_catalog.>=) "
					   "(SELECT c.captured_at FROM accord.captured c "
					   "WHERE c.id OPERATOR(pg_catalog.=) $1)", 2, types);
}

/* Writes events about the rows that the cursor gives, unless they are known. */
static int64
write_rows(Portal rows, int table_id, const char *table)
{
	SPIPlanPtr	search = prepare_search();
	MemoryContext per_row = AllocSetContextCreate(CurrentMemoryContext,
												  "baseline row",
												  ALLOCSET_DEFAULT_SIZES);
	AccordCapture *capture = NULL;
	TupleTableSlot *row = NULL;
	int64		written = 0;

	for (;;)
	{
		SPITupleTable *page;
		uint64		n;

		SPI_cursor_fetch(rows, true, 100);
		page = SPI_tuptable;
		n = SPI_processed;
		if (n == 0)
			break;
		if (capture == NULL)
		{
			TupleDesc	desc = CreateTupleDescCopy(page->tupdesc);

			capture = accord_rowevent_open(table_id, desc, table);
			row = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
		}
		for (uint64 i = 0; i < n && capture != NULL; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(per_row);
			AccordRowImage image;

			CHECK_FOR_INTERRUPTS();
			ExecStoreHeapTuple(page->vals[i], row, false);
			accord_rowevent_image(capture, row, &image);
			if (!is_known(search, table_id, image.key))
			{
				accord_rowevent_baseline(capture, &image);
				written++;
			}
			ExecClearTuple(row);
			MemoryContextSwitchTo(old);
			MemoryContextReset(per_row);
		}
		SPI_freetuptable(page);
	}
	MemoryContextDelete(per_row);
	return written;
}

/*
 * accord.baseline_blocks(relation, table_id, condition, first, last): of a
 * table or partition the blocks from first on, up to but without last. Returns
 * how many events were written.
 */
Datum
accord_baseline_blocks(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	int			table_id = PG_GETARG_INT32(1);
	const char *condition = PG_ARGISNULL(2) ? "true" :
	text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *table = get_rel_name(relid);
	char	   *query;
	Portal		rows;
	int64		written;

	if (table == NULL)
		PG_RETURN_INT64(0);
	query = psprintf("SELECT \"new\".* FROM ONLY %s AS \"new\" "
					 "WHERE \"new\".ctid >= '(%lld,0)' "
					 "AND \"new\".ctid < '(%lld,0)' AND (%s) FOR SHARE",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
												table),
					 (long long) PG_GETARG_INT64(3),
					 (long long) PG_GETARG_INT64(4), condition);
	SPI_connect();
	rows = SPI_cursor_open_with_args(NULL, query, 0, NULL, NULL, NULL, false,
									 0);
	written = write_rows(rows, table_id, table);
	SPI_cursor_close(rows);
	SPI_finish();
	PG_RETURN_INT64(written);
}
