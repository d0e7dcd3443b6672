/*
 * replay.c: events of the log that are owed again, behind what is live.
 *
 * Runs in dispatchers. A replay walks the log with a cursor of its own, a short
 * slice at a time, and holds no more than a page of what it finds. From the
 * page deliveries are let go: at the replay's rate, while nothing live waits at
 * the channel, and as far as half of its gates reaches. What is for accounts
 * that cannot take it now (paused, broken, slow) stays, without its events, and
 * others are read past it, as far as memory allows. What was let go are
 * deliveries like others, with the channel's limits, breaker, retries and dead
 * letters, in a queue of their own that is looked at last.
 *
 * Invariants
 *   - What is owed live is not owed twice: it is passed over.
 *   - Of one key one delivery of a replay is under way at a time, in the order
 *     of the log (lane.c, "order"), and none beside a live one.
 *   - In state mode a delivery is let go only when it is the latest of its kind
 *     (topic and coalesce template) that was ever owed here. First the log is
 *     scanned, to its live end, for the latest of each kind, as many kinds as
 *     memory allows (latest.c); then it is walked for these; then both again,
 *     for the rest. What comes in meanwhile is watched.
 *   - A pass ends when all of it is settled or in the backlog: the cursor never
 *     goes back while something depends on it.
 *
 * On failure the transaction's error ends the dispatcher. The next one goes on
 * from the cursor in replay_log, passing over what attempt_log says was settled
 * since.
 */
#include "postgres.h"

#include "common/hashfn.h"
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
#include "json.h"
#include "lane.h"
#include "owed.h"
#include "replay.h"
#include "replay_job.h"
#include "request.h"
#include "round.h"
#include "routing.h"
#include "settle.h"

#define SLICE_TIME 1000			/* us that a slice may take */
#define SLICE_LEAST 16			/* events between looks at the clock */
#define PAGE_LOW 100			/* reads on below so many pending */
#define PAGE_HIGH 400			/* ... and stops at so many */
#define STUCK_PART 8			/* of accord.dispatch_memory, for what is read
								 * past */
#define STUCK_AFTER 100000		/* us without anything let go: who has no room
								 * is slow */
#define OWED_LIMIT 4000			/* let go of an endpoint, by memory alone */
#define STARVED_AFTER 1000000	/* us: then one goes although live ones wait */
#define DISCARD_AT_ONCE 200
#define ROUNDS_LOOKED_AT 100	/* connections of a channel's round */

/* One event as it is looked at. */
typedef struct Look
{
	AccordDesk *desk;
	AccordReplayJob *job;
	const AccordCommit *commit;
	TupleTableSlot *row;
	AccordEvent *event;			/* NULL: nobody wanted it yet */
	int			ord;
	char	   *topic;
	char	   *key;
	bool		counted;		/* in this pass, or it will be in another */
	TimestampTz now;
} Look;

static AccordReplaySettled is_settled_live = NULL;
static uint64 turns = 0;
static int	n_state_jobs = 0;	/* that are running: they share memory */
static int	n_jobs = 1;			/* ... of all modes, when last counted */

/*
 * Kinds
 */

static AccordEvent *
look_event(Look *look)
{
	if (look->event == NULL)
	{
		look->event = accord_event_create(look->desk, look->row);
		look->event->refs = 1;
	}
	return look->event;
}

static void
end_look(Look *look)
{
	if (look->event != NULL)
		accord_event_release(look->desk, look->event);
	look->event = NULL;
}

/*
 * What an event is a state of, at a connection. False: of nothing; it is a
 * command, or has none of what it would be told apart by.
 */
static bool
find_kind(Look *look, AccordConnection *connection, const AccordRoute *route,
		  AccordKind *kind)
{
	char	   *name = look->key;
	char	   *text;

	if (route == NULL || route->command)
		return false;
	if (route->coalesce != NULL && strcmp(route->coalesce, "{key}") != 0)
		name = accord_request_expand(route->coalesce, route,
									 connection->config, look_event(look));
	if (name == NULL || name[0] == '\0')
		return false;
	text = psprintf("%s\n%s", look->topic, name);
	kind->hash = hash_bytes_extended((unsigned char *) text, strlen(text),
									 connection->id);
	kind->check = (uint32) hash_bytes_extended((unsigned char *) text,
											   strlen(text),
											   connection->id + 1);
	return true;
}

/* The lane of a kind, or of a key, within a replay. */
static uint64
order_hash(const AccordReplayJob *job, uint64 hash)
{
	hash = hash == 0 ? 0 : hash_combine64(hash, (uint64) job->base.id);
	return hash == 0 ? 1 : hash;
}

static void
set_kind(const AccordReplayJob *job, AccordDelivery *delivery,
		 const AccordKind *kind)
{
	delivery->kind_hash = kind->hash;
	delivery->kind_check = kind->check;
	delivery->order_hash = order_hash(job, kind->hash);
}

/* There is something of a kind at a place; the table outlives the caller's
 * memory. */
static void
note_latest(AccordReplayJob *job, AccordKind kind, AccordPoint here,
			bool only_known)
{
	MemoryContext old = MemoryContextSwitchTo(job->context);

	accord_latest_note(&job->latest, kind, here.seq, here.ord, only_known);
	MemoryContextSwitchTo(old);
}

/* Something newer of a kind is known: what is under way is not the latest. */
static void
overtake(AccordDesk *desk, const AccordReplayJob *job, const AccordKind *kind,
		 AccordPoint newer)
{
	AccordDelivery *delivery = accord_desk_replayed(desk,
													order_hash(job, kind->hash));
	AccordPoint there;

	if (delivery == NULL)
		return;
	there.seq = delivery->seq;
	there.ord = delivery->ord;
	delivery->overtaken |= accord_point_compare(there, newer) < 0;
}

static bool
concerns(const AccordReplayJob *job, const AccordConnection *connection)
{
	return job->hub == connection->hub &&
		(job->account == NULL ||
		 strcmp(job->account, connection->account) == 0);
}

/*
 * Beginning and end
 */

/* Begins a pass: which kinds it is about shows while the log is scanned. */
static void
begin_pass(AccordDesk *desk, AccordReplayJob *job, bool resumed)
{
	AccordReplay *replay = &job->base;
	MemoryContext old = MemoryContextSwitchTo(job->context);
	Size		memory = (Size) accord_dispatch_memory * 1024 / 2;

	job->scanning = true;
	job->scan.seq = job->first_seq - 1;
	job->scan.ord = ACCORD_ORD_ALL;
	job->scan_end = desk->read.ord == ACCORD_ORD_ALL ? desk->read.seq :
		desk->read.seq - 1;
	accord_latest_free(&job->latest);
	accord_latest_init(&job->latest, (uint64) replay->pass_low,
					   (uint64) replay->pass_high,
					   memory / Max(n_state_jobs, 1) /
					   sizeof(AccordLatestEntry), resumed);
	MemoryContextSwitchTo(old);
}

/* Takes up a job that is new to us, or that was running before a restart. */
static void
take_up(AccordDesk *desk, AccordReplayJob *job, void *arg)
{
	AccordConnection *connection = accord_assign_connection(desk, job->channel,
															job->account ? job->account : "");

	job->hub = connection->hub;
	dlist_push_tail(&desk->replays, &job->base.node);
	job->base.changed = true;
	job->released_at = GetCurrentTimestamp();
	desk->unrest = true;
	if (job->state_mode)
	{
		n_state_jobs++;
		job->hub->n_watching++;
		begin_pass(desk, job, job->begun);
	}
}

void
accord_replay_start(AccordDesk *desk, AccordReplaySettled is_settled)
{
	is_settled_live = is_settled;
	accord_replay_job_load(desk, 0, take_up, NULL);
}

void
accord_replay_heed(AccordDesk *desk, Jsonb *payload)
{
	char	   *id = accord_json_member(payload, "job");

	if (id != NULL)
		accord_replay_job_load(desk, strtoll(id, NULL, 10), take_up, NULL);
}

int
accord_replay_count(AccordDesk *desk, const AccordConnection *connection)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &desk->replays)
	{
		AccordReplayJob *job = dlist_container(AccordReplayJob, base.node,
											   iter.cur);

		n += job->base.state <= ACCORD_REPLAY_CANCELLING &&
			concerns(job, connection);
	}
	return n;
}

static void
touch_connections(AccordDesk *desk, AccordReplayJob *job)
{
	AccordDeskScan scan;
	AccordConnection *connection;

	accord_desk_scan(desk, &scan);
	while ((connection = accord_desk_scan_next(&scan)) != NULL)
		if (concerns(job, connection))
			accord_connection_touch(desk, connection);
}

static void
end_job(AccordDesk *desk, AccordReplayJob *job, AccordReplayState state)
{
	touch_connections(desk, job);
	job->base.state = state;
	job->base.changed = true;
	job->base.first_seq = 0;
	accord_settle_hurry();		/* how it ended is written down at once */
	if (job->state_mode)
	{
		n_state_jobs--;
		job->hub->n_watching--;
	}
	accord_replay_job_close(job);
}

/*
 * The live side
 */

static void
start_look(Look *look, AccordDesk *desk, TupleTableSlot *row)
{
	bool		isnull;

	memset(look, 0, sizeof(*look));
	look->desk = desk;
	look->row = row;
	slot_getallattrs(row);
	look->ord = DatumGetInt32(slot_getattr(row, ACCORD_EVENT_ORD, &isnull));
	look->topic = accord_routing_text(row, ACCORD_EVENT_TOPIC);
	look->key = accord_routing_text(row, ACCORD_EVENT_KEY);
}

void
accord_replay_watch(AccordDesk *desk, AccordConnection *connection,
					AccordRoute *route, int64 seq, int ord,
					TupleTableSlot *row)
{
	AccordPoint here = {seq, ord};
	Look		look;
	AccordKind	kind;
	dlist_iter	iter;

	start_look(&look, desk, row);
	if (!find_kind(&look, connection, route, &kind))
		kind.hash = 0;
	end_look(&look);
	if (kind.hash == 0)
		return;
	dlist_foreach(iter, &desk->replays)
	{
		AccordReplayJob *job = dlist_container(AccordReplayJob, base.node,
											   iter.cur);

		if (!job->state_mode || !concerns(job, connection) ||
			job->base.state != ACCORD_REPLAY_RUNNING)
			continue;
		note_latest(job, kind, here, !job->scanning);
		overtake(desk, job, &kind, here);
	}
}

/*
 * Reading
 */

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
is_selected(const AccordReplayJob *job, Look *look)
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
is_owed(Look *look, AccordConnection *connection, AccordBacklogRow *known,
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
find_stream(Look *look, AccordConnection *connection)
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
owe_again(Look *look, AccordConnection *connection, AccordRoute *route,
		  const AccordKind *kind, const AccordBacklogRow *known)
{
	AccordReplayJob *job = look->job;
	AccordReplayStream *stream = find_stream(look, connection);
	AccordDelivery *delivery = accord_delivery_create(look->desk,
													  stream->endpoint,
													  look->key);

	delivery->event = look_event(look);
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
		set_kind(job, delivery, kind);
	else if (delivery->key_hash != 0)
		delivery->order_hash = order_hash(job, delivery->key_hash);
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
	Look	   *look = arg;
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
	if (job->state_mode && !find_kind(look, connection, route, &kind))
		return;
	if (job->scanning)
	{
		note_latest(job, kind, here, false);
		overtake(look->desk, job, &kind, here);
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
	Look		look;

	start_look(&look, desk, row);
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
	end_look(&look);
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

/* Whether there is something to be read, and room for it. */
static bool
wants_page(AccordDesk *desk, const AccordReplayJob *job)
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

/* What was settled before a restart is behind us, or of an earlier pass. */
static void
forget_settled(AccordReplayJob *job)
{
	if (job->settled != NULL)
		hash_destroy(job->settled);
	job->settled = NULL;
	job->base.settled_since = 0;
}

/* Scans on, or walks on. */
static void
read_on(AccordDesk *desk, AccordReplayJob *job)
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
			forget_settled(job);
	}
	accord_db_commit();
	MemoryContextSwitchTo(caller);
	replay->changed = true;
	desk->unrest = true;
}

/*
 * Letting go
 */

/* Whether something live waits at a channel for its turn. */
static bool
hub_has_live(const AccordHub *hub)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, (dlist_head *) &hub->ready)
	{
		if (accord_connection_has_live(dlist_container(AccordConnection,
													   ready_node, iter.cur)))
			return true;
		if (++n == ROUNDS_LOOKED_AT)
			break;
	}
	return false;
}

/*
 * Whether a stream that has no room now will have none for a while. Where it
 * has all requests in flight that it may have, that shows by nothing going.
 */
static bool
is_stuck(const AccordReplayJob *job, const AccordReplayStream *stream,
		 TimestampTz now)
{
	const AccordConnection *connection = stream->connection;

	return connection->paused || connection->alarm.at != 0 ||
		connection->breaker.state != ACCORD_BREAKER_CLOSED ||
		now - job->released_at >= STUCK_AFTER;
}

/* How many of a connection may be let go now. */
static int
stream_room(AccordReplayJob *job, AccordReplayStream *stream, TimestampTz now)
{
	AccordConnection *connection = stream->connection;
	AccordEndpoint *endpoint = stream->endpoint;
	AccordBreaker *breaker = &connection->breaker;
	int			room = accord_replay_share(&connection->gate) -
	endpoint->n_taken;

	if (connection->paused || connection->alarm.at != 0 ||
		endpoint->overflow || endpoint->n_owed - stream->n >= OWED_LIMIT ||
		!dlist_is_empty(&endpoint->ready) ||
		accord_connection_has_live(connection) ||
		!accord_gate_open(&connection->gate))
		return 0;
	if (breaker->state == ACCORD_BREAKER_CLOSED)
		return room;
	if (breaker->state == ACCORD_BREAKER_OPEN && breaker->probe_at > now)
	{
		if (job->wake_at == 0 || breaker->probe_at < job->wake_at)
			job->wake_at = breaker->probe_at;
		return 0;
	}
	return breaker->probing || endpoint->n_taken > 0 ? 0 : 1;
}

/* Lets the first of a stream go, or finds that it need not. True: it did. */
static bool
let_go(AccordDesk *desk, AccordReplayJob *job, AccordReplayStream *stream,
	   TimestampTz now)
{
	AccordDelivery *delivery = dlist_container(AccordDelivery, queue_node,
											   dlist_pop_head_node(&stream->pending));
	AccordKind	kind = {delivery->kind_hash, delivery->kind_check};

	job->n_pending--;
	stream->n--;
	if (dlist_is_empty(&stream->pending))
	{
		dlist_delete(&stream->node);
		stream->listed = false;
	}
	if (job->state_mode && !accord_latest_is(&job->latest, kind,
											 delivery->seq, delivery->ord))
	{
		job->base.passed++;
		accord_delivery_free(desk, delivery);
		return false;
	}
	delivery->owed_since = now;
	if (delivery->due_at > now)
	{
		accord_delivery_take(desk, delivery);
		accord_settle_schedule(delivery, delivery->due_at);
		return false;
	}
	if (job->limited)
		accord_limit_take(&job->rate, &job->bucket, now);
	job->released_at = now;
	accord_delivery_queue(desk, delivery);
	return true;
}

/* Whether the rate lets one go now; if not, when. */
static bool
rate_allows(AccordReplayJob *job, TimestampTz now)
{
	TimestampTz ready = !job->limited ? ACCORD_LIMIT_NOW :
	accord_limit_ready(&job->rate, &job->bucket, now);

	if (ready == ACCORD_LIMIT_NOW)
		return true;
	if (job->wake_at == 0 || ready < job->wake_at)
		job->wake_at = ready;
	return false;
}

/* Lets go what may be sent now, of all streams in turn. True: something is. */
static bool
release_job(AccordDesk *desk, AccordReplayJob *job, TimestampTz now)
{
	AccordHub  *hub = job->hub;
	int			left = accord_replay_share(&hub->gate) - hub->n_replaying;
	bool		released = false;
	dlist_mutable_iter iter;

	job->wake_at = 0;
	if (job->base.state != ACCORD_REPLAY_RUNNING || job->n_pending == 0 ||
		hub->config == NULL || hub->alarm.at != 0 ||
		hub->replay_turn == turns || !accord_gate_open(&hub->gate) ||
		hub_has_live(hub))
		return false;
	job->n_stuck = 0;
	dlist_foreach_modify(iter, &job->streams)
	{
		AccordReplayStream *stream = dlist_container(AccordReplayStream, node,
													 iter.cur);
		int			room = Min(stream_room(job, stream, now), left);
		int			n = 0;

		while (n < room && stream->listed && !accord_settle_full() &&
			   rate_allows(job, now))
			n += let_go(desk, job, stream, now);
		left -= n;
		released |= n > 0;
		stream->stuck = left > 0 && room <= 0 && is_stuck(job, stream, now);
		if (stream->stuck)
			job->n_stuck += stream->n;
		if (left <= 0 || !rate_allows(job, now))
		{
			/* the others are the first next time */
			if (n > 0 && stream->listed)
			{
				dlist_delete(&stream->node);
				dlist_push_tail(&job->streams, &stream->node);
			}
			break;
		}
	}
	if (released)
		hub->replay_turn = turns;
	job->base.changed |= released;
	return released;
}

/*
 * Ending
 */

/* What nobody has begun with is forgotten; what is under way will not be tried
 * again. */
static void
forget_owed(AccordDesk *desk, AccordReplayJob *job)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &job->base.owed)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, replay_node,
												   iter.cur);

		if (delivery->settling || delivery->phase == ACCORD_PHASE_TAKEN)
			delivery->discard = true;
		else
		{
			if (delivery->phase == ACCORD_PHASE_NEW)
				dlist_delete(&delivery->queue_node);
			accord_delivery_free(desk, delivery);
		}
	}
	dlist_init(&job->streams);
	job->n_pending = 0;
	job->n_stuck = 0;
}

/* Gives up what is in the backlog, a part at a time; how many are left. */
static int
discard_excepted(AccordDesk *desk, AccordReplayJob *job)
{
	dlist_mutable_iter iter;
	int			n = 0;
	int			left = 0;

	dlist_foreach_modify(iter, &job->base.excepted)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, replay_node,
												   iter.cur);
		AccordBacklogRow row;

		/* what nobody knows the effect of is for a person to decide */
		if (delivery->phase == ACCORD_PHASE_HELD)
			continue;
		left++;
		if (delivery->settling || delivery->phase == ACCORD_PHASE_TAKEN)
			delivery->discard = true;
		else if (n < DISCARD_AT_ONCE && !accord_settle_full())
		{
			memset(&row, 0, sizeof(row));
			(void) accord_backlog_find(delivery->endpoint->channel,
									   delivery->endpoint->account,
									   delivery->seq, delivery->ord, &row);
			accord_delivery_withdraw(desk, delivery);
			accord_settle_discard(delivery, row.key);
			n++;
		}
	}
	return left;
}

/* Nothing more of it is sent; it ends when nothing of it is under way. */
static void
cancel_on(AccordDesk *desk, AccordReplayJob *job)
{
	MemoryContext caller = CurrentMemoryContext;
	int			left;

	accord_db_begin();
	forget_owed(desk, job);
	left = discard_excepted(desk, job);
	accord_db_commit();
	MemoryContextSwitchTo(caller);
	if (left == 0 && dlist_is_empty(&job->base.owed))
		end_job(desk, job, job->end);
	else if (accord_settle_pending())
		accord_settle_hurry();
}

/* Whether all that was let go is settled, or waits for a person. */
static bool
is_settled(const AccordReplayJob *job)
{
	dlist_iter	iter;

	if (job->n_pending > 0 || !dlist_is_empty((dlist_head *) &job->base.owed))
		return false;
	dlist_foreach(iter, (dlist_head *) &job->base.excepted)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, replay_node,
												   iter.cur);

		if (delivery->phase != ACCORD_PHASE_HELD)
			return false;
	}
	return true;
}

/* The next part of the kinds, or the end. */
static void
end_pass(AccordDesk *desk, AccordReplayJob *job)
{
	AccordReplay *replay = &job->base;

	if (job->turning)
	{
		if (replay->changed)
			return;
		job->turning = false;
		job->walked_all = false;
		begin_pass(desk, job, false);
	}
	else if (job->state_mode && (uint64) replay->pass_high != PG_UINT64_MAX)
	{
		if (job->n_pending > 0 || !dlist_is_empty(&replay->owed))
			return;
		/* a crash shall not find two passes begun */
		job->turning = true;
		replay->pass_low = replay->pass_high + 1;
		replay->pass_high = -1;
		replay->read.seq = job->first_seq - 1;
		replay->read.ord = ACCORD_ORD_ALL;
		replay->changed = true;
		replay->persisted_at = 0;
		forget_settled(job);
		accord_settle_hurry();
	}
	else if (is_settled(job))
		end_job(desk, job, ACCORD_REPLAY_DONE);
}

/* What has come to pass. */
static void
follow_up(AccordDesk *desk, AccordReplayJob *job)
{
	if (job->base.state == ACCORD_REPLAY_RUNNING && job->hub->config == NULL)
	{
		job->base.state = ACCORD_REPLAY_CANCELLING;
		job->end = ACCORD_REPLAY_FAILED;
		job->base.reason = MemoryContextStrdup(desk->context,
											   "its channel was removed");
	}
	if (job->base.state == ACCORD_REPLAY_CANCELLING)
		cancel_on(desk, job);
	else if (job->base.state == ACCORD_REPLAY_RUNNING && job->walked_all)
		end_pass(desk, job);
}

bool
accord_replay_turn(AccordDesk *desk, TimestampTz now)
{
	bool		busy;
	bool		released = false;
	AccordReplayJob *reads = NULL;
	dlist_mutable_iter iter;
	int			n = 0;

	if (dlist_is_empty(&desk->replays))
		return false;
	turns++;
	busy = accord_desk_turn(desk) != NULL;
	dlist_foreach_modify(iter, &desk->replays)
	{
		AccordReplayJob *job = dlist_container(AccordReplayJob, base.node,
											   iter.cur);
		bool		starved = now - job->released_at >= STARVED_AFTER;

		n++;
		follow_up(desk, job);
		if (busy && !starved)
			continue;
		released |= release_job(desk, job, now);
		if (reads == NULL && wants_page(desk, job))
			reads = job;
	}
	n_jobs = Max(n, 1);
	if (reads != NULL)
	{
		read_on(desk, reads);
		released |= release_job(desk, reads, now);
		dlist_delete(&reads->base.node);
		dlist_push_tail(&desk->replays, &reads->base.node);
	}
	return released;
}

long
accord_replay_timeout(AccordDesk *desk, TimestampTz now)
{
	bool		busy = !dlist_is_empty(&desk->replays) &&
	accord_desk_turn(desk) != NULL;
	long		timeout = -1;
	dlist_iter	iter;

	dlist_foreach(iter, &desk->replays)
	{
		AccordReplayJob *job = dlist_container(AccordReplayJob, base.node,
											   iter.cur);
		long		wait = -1;

		if (job->base.state == ACCORD_REPLAY_RUNNING && wants_page(desk, job))
			wait = busy ? STARVED_AFTER / 1000 : 0;
		else if (job->turning)
			wait = job->base.changed ? -1 : 0;
		else if (job->base.state <= ACCORD_REPLAY_CANCELLING &&
				 (job->walked_all || job->base.state != ACCORD_REPLAY_RUNNING) &&
				 is_settled(job))
			wait = 0;			/* it ends with the next turn */
		else if (job->wake_at != 0)
			wait = Max((job->wake_at - now + 999) / 1000, 0);
		else if (job->base.state == ACCORD_REPLAY_RUNNING &&
				 !job->walked_all && now - job->released_at < STUCK_AFTER)
			wait = (job->released_at + STUCK_AFTER - now + 999) / 1000;
		if (wait >= 0 && (timeout < 0 || wait < timeout))
			timeout = wait;
	}
	return timeout;
}

/*
 * From the backlog
 */

/* Of what kind a delivery is, whose event must be read for that. */
static void
recall_kind(AccordDesk *desk, AccordReplayJob *job, AccordDelivery *delivery)
{
	AccordConnection *connection = delivery->endpoint->connection;
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(nowhere, 0);
	TupleTableSlot *row = accord_log_event(reader, delivery->slot,
										   delivery->tx_id, delivery->ord);

	if (row != NULL && connection->hub->config != NULL)
	{
		AccordRoute *route = accord_config_route(connection->hub->config,
												 delivery->route);
		AccordKind	kind;
		Look		look;

		start_look(&look, desk, row);
		if (find_kind(&look, connection, route, &kind))
			set_kind(job, delivery, &kind);
		end_look(&look);
	}
	accord_log_close(reader);
}

void
accord_replay_recall(AccordDesk *desk, AccordDelivery *delivery, int64 replay)
{
	AccordReplayJob *job = replay == 0 ? NULL : accord_replay_job_find(replay);

	if (job == NULL)
		return;
	delivery->identified = true;
	delivery->versioned = true;
	if (job->state_mode && job->base.state == ACCORD_REPLAY_RUNNING)
		recall_kind(desk, job, delivery);
	else if (!job->state_mode && delivery->key_hash != 0)
		delivery->order_hash = order_hash(job, delivery->key_hash);
	accord_delivery_replay(desk, delivery, &job->base, GetCurrentTimestamp());
}
