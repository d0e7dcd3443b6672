/*
 * erase.c: the content of an event goes, and its digest stays.
 *
 * Runs in backends that call accord.erase(). The row's digest commits to that
 * of its content, which is salted; so once payload, before, headers and salt
 * are gone, what remains proves that the event was there and tells nothing of
 * what it said. With it go the copies that deliveries made: frozen requests,
 * and excerpts of answers.
 *
 * Invariants: only what is still as it was written is erased, so that nobody
 * launders a change by erasing it; the row says which event of which
 * transaction (this one) erased it.
 *
 * On failure the transaction is rolled back and nothing was erased.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "compat.h"
#include "digest.h"
#include "log.h"

PG_FUNCTION_INFO_V1(accord_erase_event);

/* What is to be kept of a stored event. */
static bytea *
make_remains(TupleTableSlot *row, int erased_by)
{
	bytea	   *remains = palloc(VARHDRSZ + sizeof(AccordErased));
	AccordErased erased;
	AccordHash	leaf;
	bool		agrees;
	uint32		wire = pg_hton32((uint32) erased_by);

	slot_getallattrs(row);
	if (row->tts_isnull[ACCORD_EVENT_SALT - 1] ||
		!accord_digest_stored(row->tts_values, row->tts_isnull, &leaf,
							  &agrees) || !agrees)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("cannot erase an event that is not as it was written"),
				 errhint("See accord.verify().")));
	accord_digest_content(row->tts_values, row->tts_isnull,
						  DatumGetUUIDP(row->tts_values[ACCORD_EVENT_SALT - 1])->data,
						  &erased.content);
	memcpy(erased.check, leaf.bytes, ACCORD_SALT_CHECK);
	memcpy(erased.ord, &wire, sizeof(wire));
	SET_VARSIZE(remains, VARHDRSZ + sizeof(AccordErased));
	memcpy(VARDATA(remains), &erased, sizeof(erased));
	return remains;
}

/* Runs an UPDATE of our logs with the event's place and what it needs more. */
static void
run_update(const char *query, int64 place, int ord, Datum third, Datum fourth,
		   int nargs)
{
	static Oid	types[] = {INT8OID, INT4OID, BYTEAOID, INT8OID};
	Datum		args[4];

	args[0] = Int64GetDatum(place);
	args[1] = Int32GetDatum(ord);
	args[2] = third;
	args[3] = fourth;
	accord_log_run_unguarded(query, nargs, types, args);
}

/* accord.erase_event(slot, tx_id, ord, seq) */
Datum
accord_erase_event(PG_FUNCTION_ARGS)
{
	int			slot = PG_GETARG_INT32(0);
	int64		tx_id = PG_GETARG_INT64(1);
	int			ord = PG_GETARG_INT32(2);
	int64		seq = PG_GETARG_INT64(3);
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	int			erased_by;
	int64		eraser = accord_log_transaction(&erased_by);
	AccordLogReader *reader;
	TupleTableSlot *row;
	bytea	   *remains;

	if (eraser == 0)
		elog(ERROR, "accord.erase_event() was called without an event that says so");
	accord_digest_ready();
	PushActiveSnapshot(GetLatestSnapshot());
	reader = accord_log_open(nowhere, 0);
	row = accord_log_event(reader, slot, tx_id, ord);
	if (row == NULL)
		elog(ERROR, "event " INT64_FORMAT ".%d is not in the log", seq, ord);
	remains = make_remains(row, erased_by);
	accord_log_close(reader);
	PopActiveSnapshot();

	run_update(psprintf("UPDATE accord.event_log_%d SET payload = NULL, "
						"before = NULL, headers = NULL, salt = NULL, "
						"erased = $3, erased_by = $4 "
						"WHERE tx_id OPERATOR(pg_catalog.=) $1 "
						"AND ord OPERATOR(pg_catalog.=) $2", slot),
			   tx_id, ord, PointerGetDatum(remains), Int64GetDatum(eraser), 4);
	run_update("UPDATE accord.backlog_log SET request = NULL "
			   "WHERE seq OPERATOR(pg_catalog.=) $1 "
			   "AND ord OPERATOR(pg_catalog.=) $2 AND request IS NOT NULL",
			   seq, ord, (Datum) 0, (Datum) 0, 2);
	run_update("UPDATE accord.attempt_log SET response = NULL "
			   "WHERE seq OPERATOR(pg_catalog.=) $1 "
			   "AND ord OPERATOR(pg_catalog.=) $2 AND response IS NOT NULL",
			   seq, ord, (Datum) 0, (Datum) 0, 2);
	PG_RETURN_VOID();
}
