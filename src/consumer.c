/*
 * consumer.c: named positions in the log, for readers that are SQL.
 *
 * Runs in any backend that calls accord.poll(), advance() or rewind(). A
 * consumer's position moves in the reader's own transaction, so what it made
 * of the events and how far it has come commit together, or not at all.
 *
 * Invariants
 *   - The consumer's row is locked, from the first call to the end of the
 *     transaction, by whoever polls: two sessions never have the same events.
 *     The row itself is not updated for that.
 *   - Positions are appended to consumer_log, a ring of its own; the highest
 *     version counts and is found by index, from its end. A row updated for
 *     every batch would decay under somebody's held snapshot.
 *   - Position and horizon are read after the lock, by a snapshot of their own:
 *     under REPEATABLE READ the transaction's is older than the lock.
 *   - Position 0 is the log's beginning, wherever that is by now. Any other
 *     position before the horizon (what was emptied) has lost its place.
 *
 * Locks: accord.consumer RowShare and the row, event_log and commit_log
 * AccessShare, consumer_log RowExclusive.
 *
 * On failure the statement raises; position and lock go with the transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "compat.h"
#include "config.h"
#include "db.h"
#include "log.h"
#include "routing.h"
#include "shmem.h"

#define CONSUMER_SLOTS 4		/* partitions of consumer_log */
#define SKIP_AT_LEAST 1000		/* commits that did not match, to be noted */
#define SKIP_EVERY_MS 10000		/* ... or after so long */

/* Columns of accord.consumer_log. */
enum
{
	POSITION_VERSION = 1,
	POSITION_POSITION,
	POSITION_RECORDED_AT,
	POSITION_CONSUMER,
	POSITION_SLOT,
	POSITION_COLUMNS = POSITION_SLOT
};

/* A consumer whose row this transaction has locked. */
typedef struct Consumer
{
	char	   *name;
	int64		id;
	char	   *topic;
	char	   *owner;
	int64		horizon;		/* what is up to here was emptied */
	int64		position;
	int64		version;		/* of its row; 0: there is none */
	TimestampTz recorded_at;
} Consumer;

PG_FUNCTION_INFO_V1(accord_poll);
PG_FUNCTION_INFO_V1(accord_advance);
PG_FUNCTION_INFO_V1(accord_rewind);
PG_FUNCTION_INFO_V1(accord_consumer_position);

/* The newest of a consumer's rows in one slot, if it is newer than what we
 * have. */
static void
read_position_slot(Consumer *consumer, int slot)
{
	Relation	heap = table_open(accord_db_slot_relid("consumer_log", slot),
								  AccessShareLock);
	List	   *indexes = RelationGetIndexList(heap);
	Relation	index = index_open(linitial_oid(indexes), AccessShareLock);
	IndexScanDesc scan = accord_index_beginscan(heap, index,
												GetActiveSnapshot(), 1);
	TupleTableSlot *row = table_slot_create(heap, NULL);
	ScanKeyData key;
	bool		isnull;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(consumer->id));
	index_rescan(scan, &key, 1, NULL, 0);
	if (index_getnext_slot(scan, BackwardScanDirection, row))
	{
		int64		version = DatumGetInt64(slot_getattr(row, POSITION_VERSION,
														 &isnull));

		if (version > consumer->version)
		{
			consumer->version = version;
			consumer->position =
				DatumGetInt64(slot_getattr(row, POSITION_POSITION, &isnull));
			consumer->recorded_at =
				DatumGetTimestampTz(slot_getattr(row, POSITION_RECORDED_AT,
												 &isnull));
		}
	}
	ExecDropSingleTupleTableSlot(row);
	index_endscan(scan);
	index_close(index, NoLock);
	list_free(indexes);
	table_close(heap, NoLock);
}

/* Fills in position, version and recorded_at, under the active snapshot. */
static void
read_position(Consumer *consumer)
{
	consumer->position = 0;
	consumer->version = 0;
	consumer->recorded_at = 0;
	for (int i = 0; i < CONSUMER_SLOTS; i++)
		read_position_slot(consumer, i);
}

static void
append_position(Consumer *consumer, int64 position)
{
	int			slot = accord_db_sequence_last(accord_db_relid("consumer_slot")) %
	CONSUMER_SLOTS;
	Relation	rel = table_open(accord_db_slot_relid("consumer_log", slot),
								 RowExclusiveLock);
	Datum		values[POSITION_COLUMNS];
	bool		nulls[POSITION_COLUMNS] = {0};
	HeapTuple	tuple;

	consumer->position = position;
	consumer->version++;
	values[POSITION_VERSION - 1] = Int64GetDatum(consumer->version);
	values[POSITION_POSITION - 1] = Int64GetDatum(position);
	values[POSITION_RECORDED_AT - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	values[POSITION_CONSUMER - 1] = Int64GetDatum(consumer->id);
	values[POSITION_SLOT - 1] = Int16GetDatum(slot);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	accord_db_insert(rel, &tuple, 1);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/* Whoever owns a consumer reads by it; so may whoever may change its row. */
static void
check_owner(const Consumer *consumer, Oid user)
{
	Oid			owner = get_role_oid(consumer->owner, true);

	if ((OidIsValid(owner) && has_privs_of_role(user, owner)) ||
		pg_class_aclcheck(accord_db_relid("consumer"), user,
						  ACL_UPDATE) == ACLCHECK_OK)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("consumer \"%s\" is not yours", consumer->name),
			 errdetail("It belongs to role \"%s\".", consumer->owner),
			 errhint("Ask for UPDATE accord.consumer SET owner = ..., or for "
					 "membership in that role.")));
}

/* Locks the row; false: it is another session's, and we do not wait. */
static bool
lock_row(Datum name, bool wait)
{
	Oid			type = TEXTOID;

	if (SPI_execute_with_args(wait ?
							  "SELECT FROM accord.consumer WHERE name "
							  "OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE" :
							  "SELECT FROM accord.consumer WHERE name "
							  "OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE "
							  "SKIP LOCKED", 1, &type, &name, NULL, false,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not lock a row of accord.consumer");
	return SPI_processed > 0;
}

/* Reads the row and the horizon under the active snapshot; false: no row. */
static bool
read_row(Consumer *consumer, Datum name, MemoryContext caller)
{
	Oid			type = TEXTOID;
	bool		isnull;
	HeapTuple	row;
	TupleDesc	desc;

	if (SPI_execute_with_args("SELECT c.id, c.topic, c.owner, (SELECT "
							  "pg_catalog.max(r.last_seq) FROM "
							  "accord.retirement r WHERE r.log "
							  "OPERATOR(pg_catalog.=) 'event' AND "
							  "r.truncated_at IS NOT NULL) "
							  "FROM accord.consumer c WHERE c.name "
							  "OPERATOR(pg_catalog.=) $1", 1, &type, &name,
							  NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read accord.consumer");
	if (SPI_processed == 0)
		return false;
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	consumer->id = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
	consumer->topic = MemoryContextStrdup(caller, SPI_getvalue(row, desc, 2));
	consumer->owner = MemoryContextStrdup(caller, SPI_getvalue(row, desc, 3));
	consumer->horizon = DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
	if (isnull)
		consumer->horizon = 0;
	return true;
}

/*
 * Locks a consumer and tells how far it has come; false: another session has
 * it, and we do not wait. Raises when there is none of that name, when it is
 * not the caller's.
 */
static bool
take_consumer(Consumer *consumer, text * name, bool wait)
{
	MemoryContext caller = CurrentMemoryContext;
	AccordDbUser before;
	bool		locked;
	bool		found;

	accord_log_require_preload();
	consumer->name = text_to_cstring(name);
	before = accord_db_become(accord_db_owner());
	SPI_connect();
	locked = lock_row(PointerGetDatum(name), wait);
	PushActiveSnapshot(GetLatestSnapshot());
	found = read_row(consumer, PointerGetDatum(name), caller);
	if (found)
		read_position(consumer);
	PopActiveSnapshot();
	SPI_finish();
	accord_db_be_again(before);

	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("consumer \"%s\" does not exist", consumer->name),
				 errhint("INSERT INTO accord.consumer (name) first, or see "
						 "SELECT name FROM accord.consumer.")));
	check_owner(consumer, before.user);
	return locked;
}

/* What it has not read may be gone: it is told, and begins anew. */
static void
check_place(const Consumer *consumer)
{
	if (consumer->position == 0 || consumer->position >= consumer->horizon)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("consumer \"%s\" has lost its place in the log",
					consumer->name),
			 errdetail("It has read up to commit number " INT64_FORMAT
					   ", and lagged for longer than its max_lag; what was "
					   "committed up to number " INT64_FORMAT " was removed.",
					   consumer->position, consumer->horizon),
			 errhint("Begin anew with accord.rewind(), and rebuild what was "
					 "made of the events.")));
}

/* A filter that does not name them does not mean the extension's own topics. */
static bool
topic_matches(const char *pattern, const char *topic)
{
	return accord_config_topic_reserved(topic) ==
		accord_config_topic_reserved(pattern) &&
		accord_config_topic_match(pattern, topic);
}

/*
 * Returns whole transactions until at least max events were returned. What
 * comes before the first event that matches is passed for good.
 */
static void
read_events(Consumer *consumer, int max, ReturnSetInfo *result)
{
	AccordPoint after = {consumer->position, ACCORD_ORD_ALL};
	int64		safe = accord_log_safe_seq();
	int64		passed = Max(safe, consumer->position);
	AccordLogReader *reader;
	AccordCommit commit;
	int			n = 0;

	XLogFlush(accord_shmem_commit_lsn());
	PushActiveSnapshot(GetLatestSnapshot());
	reader = accord_log_open(after, safe);
	while (n < max && accord_log_next_commit(reader, &commit))
	{
		TupleTableSlot *event;

		CHECK_FOR_INTERRUPTS();
		while ((event = accord_log_next_event(reader)) != NULL)
		{
			char	   *topic = accord_routing_text(event,
													ACCORD_EVENT_TOPIC);

			if (topic_matches(consumer->topic, topic))
			{
				if (n++ == 0)
					passed = commit.seq - 1;
				accord_log_emit(result, &commit, event);
			}
			pfree(topic);
		}
	}
	accord_log_close(reader);
	PopActiveSnapshot();

	if (passed - consumer->position >= SKIP_AT_LEAST ||
		(n == 0 && passed > consumer->position &&
		 TimestampDifferenceExceeds(consumer->recorded_at,
									GetCurrentTimestamp(), SKIP_EVERY_MS)))
		append_position(consumer, passed);
}

/* accord.poll(name, max, wait) */
Datum
accord_poll(PG_FUNCTION_ARGS)
{
	int			max = PG_GETARG_INT32(1);
	bool		wait = PG_GETARG_BOOL(2);
	Consumer	consumer;

	if (max < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max of accord.poll() must be at least 1, not %d",
						max),
				 errhint("Give the number of events wanted at a time.")));
	InitMaterializedSRF(fcinfo, 0);
	if (!take_consumer(&consumer, PG_GETARG_TEXT_PP(0), wait))
		PG_RETURN_NULL();
	check_place(&consumer);
	read_events(&consumer, max, (ReturnSetInfo *) fcinfo->resultinfo);
	PG_RETURN_NULL();
}

/* A position beyond what is visible would miss what is still to come. */
static void
check_visible(const Consumer *consumer, int64 seq)
{
	int64		safe = accord_log_safe_seq();

	if (seq <= safe)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("consumer \"%s\" cannot have read up to commit number "
					INT64_FORMAT, consumer->name, seq),
			 errdetail("So far one can read up to number " INT64_FORMAT ".",
					   safe),
			 errhint("Give the seq of the last event that accord.poll() "
					 "returned.")));
}

/* accord.advance(name, seq) */
Datum
accord_advance(PG_FUNCTION_ARGS)
{
	int64		seq = PG_GETARG_INT64(1);
	Consumer	consumer;

	(void) take_consumer(&consumer, PG_GETARG_TEXT_PP(0), true);
	check_place(&consumer);
	check_visible(&consumer, seq);
	if (seq < consumer.position)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("consumer \"%s\" has read up to commit number "
						INT64_FORMAT " already, not " INT64_FORMAT,
						consumer.name, consumer.position, seq),
				 errhint("Poll and advance in one transaction; to go back, "
						 "use accord.rewind().")));
	if (seq > consumer.position)
		append_position(&consumer, seq);
	PG_RETURN_INT64(consumer.position);
}

/* accord.rewind(name, seq) */
Datum
accord_rewind(PG_FUNCTION_ARGS)
{
	int64		seq = PG_GETARG_INT64(1);
	Consumer	consumer;

	(void) take_consumer(&consumer, PG_GETARG_TEXT_PP(0), true);
	check_visible(&consumer, seq);
	if (seq < 0 || (seq > 0 && seq < consumer.horizon))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" cannot go back to commit number "
						INT64_FORMAT, consumer.name, seq),
				 errdetail("What was committed up to number " INT64_FORMAT
						   " was removed.", consumer.horizon),
				 errhint("Give 0 for the oldest event there is.")));
	append_position(&consumer, seq);
	PG_RETURN_INT64(seq);
}

/* accord.consumer_position(id): for the views and the ring; takes no lock. */
Datum
accord_consumer_position(PG_FUNCTION_ARGS)
{
	Consumer	consumer = {.id = PG_GETARG_INT64(0)};

	PushActiveSnapshot(GetLatestSnapshot());
	read_position(&consumer);
	PopActiveSnapshot();
	PG_RETURN_INT64(consumer.position);
}
