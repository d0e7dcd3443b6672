/*
 * intake.c: from the log and the backlog into a dispatcher's memory.
 *
 * Runs in dispatchers. The log is read once, in commit order, and each event
 * routed to the endpoints it is owed to. An endpoint that cannot keep up
 * (queue full, paused) lags: it is passed over, remembers where, and reads
 * pages of its own later, until it has caught up with the log's reader.
 *
 * Invariants
 *   - For an endpoint that does not lag, every event up to desk->read is in
 *     memory, in the backlog, or settled; for one that lags, up to its cursor.
 *   - An endpoint whose exceptions do not all fit into memory (overflow) lags:
 *     it could not know which keys must wait.
 *   - After a restart, what lies after the position is read again; "settled"
 *     holds what of it is known to be settled, and it is dropped.
 *
 * All reading is by index in slices bounded by SLICE events, so that no flood
 * keeps the loop from the network for long.
 *
 * On failure the transaction's error ends the dispatcher; nothing was settled
 * by it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "assign.h"
#include "coalesce.h"
#include "control.h"
#include "db.h"
#include "delivery.h"
#include "durable.h"
#include "guc.h"
#include "intake.h"
#include "recovery.h"
#include "replay.h"
#include "request.h"
#include "routing.h"
#include "settle.h"
#include "shmem.h"

#define SLICE 1000				/* events read before the network's turn */
#define SLICE_BYTES (8 * 1024 * 1024)	/* ... and kept */
#define AHEAD_AT_MOST 5000000	/* us that reading ahead may keep from sending */
#define PAGES 4					/* slices that endpoints behind may read then */
#define FEED_EVERY 20000		/* us between pages for those that have next
								 * to nothing while memory is scarce */

static TimestampTz looked_at = 0;	/* all endpoints were, and none was hungry */
static bool look_again = false; /* somebody asked since, too early */
static TimestampTz fed_at = 0;	/* a page was last read though memory is
								 * scarce */
static bool may_feed = true;	/* ... which is long enough ago */
static bool is_starved = false; /* somebody waits for the next one */

/* One event as it is routed; made once, shared by its deliveries. */
typedef struct Routing
{
	AccordDesk *desk;
	const AccordCommit *commit;
	TupleTableSlot *row;
	AccordEvent *event;			/* NULL: nobody wanted it yet */
	AccordEndpoint *first;		/* whose page this is; NULL: the log's reader */
	int			ord;
	int			priority;
	char	   *key;
	char	   *op;
	TimestampTz expires_at;
	TimestampTz deliver_at;
	TimestampTz now;
} Routing;

/* Fills in a delivery of the event at hand. */
static AccordDelivery *
create_delivery(Routing *routing, AccordEndpoint *endpoint,
				AccordRoute *route)
{
	AccordDelivery *delivery = accord_delivery_create(routing->desk, endpoint,
													  routing->key);

	if (routing->event == NULL)
		routing->event = accord_event_create(routing->desk, routing->row);
	routing->event->refs++;
	delivery->event = routing->event;
	delivery->seq = routing->commit->seq;
	delivery->tx_id = routing->commit->tx_id;
	delivery->slot = routing->commit->slot;
	delivery->ord = routing->ord;
	delivery->owed_since = Max(routing->commit->committed_at,
							   routing->deliver_at);
	delivery->route = route ? route->id : 0;
	delivery->command = route != NULL && route->command;
	delivery->ambiguous_retry = route != NULL && route->ambiguous_retry;
	delivery->hold_dead = route != NULL && route->hold_dead;
	accord_coalesce_know(routing->desk, delivery, routing->op,
						 routing->expires_at);
	if (route != NULL && routing->deliver_at <= routing->now)
		accord_coalesce_identify(routing->desk, delivery, route,
								 accord_assign_account(delivery));
	return delivery;
}

/* Owes the event to an endpoint that is known to have room. */
static void
owe_event(Routing *routing, AccordEndpoint *endpoint, AccordRoute *route)
{
	AccordDelivery *delivery = create_delivery(routing, endpoint, route);

	if (!routing->row->tts_isnull[ACCORD_EVENT_ERASED - 1])
	{
		accord_delivery_list(routing->desk, delivery, routing->now);
		accord_settle_without(delivery, ACCORD_OUTCOME_DISCARDED,
							  "the event's content was erased", routing->now);
		return;
	}
	if (routing->deliver_at <= routing->now && route != NULL)
	{
		if (accord_coalesce_owe(routing->desk, delivery, route, routing->now))
			accord_delivery_owe(routing->desk, delivery, routing->now);
		return;
	}
	accord_delivery_list(routing->desk, delivery, routing->now);
	if (route != NULL)
		accord_settle_schedule(delivery, routing->deliver_at);
	else
		accord_settle_without(delivery, ACCORD_OUTCOME_INVALID,
							  "no route of the channel takes this topic and "
							  "op", routing->now);
}

/*
 * Pages are read until they fill three quarters of the memory, and again once
 * a good part of that has been sent: then one reading serves many endpoints.
 * The rest is for those that do not lag.
 */
static Size
page_memory(void)
{
	return (Size) accord_dispatch_memory * 1024 / 4 * 3;
}

static bool
memory_is_plenty(AccordDesk *desk)
{
	return desk->bytes < page_memory() / 6 * 5;
}

/* How many deliveries each endpoint may hold where memory is scarce. */
static int
fair_share(AccordDesk *desk)
{
	Size		each = desk->n_owed > 0 ? desk->bytes / desk->n_owed : 0;
	Size		all = page_memory() / Max(each, 256);

	return Max(all / Max(desk->n_active, 1), 1);
}

/*
 * Whether an endpoint that lags may read on. While its breaker is open nothing
 * is sent, but for the probe. Where memory is scarce, those that hold less than
 * their share of it still may, so that none starves beside others that are slow.
 */
static bool
endpoint_has_room(AccordDesk *desk, AccordEndpoint *endpoint)
{
	AccordConnection *connection = endpoint->connection;

	if (connection->paused || endpoint->overflow ||
		endpoint->n_owed >= ACCORD_QUEUE_LIMIT ||
		accord_endpoint_full(desk, endpoint))
		return false;
	if (endpoint->n_owed == 0)
		return true;
	return connection->breaker.state == ACCORD_BREAKER_CLOSED &&
		(desk->bytes < page_memory() ||
		 (desk->bytes < (Size) accord_dispatch_memory * 1024 &&
		  endpoint->n_owed < fair_share(desk)));
}

/* The event is owed to an endpoint that lags: it comes to it later. */
static void
fall_behind(Routing *routing, AccordEndpoint *endpoint)
{
	int64		seq = routing->commit->seq;

	/* what was counted before a restart, or is settled, is not new */
	if (seq <= endpoint->counted ||
		accord_recovery_settled(endpoint, seq, routing->ord))
		return;
	if (endpoint->behind++ == 0)
		endpoint->behind_since = routing->commit->committed_at;
	accord_connection_touch(routing->desk, endpoint->connection);
}

/*
 * Whether an endpoint takes the event now. One that cannot (its queue is full,
 * it is paused, memory is) begins to lag just before it.
 */
static bool
endpoint_takes(Routing *routing, AccordEndpoint *endpoint)
{
	AccordDesk *desk = routing->desk;
	AccordPoint before = {routing->commit->seq, routing->ord - 1};
	AccordPoint point = {routing->commit->seq, routing->ord};

	if (routing->first == NULL && endpoint->lagging)
	{
		fall_behind(routing, endpoint);
		return false;
	}
	if (routing->first != NULL &&
		(!endpoint->reading ||
		 accord_point_compare(point, endpoint->cursor) <= 0))
		return false;
	if (accord_recovery_settled(endpoint, point.seq, point.ord))
	{
		accord_endpoint_pass(endpoint, point);
		return false;
	}
	if (routing->first != NULL)
	{
		if (endpoint_has_room(desk, endpoint) && !accord_settle_full())
		{
			endpoint->behind = Max(endpoint->behind - 1, 0);
			endpoint->behind_since = routing->commit->committed_at;
			return true;
		}
		endpoint->cursor = before;
		endpoint->reading = false;
		return false;
	}
	if (endpoint->connection->paused ||
		endpoint->n_owed >= ACCORD_QUEUE_LIMIT ||
		(desk->bytes >= (Size) accord_dispatch_memory * 1024 &&
		 endpoint->n_owed > 0) ||
		accord_endpoint_full(desk, endpoint) || accord_settle_full())
	{
		accord_endpoint_lag(desk, endpoint, before);
		fall_behind(routing, endpoint);
		return false;
	}
	return true;
}

static void
start_routing(Routing *routing, const AccordCommit *commit,
			  TupleTableSlot *row)
{
	bool		isnull;
	Datum		value;

	routing->commit = commit;
	routing->row = row;
	routing->event = NULL;
	slot_getallattrs(row);
	routing->ord = DatumGetInt32(slot_getattr(row, ACCORD_EVENT_ORD, &isnull));
	routing->key = accord_routing_text(row, ACCORD_EVENT_KEY);
	routing->op = accord_routing_text(row, ACCORD_EVENT_OP);
	value = slot_getattr(row, ACCORD_EVENT_EXPIRES_AT, &isnull);
	routing->expires_at = isnull ? 0 : DatumGetTimestampTz(value);
	routing->priority =
		DatumGetInt16(slot_getattr(row, ACCORD_EVENT_PRIORITY, &isnull));
	value = slot_getattr(row, ACCORD_EVENT_DELIVER_AT, &isnull);
	routing->deliver_at = isnull ? 0 : DatumGetTimestampTz(value);
}

/* Routing's callback: owes the event to an endpoint, if it is ours. */
static void
route_to(AccordChannel *channel, const char *account, AccordRoute *route,
		 void *arg)
{
	Routing    *routing = arg;
	AccordEndpoint *endpoint = accord_assign_endpoint(routing->desk,
													  channel->name, account,
													  routing->priority);

	if (endpoint != NULL && endpoint->connection->hub->n_watching > 0 &&
		routing->first == NULL)
		accord_replay_watch(routing->desk, endpoint->connection, route,
							routing->commit->seq, routing->ord, routing->row);
	if (endpoint != NULL && endpoint_takes(routing, endpoint))
		owe_event(routing, endpoint, route);
}

/*
 * Routes one event; only to those who read the page, if it is one. False:
 * it is a decision that must wait for the batch that is being settled.
 */
static bool
route_event(Routing *routing)
{
	char	   *control = accord_routing_control(routing->row);

	if (control == NULL)
		accord_routing_visit(accord_assign_config(), routing->row, route_to, routing);
	else if (routing->first == NULL)
		return accord_control_apply(routing->desk, routing->commit,
									routing->row, control, routing->now);
	return true;
}

/*
 * Those that hold no more than this read on: half of what they may, so that
 * pages are worth reading; less than that where memory is scarce, and then not
 * all the time.
 */
static int
page_threshold(AccordDesk *desk)
{
	return memory_is_plenty(desk) ? ACCORD_QUEUE_LIMIT / 2 :
		fair_share(desk) / 4;
}

/*
 * Whether an endpoint has a page to read, and room for it. After a restart a
 * cursor may be ahead of the log's reader: then it waits to be overtaken.
 */
static bool
endpoint_is_behind(AccordDesk *desk, AccordEndpoint *endpoint, int threshold)
{
	if (!endpoint->lagging || endpoint->n_owed > threshold ||
		accord_point_compare(endpoint->cursor, desk->read) > 0 ||
		!endpoint_has_room(desk, endpoint))
		return false;
	if (may_feed || memory_is_plenty(desk))
		return true;
	is_starved = true;
	return false;
}

static void
unload_all(AccordDesk *desk)
{
	dlist_iter	iter;

	dlist_foreach(iter, &desk->active)
		accord_endpoint_unload(desk, dlist_container(AccordEndpoint,
													 active_node, iter.cur));
}

/*
 * Memory is full: endpoints forget what waits at the end of their queues, the
 * longest queues first, and read it again later. What cannot be forgotten (a
 * later delivery has passed already) is kept without its event.
 */
static void
make_room(AccordDesk *desk)
{
	Size		limit = (Size) accord_dispatch_memory * 1024;

	while (desk->bytes > limit)
	{
		AccordEndpoint *longest = NULL;
		int			evicted;
		AccordPoint before;
		dlist_iter	iter;

		dlist_foreach(iter, &desk->active)
		{
			AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
													   active_node, iter.cur);

			if (endpoint->priority != ACCORD_PRIORITY_REPLAY &&
				endpoint->n_owed > endpoint->n_taken &&
				(longest == NULL || endpoint->n_owed > longest->n_owed))
				longest = endpoint;
		}
		evicted = longest == NULL ? 0 :
			accord_endpoint_evict(desk, longest, &before);
		if (evicted == 0)
			break;
		longest->behind += evicted;
		longest->lagging = true;
		longest->cursor = before;
		accord_endpoint_touch(desk, longest);
	}
	if (desk->bytes > limit)
		unload_all(desk);
}

/*
 * Whether a page ends here, though more of it may be read: the endpoint it is
 * for has no more room, or memory has become scarce.
 */
static bool
page_ends(AccordDesk *desk, AccordEndpoint *first, bool plenty)
{
	return !endpoint_has_room(desk, first) ||
		(plenty && desk->bytes >= page_memory());
}

/*
 * Reads and routes what lies after *point up to transaction upto, at most
 * *budget events, which are taken off it; moves *point. True: there is more.
 * first: it is a page of this endpoint's.
 */
static bool
read_slice(AccordDesk *desk, AccordPoint *point, int64 upto,
		   AccordEndpoint *first, int *budget)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord slice",
												  ALLOCSET_DEFAULT_SIZES);
	AccordLogReader *reader = accord_log_open(*point, upto);
	AccordCommit commit;
	Routing		routing = {.desk = desk,.first = first,
	.now = GetCurrentTimestamp()};
	AccordPoint end = {upto, ACCORD_ORD_ALL};
	Size		bytes = desk->bytes;
	bool		plenty = memory_is_plenty(desk);
	bool		more = false;

	while (!more && accord_log_next_commit(reader, &commit))
	{
		TupleTableSlot *row;

		while (!more && (row = accord_log_next_event(reader)) != NULL)
		{
			MemoryContext old;
			AccordPoint before = *point;

			if (*budget <= 0 || accord_settle_full() ||
				desk->bytes > bytes + SLICE_BYTES ||
				(first != NULL && page_ends(desk, first, plenty)))
			{
				more = true;
				break;
			}
			(*budget)--;
			old = MemoryContextSwitchTo(scratch);
			start_routing(&routing, &commit, row);
			point->seq = commit.seq;
			point->ord = routing.ord;
			if (!route_event(&routing))
			{
				*point = before;
				more = true;
			}
			MemoryContextSwitchTo(old);
			MemoryContextReset(scratch);
		}
	}
	if (!more && accord_point_compare(end, *point) > 0)
		*point = end;
	accord_log_close(reader);
	MemoryContextDelete(scratch);
	return more;
}

/* The next endpoint that is behind, in turn; NULL: none. */
static AccordEndpoint *
next_behind(AccordDesk *desk)
{
	int			threshold = page_threshold(desk);
	dlist_iter	iter;

	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (!endpoint_is_behind(desk, endpoint, threshold))
			continue;
		dlist_delete(&endpoint->active_node);
		dlist_push_tail(&desk->active, &endpoint->active_node);
		return endpoint;
	}
	return NULL;
}

/* Whether a point is so little before another that one page may span both. */
static bool
is_just_before(AccordPoint point, AccordPoint other)
{
	int64		seqs = other.seq - point.seq;

	return accord_point_compare(point, other) < 0 && seqs <= PAGES * SLICE &&
		(seqs > 0 || (int64) other.ord - point.ord <= PAGES * SLICE);
}

/*
 * Takes all those who are behind and at one place, or after it, into a page;
 * returns the first of them.
 */
static AccordEndpoint *
gather_readers(AccordDesk *desk, AccordEndpoint *first)
{
	AccordEndpoint *lowest = first;
	int			threshold = page_threshold(desk);
	dlist_iter	iter;

	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		endpoint->reading = endpoint_is_behind(desk, endpoint, threshold);
		if (endpoint->reading &&
			is_just_before(endpoint->cursor, first->cursor) &&
			accord_point_compare(endpoint->cursor, lowest->cursor) < 0)
			lowest = endpoint;
	}
	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		endpoint->reading &= accord_point_compare(endpoint->cursor,
												  lowest->cursor) >= 0;
	}
	return lowest;
}

/* An endpoint has read up to there. */
static void
advance(AccordDesk *desk, AccordEndpoint *endpoint, AccordPoint point)
{
	if (accord_point_compare(point, endpoint->cursor) > 0)
		endpoint->cursor = point;
	if (accord_point_compare(endpoint->cursor, desk->read) != 0)
		return;
	endpoint->lagging = false;
	endpoint->behind = 0;
	accord_connection_touch(desk, endpoint->connection);
	desk->unrest = true;		/* its cursor can be given back */
	accord_endpoint_touch(desk, endpoint);
}

/*
 * Reads on where an endpoint is; for all those who are behind and come by
 * there, too: with thousands of them, the log is not read thousands of times.
 */
static void
read_page(AccordDesk *desk, AccordEndpoint *first, int *budget)
{
	AccordPoint point;
	dlist_mutable_iter iter;

	if (!memory_is_plenty(desk))
		fed_at = GetCurrentTimestamp();
	first = gather_readers(desk, first);
	point = first->cursor;
	(*budget)--;				/* the looking around costs as well */
	read_slice(desk, &point, desk->read.ord == ACCORD_ORD_ALL ?
			   desk->read.seq : desk->read.seq - 1, first, budget);
	dlist_foreach_modify(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (!endpoint->reading)
			continue;
		endpoint->reading = false;
		advance(desk, endpoint, point);
	}
}

/*
 * How long all endpoints are not looked at again, in microseconds: looking
 * never takes more than a small part of the time.
 */
static int64
look_interval(AccordDesk *desk)
{
	return 4 * (int64) desk->n_active;
}

static bool
look_is_due(AccordDesk *desk, TimestampTz now)
{
	look_again = now >= looked_at && now - looked_at < look_interval(desk);
	may_feed = now < fed_at || now - fed_at >= FEED_EVERY;
	return !look_again;
}

/* Lets endpoints that lag read on; true: one could read more at once. */
static bool
read_pages(AccordDesk *desk)
{
	AccordEndpoint *endpoint;
	dlist_mutable_iter iter;
	int			budget = PAGES * SLICE;

	if (!look_is_due(desk, GetCurrentTimestamp()))
		return false;
	if (desk->n_overflow > 0)
		dlist_foreach_modify(iter, &desk->active)
	{
		endpoint = dlist_container(AccordEndpoint, active_node, iter.cur);
		if (accord_endpoint_short(desk, endpoint) && !accord_settle_pending())
			accord_recovery_load(desk, endpoint);
	}
	for (int i = 0; i < PAGES && budget > 0; i++)
	{
		endpoint = accord_settle_full() ? NULL : next_behind(desk);
		if (endpoint == NULL)
			break;
		read_page(desk, endpoint, &budget);
		may_feed = false;
	}
	return accord_intake_hungry(desk);
}

bool
accord_intake_hungry(AccordDesk *desk)
{
	TimestampTz now = GetCurrentTimestamp();
	int			threshold = page_threshold(desk);
	dlist_iter	iter;

	if (!look_is_due(desk, now))
		return false;
	is_starved = false;
	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (accord_endpoint_short(desk, endpoint) ||
			endpoint_is_behind(desk, endpoint, threshold))
			return true;
	}
	looked_at = now;
	look_again = is_starved;
	return false;
}

long
accord_intake_timeout(AccordDesk *desk, TimestampTz now)
{
	TimestampTz at = looked_at + look_interval(desk);

	if (!look_again)
		return -1;
	if (is_starved)
		at = Max(at, fed_at + FEED_EVERY);
	return Max(at - now + 999, 0) / 1000;
}

static bool
endpoint_reads_ahead(AccordDesk *desk, AccordEndpoint *endpoint)
{
	return endpoint->lagging && !endpoint->overflow &&
		endpoint->n_owed - endpoint->n_leaving <= ACCORD_QUEUE_LIMIT / 2 &&
		memory_is_plenty(desk) && !accord_endpoint_full(desk, endpoint) &&
		accord_point_compare(endpoint->cursor, desk->read) <= 0;
}

bool
accord_intake_ahead(AccordDesk *desk, AccordConnection *connection,
					TimestampTz now)
{
	bool		ahead = false;

	if (!connection->hub->coalesces ||
		connection->breaker.state != ACCORD_BREAKER_CLOSED)
		return false;
	for (int i = 0; i < ACCORD_PRIORITIES; i++)
	{
		AccordEndpoint *endpoint = connection->endpoints[i];

		if (endpoint == NULL)
			continue;
		if (!endpoint_reads_ahead(desk, endpoint))
			endpoint->ahead_since = 0;
		else
		{
			if (endpoint->ahead_since == 0)
				endpoint->ahead_since = now;
			ahead |= now - endpoint->ahead_since < AHEAD_AT_MOST;
		}
	}
	return ahead;
}

bool
accord_intake_short(AccordDesk *desk)
{
	dlist_iter	iter;

	if (desk->n_overflow == 0)
		return false;

	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (accord_endpoint_short(desk, endpoint))
			return true;
	}
	return false;
}

bool
accord_intake_read(AccordDesk *desk)
{
	int64		safe;
	bool		more;
	int			budget = SLICE;

	StartTransactionCommand();
	/* the safe number first, the snapshot after it: see log.c */
	safe = accord_durable_seq();
	/* what changed the configuration before these events has been sent */
	AcceptInvalidationMessages();
	PushActiveSnapshot(GetTransactionSnapshot());
	accord_assign_refresh(desk);
	make_room(desk);
	more = read_slice(desk, &desk->read, Max(safe, desk->read.seq), NULL,
					  &budget);
	more |= read_pages(desk);
	accord_recovery_forget(desk);
	accord_db_commit();
	return more;
}

void
accord_intake_due(AccordDesk *desk, TimestampTz now)
{
	AccordDelivery *delivery;

	while ((delivery = accord_desk_next_due(desk)) != NULL &&
		   delivery->due_at <= now)
		accord_delivery_queue(desk, delivery);
}

int
accord_intake_events(AccordDesk *desk, AccordDelivery **deliveries, int n,
					 bool at_least_one)
{
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(nowhere, 0);
	Size		limit = 2 * (Size) accord_dispatch_memory * 1024;
	int			i;

	for (i = 0; i < n; i++)
	{
		AccordDelivery *delivery = deliveries[i];
		TupleTableSlot *row;

		if (delivery->event != NULL)
			continue;
		if (desk->bytes > limit && (i > 0 || !at_least_one))
			break;
		row = accord_log_event(reader, delivery->slot, delivery->tx_id,
							   delivery->ord);
		if (row == NULL)
			continue;
		delivery->event = accord_event_create(desk, row);
		delivery->event->refs++;
	}
	accord_log_close(reader);
	return i;
}
