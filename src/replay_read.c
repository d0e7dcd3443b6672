/*
 * replay_read.c: from the log into a replay's page.
 *
 * Runs in dispatchers. The log is scanned for the latest of each kind, in state
 * mode, and then walked, a short slice at a time; what is owed again goes into
 * the page, a list for each connection. A page is full when enough of it can be
 * sent as soon as its turn comes: what is for those who cannot send now is read
 * past, as far as memory allows, and its events are read again in the end.
 *
 * Invariants
 *   - What is owed live is not owed twice: it is passed over.
 *   - In state mode only what was the latest of its kind when it was looked at
 *     comes into the page; whether it still is, is asked when it is let go.
 *
 * On failure the transaction's error ends the dispatcher (replay.c).
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "accord.h"
#include "assign.h"
#include "db.h"
#include "delivery.h"
#include "guc.h"
#include "owed.h"
#include "replay_kind.h"
#include "replay_read.h"
#include "routing.h"

#define SLICE_TIME 1000			/* us that a slice may take */
#define SLICE_LEAST 16			/* events between looks at the clock */
#define PAGE_LOW 100			/* reads on below so many pending */
#define PAGE_HIGH 400			/* ... and stops at so many */
#define STUCK_PART 8			/* of accord.dispatch_memory, for what is read
								 * past */

static AccordReplaySettled is_settled_live = NULL;
static int	n_jobs = 1;			/* that run: they share memory */

void
accord_replay_read_init(AccordReplaySettled is_settled)
{
	is_settled_live = is_settled;
}

void
accord_replay_read_share(int n)
{
	n_jobs = Max(n, 1);
}

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

/* The captured table of an event; 0: none. */
static int
row_table(TupleTableSlot *row)
{
	bool		isnull;
	Datum		value = slot_getattr(row, ACCORD_EVENT_TABLE_ID, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

/* Whether the replay is about this event, whoever it would go to. */
static bool
is_selected(const AccordReplayJob *job, AccordReplayLook *look)
{
	bool		isnull;
	char	   *op;
	Datum		id;

	if (job->topic != NULL &&
		!accord_config_topic_match(job->topic, look->topic))
		return false;
	if (job->key != NULL &&
		(look->key == NULL || strcmp(job->key, look->key) != 0))
		return false;
	op = accord_routing_text(look->row, ACCORD_EVENT_OP);
	if (job->ops != 0 && (job->ops & (1U << accord_config_op(op))) == 0)
		return false;
	if (job->table_id != 0 && job->table_id != row_table(look->row))
		return false;
	if (job->events == NULL)
		return true;
	id = slot_getattr(look->row, ACCORD_EVENT_EVENT_ID, &isnull);
	return bsearch(DatumGetUUIDP(id)->data, job->events, job->n_events,
				   UUID_LEN, compare_ids) != NULL;
}

static TimestampTz
row_time(TupleTableSlot *row, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(row, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/*
 * Whether the delivery is owed already: by the log, by memory, or as an
 * exception. If not, *known tells of the row it has had, if one was looked for.
 */
static bool
is_owed(AccordReplayLook *look, AccordConnection *connection, AccordBacklogRow *known,
		bool *looked)
{
	AccordPoint point = {look->commit->seq, look->ord};
	bool		isnull;
	int			priority = DatumGetInt16(slot_getattr(look->row,
													  ACCORD_EVENT_PRIORITY,
													  &isnull));
	AccordEndpoint *live = connection->endpoints[priority];
	AccordEndpoint *replays = connection->endpoints[ACCORD_PRIORITY_REPLAY];

	*looked = false;
	if (live != NULL && live->lagging &&
		accord_point_compare(point, live->cursor) > 0 &&
		!is_settled_live(live, point.seq, point.ord))
		return true;
	if (accord_desk_find(look->desk, connection, point.seq, point.ord) != NULL)
		return true;
	if (connection->n_dead == 0 && !(live != NULL && live->overflow) &&
		!(replays != NULL && replays->overflow))
		return false;
	memset(known, 0, sizeof(*known));
	*looked = true;
	return accord_backlog_find(connection->hub->channel, connection->account,
							   point.seq, point.ord, known) &&
		known->state < ACCORD_STATE_DEAD;
}

static AccordReplayStream *
find_stream(AccordReplayLook *look, AccordConnection *connection)
{
	AccordReplayJob *job = look->job;
	AccordReplayStream *stream;
	bool		found;

	stream = hash_search(job->streams_by_connection, &connection, HASH_ENTER,
						 &found);
	if (!found)
	{
		stream->listed = false;
		stream->stuck = false;
		stream->n = 0;
		stream->endpoint =
			accord_connection_endpoint(look->desk, connection,
									   ACCORD_PRIORITY_REPLAY);
		dlist_init(&stream->pending);
	}
	return stream;
}

/* Puts the event into the page. */
static void
owe_again(AccordReplayLook *look, AccordConnection *connection, AccordRoute *route,
		  const AccordKind *kind, const AccordBacklogRow *known)
{
	AccordReplayJob *job = look->job;
	AccordReplayStream *stream = find_stream(look, connection);
	AccordDelivery *delivery = accord_delivery_create(look->desk,
													  stream->endpoint,
													  look->key);

	delivery->event = accord_replay_look_event(look);
	delivery->event->refs++;
	delivery->seq = look->commit->seq;
	delivery->ord = look->ord;
	delivery->tx_id = look->commit->tx_id;
	delivery->slot = look->commit->slot;
	delivery->route = route->id;
	delivery->due_at = row_time(look->row, ACCORD_EVENT_DELIVER_AT);
	delivery->expires_at = row_time(look->row, ACCORD_EVENT_EXPIRES_AT);
	/* it is neither coalesced with others, nor are they with it */
	delivery->known = true;
	delivery->identified = true;
	delivery->walked = job->base.walked - 1;
	delivery->skipped = job->base.skipped;
	if (kind != NULL)
		accord_replay_set_kind(job, delivery, kind);
	else if (delivery->key_hash != 0)
		delivery->order_hash = accord_replay_order(job, delivery->key_hash);
	if (known != NULL)
	{
		delivery->versioned = true;
		delivery->version = known->version;
		delivery->was_dead = known->version > 0 &&
			known->state == ACCORD_STATE_DEAD;
	}
	accord_delivery_replay(look->desk, delivery, &job->base, look->now);
	/* it is read again when it is its turn */
	if (stream->stuck && delivery->due_at <= look->now)
	{
		accord_event_release(look->desk, delivery->event);
		delivery->event = NULL;
	}
	dlist_push_tail(&stream->pending, &delivery->queue_node);
	stream->n++;
	job->n_stuck += stream->stuck;
	if (!stream->listed)
		dlist_push_tail(&job->streams, &stream->node);
	stream->listed = true;
	job->n_pending++;
}

/* Routing's callback: what becomes of the event at one endpoint. */
static void
look_at(AccordChannel *channel, const char *account, AccordRoute *route,
		void *arg)
{
	AccordReplayLook *look = arg;
	AccordReplayJob *job = look->job;
	AccordReplayPlace place = {look->commit->seq, look->ord};
	AccordConnection *connection;
	AccordBacklogRow known;
	AccordKind	kind;
	AccordPoint here = {look->commit->seq, look->ord};
	TimestampTz expires_at;
	bool		looked;

	if (strcmp(channel->name, job->channel) != 0 ||
		(job->account != NULL && strcmp(account, job->account) != 0))
		return;
	connection = accord_assign_connection(look->desk, channel->name, account);
	if (job->state_mode && !accord_replay_find_kind(look, connection, route, &kind))
		return;
	if (job->scanning)
	{
		Assert(job->state_mode);
		accord_replay_note_latest(job, kind, here, false);
		accord_replay_overtake(look->desk, job, &kind, here);
		return;
	}
	look->counted = true;
	if (job->state_mode && !accord_latest_covers(&job->latest, kind))
		return;					/* its turn is another pass */
	job->base.walked++;
	if (job->settled != NULL &&
		hash_search(job->settled, &place, HASH_FIND, NULL) != NULL)
		return;
	expires_at = row_time(look->row, ACCORD_EVENT_EXPIRES_AT);
	if (route == NULL || (expires_at != 0 && expires_at <= look->now) ||
		(job->state_mode && !accord_latest_is(&job->latest, kind, place.seq,
											  place.ord)) ||
		is_owed(look, connection, &known, &looked))
		job->base.skipped++;
	else
		owe_again(look, connection, route, job->state_mode ? &kind : NULL,
				  looked ? &known : NULL);
}

/* One event of the log, for a replay that scans or walks. */
static void
look_through(AccordDesk *desk, AccordReplayJob *job,
			 const AccordCommit *commit, TupleTableSlot *row, TimestampTz now)
{
	AccordReplayLook look;

	accord_replay_look_start(&look, desk, row);
	look.job = job;
	look.commit = commit;
	look.now = now;
	if (job->scanning || is_selected(job, &look))
	{
		if (!job->state_mode ||
			!accord_routing_visit_baseline(accord_assign_config(), row,
										   job->channel, look_at, &look))
			accord_routing_visit(accord_assign_config(), row, look_at, &look);
		/* what goes nowhere is counted in the first pass */
		if (!job->scanning && !look.counted && job->base.pass_low == 0)
		{
			job->base.walked++;
			job->base.skipped++;
		}
	}
	accord_replay_look_end(&look);
}

/*
 * How many of the page may go as soon as it is their turn. Those of who cannot
 * send count as well once they are more than fit into their part of memory.
 */
static int
page_filled(const AccordReplayJob *job)
{
	Size		stuck = (Size) job->n_stuck * sizeof(AccordDelivery);
	Size		limit = (Size) accord_dispatch_memory * 1024 / STUCK_PART / n_jobs;

	return stuck >= limit ? PAGE_HIGH : job->n_pending - job->n_stuck;
}

/* Whether the slice has been long enough; asked after each event. */
static bool
slice_ends(AccordDesk *desk, AccordReplayJob *job, int n, TimestampTz start)
{
	if (!job->scanning && page_filled(job) >= PAGE_HIGH)
		return true;
	if (n % SLICE_LEAST != 0)
		return false;
	return MyLatch->is_set || GetCurrentTimestamp() - start > SLICE_TIME ||
		desk->bytes >= (Size) accord_dispatch_memory * 1024;
}

/* Reads from *point up to transaction upto, as far as one slice goes. */
static void
read_slice(AccordDesk *desk, AccordReplayJob *job, AccordPoint *point,
		   int64 upto)
{
	TimestampTz start = GetCurrentTimestamp();
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord replay slice",
												  ALLOCSET_DEFAULT_SIZES);
	AccordLogReader *reader = accord_log_open(*point, upto);
	AccordPoint end = {upto, ACCORD_ORD_ALL};
	AccordCommit commit;
	bool		more = false;
	int			n = 0;

	while (!more && accord_log_next_commit(reader, &commit))
	{
		TupleTableSlot *row;

		while (!more && (row = accord_log_next_event(reader)) != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(scratch);
			bool		isnull;

			look_through(desk, job, &commit, row, start);
			point->seq = commit.seq;
			point->ord = DatumGetInt32(slot_getattr(row, ACCORD_EVENT_ORD,
													&isnull));
			more = slice_ends(desk, job, ++n, start);
			MemoryContextSwitchTo(old);
			MemoryContextReset(scratch);
		}
	}
	if (!more && accord_point_compare(end, *point) > 0)
		*point = end;
	accord_log_close(reader);
	MemoryContextDelete(scratch);
}

/* How far it may walk: the live reader goes ahead. */
static int64
walk_end(const AccordDesk *desk, const AccordReplayJob *job)
{
	return Min(job->last_seq, desk->read.ord == ACCORD_ORD_ALL ?
			   desk->read.seq : desk->read.seq - 1);
}

bool
accord_replay_wants_page(AccordDesk *desk, const AccordReplayJob *job)
{
	AccordPoint end = {walk_end(desk, job), ACCORD_ORD_ALL};

	if (job->base.state != ACCORD_REPLAY_RUNNING ||
		desk->bytes >= (Size) accord_dispatch_memory * 1024)
		return false;
	return job->scanning ||
		(!job->walked_all && page_filled(job) < PAGE_LOW &&
		 (accord_point_compare(job->base.read, end) < 0 ||
		  end.seq == job->last_seq));
}

void
accord_replay_forget_settled(AccordReplayJob *job)
{
	if (job->settled != NULL)
		hash_destroy(job->settled);
	job->settled = NULL;
	job->base.settled_since = 0;
}

void
accord_replay_read_on(AccordDesk *desk, AccordReplayJob *job)
{
	AccordReplay *replay = &job->base;
	MemoryContext caller = CurrentMemoryContext;

	accord_db_begin();
	if (job->scanning)
	{
		read_slice(desk, job, &job->scan, job->scan_end);
		if (job->scan.seq >= job->scan_end &&
			job->scan.ord == ACCORD_ORD_ALL)
		{
			job->scanning = false;
			job->latest.fixed = true;
			replay->pass_high = (int64) job->latest.high;
		}
	}
	else
	{
		read_slice(desk, job, &replay->read, walk_end(desk, job));
		job->walked_all = replay->read.seq >= job->last_seq &&
			replay->read.ord == ACCORD_ORD_ALL;
		if (accord_point_compare(replay->read, job->settled_high) >= 0)
			accord_replay_forget_settled(job);
	}
	accord_db_commit();
	MemoryContextSwitchTo(caller);
	replay->changed = true;
	desk->unrest = true;
}
