/*
 * errand.c: requests of a dispatcher's own, which deliver no event.
 *
 * Runs in dispatchers, outside any transaction.
 *
 * Invariants
 *   - An errand is in one list: waiting, or in flight. It is freed when its
 *     answer was handed over, when it could not be made, or when it was
 *     cancelled before it left.
 *   - One for a connection costs what a delivery costs: a place in its gates
 *     and its channel's, a token of each limit that is not by event, and it may
 *     be the breaker's probe. One for nobody takes only a place in the process.
 *
 * On failure the caller is told by a response. Errands live in memory alone:
 * whoever needs one finds out again, after a restart, that he does.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "common/pg_prng.h"

#include "breaker.h"
#include "errand.h"
#include "flow.h"
#include "http.h"
#include "round.h"

static dlist_head waiting = DLIST_STATIC_INIT(waiting);
static dlist_head away = DLIST_STATIC_INIT(away);
static TimestampTz due_at = 0;	/* a limit or a breaker lets one go then */
static bool blocked = false;	/* a gate is shut */

AccordErrand *
accord_errand_create(AccordDesk *desk, AccordConnection *connection,
					 AccordErrandDone done, void *arg)
{
	MemoryContext context = AllocSetContextCreate(desk->context,
												  "pg_accord errand",
												  ALLOCSET_SMALL_SIZES);
	AccordErrand *errand = MemoryContextAllocZero(context,
												  sizeof(AccordErrand));

	errand->request.context = context;
	errand->connection = connection;
	errand->done = done;
	errand->arg = arg;
	return errand;
}

void
accord_errand_start(AccordErrand *errand)
{
	dlist_push_tail(&waiting, &errand->node);
	due_at = 1;					/* nobody has looked at it yet */
}

void
accord_errand_cancel(AccordErrand *errand)
{
	errand->done = NULL;
	if (errand->started_at != 0)
		return;
	dlist_delete(&errand->node);
	MemoryContextDelete(errand->request.context);
}

/* Tells who wanted it, and forgets it. */
static void
finish(AccordErrand *errand, const AccordHttpResponse *response,
	   TimestampTz now)
{
	if (errand->done != NULL)
		errand->done(errand, response, now);
	MemoryContextDelete(errand->request.context);
}

/* It could not be made. */
static void
fail(AccordErrand *errand, const char *error, TimestampTz now)
{
	AccordHttpResponse response;

	memset(&response, 0, sizeof(response));
	response.owner = errand;
	response.errand = true;
	response.result.transport = ACCORD_TRANSPORT_INVALID;
	response.result.sent = ACCORD_SENT_NO;
	response.result.retry_after_ms = -1;
	response.error = error;
	finish(errand, &response, now);
}

/*
 * When its connection lets it go: ACCORD_LIMIT_NOW, a time, or, when nobody
 * knows, DT_NOEND: something else that happens will make a turn.
 */
static TimestampTz
ready_at(const AccordErrand *errand, TimestampTz now)
{
	AccordConnection *connection = errand->connection;
	TimestampTz ready;

	if (connection == NULL || connection->hub->config == NULL)
		return ACCORD_LIMIT_NOW;
	if (connection->paused)
		return DT_NOEND;
	ready = Max(accord_flow_hub_ready(connection->hub, now),
				accord_flow_connection_ready(connection, now));
	if (ready != ACCORD_LIMIT_NOW)
		return ready;
	if (!accord_breaker_allows(&connection->breaker))
		return DT_NOEND;
	if (accord_gate_open(&connection->gate) &&
		accord_gate_open(&connection->hub->gate))
		return ACCORD_LIMIT_NOW;
	blocked = true;
	return DT_NOEND;
}

/* Credentials and limits as of today; false: it cannot be made. */
static bool
equip(AccordErrand *errand)
{
	AccordConnection *connection = errand->connection;
	size_t		max_response = errand->request.http.max_response;
	MemoryContext old;

	if (connection == NULL)
		return true;
	if (connection->hub->config == NULL)
	{
		errand->request.error = MemoryContextStrdup(errand->request.context,
													"its channel was removed");
		return false;
	}
	old = MemoryContextSwitchTo(errand->request.context);
	accord_request_equip(&errand->request, connection->hub->config,
						 connection->config, false);
	MemoryContextSwitchTo(old);
	if (max_response > 0)
		errand->request.http.max_response = max_response;
	return errand->request.error == NULL;
}

/* In no list: it leaves, or is told why it cannot. */
static void
send(AccordErrand *errand, TimestampTz now)
{
	AccordConnection *connection = errand->connection;
	const char *error;

	errand->request.http.errand = true;
	if (!equip(errand))
		fail(errand, errand->request.error, now);
	else if (!accord_http_submit(&errand->request.http, errand, &error))
		fail(errand, error, now);
	else
	{
		errand->started_at = now;
		dlist_push_tail(&away, &errand->node);
		if (connection == NULL)
			return;
		connection->gate.in_flight++;
		connection->hub->gate.in_flight++;
		errand->probe = accord_flow_take_tokens(connection, now);
	}
}

void
accord_errand_turn(AccordDesk *desk, TimestampTz now)
{
	dlist_head	asked = DLIST_STATIC_INIT(asked);

	due_at = 0;
	blocked = false;
	/* who is told of a failure may start and cancel others */
	while (!dlist_is_empty(&waiting))
		dlist_push_tail(&asked, dlist_pop_head_node(&waiting));
	while (!dlist_is_empty(&asked))
	{
		AccordErrand *errand = dlist_head_element(AccordErrand, node, &asked);
		TimestampTz ready = DT_NOEND;

		if (accord_http_in_flight() < accord_http_capacity())
			ready = ready_at(errand, now);
		else
			blocked = true;
		dlist_delete(&errand->node);
		if (ready == ACCORD_LIMIT_NOW)
			send(errand, now);
		else
			dlist_push_tail(&waiting, &errand->node);
		if (ready != ACCORD_LIMIT_NOW && ready != DT_NOEND &&
			(due_at == 0 || ready < due_at))
			due_at = ready;
	}
}

TimestampTz
accord_errand_due(void)
{
	return due_at;
}

bool
accord_errand_blocked(void)
{
	return blocked;
}

void
accord_errand_land(AccordDesk *desk, const AccordHttpResponse *response,
				   TimestampTz now)
{
	AccordErrand *errand = response->owner;
	AccordConnection *connection = errand->connection;

	Assert(response->errand);
	dlist_delete(&errand->node);
	if (connection != NULL)
	{
		connection->gate.in_flight--;
		connection->hub->gate.in_flight--;
		accord_flow_conclude(desk, connection, errand->probe,
							 errand->started_at,
							 accord_retry_outcome(&response->result),
							 response, response->error,
							 pg_prng_double(&pg_global_prng_state), now);
	}
	finish(errand, response, now);
}
