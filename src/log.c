/*
 * log.c: appending to the commit-ordered log.
 *
 * Runs in the application's backends. An event is inserted into the ring's
 * current slot as it is made; when the transaction commits it gets its place
 * in the commit order, and one row in commit_log.
 *
 * Invariants
 *   - A transaction's events lie in one slot: the slot is read once, at its
 *     first event. Any slot will do for correctness; one makes reading cheap.
 *   - Between publishing its floor and leaving the proc array a writer's
 *     commit number is at or above that floor. So a reader that computes the
 *     safe number first and takes its snapshot afterwards sees every commit up
 *     to it (DESIGN section 4).
 *   - Every event row whose transaction committed has exactly one commit_log
 *     row; a transaction whose events were all rolled back to a savepoint has
 *     none. (One committed in two phases gets it a moment later: prepared.c.)
 *     Its events are numbered without gaps, and its digest is that of just
 *     these: an event that is rolled back gives its number back.
 *
 * No lock is shared between writers but those of the sequences' pages.
 *
 * On failure: an error anywhere before the commit record aborts the
 * transaction as usual; its floor goes, and the readers are woken, as what
 * they held back for may now be read (shmem.c). FATAL goes the same way; a
 * crash clears shared memory.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "accord.h"
#include "append.h"
#include "counter.h"
#include "db.h"
#include "digest.h"
#include "guc.h"
#include "idempotency.h"
#include "identity.h"
#include "log.h"
#include "shmem.h"
#include "trace.h"

/* The digests as they were before a subtransaction that may be rolled back. */
typedef struct Savepoint
{
	SubTransactionId id;
	struct Savepoint *outer;
	uint64		size;			/* events before it */
	AccordHash	nodes[FLEXIBLE_ARRAY_MEMBER];	/* of their frontier */
} Savepoint;

/* The current transaction's part of the log. */
static struct
{
	int64		tx_id;			/* 0: no event yet */
	int			slot;
	AccordFrontier events;		/* those that stand; the last one's ord is
								 * their number */
	Savepoint  *savepoints;		/* innermost first; TopTransactionContext */
}			tx;

/* The last event of a captured table that this process appended. */
static struct
{
	int64		count;			/* of them, ever */
	int			table_id;
	pg_uuid_t	event_id;
}			captured;

static bool placed = false;		/* this one gives a prepared one its place */
static char preparing[GIDSIZE]; /* the name that this one is prepared under */
static bool callbacks_registered = false;
static bool unguarded = false;	/* the guard lets our own statement through */

PG_FUNCTION_INFO_V1(accord_log_guard);
PG_FUNCTION_INFO_V1(accord_ring_truncate);
PG_FUNCTION_INFO_V1(accord_log_transaction_id);

static void at_transaction_event(XactEvent event, void *arg);
static void at_subtransaction_event(SubXactEvent event, SubTransactionId id,
									SubTransactionId parent, void *arg);

void
accord_log_require_preload(void)
{
	if (!accord_shmem_ready())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_accord must be loaded via "
						"shared_preload_libraries"),
				 errhint("Add pg_accord to shared_preload_libraries in "
						 "postgresql.conf and restart the server.")));
}

/* Random bytes, drawn many at a time. */
static void
draw_random(void *bytes, int n)
{
	static uint8 pool[1024];
	static int	left = 0;

	if (left < n)
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate a random event_id"),
					 errhint("Check the operating system's random number "
							 "source.")));
		left = sizeof(pool);
	}
	left -= n;
	memcpy(bytes, &pool[left], n);
}

/*
 * UUID version 7 (RFC 9562 section 5.7): 48 bits of milliseconds, 12 bits of
 * the fraction (method 3 of section 6.2), 62 random bits.
 */
static pg_uuid_t *
make_event_id(TimestampTz now)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	uint64		us = (uint64) now +
	(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	uint64		ms = us / 1000;
	uint32		fraction = (uint32) ((us % 1000) * 4096 / 1000);

	for (int i = 0; i < 6; i++)
		id->data[i] = (uint8) (ms >> (40 - 8 * i));
	id->data[6] = 0x70 | (uint8) (fraction >> 8);
	id->data[7] = (uint8) fraction;
	draw_random(&id->data[8], 8);
	id->data[8] = 0x80 | (id->data[8] & 0x3F);
	return id;
}

static void
register_callbacks(void)
{
	RegisterXactCallback(at_transaction_event, NULL);
	RegisterSubXactCallback(at_subtransaction_event, NULL);
	callbacks_registered = true;
}

/* Draws the transaction's number and pins its slot, at its first event. */
static void
join_transaction(void)
{
	if (!callbacks_registered)
		register_callbacks();
	if (tx.tx_id != 0)
		return;
	accord_log_require_preload();
	tx.slot = accord_db_sequence_last(accord_db_relid("log_slot")) %
		ACCORD_LOG_SLOTS;
	tx.tx_id = accord_db_sequence_next(accord_db_relid("tx_seq"));
	tx.events.size = 0;
	tx.savepoints = NULL;
}

int64
accord_log_tx_id(void)
{
	return tx.tx_id;
}

int64
accord_log_captured(void)
{
	return captured.count;
}

bool
accord_log_captured_since(int64 count, int table_id, pg_uuid_t *event_id)
{
	if (captured.count <= count || captured.table_id != table_id)
		return false;
	*event_id = captured.event_id;
	return true;
}

/* Whether it tells of a row's change, not what else is known of the table. */
static bool
is_change(const Datum *values, const bool *nulls)
{
	text	   *op = DatumGetTextPP(values[ACCORD_EVENT_OP - 1]);

	return !nulls[ACCORD_EVENT_TABLE_ID - 1] && VARDATA_ANY(op)[0] != 'e';
}

/* Notes an event of a captured table, for whoever caused it. */
static void
note_captured(const Datum *values, const bool *nulls)
{
	if (!is_change(values, nulls))
		return;
	captured.count++;
	accord_counter_note(ACCORD_COUNTER_CAPTURED, 1);
	captured.table_id = DatumGetInt32(values[ACCORD_EVENT_TABLE_ID - 1]);
	captured.event_id = *DatumGetUUIDP(values[ACCORD_EVENT_EVENT_ID - 1]);
}

/* Levels of a frontier that may be in use. */
static int
frontier_levels(uint64 size)
{
	return size == 0 ? 0 : pg_leftmost_one_pos64(size) + 1;
}

/*
 * Before the first event of a subtransaction: what to go back to if it is
 * rolled back. A frontier is small, whatever the number of events.
 */
static void
remember_savepoint(void)
{
	SubTransactionId id = GetCurrentSubTransactionId();
	int			levels = frontier_levels(tx.events.size);
	Savepoint  *savepoint;

	if (id == TopSubTransactionId ||
		(tx.savepoints != NULL && tx.savepoints->id == id))
		return;
	savepoint = MemoryContextAlloc(TopTransactionContext,
								   offsetof(Savepoint, nodes) +
								   levels * sizeof(AccordHash));
	savepoint->id = id;
	savepoint->outer = tx.savepoints;
	savepoint->size = tx.events.size;
	memcpy(savepoint->nodes, tx.events.nodes, levels * sizeof(AccordHash));
	tx.savepoints = savepoint;
}

/*
 * Computes the event's digest, and completes its salt by it. The row is as it
 * will be stored, but for the salt.
 */
static void
digest_event(Datum *values, bool *nulls, AccordHash *event)
{
	pg_uuid_t  *salt = palloc(sizeof(pg_uuid_t));
	AccordHash	content;

	accord_digest_ready();
	draw_random(salt->data, ACCORD_SALT_RANDOM);
	accord_digest_content(values, nulls, salt->data, &content);
	accord_digest_event(values, nulls, &content, event);
	memcpy(&salt->data[ACCORD_SALT_RANDOM], event->bytes, ACCORD_SALT_CHECK);
	values[ACCORD_EVENT_SALT - 1] = UUIDPGetDatum(salt);
	nulls[ACCORD_EVENT_SALT - 1] = false;
}

bool
accord_log_append(Datum *values, bool *nulls)
{
	TimestampTz now = GetCurrentTimestamp();
	AccordHash	digest;

	join_transaction();

#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_EVENT_ID, UUIDPGetDatum(make_event_id(now)));
	SET(ACCORD_EVENT_RECORDED_AT, TimestampTzGetDatum(now));
	if (nulls[ACCORD_EVENT_PRIORITY - 1])
		SET(ACCORD_EVENT_PRIORITY, Int16GetDatum(ACCORD_PRIORITY_NORMAL));
	if (nulls[ACCORD_EVENT_SOURCE - 1] && accord_source != NULL &&
		accord_source[0] != '\0')
		SET(ACCORD_EVENT_SOURCE, CStringGetTextDatum(accord_source));
	if (nulls[ACCORD_EVENT_OCCURRED_AT - 1])
		SET(ACCORD_EVENT_OCCURRED_AT, TimestampTzGetDatum(now));
	if (!nulls[ACCORD_EVENT_IDEMPOTENCY_KEY - 1] &&
		!accord_idempotency_claim(values, nulls))
		return false;
	accord_trace_event(values, nulls);
	SET(ACCORD_EVENT_TX_ID, Int64GetDatum(tx.tx_id));
	SET(ACCORD_EVENT_SLOT, Int16GetDatum(tx.slot));
	SET(ACCORD_EVENT_ORD, Int32GetDatum((int32) tx.events.size + 1));
#undef SET
	digest_event(values, nulls, &digest);

	accord_append_row("event_log", tx.slot, values, nulls);
	remember_savepoint();
	accord_frontier_add(&tx.events, &digest);
	note_captured(values, nulls);
	return true;
}

int64
accord_log_current_tx(int *slot)
{
	*slot = tx.slot;
	return tx.tx_id;
}

/* A text setting as a nullable column value. */
static Datum
setting_datum(const char *value, bool *isnull)
{
	*isnull = (value == NULL || value[0] == '\0');
	return *isnull ? (Datum) 0 : CStringGetTextDatum(value);
}

/* The client's address, converted once per backend. */
static Datum
client_address(bool *isnull)
{
	static bool known = false;
	static Datum address;
	static bool address_null;

	if (!known)
	{
		LOCAL_FCINFO(fcinfo, 0);
		Datum		result;

		InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
		result = inet_client_addr(fcinfo);
		address_null = fcinfo->isnull;
		if (!address_null)
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

			address = datumCopy(result, false, -1);
			MemoryContextSwitchTo(old);
		}
		known = true;
	}
	*isnull = address_null;
	return address;
}

/* What a transaction's row of commit_log says, but for its number and time. */
static void
describe_transaction(Datum *values, bool *nulls)
{
#define SET(column, value) (values[(column) - 1] = (value))
#define SET_TEXT(column, value) \
	(values[(column) - 1] = setting_datum((value), &nulls[(column) - 1]))
	SET(ACCORD_COMMIT_TX_ID, Int64GetDatum(tx.tx_id));
	SET(ACCORD_COMMIT_ROLE, ObjectIdGetDatum(GetUserId()));
	SET(ACCORD_COMMIT_EVENTS, Int32GetDatum((int32) tx.events.size));
	SET(ACCORD_COMMIT_SLOT, Int16GetDatum(tx.slot));
	SET(ACCORD_COMMIT_CLIENT_ADDR,
		client_address(&nulls[ACCORD_COMMIT_CLIENT_ADDR - 1]));
	SET_TEXT(ACCORD_COMMIT_ACTOR, accord_actor);
	SET_TEXT(ACCORD_COMMIT_APPLICATION_NAME, application_name);
	SET_TEXT(ACCORD_COMMIT_REASON, accord_reason);
	SET_TEXT(ACCORD_COMMIT_CORRELATION_ID, accord_correlation_id);
#undef SET_TEXT
#undef SET
}

/* Completes the row of a transaction whose events have that root; appends it. */
static void
insert_commit_row(int64 seq, Datum *values, bool *nulls,
				  const AccordHash *events)
{
	bytea	   *digest = palloc(VARHDRSZ + ACCORD_HASH_BYTES);

	values[ACCORD_COMMIT_SEQ - 1] = Int64GetDatum(seq);
	values[ACCORD_COMMIT_COMMITTED_AT - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	accord_digest_commit(values, nulls, events, (AccordHash *) VARDATA(digest));
	accord_digest_finish();
	SET_VARSIZE(digest, VARHDRSZ + ACCORD_HASH_BYTES);
	values[ACCORD_COMMIT_DIGEST - 1] = PointerGetDatum(digest);
	accord_append_row("commit_log",
					  DatumGetInt16(values[ACCORD_COMMIT_SLOT - 1]), values,
					  nulls);
}

/*
 * Gives the committing transaction its place. The floor is published before
 * the number is drawn, so that no reader can pass it by; it is raised to the
 * number itself once that is known. The sequence's page lock orders the
 * publication before any reader's view of a number at or above it.
 */
static void
take_place(void)
{
	Oid			sequence = accord_db_relid_if_any("commit_seq");
	Datum		values[ACCORD_COMMIT_COLUMNS];
	bool		nulls[ACCORD_COMMIT_COLUMNS] = {0};
	AccordHash	events;
	int64		seq;

	if (!OidIsValid(sequence))
		return;					/* DROP EXTENSION, and the events with it */
	accord_shmem_floor_publish(accord_db_sequence_last(sequence) + 1);
	seq = accord_db_sequence_next(sequence);
	accord_shmem_floor_publish(seq);

	PushActiveSnapshot(GetTransactionSnapshot());	/* toasting wants one */
	describe_transaction(values, nulls);
	accord_frontier_root(&tx.events, &events);
	insert_commit_row(seq, values, nulls, &events);
	PopActiveSnapshot();
	accord_counter_note(ACCORD_COUNTER_TRANSACTIONS, 1);
	accord_counter_note(ACCORD_COUNTER_EVENTS, (int64) tx.events.size);
}

/*
 * The transaction is prepared: a row says all of it that COMMIT PREPARED, in
 * whatever session, needs to give it its place (prepared.c). For the digest it
 * has the root of its events.
 */
static void
keep_for_later(void)
{
	Oid			relid = accord_db_relid_if_any("prepared");
	Datum		values[ACCORD_PREPARED_COLUMNS];
	bool		nulls[ACCORD_PREPARED_COLUMNS] = {0};
	bytea	   *events = palloc(VARHDRSZ + ACCORD_HASH_BYTES);
	Relation	table;
	HeapTuple	row;

	if (!OidIsValid(relid))
		return;
	if (preparing[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot prepare a transaction that has written events "
						"to accord.outbox other than by a statement"),
				 errhint("Use PREPARE TRANSACTION.")));
	PushActiveSnapshot(GetTransactionSnapshot());	/* toasting wants one */
	describe_transaction(values, nulls);
	accord_frontier_root(&tx.events, (AccordHash *) VARDATA(events));
	accord_digest_finish();
	SET_VARSIZE(events, VARHDRSZ + ACCORD_HASH_BYTES);
	values[ACCORD_COMMIT_SEQ - 1] = Int64GetDatum(0);
	values[ACCORD_COMMIT_COMMITTED_AT - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	values[ACCORD_COMMIT_DIGEST - 1] = PointerGetDatum(events);
	values[ACCORD_PREPARED_GID - 1] = CStringGetTextDatum(preparing);
	table = table_open(relid, RowExclusiveLock);
	row = heap_form_tuple(RelationGetDescr(table), values, nulls);
	accord_db_insert(table, &row, 1);
	table_close(table, NoLock);
	PopActiveSnapshot();
}

void
accord_log_preparing(const char *gid)
{
	strlcpy(preparing, gid, sizeof(preparing));
}

void
accord_log_place_prepared(Datum *values, bool *nulls, int64 seq)
{
	AccordHash	events;

	memcpy(&events, VARDATA_ANY(DatumGetByteaPP(values[ACCORD_COMMIT_DIGEST - 1])),
		   ACCORD_HASH_BYTES);
	if (!callbacks_registered)
		register_callbacks();
	accord_digest_ready();
	insert_commit_row(seq, values, nulls, &events);
	placed = true;
}

static void
forget_transaction(void)
{
	tx.tx_id = 0;
	tx.events.size = 0;
	placed = false;
	preparing[0] = '\0';
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (tx.events.size > 0)
				take_place();
			break;

		case XACT_EVENT_PRE_PREPARE:
			if (tx.events.size > 0)
				keep_for_later();
			break;

		case XACT_EVENT_COMMIT:
			if (tx.events.size > 0 || placed)
				accord_shmem_commit_lsn_raise(XactLastCommitEnd);
			forget_transaction();
			break;

		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			forget_transaction();
			break;

		default:
			break;
	}
}

/*
 * A subtransaction that is rolled back takes its events with it; one that is
 * not hands what to go back to on to its parent, unless that has its own.
 */
static void
at_subtransaction_event(SubXactEvent event, SubTransactionId id,
						SubTransactionId parent, void *arg)
{
	Savepoint  *savepoint = tx.savepoints;

	if (tx.tx_id == 0 || savepoint == NULL || savepoint->id != id)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		tx.events.size = savepoint->size;
		memcpy(tx.events.nodes, savepoint->nodes,
			   frontier_levels(savepoint->size) * sizeof(AccordHash));
		tx.savepoints = savepoint->outer;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (parent == TopSubTransactionId ||
			(savepoint->outer != NULL && savepoint->outer->id == parent))
			tx.savepoints = savepoint->outer;
		else
			savepoint->id = parent;
	}
}

/*
 * Trigger: rows of a log are for good. INSERT is for a restore, which brings
 * whole rows, and makes this database a copy; whoever has no slot to give
 * means accord.outbox.
 */
Datum
accord_log_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *name;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "accord.log_guard() was not called by a trigger");
	name = RelationGetRelationName(trigger->tg_relation);

	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		bool		isnull = true;
		int			column = SPI_fnumber(trigger->tg_relation->rd_att, "slot");

		heap_getattr(trigger->tg_trigtuple, column,
					 trigger->tg_relation->rd_att, &isnull);
		if (isnull)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot insert into log \"%s\" directly", name),
					 errhint("INSERT INTO accord.outbox instead.")));
		/* rows of the backlog are also copied within the ring */
		if (strncmp(name, "event_log", 9) == 0 ||
			strncmp(name, "commit_log", 10) == 0)
			accord_identity_mark_copy();
		return PointerGetDatum(trigger->tg_trigtuple);
	}
	if (!unguarded)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change or remove rows of log \"%s\"", name),
				 errhint("Append an event that says what is true now; old "
						 "rows go by retention.")));
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						   trigger->tg_newtuple : trigger->tg_trigtuple);
}

void
accord_log_run_unguarded(const char *query, int nargs, Oid *types,
						 Datum *values)
{
	SPI_connect();
	unguarded = true;
	PG_TRY();
	{
		int			result = SPI_execute_with_args(query, nargs, types, values,
												   NULL, false, 0);

		if (result != SPI_OK_UTILITY && result != SPI_OK_UPDATE)
			elog(ERROR, "could not run \"%s\"", query);
	}
	PG_FINALLY();
	{
		unguarded = false;
	}
	PG_END_TRY();
	SPI_finish();
}

/* accord.ring_truncate(tables): the guard lets this through. */
Datum
accord_ring_truncate(PG_FUNCTION_ARGS)
{
	char	   *tables = text_to_cstring(PG_GETARG_TEXT_PP(0));

	accord_log_run_unguarded(psprintf("TRUNCATE %s", tables), 0, NULL, NULL);
	PG_RETURN_VOID();
}

int64
accord_log_transaction(int *last_ord)
{
	*last_ord = (int) tx.events.size;
	return tx.tx_id;
}

/* accord.log_transaction() */
Datum
accord_log_transaction_id(PG_FUNCTION_ARGS)
{
	if (tx.tx_id == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(tx.tx_id);
}
