/*
 * replay_job.c: what replays are about, read from their tables.
 *
 * Runs in dispatchers. A replay is a row of replay_job, which a person made,
 * and versions in replay_log, which its dispatcher writes; both are read when
 * the dispatcher starts, or when the log says that there is a new one.
 *
 * Invariants
 *   - A job that was read once is never forgotten: deliveries point to it, and
 *     what a person redelivers long after its end is still one of its own.
 *   - The last row says: everything up to its point is settled, or in the
 *     backlog. What was settled beyond the point was so after the row's
 *     "since", and is found in attempt_log; what was settled after the row was
 *     written, has not been counted in it.
 *
 * On failure the transaction's error ends the dispatcher; nothing was changed.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "replay_job.h"

#define MILLION INT64CONST(1000000)

typedef struct JobEntry
{
	int64		id;				/* hash key */
	AccordReplayJob *job;
} JobEntry;

static HTAB *jobs = NULL;

static const char *const load_query =
"SELECT j.id, j.channel, j.account, j.mode, j.salt, j.first_seq, j.last_seq, "
"j.topic, j.key, (SELECT bit_or(1 << (array_position(ARRAY['insert', "
"'update', 'delete', 'truncate', 'event'], o) - 1)) FROM unnest(j.ops) o), "
"(SELECT array_agg(e ORDER BY e) FROM unnest(j.events) e), j.table_id, j.rate, "
"j.cancelled_at, l.version, l.seq, l.ord, l.started_at, l.since, l.done, "
"l.delivered, l.failed, l.passed, l.pass_low, l.pass_high, l.state, "
"l.recorded_at "
"FROM accord.replay_job j LEFT JOIN LATERAL (SELECT * FROM accord.replay_log r "
"WHERE r.job = j.id ORDER BY r.version DESC LIMIT 1) l ON true "
"WHERE j.id = $1 OR $1 = 0 ORDER BY j.id";

/* Columns of load_query. */
enum
{
	JOB_ID = 1, JOB_CHANNEL, JOB_ACCOUNT, JOB_MODE, JOB_SALT, JOB_FIRST,
	JOB_LAST, JOB_TOPIC, JOB_KEY, JOB_OPS, JOB_EVENTS, JOB_TABLE,
	JOB_RATE,
	JOB_CANCELLED_AT, LOG_VERSION, LOG_SEQ, LOG_ORD, LOG_STARTED_AT,
	LOG_SINCE, LOG_DONE, LOG_DELIVERED, LOG_FAILED, LOG_PASSED, LOG_PASS_LOW,
	LOG_PASS_HIGH, LOG_STATE, LOG_RECORDED_AT
};

static const char *const settled_query =
"SELECT seq, ord, CASE WHEN recorded_at <= $3 THEN NULL "
"WHEN outcome = 'delivered' THEN 'delivered' ELSE 'passed' END "
"FROM accord.attempt_log WHERE replay = $1 AND recorded_at >= $2 "
"AND outcome IN ('delivered', 'skipped', 'superseded', 'expired', "
"'discarded') "
"UNION ALL SELECT seq, ord, CASE WHEN recorded_at > $3 AND state = 'dead' "
"THEN 'failed' END "
"FROM accord.backlog_log WHERE channel = $4 AND replay = $1";

static Datum
column(int row, int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

static int64
column_int64(int row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

static int
column_int32(int row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

/* In a context of the caller's; NULL when null. */
static char *
column_text(int row, int number, MemoryContext context)
{
	char	   *text = SPI_getvalue(SPI_tuptable->vals[row],
									SPI_tuptable->tupdesc, number);

	return text ? MemoryContextStrdup(context, text) : NULL;
}

static void
fill_events(AccordReplayJob *job, int row)
{
	bool		isnull;
	Datum		value = column(row, JOB_EVENTS, &isnull);
	Datum	   *ids;

	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(value), UUIDOID, UUID_LEN, false,
					  TYPALIGN_CHAR, &ids, NULL, &job->n_events);
	job->events = MemoryContextAlloc(job->context, job->n_events * UUID_LEN);
	for (int i = 0; i < job->n_events; i++)
		memcpy(job->events + i * UUID_LEN, DatumGetUUIDP(ids[i])->data,
			   UUID_LEN);
}

/* As many as pass in 5 ms may go at once: that is how often we look. */
static void
fill_rate(AccordReplayJob *job, int row)
{
	bool		isnull;
	Datum		value = column(row, JOB_RATE, &isnull);
	double		rate = isnull ? 0 : DatumGetFloat8(value);

	job->limited = !isnull;
	if (isnull)
		return;
	if (rate >= 1)
		job->rate = accord_limit_rate((int64) (rate * 1000), 1000 * MILLION,
									  Max((int64) (rate / 200), 1));
	else
		job->rate = accord_limit_rate(1, (int64) Min(MILLION / rate, 1e15), 1);
}

static AccordReplayState
state_of_word(const char *word, bool cancelled, AccordReplayState *end)
{
	*end = ACCORD_REPLAY_CANCELLED;
	if (word != NULL && strcmp(word, "done") == 0)
		return ACCORD_REPLAY_DONE;
	if (word != NULL && strcmp(word, "cancelled") == 0)
		return ACCORD_REPLAY_CANCELLED;
	if (word != NULL && strcmp(word, "failed") == 0)
		return ACCORD_REPLAY_FAILED;
	return cancelled ? ACCORD_REPLAY_CANCELLING : ACCORD_REPLAY_RUNNING;
}

/* How far it had come, or that it has not begun. */
static void
fill_progress(AccordReplayJob *job, int row)
{
	AccordReplay *replay = &job->base;

	replay->version = column_int64(row, LOG_VERSION);
	job->begun = replay->version > 0;
	replay->read.seq = job->first_seq - 1;
	replay->read.ord = ACCORD_ORD_ALL;
	replay->pass_high = -1;		/* as unsigned: the last of all hashes */
	replay->started_at = GetCurrentTimestamp();
	if (!job->begun)
		return;
	replay->read.seq = column_int64(row, LOG_SEQ);
	replay->read.ord = column_int32(row, LOG_ORD);
	replay->started_at = column_int64(row, LOG_STARTED_AT);
	replay->walked = column_int64(row, LOG_DONE);
	replay->delivered = column_int64(row, LOG_DELIVERED);
	replay->failed = column_int64(row, LOG_FAILED);
	replay->passed = column_int64(row, LOG_PASSED);
	replay->pass_low = column_int64(row, LOG_PASS_LOW);
	replay->pass_high = column_int64(row, LOG_PASS_HIGH);
	replay->persisted_at = column_int64(row, LOG_RECORDED_AT);
}

static AccordReplayJob *
create_job(AccordDesk *desk, int row)
{
	AccordReplayJob *job = MemoryContextAllocZero(desk->context,
												  sizeof(AccordReplayJob));
	AccordReplay *replay = &job->base;
	char	   *mode = column_text(row, JOB_MODE, CurrentMemoryContext);
	char	   *state = column_text(row, LOG_STATE, CurrentMemoryContext);
	bool		isnull;
	Datum		salt = column(row, JOB_SALT, &isnull);
	bool		uncancelled;

	job->context = AllocSetContextCreate(desk->context, "pg_accord replay",
										 ALLOCSET_SMALL_SIZES);
	replay->id = column_int64(row, JOB_ID);
	replay->rekey = strcmp(mode, "rekey") == 0;
	memcpy(replay->salt, DatumGetUUIDP(salt)->data, UUID_LEN);
	dlist_init(&replay->owed);
	dlist_init(&replay->excepted);
	dlist_init(&job->streams);
	(void) column(row, JOB_CANCELLED_AT, &uncancelled);
	replay->state = state_of_word(state, !uncancelled, &job->end);
	job->state_mode = strcmp(mode, "state") == 0;
	job->channel = column_text(row, JOB_CHANNEL, desk->context);
	job->account = column_text(row, JOB_ACCOUNT, job->context);
	job->first_seq = column_int64(row, JOB_FIRST);
	job->last_seq = column_int64(row, JOB_LAST);
	replay->first_seq = job->state_mode ? job->first_seq : 0;
	job->topic = column_text(row, JOB_TOPIC, job->context);
	job->key = column_text(row, JOB_KEY, job->context);
	job->ops = column_int32(row, JOB_OPS);
	job->table_id = column_int32(row, JOB_TABLE);
	fill_events(job, row);
	fill_rate(job, row);
	fill_progress(job, row);
	return job;
}

static HTAB *
create_table(MemoryContext context, const char *name, Size key, Size entry)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = key;
	ctl.entrysize = entry;
	ctl.hcxt = context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

AccordReplayJob *
accord_replay_job_find(int64 id)
{
	JobEntry   *entry = jobs == NULL ? NULL :
	hash_search(jobs, &id, HASH_FIND, NULL);

	return entry ? entry->job : NULL;
}

/* What was settled since its last row: to be passed over, and counted. */
static void
load_settled(AccordReplayJob *job, TimestampTz since)
{
	AccordReplay *replay = &job->base;
	Oid			types[] = {INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[] = {
		Int64GetDatum(replay->id), TimestampTzGetDatum(since),
		TimestampTzGetDatum(replay->persisted_at),
		CStringGetTextDatum(job->channel)
	};
	Portal		portal;

	replay->settled_since = since;
	job->settled = create_table(job->context, "pg_accord replayed",
								sizeof(AccordReplayPlace),
								sizeof(AccordReplayPlace));
	portal = SPI_cursor_open_with_args(NULL, settled_query, lengthof(types),
									   types, values, NULL, true,
									   CURSOR_OPT_NO_SCROLL);
	do
	{
		SPI_cursor_fetch(portal, true, 1000);
		for (int i = 0; i < (int) SPI_processed; i++)
		{
			AccordReplayPlace place = {column_int64(i, 1), column_int32(i, 2)};
			AccordPoint here = {place.seq, (int) place.ord};
			char	   *what = column_text(i, 3, CurrentMemoryContext);

			replay->delivered += what != NULL && what[0] == 'd';
			replay->passed += what != NULL && what[0] == 'p';
			replay->failed += what != NULL && what[0] == 'f';
			hash_search(job->settled, &place, HASH_ENTER, NULL);
			if (accord_point_compare(here, job->settled_high) > 0)
				job->settled_high = here;
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_cursor_close(portal);
}

void
accord_replay_job_load(AccordDesk *desk, int64 id, AccordReplayFound found,
					   void *arg)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	SPITupleTable *table;
	int			n;

	if (jobs == NULL)
		jobs = create_table(desk->context, "pg_accord replays", sizeof(int64),
							sizeof(JobEntry));
	SPI_connect();
	if (SPI_execute_with_args(load_query, 1, types, values, NULL, true,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read accord.replay_job");
	table = SPI_tuptable;
	n = (int) SPI_processed;
	for (int i = 0; i < n; i++)
	{
		AccordReplayJob *job;
		JobEntry   *entry;
		bool		uncancelled;

		SPI_tuptable = table;
		if (!accord_desk_owns(desk, column_text(i, JOB_CHANNEL,
												CurrentMemoryContext)))
			continue;
		job = accord_replay_job_find(column_int64(i, JOB_ID));
		if (job != NULL)
		{
			(void) column(i, JOB_CANCELLED_AT, &uncancelled);
			if (!uncancelled && job->base.state == ACCORD_REPLAY_RUNNING)
				job->base.state = ACCORD_REPLAY_CANCELLING;
			continue;
		}
		job = create_job(desk, i);
		entry = hash_search(jobs, &job->base.id, HASH_ENTER, NULL);
		entry->job = job;
		if (job->begun && job->base.state <= ACCORD_REPLAY_CANCELLING)
			load_settled(job, column_int64(i, LOG_SINCE));
		if (job->base.state >= ACCORD_REPLAY_DONE)
			accord_replay_job_close(job);
		else
		{
			job->streams_by_connection =
				create_table(job->context, "pg_accord streams",
							 sizeof(AccordConnection *),
							 sizeof(AccordReplayStream));
			found(desk, job, arg);
		}
	}
	SPI_finish();
}

void
accord_replay_job_close(AccordReplayJob *job)
{
	MemoryContextDelete(job->context);
	job->context = NULL;
	job->account = job->topic = job->key = NULL;
	job->events = NULL;
	job->streams_by_connection = NULL;
	job->settled = NULL;
	memset(&job->latest, 0, sizeof(job->latest));
	dlist_init(&job->streams);
	job->n_pending = 0;
	job->n_stuck = 0;
}
