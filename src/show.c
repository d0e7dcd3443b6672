/*
 * show.c: a dispatcher shows how its endpoints are doing.
 *
 * Runs in dispatchers, a few times a second at most, and only about endpoints
 * of which something has changed. accord.status reads it from the board in
 * shared memory: nothing is counted there, and no log is read.
 *
 * Invariants: what is shown is what memory knows; what did not fit into memory
 * (exceptions beyond their limit) is not counted.
 *
 * On failure nothing is shown: the board may be full.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "flow.h"
#include "replay.h"
#include "show.h"
#include "tally.h"
#include "token.h"

#define SHOW_EVERY 250			/* ms */
#define SHOW_PART 100			/* ... and a hundredth of the time at most */
#define EXCEPTIONS_LOOKED_AT 100

static TimestampTz shown_at = 0;
static TimestampTz show_at = 0; /* not before, unless there is nothing to do */

static void
keep_oldest(TimestampTz *oldest, TimestampTz time)
{
	if (time != 0 && (*oldest == 0 || time < *oldest))
		*oldest = time;
}

/* Since when the oldest of its exceptions is owed: they stand by age, nearly. */
static TimestampTz
oldest_exception(AccordConnection *connection)
{
	TimestampTz oldest = 0;
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &connection->exceptions)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery,
												   except_node, iter.cur);

		if (n++ == EXCEPTIONS_LOOKED_AT)
			break;
		keep_oldest(&oldest, delivery->owed_since);
	}
	return oldest;
}

/* What one priority adds. */
static void
add_endpoint(AccordBoardRow *row, AccordEndpoint *endpoint)
{
	row->lagging |= endpoint->lagging;
	row->queued += endpoint->n_owed - endpoint->n_leaving + endpoint->behind;
	if (!dlist_is_empty(&endpoint->owed))
		keep_oldest(&row->oldest_owed,
					dlist_head_element(AccordDelivery, owed_node,
									   &endpoint->owed)->owed_since);
	if (endpoint->behind > 0)
		keep_oldest(&row->oldest_owed, endpoint->behind_since);
}

static void
show_connection(AccordDesk *desk, AccordConnection *connection,
				TimestampTz now)
{
	AccordHub  *hub = connection->hub;
	const AccordAllowance *allowance = hub->shared_allowance ?
	&hub->allowance : &connection->allowance;
	const int  *n_state = connection->n_state;
	int			place = accord_tally_place(connection);
	AccordBoardRow row;

	if (place < 0)
		return;
	memset(&row, 0, sizeof(row));
	row.oldest_owed = oldest_exception(connection);
	for (int i = 0; i < ACCORD_PRIORITIES; i++)
		if (connection->endpoints[i] != NULL)
			add_endpoint(&row, connection->endpoints[i]);
	row.queued += n_state[ACCORD_STATE_WAITING];
	row.scheduled = n_state[ACCORD_STATE_SCHEDULED];
	row.sending = n_state[ACCORD_STATE_SENDING] +
		n_state[ACCORD_STATE_ACCEPTED] + n_state[ACCORD_STATE_VERIFYING];
	row.retrying = n_state[ACCORD_STATE_RETRYING] +
		n_state[ACCORD_STATE_REPLAYED];
	row.held = n_state[ACCORD_STATE_HELD];
	row.owed = row.queued + row.scheduled + row.sending + row.retrying +
		row.held;
	row.dead = connection->n_dead;
	row.breaker = connection->breaker.state;
	if (connection->breaker.state == ACCORD_BREAKER_OPEN)
		row.probe_at = connection->breaker.probe_at;
	row.throttled_until = accord_limit_allowed(allowance, now);
	if (connection->token != NULL)
		row.throttled_until = Max(row.throttled_until,
								  accord_token_blocked(connection->token,
													   now));
	row.in_flight = connection->gate.in_flight;
	row.tokens = accord_flow_tokens(connection, now);
	for (int i = 0; i < 2; i++)
	{
		row.delivered[i] = accord_gauge_delivered(&connection->gauge, i, now);
		row.failed[i] = accord_gauge_failed(&connection->gauge, i, now);
	}
	row.written_at = now;
	row.p50_ms = accord_gauge_latency(&connection->gauge, 0.5, now);
	row.p99_ms = accord_gauge_latency(&connection->gauge, 0.99, now);
	row.last_delivered_at = connection->last_delivered_at;
	row.last_attempt_at = connection->last_attempt_at;
	row.last_error_at = connection->last_error_at;
	row.last_outcome = connection->last_outcome;
	strlcpy(row.last_error, connection->last_error, sizeof(row.last_error));
	row.replaying = accord_replay_count(desk, connection);
	accord_board_write(place, &row);
}

long
accord_show(AccordDesk *desk, bool idle, TimestampTz now)
{
	if (dlist_is_empty(&desk->stale))
		return -1;
	if (!idle && now < show_at && now >= shown_at)
		return (show_at - now + 999) / 1000;
	shown_at = now;
	while (!dlist_is_empty(&desk->stale))
	{
		AccordConnection *connection = dlist_container(AccordConnection,
													   stale_node,
													   dlist_pop_head_node(&desk->stale));

		connection->stale = false;
		show_connection(desk, connection, now);
	}
	show_at = now + Max(SHOW_EVERY * 1000,
						SHOW_PART * (GetCurrentTimestamp() - now));
	return -1;
}
