/*
 * settle_commit.c: conclusions made durable, many at a time.
 *
 * Runs in dispatchers. One transaction writes all rows of the batch. Only
 * after its commit does anything that depends on it happen: the next event of
 * the key is let through, an intent is sent, memory is freed, the position
 * moves.
 *
 * On failure the transaction's error ends the dispatcher. The next one reads
 * again from the position and drops what was settled.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "delivery.h"
#include "flow.h"
#include "guc.h"
#include "remote.h"
#include "routing.h"
#include "settle_private.h"

AccordSettling accord_settling;

void
accord_settle_init(AccordDesk *desk)
{
	accord_settling.desk = desk;
	accord_settling.context = AllocSetContextCreate(TopMemoryContext,
													"pg_accord settle",
													ALLOCSET_DEFAULT_SIZES);
	accord_settling.position = accord_backlog_position(desk->number);
	accord_settling.position_written = accord_settling.position;
	accord_settling.max_cursors = 64;
	accord_settling.cursors =
		MemoryContextAlloc(desk->context, accord_settling.max_cursors *
						   sizeof(AccordCursorRow));
	accord_settling.throw = -1;
	pg_prng_seed(&accord_settling.dice,
				 (uint64) MyProcPid ^ GetCurrentTimestamp());
}

bool
accord_settle_pending(void)
{
	return accord_settling.n_settlements > 0;
}

bool
accord_settle_full(void)
{
	return accord_settling.n_settlements >= ACCORD_SETTLE_LIMIT / 2;
}

void
accord_settle_hurry(void)
{
	accord_settling.urgent = true;
}

static bool
has_notes(void)
{
	const AccordTransitionRow *notes;

	return accord_flow_noted(&notes) > 0;
}

long
accord_settle_timeout(TimestampTz now, bool idle)
{
	TimestampTz delay;

	if (accord_settling.n_settlements == 0 &&
		(has_notes() || accord_settling.urgent))
		return 0;
	if (accord_settling.n_settlements == 0)
	{
		/*
		 * What memory alone owes is looked after (spilled, given a cursor),
		 * and the position follows what has been read.
		 */
		TimestampTz look = accord_settling.last_commit +
		ACCORD_SPILL_AFTER * 1000;
		bool		behind = idle &&
		accord_desk_position(accord_settling.desk) >
		accord_settling.position_written;

		if (!behind && !accord_settling.desk->unrest)
			return -1;
		return now >= look ? 0 : (look - now + 999) / 1000;
	}
	if (idle || accord_settling.urgent ||
		accord_settling.n_settlements >= ACCORD_SETTLE_LIMIT / 2)
		return 0;

	/* a slow disk wants larger batches: commits take a fifth of the time */
	delay = Max((TimestampTz) accord_settle_delay * 1000,
				4 * accord_settling.last_duration);
	if (now - accord_settling.since >= delay)
		return 0;
	return (accord_settling.since + delay - now + 999) / 1000;
}

/*
 * A delivery whose event was unloaded cannot tell the key that its row needs;
 * the log can. In the batch's transaction.
 */
static void
find_keys(void)
{
	AccordLogReader *reader = NULL;

	for (int i = 0; i < accord_settling.n_rows; i++)
	{
		AccordBacklogRow *row = &accord_settling.rows[i];
		AccordPoint nowhere = {0, ACCORD_ORD_ALL};
		TupleTableSlot *event;

		if (row->state != ACCORD_STATE_WAITING || row->key != NULL)
			continue;
		if (reader == NULL)
			reader = accord_log_open(nowhere, 0);
		event =
			accord_log_event(reader, row->event_slot, row->tx_id, row->ord);
		if (event != NULL)
			row->key = accord_routing_text(event, ACCORD_EVENT_KEY);
	}
	if (reader != NULL)
		accord_log_close(reader);
}

/*
 * A replayed delivery's row goes on from those that the same delivery has had
 * before, which nobody has looked for until now. In the batch's transaction.
 */
static void
find_versions(void)
{
	for (int i = 0; i < accord_settling.n_settlements; i++)
	{
		AccordSettlement *settlement = &accord_settling.settlements[i];
		AccordDelivery *delivery = settlement->delivery;
		AccordBacklogRow known;

		if (!settlement->has_row || delivery->replay == NULL ||
			delivery->versioned)
			continue;
		delivery->versioned = true;
		if (!accord_backlog_find(delivery->endpoint->channel,
								 delivery->endpoint->account, delivery->seq,
								 delivery->ord, &known))
			continue;
		delivery->version = known.version;
		accord_settling.rows[settlement->row].version = known.version + 1;
	}
}

static void
write_batch(void)
{
	MemoryContext old;
	const AccordTransitionRow *notes;
	int			n_notes = accord_flow_noted(&notes);
	bool		rows = accord_settling.n_settlements > 0 ||
	accord_settling.n_cursors > 0 ||
	accord_settling.n_replays > 0;

	accord_db_begin();
	old = MemoryContextSwitchTo(accord_settling.context);
	/* a position alone may be lost: what it says is read again */
	if (!rows)
		set_config_option("synchronous_commit", "off", PGC_USERSET,
						  PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	if (accord_settling.position > accord_settling.position_written)
		accord_backlog_set_position(accord_settling.desk->number,
									accord_settling.position);
	accord_backlog_append_attempts(accord_settling.attempts,
								   accord_settling.n_attempts);
	find_keys();
	find_versions();
	accord_backlog_append(accord_settling.rows, accord_settling.n_rows);
	accord_backlog_append_cursors(accord_settling.cursors,
								  accord_settling.n_cursors);
	accord_backlog_append_replays(accord_settling.replays,
								  accord_settling.n_replays);
	accord_backlog_append_transitions(notes, n_notes);
	accord_remote_write();
	MemoryContextSwitchTo(old);
	accord_db_commit();
	accord_flow_forget();
	accord_settling.position_written =
		Max(accord_settling.position_written, accord_settling.position);
}

/* Lets a delivery go on, now that its rows are durable. */
static void
follow(AccordSettlement *settlement, AccordSettleSend send)
{
	AccordDesk *desk = accord_settling.desk;
	AccordDelivery *delivery = settlement->delivery;

	if (settlement->has_row && delivery->was_dead)
	{
		delivery->was_dead = false;
		delivery->endpoint->connection->n_dead--;
	}
	if (settlement->has_row && settlement->sequel != ACCORD_SEQUEL_FREE)
		accord_delivery_except(desk, delivery, settlement->state);
	if (settlement->has_row && settlement->state == ACCORD_STATE_DEAD)
		delivery->endpoint->connection->n_dead++;
	if (delivery->event != NULL && (settlement->sequel == ACCORD_SEQUEL_PARK ||
									settlement->sequel == ACCORD_SEQUEL_HOLD ||
									(settlement->sequel == ACCORD_SEQUEL_SPILL &&
									 !delivery->sent)))
	{
		accord_event_release(desk, delivery->event);
		delivery->event = NULL;
	}
	delivery->settling = false;
	accord_delivery_settled(desk, delivery);
	switch (settlement->sequel)
	{
		case ACCORD_SEQUEL_FREE:
			accord_delivery_free(desk, delivery);
			break;
		case ACCORD_SEQUEL_PARK:
			accord_delivery_park(desk, delivery, settlement->due_at);
			/* from now on a newer one may go instead */
			if (settlement->state == ACCORD_STATE_RETRYING)
				accord_merge_enter(desk, delivery);
			break;
		case ACCORD_SEQUEL_HOLD:
			accord_delivery_hold(desk, delivery);
			break;
		case ACCORD_SEQUEL_SEND:
			send(delivery);
			break;
		case ACCORD_SEQUEL_QUEUE:
			accord_delivery_queue(desk, delivery);
			break;
		case ACCORD_SEQUEL_AGAIN:
			accord_delivery_again(desk, delivery);
			break;
		case ACCORD_SEQUEL_SPILL:
			break;
	}
}

void
accord_settle_commit(TimestampTz now, AccordSettleSend send)
{
	TimestampTz start = GetCurrentTimestamp();
	int			n;

	accord_settle_find_position(now);
	accord_settle_prepare_positions(now);
	accord_settle_prepare_replays(now);
	if (accord_settling.n_settlements > 0 || accord_settling.n_cursors > 0 ||
		accord_settling.n_replays > 0 || has_notes() ||
		accord_settling.position > accord_settling.position_written)
		write_batch();

	/*
	 * following may conclude again (a send that fails at once): that is the
	 * next batch, so this one is taken off first
	 */
	n = accord_settling.n_settlements;
	accord_settling.desk->unrest |= n > 0;
	accord_settling.n_settlements = 0;
	accord_settling.n_rows = 0;
	accord_settling.n_attempts = 0;
	accord_settling.urgent = false;
	if (n > 0)
	{
		AccordSettlement *done = palloc(n * sizeof(AccordSettlement));

		memcpy(done, accord_settling.settlements,
			   n * sizeof(AccordSettlement));
		MemoryContextReset(accord_settling.context);
		for (int i = 0; i < n; i++)
			follow(&done[i], send);
		pfree(done);
	}
	accord_remote_written(accord_settling.desk);
	accord_settling.last_commit = GetCurrentTimestamp();
	accord_settling.last_duration = accord_settling.last_commit - start;
}
