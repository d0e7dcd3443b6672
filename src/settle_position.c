/*
 * settle_position.c: what is remembered of deliveries that are not concluded.
 *
 * Runs in dispatchers, before the transaction of a batch of conclusions
 * (settle_commit.c), and adds to it: up to where everything is settled; rows
 * of what lasts; the cursors of endpoints that lag; how far replays have come.
 *
 * Invariants
 *   - The position written in a batch is what earlier batches committed: it
 *     is computed before anything of this one is.
 *   - A request that is in flight for longer than ACCORD_SPILL_AFTER
 *     gets a row ('sending') so that it does not hold the position; so does
 *     what waits for so long behind one of its key that is retrying or held
 *     ('waiting'). An endpoint whose queue stands for so long gets a cursor of
 *     its own.
 *
 * Nothing is written here. What is lost with the process is read again from
 * the position that was committed.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "accord.h"
#include "settle_private.h"

#define CURSORS_PER_SECOND 500
#define LOOK_EVERY 200			/* ms */
#define LOOK_EACH 50			/* us for each endpoint, with thousands */
#define POSITION_EACH 16		/* ... for the position alone */

/* Whether it waits for one of its key, or a parent, that will take its time. */
static bool
is_blocked(const AccordDelivery *delivery)
{
	const AccordLane *lane = delivery->lane ? delivery->lane : delivery->order;
	const AccordDelivery *holder = lane ? lane->holder : NULL;

	if (delivery->awaits != 0)
		return true;
	/* where nothing moves, the cursor remembers more cheaply */
	if (delivery->phase != ACCORD_PHASE_WAITING || holder == NULL ||
		delivery->endpoint->connection->breaker.state !=
		ACCORD_BREAKER_CLOSED)
		return false;
	return holder->phase == ACCORD_PHASE_HELD ||
		(holder->phase == ACCORD_PHASE_PARKED && holder->excepted);
}

/*
 * Whether any of its deliveries may come to need a row: what is in flight, or
 * behind another of its key that has one (while the breaker is closed: see
 * is_blocked()). Of thousands of endpoints most are told here, and one that is
 * down, without a look at what each is owed.
 */
static bool
may_last(AccordConnection *connection)
{
	return connection->gate.in_flight > 0 || connection->n_awaiting > 0 ||
		(connection->breaker.state == ACCORD_BREAKER_CLOSED &&
		 !dlist_is_empty(&connection->exceptions));
}

/*
 * Gives long requests, and what is blocked for long, a row of their own. True:
 * there are others that may come to need one.
 */
static bool
spill_lasting(AccordEndpoint *endpoint, TimestampTz now)
{
	dlist_iter	iter;
	TimestampTz long_ago = now - ACCORD_SPILL_AFTER * 1000;
	bool		others = false;

	/* what is blocked shall not keep others out of a queue that is full */
	bool		full = endpoint->n_owed >= ACCORD_QUEUE_LIMIT / 2 &&
	endpoint->n_exceptions < ACCORD_EXCEPTION_LIMIT / 2;

	dlist_foreach(iter, &endpoint->owed)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, owed_node,
												   iter.cur);

		if (accord_settling.n_settlements >= ACCORD_SETTLE_LIMIT * 2 - 1)
			return true;
		if (delivery->settling || (!delivery->sent && !is_blocked(delivery)))
			others |= delivery->phase == ACCORD_PHASE_TAKEN;
		else if (delivery->started_at >= long_ago &&
				 (delivery->sent || !full))
			others = true;
		else
			accord_settle_row(accord_settle_add(delivery, ACCORD_SEQUEL_SPILL),
							  delivery->sent ?
							  ACCORD_STATE_SENDING : ACCORD_STATE_WAITING,
							  NULL, NULL);
	}
	return others;
}

static void
add_cursor(AccordEndpoint *endpoint, AccordPoint point, bool done,
		   TimestampTz now)
{
	AccordDesk *desk = accord_settling.desk;
	AccordCursorRow *row;

	if (accord_settling.n_cursors == accord_settling.max_cursors)
	{
		accord_settling.max_cursors *= 2;
		accord_settling.cursors =
			repalloc(accord_settling.cursors, accord_settling.max_cursors *
					 sizeof(AccordCursorRow));
	}
	row = &accord_settling.cursors[accord_settling.n_cursors++];
	row->version = ++endpoint->cursor_version;
	row->point = point;
	row->done = done;
	row->behind = endpoint->behind + endpoint->n_owed - endpoint->n_leaving;
	row->counted = desk->read.ord == ACCORD_ORD_ALL ? desk->read.seq :
		desk->read.seq - 1;
	row->priority = endpoint->priority;
	row->channel = endpoint->channel;
	row->account = endpoint->account;
	endpoint->persisted = point;
	endpoint->persisted_at = now;
}

/*
 * How long a cursor stands, in microseconds. It need not be exact, so that
 * thousands of endpoints write no more than some hundreds of rows a second.
 */
static int64
cursor_interval(void)
{
	return Max((int64) ACCORD_SPILL_AFTER * 1000,
			   (int64) accord_settling.n_active * USECS_PER_SEC /
			   CURSORS_PER_SECOND);
}

/*
 * An endpoint that lags, or whose queue has not moved for a while, keeps its
 * own cursor, so that the position can go on; one that has caught up with the
 * position gives it back. It is written now and then: what was settled after
 * it is in attempt_log.
 */
static void
move_cursor(AccordEndpoint *endpoint, TimestampTz now)
{
	AccordPoint low = accord_endpoint_low(accord_settling.desk, endpoint);
	AccordDelivery *first = dlist_is_empty(&endpoint->owed) ? NULL :
	dlist_head_element(AccordDelivery, owed_node, &endpoint->owed);

	if (endpoint->cursored)
	{
		bool		done = !endpoint->lagging && !endpoint->overflow &&
		(first == NULL || first->seq > accord_settling.position);

		if (!done && accord_point_compare(low, endpoint->persisted) == 0)
			return;
		if (endpoint->persisted_at > now - cursor_interval())
		{
			accord_settling.desk->unrest = true;
			return;
		}
		add_cursor(endpoint, low, done, now);
		endpoint->cursored = !done;
	}
	else if (endpoint->lagging ||
			 (first != NULL && first->started_at <
			  now - ACCORD_SPILL_AFTER * 1000))
	{
		add_cursor(endpoint, low, false, now);
		endpoint->cursored = true;
	}
}

/*
 * What the batch's transaction writes besides conclusions. Where nothing is
 * under way and the cursor is right, there is nothing to look after until
 * something happens, however long deliveries wait.
 */
void
accord_settle_prepare_positions(TimestampTz now)
{
	dlist_mutable_iter iter;
	int			n_active = 0;

	accord_settling.n_cursors = 0;
	if (accord_settling.n_settlements > 0 &&
		now >= accord_settling.looked_at &&
		now - accord_settling.looked_at <
		Max(LOOK_EVERY * 1000, LOOK_EACH * accord_settling.desk->n_active))
	{
		accord_settling.desk->unrest = true;
		return;
	}
	accord_settling.looked_at = now;
	accord_settling.desk->unrest = false;
	dlist_foreach_modify(iter, &accord_settling.desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);

		n_active++;
		if (may_last(endpoint->connection))
			accord_settling.desk->unrest |= spill_lasting(endpoint, now);
		if (endpoint->priority != ACCORD_PRIORITY_REPLAY)
		{
			move_cursor(endpoint, now);
			accord_settling.desk->unrest |= endpoint->n_owed > 0 &&
				!endpoint->cursored;
		}
		accord_endpoint_touch(accord_settling.desk, endpoint);
	}
	accord_settling.n_active = n_active;
}

/*
 * Up to where everything is settled, before this batch; with thousands of
 * endpoints not at every commit: in so many times as many microseconds as there
 * are of them.
 */
void
accord_settle_find_position(TimestampTz now)
{
	if (accord_settling.n_settlements > 0 &&
		now >= accord_settling.positioned_at &&
		now - accord_settling.positioned_at <
		POSITION_EACH * accord_settling.desk->n_active)
		return;
	accord_settling.positioned_at = now;
	accord_settling.position = accord_desk_position(accord_settling.desk);
}

static const char *
replay_word(AccordReplayState state)
{
	switch (state)
	{
		case ACCORD_REPLAY_DONE:
			return "done";
		case ACCORD_REPLAY_CANCELLED:
			return "cancelled";
		case ACCORD_REPLAY_FAILED:
			return "failed";
		default:
			return "running";
	}
}

/*
 * How far a replay has come. What is counted is what this batch and earlier
 * ones say; what they settle beyond the point will be found in attempt_log.
 */
static void
add_replay(AccordReplay *replay, TimestampTz now)
{
	AccordReplayRow *row =
	&accord_settling.replays[accord_settling.n_replays++];
	AccordDelivery *first = dlist_is_empty(&replay->owed) ? NULL :
	dlist_head_element(AccordDelivery, replay_node, &replay->owed);

	row->id = replay->id;
	row->version = ++replay->version;
	row->point = replay->read;
	row->done = replay->walked;
	row->passed = replay->passed + replay->skipped;
	row->since = now;
	if (first != NULL)
	{
		row->point.seq = first->seq;
		row->point.ord = first->ord - 1;
		row->done = first->walked;
		row->passed = replay->passed + first->skipped;
		row->since = first->read_at;
	}
	if (replay->settled_since != 0)
		row->since = Min(row->since, replay->settled_since);
	row->first_seq = replay->first_seq > 0 ? replay->first_seq :
		row->point.seq;
	row->pass_low = replay->pass_low;
	row->pass_high = replay->pass_high;
	row->delivered = replay->delivered;
	row->failed = replay->failed;
	row->started_at = replay->started_at;
	row->state = replay_word(replay->state);
	row->reason = replay->reason;
	replay->changed = false;
	replay->persisted_at = now;
}

/* The progress of replays is written once a second; how they end, at once. */
void
accord_settle_prepare_replays(TimestampTz now)
{
	dlist_mutable_iter iter;

	accord_settling.n_replays = 0;
	dlist_foreach_modify(iter, &accord_settling.desk->replays)
	{
		AccordReplay *replay = dlist_container(AccordReplay, node, iter.cur);
		bool		ended = replay->state >= ACCORD_REPLAY_DONE;

		if (accord_settling.n_replays == ACCORD_SETTLE_REPLAYS)
			break;
		if (!replay->changed)
			continue;
		if (ended || replay->persisted_at <= now - ACCORD_SPILL_AFTER * 1000)
		{
			add_replay(replay, now);
			/* the others have their turn first next time */
			dlist_delete(&replay->node);
			if (!ended)
				dlist_push_tail(&accord_settling.desk->replays, &replay->node);
		}
		else
			accord_settling.desk->unrest = true;
	}
}
