/*
 * replay_release.c: from a replay's page into the queues.
 *
 * Runs in dispatchers. What is replayed goes behind what is live: while nothing
 * live waits at the channel, at the replay's rate, and as far as half of the
 * gates reaches. Connections take turns.
 *
 * Invariant: what is let go in state mode is the latest of its kind that is
 * known (latest.c).
 *
 * On failure only out-of-memory can raise; it ends the dispatcher.
 */
#include "postgres.h"

#include "delivery.h"
#include "replay_release.h"
#include "round.h"
#include "settle.h"

#define OWED_LIMIT 4000			/* let go of an endpoint, by memory alone */
#define ROUNDS_LOOKED_AT 100	/* connections of a channel's round */

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
		now - job->released_at >= ACCORD_REPLAY_STUCK_AFTER;
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

bool
accord_replay_release(AccordDesk *desk, AccordReplayJob *job, uint64 turn,
					  TimestampTz now)
{
	AccordHub  *hub = job->hub;
	int			left = accord_replay_share(&hub->gate) - hub->n_replaying;
	bool		released = false;
	dlist_mutable_iter iter;

	job->wake_at = 0;
	if (job->base.state != ACCORD_REPLAY_RUNNING || job->n_pending == 0 ||
		hub->config == NULL || hub->alarm.at != 0 ||
		hub->replay_turn == turn || !accord_gate_open(&hub->gate) ||
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
		hub->replay_turn = turn;
	job->base.changed |= released;
	return released;
}
