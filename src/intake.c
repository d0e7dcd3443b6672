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
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "guc.h"
#include "intake.h"
#include "json.h"
#include "request.h"
#include "routing.h"
#include "settle.h"
#include "shmem.h"

#define SLICE 1000				/* events read before the network's turn */
#define SLICE_BYTES (8 * 1024 * 1024)	/* ... and kept */
/* A delivery that was settled although the position does not say so. */
typedef struct SettledKey
{
	uint64		endpoint;
	int64		seq;
	int64		ord;
} SettledKey;

static AccordConfig *config = NULL;
static int64 config_generation = -1;
static HTAB *settled = NULL;
static int64 settled_high = 0;	/* highest seq in it */

/*
 * Configuration
 */

/* Gives an endpoint today's limits; pauses it when it may not send. */
static void
configure_endpoint(AccordDesk *desk, AccordEndpoint *endpoint)
{
	AccordChannel *channel = accord_config_channel(config, endpoint->channel);
	AccordAccount *account = channel == NULL || endpoint->account[0] == '\0' ?
		NULL : accord_config_account(config, channel, endpoint->account);

	if (channel == NULL)
		return;
	endpoint->paused = !channel->enabled ||
		(account != NULL && !account->enabled);
	endpoint->ordered = channel->ordered;
	endpoint->max_in_flight = channel->max_in_flight;
	endpoint->policy.base_ms = channel->retry_base_ms;
	endpoint->policy.cap_ms = channel->retry_cap_ms;
	endpoint->policy.max_attempts = channel->max_attempts;
	endpoint->policy.max_age_ms = channel->max_age_ms;
	endpoint->policy.keyed = channel->idempotency_header != NULL;
	endpoint->policy.window_ms = channel->idempotency_window_ms;
	if (endpoint->paused && endpoint->rotating)
	{
		dlist_delete(&endpoint->ready_node);
		endpoint->rotating = false;
	}
	accord_endpoint_rotate(desk, endpoint);
}

/* Reloads the configuration if it changed. In a transaction. */
static void
refresh_config(AccordDesk *desk)
{
	HASH_SEQ_STATUS scan;
	AccordEndpoint *endpoint;

	config = accord_config_get();
	if (config->generation == config_generation)
		return;
	config_generation = config->generation;
	accord_desk_scan(desk, &scan);
	while ((endpoint = accord_desk_scan_next(&scan)) != NULL)
		configure_endpoint(desk, endpoint);
}

static AccordEndpoint *
find_endpoint(AccordDesk *desk, const char *channel, const char *account)
{
	AccordEndpoint *endpoint;

	if (!accord_desk_owns(desk, channel, account))
		return NULL;
	endpoint = accord_desk_endpoint(desk, channel, account, false);
	if (endpoint == NULL)
	{
		endpoint = accord_desk_endpoint(desk, channel, account, true);
		configure_endpoint(desk, endpoint);
	}
	return endpoint;
}

bool
accord_intake_route(AccordDelivery *delivery, AccordChannel **channel,
					AccordAccount **account, AccordRoute **route)
{
	*account = NULL;
	*channel = accord_config_channel(config, delivery->endpoint->channel);
	if (*channel == NULL)
		return false;
	if (delivery->endpoint->account[0] != '\0')
	{
		*account = accord_config_account(config, *channel,
										 delivery->endpoint->account);
		if (*account == NULL && (*channel)->has_accounts)
			return false;
	}
	*route = accord_config_route(*channel, delivery->route);
	if (*route == NULL && delivery->event != NULL)
	{
		char	   *topic = accord_request_text(delivery->event,
												ACCORD_EVENT_TOPIC);
		char	   *op = accord_request_text(delivery->event,
											 ACCORD_EVENT_OP);

		*route = accord_config_match(*channel, topic, accord_config_op(op));
	}
	return *route != NULL;
}

/*
 * What was settled after the position
 */

static void
settled_key(SettledKey *key, const char *channel, const char *account,
			int64 seq, int ord)
{
	memset(key, 0, sizeof(*key));
	key->endpoint = accord_endpoint_hash(channel, account);
	key->seq = seq;
	key->ord = ord;
}

static void
remember_settled(const char *channel, const char *account, int64 seq, int ord,
				 void *arg)
{
	AccordDesk *desk = arg;
	AccordEndpoint *endpoint;
	AccordPoint low = desk->read;
	SettledKey	key;

	if (!accord_desk_owns(desk, channel, account))
		return;
	endpoint = accord_desk_endpoint(desk, channel, account, false);
	if (endpoint != NULL && endpoint->cursored)
		low = endpoint->persisted;
	if (seq < low.seq || (seq == low.seq && ord <= low.ord))
		return;
	settled_key(&key, channel, account, seq, ord);
	hash_search(settled, &key, HASH_ENTER, NULL);
	settled_high = Max(settled_high, seq);
}

static void
load_settled(AccordDesk *desk, int64 after)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(SettledKey);
	ctl.entrysize = sizeof(SettledKey);
	ctl.hcxt = desk->context;
	settled = hash_create("pg_accord settled", 1024, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	accord_backlog_settled(after, remember_settled, desk);
}

static bool
was_settled(AccordEndpoint *endpoint, int64 seq, int ord)
{
	SettledKey	key;

	if (settled == NULL || seq > settled_high)
		return false;
	settled_key(&key, endpoint->channel, endpoint->account, seq, ord);
	return hash_search(settled, &key, HASH_FIND, NULL) != NULL;
}

/* Nobody asks any more once all have read past what is in it. */
static void
forget_settled(AccordDesk *desk)
{
	dlist_iter	iter;

	if (settled == NULL || desk->read.seq <= settled_high)
		return;
	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (endpoint->lagging && endpoint->cursor.seq <= settled_high)
			return;
	}
	hash_destroy(settled);
	settled = NULL;
}

/*
 * The backlog
 */

static void
start_lagging(AccordDesk *desk, AccordEndpoint *endpoint, AccordPoint from)
{
	if (endpoint->lagging)
		return;
	endpoint->lagging = true;
	endpoint->cursor = from;
	accord_endpoint_touch(desk, endpoint);
}

/* One open row of the backlog becomes a delivery. False: no more fit in. */
static bool
admit_exception(AccordDesk *desk, AccordEndpoint *endpoint,
				const AccordBacklogRow *row)
{
	AccordDelivery *delivery;

	if (accord_desk_find(desk, endpoint, row->seq, row->ord) != NULL)
		return true;
	if (accord_endpoint_full(desk, endpoint))
		return false;
	delivery = accord_delivery_create(desk, endpoint, row->key);
	delivery->seq = row->seq;
	delivery->ord = row->ord;
	delivery->tx_id = row->tx_id;
	delivery->slot = row->event_slot;
	delivery->route = row->route;
	delivery->decided_by = row->decided_by;
	delivery->owed_since = row->owed_since;
	delivery->attempted_at = row->attempted_at;
	delivery->attempts = row->attempts;
	accord_delivery_except(desk, delivery, row->state);
	delivery->version = row->version;
	if (row->state == ACCORD_STATE_HELD)
		accord_delivery_hold(desk, delivery);
	else if (row->state == ACCORD_STATE_SENDING)
	{
		/* was in flight when the last dispatcher ended */
		delivery->lost = true;
		accord_delivery_queue(desk, delivery);
	}
	else
		accord_delivery_park(desk, delivery, row->due_at);
	return true;
}

/* Its exceptions do not fit: from now on they are read in turn. */
static void
start_overflow(AccordDesk *desk, AccordEndpoint *endpoint)
{
	endpoint->overflow = true;
	endpoint->loaded.seq = 0;
	endpoint->loaded.ord = ACCORD_ORD_ALL;
	start_lagging(desk, endpoint, desk->read);
	accord_endpoint_touch(desk, endpoint);
}

static bool
load_any(const AccordBacklogRow *row, void *arg)
{
	AccordDesk *desk = arg;
	AccordEndpoint *endpoint = find_endpoint(desk, row->channel,
											 row->account);

	if (endpoint != NULL && !endpoint->overflow &&
		!admit_exception(desk, endpoint, row))
		start_overflow(desk, endpoint);
	return true;
}

typedef struct LoadMore
{
	AccordDesk *desk;
	AccordEndpoint *endpoint;
	bool		full;
} LoadMore;

static bool
load_one(const AccordBacklogRow *row, void *arg)
{
	LoadMore   *more = arg;

	if (!admit_exception(more->desk, more->endpoint, row))
	{
		more->full = true;
		return false;
	}
	more->endpoint->loaded.seq = row->seq;
	more->endpoint->loaded.ord = row->ord;
	return true;
}

/* Reads on in an endpoint's backlog; it ends the overflow with its end. */
static void
load_overflow(AccordDesk *desk, AccordEndpoint *endpoint)
{
	LoadMore	more = {desk, endpoint, false};

	accord_backlog_load(endpoint->channel, endpoint->account,
						endpoint->loaded, load_one, &more);
	if (!more.full)
		endpoint->overflow = false;
	accord_endpoint_touch(desk, endpoint);
}

static void
load_cursor(const AccordCursorRow *row, void *arg)
{
	AccordDesk *desk = arg;
	AccordEndpoint *endpoint = find_endpoint(desk, row->channel,
											 row->account);

	if (endpoint == NULL)
		return;
	endpoint->cursored = true;
	endpoint->persisted = row->point;
	endpoint->cursor_version = row->version;
	start_lagging(desk, endpoint, row->point);
	accord_endpoint_touch(desk, endpoint);
}

void
accord_intake_start(AccordDesk *desk)
{
	dlist_iter	iter;
	int64		lowest;

	accord_request_init();
	refresh_config(desk);
	desk->read.seq = accord_backlog_position(desk->number);
	desk->read.ord = ACCORD_ORD_ALL;
	accord_backlog_cursors(load_cursor, desk);
	lowest = desk->read.seq;
	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		lowest = Min(lowest, endpoint->persisted.seq - 1);
	}
	load_settled(desk, lowest);
	accord_backlog_load(NULL, NULL, desk->read, load_any, desk);
}

/*
 * The log
 */

/* One event as it is routed; made once, shared by its deliveries. */
typedef struct Routing
{
	AccordDesk *desk;
	const AccordCommit *commit;
	TupleTableSlot *row;
	AccordEvent *event;			/* NULL: nobody wanted it yet */
	AccordEndpoint *only;		/* whose page this is; NULL: the log's reader */
	int			ord;
	char	   *key;
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
	return delivery;
}

/* Owes the event to an endpoint that is known to have room. */
static void
owe_event(Routing *routing, AccordEndpoint *endpoint, AccordRoute *route)
{
	AccordDelivery *delivery = create_delivery(routing, endpoint, route);

	if (routing->deliver_at <= routing->now && route != NULL)
	{
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
 * Whether an endpoint takes the event now. One that cannot (its queue is full,
 * it is paused, memory is) begins to lag just before it.
 */
static bool
endpoint_takes(Routing *routing, AccordEndpoint *endpoint)
{
	AccordDesk *desk = routing->desk;
	AccordPoint before = {routing->commit->seq, routing->ord - 1};

	if (routing->only != NULL ? endpoint != routing->only : endpoint->lagging)
		return false;
	if (was_settled(endpoint, routing->commit->seq, routing->ord))
		return false;
	if (routing->only != NULL)
		return true;			/* its room was looked at before */
	if (endpoint->paused || endpoint->n_owed >= ACCORD_QUEUE_LIMIT ||
		(desk->bytes >= (Size) accord_dispatch_memory * 1024 &&
		 endpoint->n_owed > 0) ||
		accord_endpoint_full(desk, endpoint) || accord_settle_full())
	{
		start_lagging(desk, endpoint, before);
		return false;
	}
	return true;
}

/*
 * Control events: what redeliver() and discard() ask for, in the log like
 * everything else, so that it takes effect at commit, once, and in order.
 */

/* A delivery that is in no queue any more, made anew to be decided about. */
static AccordDelivery *
recall_delivery(Routing *routing, AccordEndpoint *endpoint,
				const AccordBacklogRow *row)
{
	AccordDelivery *delivery = accord_delivery_create(routing->desk, endpoint,
													  row->key);

	delivery->seq = row->seq;
	delivery->ord = row->ord;
	delivery->slot = row->event_slot;
	delivery->tx_id = row->tx_id;
	delivery->route = row->route;
	delivery->owed_since = row->owed_since;
	delivery->attempted_at = row->attempted_at;
	delivery->attempts = row->attempts;
	delivery->last_version = row->version;
	return delivery;
}

/* The key of an event, when no backlog row tells it. */
static char *
read_key(int slot, int64 tx_id, int ord)
{
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(nowhere, 0);
	TupleTableSlot *event = accord_log_event(reader, slot, tx_id, ord);
	char	   *key = event ? accord_routing_text(event, ACCORD_EVENT_KEY) : NULL;

	accord_log_close(reader);
	return key;
}

/*
 * One delivery that a person decided about; row says where the event is. One
 * that is under way is only given up if it fails.
 */
static void
decide(Routing *routing, AccordEndpoint *endpoint, AccordBacklogRow *row,
	   bool discard)
{
	AccordDesk *desk = routing->desk;
	AccordDelivery *delivery = accord_desk_find(desk, endpoint, row->seq,
												row->ord);
	bool		keep = true;

	if (delivery != NULL &&
		(delivery->phase == ACCORD_PHASE_TAKEN || delivery->settling ||
		 delivery->version == 0))
	{
		delivery->discard = discard;
		return;
	}
	if (!accord_backlog_find(endpoint->channel, endpoint->account, row->seq,
							 row->ord, row))
		row->key = read_key(row->event_slot, row->tx_id, row->ord);
	if (row->decided_by >= routing->commit->seq)
		return;					/* done before a restart */
	if (delivery == NULL)
	{
		delivery = recall_delivery(routing, endpoint, row);
		keep = !endpoint->overflow && !accord_endpoint_full(desk, endpoint);
	}
	accord_delivery_withdraw(desk, delivery);
	delivery->decided_by = routing->commit->seq;
	if (discard)
		accord_settle_discard(delivery, row->key);
	else
		accord_settle_replay(delivery, row->key, routing->now, keep);
	if (!keep)
		start_overflow(desk, endpoint);
}

/* payload: {"deliveries": [[seq, ord, slot, tx_id, channel, account], ...]} */
static void
route_control(Routing *routing, const char *topic)
{
	bool		isnull;
	Datum		payload = slot_getattr(routing->row, ACCORD_EVENT_PAYLOAD,
									   &isnull);
	bool		discard = strcmp(topic, "accord.discard") == 0;
	Jsonb	   *json = DatumGetJsonbP(payload);

	for (int i = 0;; i++)
	{
		AccordBacklogRow row;
		AccordEndpoint *endpoint;
		char	   *item[6];

		for (int j = 0; j < lengthof(item); j++)
		{
			JsonbValue *value = accord_json_path(json,
												 psprintf("deliveries.%d.%d",
														  i, j));

			if (value == NULL)
				return;
			item[j] = accord_json_text(value);
		}
		endpoint = find_endpoint(routing->desk, item[4], item[5]);
		if (endpoint == NULL)
			continue;
		memset(&row, 0, sizeof(row));
		row.seq = strtoll(item[0], NULL, 10);
		row.ord = atoi(item[1]);
		row.event_slot = atoi(item[2]);
		row.tx_id = strtoll(item[3], NULL, 10);
		decide(routing, endpoint, &row, discard);
	}
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
	value = slot_getattr(row, ACCORD_EVENT_DELIVER_AT, &isnull);
	routing->deliver_at = isnull ? 0 : DatumGetTimestampTz(value);
}

/* Routing's callback: owes the event to an endpoint, if it is ours. */
static void
route_to(AccordChannel *channel, const char *account, AccordRoute *route,
		 void *arg)
{
	Routing    *routing = arg;
	AccordEndpoint *endpoint = find_endpoint(routing->desk, channel->name,
											 account);

	if (endpoint != NULL && endpoint_takes(routing, endpoint))
		owe_event(routing, endpoint, route);
}

/* Routes one event; to one endpoint alone when it reads its own page. */
static void
route_event(Routing *routing)
{
	char	   *control = accord_routing_control(routing->row);

	if (control == NULL)
		accord_routing_visit(config, routing->row, route_to, routing);
	else if (routing->only == NULL)
		route_control(routing, control);
}

/* Whether an endpoint that lags may read on. */
static bool
endpoint_has_room(AccordDesk *desk, AccordEndpoint *endpoint)
{
	return !endpoint->paused && !endpoint->overflow &&
		endpoint->n_owed < ACCORD_QUEUE_LIMIT &&
		!accord_endpoint_full(desk, endpoint) &&
		(desk->bytes < (Size) accord_dispatch_memory * 1024 ||
		 endpoint->n_owed == 0);
}

/*
 * Memory is full: endpoints forget what waits at the end of their queues, the
 * longest queues first, and read it again later.
 */
static void
make_room(AccordDesk *desk)
{
	Size		limit = (Size) accord_dispatch_memory * 1024;

	while (desk->bytes > limit)
	{
		AccordEndpoint *longest = NULL;
		AccordPoint before;
		dlist_iter	iter;

		dlist_foreach(iter, &desk->active)
		{
			AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
													   active_node, iter.cur);

			if (endpoint->n_owed > endpoint->in_flight &&
				(longest == NULL || endpoint->n_owed > longest->n_owed))
				longest = endpoint;
		}
		if (longest == NULL ||
			accord_endpoint_evict(desk, longest, &before) == 0)
			return;
		longest->lagging = true;
		longest->cursor = before;
		accord_endpoint_touch(desk, longest);
	}
}

/*
 * Reads and routes what lies after *point up to transaction upto, at most
 * SLICE events; moves *point. True: there is more. only: its own page.
 */
static bool
read_slice(AccordDesk *desk, AccordPoint *point, int64 upto,
		   AccordEndpoint *only)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord slice",
												  ALLOCSET_DEFAULT_SIZES);
	AccordLogReader *reader = accord_log_open(*point, upto);
	AccordCommit commit;
	Routing		routing = {.desk = desk, .only = only,
	.now = GetCurrentTimestamp()};
	AccordPoint end = {upto, ACCORD_ORD_ALL};
	Size		bytes = desk->bytes;
	bool		more = false;
	int			n = 0;

	while (!more && accord_log_next_commit(reader, &commit))
	{
		TupleTableSlot *row;

		while (!more && (row = accord_log_next_event(reader)) != NULL)
		{
			MemoryContext old;

			if (n++ == SLICE || accord_settle_full() ||
				desk->bytes > bytes + SLICE_BYTES ||
				(only != NULL && !endpoint_has_room(desk, only)))
			{
				more = true;
				break;
			}
			old = MemoryContextSwitchTo(scratch);
			start_routing(&routing, &commit, row);
			point->seq = commit.seq;
			point->ord = routing.ord;
			route_event(&routing);
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

/* Lets endpoints that lag read on; true: one could read more at once. */
static bool
read_pages(AccordDesk *desk)
{
	dlist_mutable_iter iter;
	bool		more = false;

	dlist_foreach_modify(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (accord_settle_full())
			return true;
		if (endpoint->overflow && endpoint->n_exceptions == 0 &&
			!accord_settle_pending())
			load_overflow(desk, endpoint);
		if (!endpoint->lagging || !endpoint_has_room(desk, endpoint) ||
			endpoint->n_owed > ACCORD_QUEUE_LIMIT / 2)
			continue;
		if (desk->read.ord == ACCORD_ORD_ALL)
			more |= read_slice(desk, &endpoint->cursor, desk->read.seq,
							   endpoint) && endpoint_has_room(desk, endpoint);
		else
			read_slice(desk, &endpoint->cursor, desk->read.seq - 1, endpoint);
		if (accord_point_compare(endpoint->cursor, desk->read) >= 0)
		{
			endpoint->lagging = false;
			accord_endpoint_touch(desk, endpoint);
		}
	}
	return more;
}

bool
accord_intake_hungry(AccordDesk *desk)
{
	dlist_iter	iter;

	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (endpoint->overflow && endpoint->n_exceptions == 0)
			return true;
		if (endpoint->lagging && endpoint_has_room(desk, endpoint) &&
			endpoint->n_owed <= ACCORD_QUEUE_LIMIT / 2)
			return true;
	}
	return false;
}

bool
accord_intake_read(AccordDesk *desk)
{
	int64		safe;
	bool		more;

	StartTransactionCommand();
	/* the safe number first, the snapshot after it: see log.c */
	safe = accord_log_safe_seq();
	XLogFlush(accord_shmem_commit_lsn());
	PushActiveSnapshot(GetTransactionSnapshot());
	refresh_config(desk);
	make_room(desk);
	more = read_slice(desk, &desk->read, Max(safe, desk->read.seq), NULL);
	more |= read_pages(desk);
	forget_settled(desk);
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

void
accord_intake_events(AccordDesk *desk, AccordDelivery **deliveries, int n)
{
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(nowhere, 0);

	for (int i = 0; i < n; i++)
	{
		AccordDelivery *delivery = deliveries[i];
		TupleTableSlot *row;

		if (delivery->event != NULL)
			continue;
		row = accord_log_event(reader, delivery->slot, delivery->tx_id,
							   delivery->ord);
		if (row == NULL)
			continue;
		delivery->event = accord_event_create(desk, row);
		delivery->event->refs++;
	}
	accord_log_close(reader);
}
