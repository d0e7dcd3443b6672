/*
 * recovery.c: what a dispatcher finds in the logs when it starts.
 *
 * Runs in dispatchers. The position says up to where everything is settled or
 * in the backlog; what lies after it is read again, and what of that is known
 * to be settled is dropped. Cursors say the same for endpoints that lag. The
 * backlog's open rows become deliveries, as far as they fit.
 *
 * Invariants: an endpoint whose exceptions do not all fit lags (overflow): it
 * could not know which keys must wait. They are read in the order of the log,
 * a part at a time, before anything new.
 *
 * On failure the transaction's error ends the dispatcher; nothing has been
 * changed.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "assign.h"
#include "db.h"
#include "delivery.h"
#include "flow.h"
#include "owed.h"
#include "recovery.h"
#include "replay.h"
#include "request.h"
#include "routing.h"

/* Deliveries that were settled although position or cursor do not say so. */
static HTAB *settled = NULL;
static int64 settled_high = 0;	/* highest seq in it */

static void
remember_settled(const char *channel, const char *account, int64 seq, int ord,
				 void *arg)
{
	AccordDesk *desk = arg;
	AccordConnection *connection;
	AccordPoint low = desk->read;
	AccordDeliveryKey key;

	if (!accord_desk_owns(desk, channel))
		return;
	connection = accord_desk_connection(desk, channel, account, false);
	for (int i = 0; connection != NULL && i < ACCORD_PRIORITIES; i++)
	{
		AccordEndpoint *endpoint = connection->endpoints[i];

		if (endpoint != NULL && endpoint->cursored &&
			accord_point_compare(endpoint->persisted, low) < 0)
			low = endpoint->persisted;
	}
	if (seq < low.seq || (seq == low.seq && ord <= low.ord))
		return;
	key = accord_delivery_key(channel, account, seq, ord);
	hash_search(settled, &key, HASH_ENTER, NULL);
	settled_high = Max(settled_high, seq);
}

static void
create_settled(AccordDesk *desk)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AccordDeliveryKey);
	ctl.entrysize = sizeof(AccordDeliveryKey);
	ctl.hcxt = desk->context;
	settled = hash_create("pg_accord settled", 1024, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
load_settled(AccordDesk *desk, int64 after)
{
	create_settled(desk);
	accord_backlog_settled(after, remember_settled, desk);
}

void
accord_recovery_remember(AccordDesk *desk, AccordEndpoint *endpoint,
						 int64 seq, int ord)
{
	AccordDeliveryKey key = accord_delivery_key(endpoint->channel,
												endpoint->account, seq, ord);

	if (settled == NULL)
		create_settled(desk);
	hash_search(settled, &key, HASH_ENTER, NULL);
	settled_high = Max(settled_high, seq);
}

bool
accord_recovery_settled(AccordEndpoint *endpoint, int64 seq, int ord)
{
	AccordDeliveryKey key;

	if (settled == NULL || seq > settled_high)
		return false;
	key = accord_delivery_key(endpoint->channel, endpoint->account, seq, ord);
	return hash_search(settled, &key, HASH_FIND, NULL) != NULL;
}

/* Nobody asks any more once all have read past what is in it. */
void
accord_recovery_forget(AccordDesk *desk)
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

/* One open row of the backlog becomes a delivery. False: no more fit in. */
static bool
admit_exception(AccordDesk *desk, AccordEndpoint *endpoint,
				const AccordBacklogRow *row)
{
	AccordDelivery *delivery;

	if (accord_desk_find(desk, endpoint->connection, row->seq,
						 row->ord) != NULL)
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
	accord_replay_recall(desk, delivery, row->replay);
	if (row->state == ACCORD_STATE_HELD)
		accord_delivery_hold(desk, delivery);
	else if (row->state == ACCORD_STATE_SENDING)
	{
		/* was in flight when the last dispatcher ended */
		delivery->lost = true;
		accord_delivery_queue(desk, delivery);
	}
	else if (row->state == ACCORD_STATE_WAITING)
		accord_delivery_queue(desk, delivery);
	else
		accord_delivery_park(desk, delivery, row->due_at);
	return true;
}

/* Its exceptions do not fit: from now on they are read in turn. */
void
accord_recovery_overflow(AccordDesk *desk, AccordEndpoint *endpoint)
{
	if (!endpoint->overflow)
		desk->n_overflow++;
	endpoint->overflow = true;
	endpoint->loaded.seq = 0;
	endpoint->loaded.ord = ACCORD_ORD_ALL;
	if (endpoint->priority != ACCORD_PRIORITY_REPLAY)
		accord_endpoint_lag(desk, endpoint, desk->read);
	accord_endpoint_touch(desk, endpoint);
}

static bool
load_any(const AccordBacklogRow *row, void *arg)
{
	AccordDesk *desk = arg;
	AccordEndpoint *endpoint = accord_assign_endpoint(desk, row->channel,
													  row->account,
													  row->priority);

	if (endpoint != NULL && !endpoint->overflow &&
		!admit_exception(desk, endpoint, row))
		accord_recovery_overflow(desk, endpoint);
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

	if (row->priority != more->endpoint->priority)
		return true;
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
void
accord_recovery_load(AccordDesk *desk, AccordEndpoint *endpoint)
{
	LoadMore	more = {desk, endpoint, false};

	accord_backlog_load(endpoint->channel, endpoint->account,
						endpoint->loaded, load_one, &more);
	if (!more.full && endpoint->overflow)
	{
		endpoint->overflow = false;
		desk->n_overflow--;
	}
	accord_endpoint_touch(desk, endpoint);
}

static void
load_cursor(const AccordCursorRow *row, void *arg)
{
	AccordDesk *desk = arg;
	AccordEndpoint *endpoint = accord_assign_endpoint(desk, row->channel,
													  row->account,
													  row->priority);

	if (endpoint == NULL)
		return;
	endpoint->cursor_version = row->version;
	if (row->done)
		return;
	endpoint->cursored = true;
	endpoint->behind = row->behind;
	endpoint->counted = row->counted;
	endpoint->persisted = row->point;
	accord_endpoint_lag(desk, endpoint, row->point);
	accord_endpoint_touch(desk, endpoint);
}

/* Counting what endpoints that lag have come to be owed since their cursors
 * were written. */
typedef struct Recount
{
	AccordDesk *desk;
	const AccordCommit *commit;
	TupleTableSlot *row;
} Recount;

static void
recount_target(AccordChannel *channel, const char *account,
			   AccordRoute *route, void *arg)
{
	Recount    *recount = arg;
	bool		isnull;
	int			priority =
	DatumGetInt16(slot_getattr(recount->row, ACCORD_EVENT_PRIORITY, &isnull));
	int			ord =
	DatumGetInt32(slot_getattr(recount->row, ACCORD_EVENT_ORD, &isnull));
	AccordEndpoint *endpoint = accord_assign_endpoint(recount->desk,
													  channel->name, account,
													  priority);

	if (endpoint != NULL && endpoint->lagging &&
		recount->commit->seq > endpoint->counted &&
		!accord_recovery_settled(endpoint, recount->commit->seq, ord))
		endpoint->behind++;
}

static void
recount_behind(AccordDesk *desk)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord recount",
												  ALLOCSET_DEFAULT_SIZES);
	AccordPoint from = desk->read;
	Recount		recount = {.desk = desk};
	AccordLogReader *reader;
	AccordCommit commit;
	dlist_iter	iter;

	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		if (endpoint->lagging)
			from.seq = Min(from.seq, endpoint->counted);
	}
	reader = accord_log_open(from, desk->read.seq);
	recount.commit = &commit;
	while (accord_log_next_commit(reader, &commit))
		while ((recount.row = accord_log_next_event(reader)) != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(scratch);

			accord_routing_visit(accord_assign_config(), recount.row,
								 recount_target, &recount);
			MemoryContextSwitchTo(old);
			MemoryContextReset(scratch);
		}
	accord_log_close(reader);
	MemoryContextDelete(scratch);
	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		endpoint->counted = Max(endpoint->counted, desk->read.seq);
	}
}

static void
load_dead(const char *channel, const char *account, int64 n, void *arg)
{
	AccordConnection *connection = accord_assign_connection(arg, channel,
															account);

	if (connection != NULL)
		connection->n_dead = n;
}

static void
load_breaker(const AccordTransitionRow *row, void *arg)
{
	AccordConnection *connection = accord_assign_connection(arg, row->channel,
															row->account);

	if (connection != NULL)
		accord_flow_restore(connection, row->until);
}

void
accord_recovery_start(AccordDesk *desk)
{
	dlist_iter	iter;
	int64		lowest;

	accord_request_init();
	accord_assign_refresh(desk);
	desk->read.seq = accord_backlog_position(desk->number);
	desk->read.ord = ACCORD_ORD_ALL;
	desk->started_seq =
		accord_db_sequence_last(accord_db_relid("commit_seq"));
	accord_backlog_cursors(load_cursor, desk);
	lowest = desk->read.seq;
	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		lowest = Min(lowest, endpoint->persisted.seq - 1);
	}
	accord_backlog_breakers(load_breaker, desk);
	accord_backlog_dead(load_dead, desk);
	load_settled(desk, lowest);
	recount_behind(desk);
	accord_replay_start(desk, accord_recovery_settled);
	accord_backlog_load(NULL, NULL, desk->read, load_any, desk);
}
