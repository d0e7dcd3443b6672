/*
 * backlog.c: what dispatchers write, and how they find it again.
 *
 * Runs in dispatchers only: they are the one writer of attempt_log,
 * backlog_log, cursor_log, replay_log and the positions.
 *
 * Invariants
 *   - All these logs are appended, never updated: an update per retry would
 *     leave dead rows that a held snapshot keeps. The highest version counts.
 *   - An endpoint belongs to one dispatcher, so versions need no lock.
 *   - A position is set one batch late (setval is not transactional): it never
 *     says more than has been committed.
 *
 * On failure the transaction aborts and its rows with it.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "backlog.h"
#include "db.h"

static const char *const state_words[] = {
	[ACCORD_STATE_SCHEDULED] = "scheduled",
	[ACCORD_STATE_WAITING] = "waiting",
	[ACCORD_STATE_SENDING] = "sending",
	[ACCORD_STATE_RETRYING] = "retrying",
	[ACCORD_STATE_REPLAYED] = "replayed",
	[ACCORD_STATE_ACCEPTED] = "accepted",
	[ACCORD_STATE_VERIFYING] = "verifying",
	[ACCORD_STATE_HELD] = "held",
	[ACCORD_STATE_DEAD] = "dead",
	[ACCORD_STATE_DELIVERED] = "delivered",
	[ACCORD_STATE_SKIPPED] = "skipped",
	[ACCORD_STATE_SUPERSEDED] = "superseded",
	[ACCORD_STATE_EXPIRED] = "expired",
	[ACCORD_STATE_DISCARDED] = "discarded"
};

const char *
accord_backlog_word(AccordState state)
{
	return state_words[state];
}

static AccordState
state_of_word(const char *word)
{
	for (int i = 0; i < lengthof(state_words); i++)
		if (strcmp(state_words[i], word) == 0)
			return i;
	elog(ERROR, "unexpected state \"%s\" in backlog_log", word);
}

/*
 * The partition that a ring is at, opened for inserting, and its number. Once
 * it is locked and still the current one, nobody carries it over without us.
 */
static Relation
open_current_slot(const char *table, const char *ring, int slots, int *slot)
{
	Oid			turns = accord_db_relid(ring);
	Relation	rel = NULL;

	do
	{
		if (rel != NULL)
			table_close(rel, RowExclusiveLock);
		*slot = accord_db_sequence_last(turns) % slots;
		rel = table_open(accord_db_slot_relid(table, *slot), RowExclusiveLock);
	} while (accord_db_sequence_last(turns) % slots != *slot);
	return rel;
}

/* Collects a row's columns in their order. */
typedef struct RowBuilder
{
	Datum		values[24];
	bool		nulls[24];
	int			n;
} RowBuilder;

static void
add_datum(RowBuilder *row, Datum value, bool isnull)
{
	row->values[row->n] = value;
	row->nulls[row->n++] = isnull;
}

static void
add_int64(RowBuilder *row, int64 value, bool isnull)
{
	add_datum(row, Int64GetDatum(value), isnull);
}

static void
add_text(RowBuilder *row, const char *value)
{
	add_datum(row, value ? CStringGetTextDatum(value) : (Datum) 0,
			  value == NULL);
}

/* Makes a tuple of the i-th of some rows. */
typedef HeapTuple (*FormRow) (const void *rows, int i, Relation rel, int slot,
							  TimestampTz now);

static HeapTuple
finish_row(RowBuilder *row, Relation rel)
{
	Assert(row->n == RelationGetNumberOfAttributes(rel));
	return heap_form_tuple(RelationGetDescr(rel), row->values, row->nulls);
}

/* Appends n rows to the slot that a log's ring is at. */
static void
append_rows(const char *table, const char *ring, int slots, const void *rows,
			int n, FormRow form)
{
	TimestampTz now = GetCurrentTimestamp();
	HeapTuple  *tuples;
	Relation	rel;
	int			slot;

	if (n == 0)
		return;
	rel = open_current_slot(table, ring, slots, &slot);
	tuples = palloc(n * sizeof(HeapTuple));
	for (int i = 0; i < n; i++)
		tuples[i] = form(rows, i, rel, slot, now);
	accord_db_insert(rel, tuples, n);
	table_close(rel, NoLock);
}

/* Same order as the columns of accord.backlog_log. */
static HeapTuple
form_backlog(const void *rows, int i, Relation rel, int slot,
			 TimestampTz now)
{
	const AccordBacklogRow *from = (const AccordBacklogRow *) rows + i;
	RowBuilder	row = {.n = 0};

	add_int64(&row, from->seq, false);
	add_int64(&row, from->tx_id, false);
	add_int64(&row, now, false);
	add_int64(&row, from->owed_since, false);
	add_int64(&row, from->attempted_at, from->attempted_at == 0);
	add_int64(&row, from->due_at, from->due_at == 0);
	add_int64(&row, from->route, from->route == 0);
	add_int64(&row, from->decided_by, from->decided_by == 0);
	add_datum(&row, Int32GetDatum(from->ord), false);
	add_datum(&row, Int32GetDatum(from->version), false);
	add_datum(&row, Int32GetDatum(from->attempts), false);
	add_datum(&row, Int16GetDatum(slot), false);
	add_datum(&row, Int16GetDatum(from->event_slot), false);
	add_datum(&row, Int16GetDatum(from->priority), false);
	add_text(&row, from->channel);
	add_text(&row, from->account);
	add_text(&row, from->key);
	add_text(&row, accord_backlog_word(from->state));
	add_text(&row, from->error);
	add_datum(&row, JsonbPGetDatum(from->request), from->request == NULL);
	add_int64(&row, from->replay, from->replay == 0);
	return finish_row(&row, rel);
}

void
accord_backlog_append(const AccordBacklogRow *rows, int n)
{
	append_rows("backlog_log", "backlog_slot", ACCORD_BACKLOG_SLOTS, rows, n,
				form_backlog);
}

/* Same order as the columns of accord.attempt_log. */
static HeapTuple
form_attempt(const void *rows, int i, Relation rel, int slot,
			 TimestampTz now)
{
	const AccordAttemptRow *from = (const AccordAttemptRow *) rows + i;
	RowBuilder	row = {.n = 0};

	add_int64(&row, from->seq, false);
	add_int64(&row, now, false);
	add_datum(&row, Int32GetDatum(from->ord), false);
	add_datum(&row, Int32GetDatum(from->attempt), false);
	add_datum(&row, Float4GetDatum((float4) from->duration_ms),
			  from->duration_ms < 0);
	add_datum(&row, Int16GetDatum(slot), false);
	add_datum(&row, Int16GetDatum(from->status), from->status == 0);
	add_text(&row, from->channel);
	add_text(&row, from->account);
	add_text(&row, from->outcome);
	add_text(&row, from->sent);
	add_text(&row, from->error);
	add_text(&row, from->response);
	add_text(&row, from->request_id);
	add_int64(&row, from->replay, from->replay == 0);
	add_int64(&row, from->rule, from->rule == 0);
	return finish_row(&row, rel);
}

void
accord_backlog_append_attempts(const AccordAttemptRow *rows, int n)
{
	append_rows("attempt_log", "attempt_slot", ACCORD_ATTEMPT_SLOTS, rows, n,
				form_attempt);
}

/* Same order as the columns of accord.cursor_log. */
static HeapTuple
form_cursor(const void *rows, int i, Relation rel, int slot,
			TimestampTz now)
{
	const AccordCursorRow *from = (const AccordCursorRow *) rows + i;
	RowBuilder	row = {.n = 0};

	add_int64(&row, from->version, false);
	add_int64(&row, from->point.seq, from->done);
	add_int64(&row, now, false);
	add_int64(&row, from->behind, from->done);
	add_int64(&row, from->counted, from->done);
	add_datum(&row, Int32GetDatum(from->point.ord), from->done);
	add_datum(&row, Int16GetDatum(slot), false);
	add_datum(&row, Int16GetDatum(from->priority), false);
	add_text(&row, from->channel);
	add_text(&row, from->account);
	return finish_row(&row, rel);
}

/* Same order as the columns of accord.endpoint_log. */
static HeapTuple
form_transition(const void *rows, int i, Relation rel, int slot,
				TimestampTz now)
{
	const AccordTransitionRow *from = (const AccordTransitionRow *) rows + i;
	RowBuilder	row = {.n = 0};

	add_int64(&row, now, false);
	add_int64(&row, from->until, from->until == 0);
	add_datum(&row, Int16GetDatum(slot), false);
	add_text(&row, from->channel);
	add_text(&row, from->account);
	add_text(&row, from->state);
	add_text(&row, from->reason);
	return finish_row(&row, rel);
}

void
accord_backlog_append_transitions(const AccordTransitionRow *rows, int n)
{
	append_rows("endpoint_log", "attempt_slot", ACCORD_ATTEMPT_SLOTS, rows, n,
				form_transition);
}

void
accord_backlog_append_cursors(const AccordCursorRow *rows, int n)
{
	append_rows("cursor_log", "backlog_slot", ACCORD_BACKLOG_SLOTS, rows, n,
				form_cursor);
}

/* Same order as the columns of accord.replay_log. */
static HeapTuple
form_replay(const void *rows, int i, Relation rel, int slot, TimestampTz now)
{
	const AccordReplayRow *from = (const AccordReplayRow *) rows + i;
	RowBuilder	row = {.n = 0};

	add_int64(&row, from->id, false);
	add_int64(&row, from->version, false);
	add_int64(&row, from->point.seq, false);
	add_int64(&row, now, false);
	add_int64(&row, from->started_at, false);
	add_int64(&row, from->since, false);
	add_int64(&row, from->first_seq, false);
	add_int64(&row, from->done, false);
	add_int64(&row, from->delivered, false);
	add_int64(&row, from->failed, false);
	add_int64(&row, from->passed, false);
	add_int64(&row, from->pass_low, false);
	add_int64(&row, from->pass_high, false);
	add_datum(&row, Int32GetDatum(from->point.ord), false);
	add_datum(&row, Int16GetDatum(slot), false);
	add_text(&row, from->state);
	add_text(&row, from->reason);
	return finish_row(&row, rel);
}

void
accord_backlog_append_replays(const AccordReplayRow *rows, int n)
{
	append_rows("replay_log", "backlog_slot", ACCORD_BACKLOG_SLOTS, rows, n,
				form_replay);
}

/*
 * Reading back. These queries go by index whatever the statistics say: the
 * logs swing between empty and huge.
 */

static Datum
column_datum(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

static int64
column_int64(int row, int column)
{
	bool		isnull;
	Datum		value = column_datum(row, column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

static int
column_int32(int row, int column)
{
	bool		isnull;
	Datum		value = column_datum(row, column, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

static char *
column_text(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						column);
}

#define BACKLOG_COLUMNS \
	"seq, tx_id, owed_since, attempted_at, due_at, route, decided_by, " \
	"ord, version, attempts, event_slot::int, channel, account, key, state, " \
	"error, request, priority::int, replay"

static void
fill_backlog(AccordBacklogRow *row, int i)
{
	bool		isnull;
	Datum		request = column_datum(i, 17, &isnull);

	row->seq = column_int64(i, 1);
	row->tx_id = column_int64(i, 2);
	row->owed_since = column_int64(i, 3);
	row->attempted_at = column_int64(i, 4);
	row->due_at = column_int64(i, 5);
	row->route = column_int64(i, 6);
	row->decided_by = column_int64(i, 7);
	row->ord = column_int32(i, 8);
	row->version = column_int32(i, 9);
	row->attempts = column_int32(i, 10);
	row->event_slot = column_int32(i, 11);
	row->channel = column_text(i, 12);
	row->account = column_text(i, 13);
	row->key = column_text(i, 14);
	row->state = state_of_word(column_text(i, 15));
	row->error = column_text(i, 16);
	row->request = isnull ? NULL : DatumGetJsonbPCopy(request);
	row->priority = column_int32(i, 18);
	row->replay = column_int64(i, 19);
}

/* Opens a cursor over a query; index scans only, in this transaction. */
static Portal
open_query(const char *query, int nargs, Oid *types, Datum *values)
{
	Portal		portal;

	SPI_connect();
	set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION,
					  GUC_ACTION_LOCAL, true, 0, false);
	portal = SPI_cursor_open_with_args(NULL, query, nargs, types, values,
									   NULL, true, CURSOR_OPT_NO_SCROLL);
	if (portal == NULL)
		elog(ERROR, "could not open a cursor for: %s", query);
	return portal;
}

static void
close_query(Portal portal)
{
	SPI_cursor_close(portal);
	SPI_finish();
}

void
accord_backlog_load(const char *channel, const char *account,
					AccordPoint after, AccordBacklogVisit visit, void *arg)
{
	static const char *const all =
	"SELECT " BACKLOG_COLUMNS " FROM (SELECT DISTINCT ON "
	"(channel, account, seq, ord) * FROM accord.backlog_log "
	"ORDER BY channel, account, seq, ord, version DESC) AS latest "
	"WHERE state IN ('scheduled', 'waiting', 'sending', 'retrying', "
	"'replayed', 'accepted', 'verifying', 'held') "
	"ORDER BY seq, ord";
	static const char *const one =
	"SELECT " BACKLOG_COLUMNS " FROM (SELECT DISTINCT ON (seq, ord) * "
	"FROM accord.backlog_log WHERE channel = $1 AND account = $2 "
	"AND (seq, ord) > ($3, $4) ORDER BY seq, ord, version DESC) AS latest "
	"WHERE state IN ('scheduled', 'waiting', 'sending', 'retrying', "
	"'replayed', 'accepted', 'verifying', 'held')";
	Oid			types[] = {TEXTOID, TEXTOID, INT8OID, INT4OID};
	Datum		values[4] = {0};
	Portal		portal;
	bool		more = true;

	if (channel != NULL)
	{
		values[0] = CStringGetTextDatum(channel);
		values[1] = CStringGetTextDatum(account);
		values[2] = Int64GetDatum(after.seq);
		values[3] = Int32GetDatum(after.ord);
	}
	portal = open_query(channel ? one : all, channel ? 4 : 0, types, values);
	while (more)
	{
		SPI_cursor_fetch(portal, true, 500);
		more = SPI_processed > 0;
		for (int i = 0; more && i < (int) SPI_processed; i++)
		{
			AccordBacklogRow row;

			fill_backlog(&row, i);
			more = visit(&row, arg);
		}
		SPI_freetuptable(SPI_tuptable);
	}
	close_query(portal);
}

/* Opens a query of the versions of one delivery, the newest first. */
static Portal
open_versions(const char *condition, const char *channel,
			  const char *account, int64 seq, int ord)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT8OID, INT4OID};
	Datum		values[] = {
		CStringGetTextDatum(channel), CStringGetTextDatum(account),
		Int64GetDatum(seq), Int32GetDatum(ord)
	};
	Portal		portal;

	portal = open_query(psprintf("SELECT " BACKLOG_COLUMNS
								 " FROM accord.backlog_log WHERE channel = $1"
								 " AND account = $2 AND seq = $3 AND ord = $4"
								 " AND %s ORDER BY version DESC LIMIT 1",
								 condition), 4, types, values);
	SPI_cursor_fetch(portal, true, 1);
	return portal;
}

bool
accord_backlog_find(const char *channel, const char *account, int64 seq,
					int ord, AccordBacklogRow *row)
{
	MemoryContext caller = CurrentMemoryContext;
	Portal		portal = open_versions("true", channel, account, seq, ord);
	bool		found = SPI_processed == 1;

	if (found)
	{
		fill_backlog(row, 0);
		row->key = row->key ? MemoryContextStrdup(caller, row->key) : NULL;
		row->error = NULL;
		row->request = NULL;
		row->channel = channel;
		row->account = account;
	}
	close_query(portal);
	return found;
}

Jsonb	   *
accord_backlog_request(const char *channel, const char *account, int64 seq,
					   int ord, int64 replay)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *condition = psprintf("request IS NOT NULL AND "
									 "coalesce(replay, 0) = " INT64_FORMAT,
									 replay);
	Portal		portal = open_versions(condition, channel, account, seq, ord);
	Jsonb	   *request = NULL;

	if (SPI_processed == 1)
	{
		bool		isnull;
		Datum		value = column_datum(0, 17, &isnull);
		MemoryContext spi = MemoryContextSwitchTo(caller);

		request = DatumGetJsonbPCopy(value);
		MemoryContextSwitchTo(spi);
	}
	close_query(portal);
	return request;
}

void
accord_backlog_settled(int64 after, AccordSettledVisit visit, void *arg)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(after)};
	Portal		portal;

	portal = open_query("SELECT channel, account, seq, ord "
						"FROM accord.attempt_log WHERE seq > $1 AND outcome "
						"IN ('delivered', 'skipped', 'superseded', 'expired', "
						"'discarded') "
						"UNION ALL SELECT channel, account, seq, ord "
						"FROM accord.backlog_log WHERE seq > $1",
						1, types, values);
	do
	{
		SPI_cursor_fetch(portal, true, 1000);
		for (int i = 0; i < (int) SPI_processed; i++)
			visit(column_text(i, 1), column_text(i, 2), column_int64(i, 3),
				  column_int32(i, 4), arg);
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	close_query(portal);
}

void
accord_backlog_cursors(AccordCursorVisit visit, void *arg)
{
	Portal		portal;

	portal = open_query("SELECT version, seq, ord, channel, account, "
						"priority::int, behind, counted FROM "
						"(SELECT DISTINCT ON (channel, account, priority) * "
						"FROM accord.cursor_log ORDER BY channel, account, "
						"priority, version DESC) AS latest", 0, NULL, NULL);
	do
	{
		SPI_cursor_fetch(portal, true, 1000);
		for (int i = 0; i < (int) SPI_processed; i++)
		{
			AccordCursorRow row = {
				.version = column_int64(i, 1),
				.point = {column_int64(i, 2), column_int32(i, 3)},
				.done = column_int64(i, 2) == 0,
				.channel = column_text(i, 4),
				.account = column_text(i, 5),
				.priority = column_int32(i, 6),
				.behind = column_int64(i, 7),
				.counted = column_int64(i, 8)
			};

			visit(&row, arg);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	close_query(portal);
}

void
accord_backlog_dead(AccordDeadVisit visit, void *arg)
{
	Portal		portal;

	portal = open_query("SELECT channel, account, count(*) FROM "
						"(SELECT DISTINCT ON (channel, account, seq, ord) * "
						"FROM accord.backlog_log ORDER BY channel, account, "
						"seq, ord, version DESC) AS latest "
						"WHERE state = 'dead' GROUP BY channel, account",
						0, NULL, NULL);
	do
	{
		SPI_cursor_fetch(portal, true, 1000);
		for (int i = 0; i < (int) SPI_processed; i++)
			visit(column_text(i, 1), column_text(i, 2), column_int64(i, 3),
				  arg);
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	close_query(portal);
}

void
accord_backlog_breakers(AccordBreakerVisit visit, void *arg)
{
	Portal		portal;

	portal = open_query("SELECT channel, account, until FROM "
						"(SELECT DISTINCT ON (channel, account) * "
						"FROM accord.endpoint_log "
						"WHERE state IN ('open', 'half_open', 'closed') "
						"ORDER BY channel, account, recorded_at DESC) AS latest "
						"WHERE state <> 'closed'", 0, NULL, NULL);
	do
	{
		SPI_cursor_fetch(portal, true, 1000);
		for (int i = 0; i < (int) SPI_processed; i++)
		{
			AccordTransitionRow row = {
				.channel = column_text(i, 1),
				.account = column_text(i, 2),
				.until = column_int64(i, 3)
			};

			visit(&row, arg);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	close_query(portal);
}

static Oid
position_sequence(int dispatcher)
{
	return accord_db_slot_relid("position", dispatcher);
}

int64
accord_backlog_position(int dispatcher)
{
	return accord_db_sequence_last(position_sequence(dispatcher));
}

void
accord_backlog_set_position(int dispatcher, int64 seq)
{
	accord_db_sequence_set(position_sequence(dispatcher), seq);
}

/* A position ahead of the log (a damaged restore) would pass events over. */
static void
bound_position(int dispatcher)
{
	int64		position = accord_backlog_position(dispatcher);
	int64		last = accord_db_sequence_last(accord_db_relid("commit_seq"));

	if (position <= last)
		return;
	ereport(LOG,
			(errmsg("position " INT64_FORMAT " of dispatcher %d is ahead of "
					"the log, which ends at " INT64_FORMAT ": it is set back",
					position, dispatcher, last)));
	accord_backlog_set_position(dispatcher, last);
}

void
accord_backlog_share_positions(int count)
{
	Oid			counter = accord_db_relid("dispatcher_count");
	int			before;

	/* not an advisory lock: anybody can take those, and keep them */
	LockRelationOid(counter, ShareRowExclusiveLock);
	before = (int) accord_db_sequence_last(counter);
	for (int i = 0; i < Max(before, count); i++)
		bound_position(i);
	if (before != count)
	{
		int64		lowest = accord_backlog_position(0);

		for (int i = 1; i < before; i++)
			lowest = Min(lowest, accord_backlog_position(i));
		for (int i = 0; i < count; i++)
			accord_backlog_set_position(i, lowest);
		accord_db_sequence_set(counter, count);
	}
}
