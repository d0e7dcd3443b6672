/*
 * replay.c: events of the log that are owed again, behind what is live.
 *
 * Runs in dispatchers. A replay walks the log with a cursor of its own, a short
 * slice at a time, and holds no more than a page of what it finds. From the
 * page deliveries are let go: at the replay's rate, while nothing live waits at
 * the channel, and as far as half of its gates reaches. What is for accounts
 * that cannot take it now (paused, broken, slow) stays, without its events, and
 * others are read past it, as far as memory allows (replay_read.c). Once let go
 * (replay_release.c) they are deliveries like others, with the channel's limits,
 * breaker, retries and dead letters, in a queue that is looked at last.
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

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "assign.h"
#include "db.h"
#include "delivery.h"
#include "guc.h"
#include "json.h"
#include "replay.h"
#include "replay_kind.h"
#include "replay_release.h"
#include "round.h"
#include "settle.h"

#define STARVED_AFTER 1000000	/* us: then one goes although live ones wait */
#define DISCARD_AT_ONCE 200

static uint64 turns = 0;
static int	n_state_jobs = 0;	/* that are running: they share memory */

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
	accord_replay_read_init(is_settled);
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

void
accord_replay_watch(AccordDesk *desk, AccordConnection *connection,
					AccordRoute *route, int64 seq, int ord,
					TupleTableSlot *row)
{
	AccordPoint here = {seq, ord};
	AccordReplayLook look;
	AccordKind	kind;
	dlist_iter	iter;

	accord_replay_look_start(&look, desk, row);
	if (!accord_replay_find_kind(&look, connection, route, &kind))
		kind.hash = 0;
	accord_replay_look_end(&look);
	if (kind.hash == 0)
		return;
	dlist_foreach(iter, &desk->replays)
	{
		AccordReplayJob *job = dlist_container(AccordReplayJob, base.node,
											   iter.cur);

		if (!job->state_mode || !concerns(job, connection) ||
			job->base.state != ACCORD_REPLAY_RUNNING)
			continue;
		accord_replay_note_latest(job, kind, here, !job->scanning);
		accord_replay_overtake(desk, job, &kind, here);
	}
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
		accord_replay_forget_settled(job);
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
		released |= accord_replay_release(desk, job, turns, now);
		if (reads == NULL && accord_replay_wants_page(desk, job))
			reads = job;
	}
	accord_replay_read_share(n);
	if (reads != NULL)
	{
		accord_replay_read_on(desk, reads);
		released |= accord_replay_release(desk, reads, turns, now);
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

		if (job->base.state == ACCORD_REPLAY_RUNNING && accord_replay_wants_page(desk, job))
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
				 !job->walked_all && now - job->released_at < ACCORD_REPLAY_STUCK_AFTER)
			wait = (job->released_at + ACCORD_REPLAY_STUCK_AFTER - now + 999) / 1000;
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
		AccordReplayLook look;

		accord_replay_look_start(&look, desk, row);
		if (accord_replay_find_kind(&look, connection, route, &kind))
			accord_replay_set_kind(job, delivery, &kind);
		accord_replay_look_end(&look);
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
		delivery->order_hash = accord_replay_order(job, delivery->key_hash);
	accord_delivery_replay(desk, delivery, &job->base, GetCurrentTimestamp());
}
