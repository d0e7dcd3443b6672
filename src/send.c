/*
 * send.c: what leaves: the request of a delivery, or of a batch.
 *
 * Runs in dispatchers. A delivery that has been taken off its connection comes
 * here once: it is sent, joins a batch, waits for a limit that its event is
 * counted by, or is concluded without a request.
 *
 * Invariants
 *   - A command that its channel could not recognise as a repetition is sent
 *     once the intent to do so is durable (accord_send_intended()).
 *   - Nothing about one event raises: it becomes that delivery's outcome.
 *
 * On failure: an error of the database session ends the dispatcher; what was
 * in flight is sent again, or known to be lost, after recovery.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "ask.h"
#include "assign.h"
#include "backlog.h"
#include "batch.h"
#include "choose.h"
#include "coalesce.h"
#include "db.h"
#include "delivery.h"
#include "fingerprint.h"
#include "flow.h"
#include "http.h"
#include "remote.h"
#include "request.h"
#include "send.h"
#include "settle.h"

/* Hands a finished request to curl; the delivery is in flight from now on. */
static void
submit(AccordDelivery *delivery, AccordRequest *request, TimestampTz now)
{
	const char *error = NULL;

	accord_fingerprint_forget(delivery);
	delivery->limit_at = 0;
	delivery->attempts++;
	delivery->started_at = now;
	if (delivery->attempted_at == 0)
		delivery->attempted_at = now;
	if (accord_http_submit(&request->http, delivery, &error))
		delivery->sent = true;
	else
		accord_settle_without(delivery,
							  accord_http_check_request(&request->http) ?
							  ACCORD_OUTCOME_INVALID : ACCORD_OUTCOME_RETRY,
							  error, now);
}

void
accord_send_intended(AccordDelivery *delivery)
{
	AccordRequest *request = delivery->request;

	Assert(request != NULL);
	submit(delivery, request, GetCurrentTimestamp());
	MemoryContextDelete(request->context);
	delivery->request = NULL;
}

/*
 * Makes the request of a delivery: as it was first made, for a command whose
 * body comes from a function; else from the event.
 */
static void
make_request(AccordRequest *request, AccordDelivery *delivery,
			 AccordRoute *route, AccordAccount *account)
{
	AccordEndpoint *endpoint = delivery->endpoint;
	Jsonb	   *frozen = NULL;

	if (delivery->version > 0 && route->command &&
		route->body_function != NULL)
		frozen = accord_backlog_request(endpoint->channel, endpoint->account,
										delivery->seq, delivery->ord,
										delivery->replay ?
										delivery->replay->id : 0);
	if (frozen != NULL)
		frozen = accord_request_sent(frozen);
	if (frozen != NULL)
		accord_request_thaw(request, frozen);
	else
		accord_request_make(request, route, account, delivery->event,
							delivery->seq);
}

/* Whether the intent to send must be durable before the request leaves. */
static bool
needs_intent(AccordDelivery *delivery, AccordRoute *route,
			 AccordChannel *channel)
{
	return route->command && (!route->keyed ||
							  channel->idempotency_window_ms > 0 ||
							  route->body_function != NULL);
}

/*
 * Whether a command may be repeated still: its channel may have forgotten its
 * key since the last attempt, and would take the repetition for a new one.
 */
static bool
may_be_repeated(AccordDelivery *delivery, TimestampTz now)
{
	AccordRetryPolicy policy = delivery->endpoint->connection->policy;

	policy.command = delivery->command;
	policy.keyed &= !delivery->keyless;
	policy.ambiguous_retry = delivery->ambiguous_retry;
	policy.verify = delivery->verify;
	return delivery->attempts == 0 ||
		accord_retry_repeatable(&policy, delivery->attempts,
								(now - delivery->attempted_at) / 1000);
}

/*
 * What there is to conclude about a delivery without making a request: true,
 * with the reason, when there is something.
 */
static bool
is_settled_before(AccordDesk *desk, AccordDelivery *delivery, TimestampTz now,
				  AccordOutcome *outcome, const char **error)
{
	AccordDelivery *newer;

	if (delivery->lost && delivery->command)
	{
		delivery->lost = false;
		delivery->attempts++;
		*outcome = ACCORD_OUTCOME_LOST;
		*error = "the server stopped while the request was in flight";
		return true;
	}
	delivery->lost = false;
	if (delivery->expires_at != 0 && delivery->expires_at <= now)
	{
		*outcome = ACCORD_OUTCOME_EXPIRED;
		*error = NULL;
		return true;
	}
	if (delivery->overtaken)
	{
		*outcome = ACCORD_OUTCOME_SUPERSEDED;
		*error = "there is a newer event of its kind";
		return true;
	}
	newer = accord_coalesce_send(desk, delivery);
	if (newer != NULL)
	{
		newer->limit_at = Max(newer->limit_at, delivery->limit_at);
		*outcome = ACCORD_OUTCOME_SUPERSEDED;
		*error = accord_coalesce_reason(newer);
		return true;
	}
	*outcome = ACCORD_OUTCOME_LOST;
	*error = "the channel's idempotency_window ended before the repetition";
	return !may_be_repeated(delivery, now);
}

/*
 * Whether a TAKEN delivery is to be sent: it has an event, a route and leave.
 * If not, it is concluded why.
 */
static bool
find_route(AccordDesk *desk, AccordDelivery *delivery, AccordChannel **channel,
		   AccordAccount **account, AccordRoute **route, TimestampTz now)
{
	if (delivery->event == NULL)
	{
		accord_settle_without(delivery, ACCORD_OUTCOME_INVALID,
							  "the event is no longer in the log", now);
		return false;
	}
	delivery->chosen = 0;
	if (delivery->discard ||
		!accord_assign_route(delivery, channel, account, route))
	{
		accord_settle_without(delivery, ACCORD_OUTCOME_DISCARDED,
							  delivery->discard ? NULL :
							  "its channel, account or route was removed",
							  now);
		return false;
	}
	delivery->route = (*route)->id;
	delivery->event->replay = delivery->replay;
	/* what was recovered, or scheduled, has no kind yet */
	if (!delivery->identified)
		accord_coalesce_identify(desk, delivery, *route, *account);
	accord_remote_enter(NULL);
	if ((*channel)->remembers &&
		!accord_choose_route(desk, delivery, *account, route, now))
		return false;
	delivery->command = (*route)->command;
	delivery->keyless = !(*route)->keyed;
	delivery->ambiguous_retry = (*route)->ambiguous_retry;
	delivery->verify = (*route)->verify;
	delivery->hold_dead = (*route)->hold_dead;
	return true;
}

void
accord_send_defer(AccordDesk *desk, AccordDelivery *delivery,
				  TimestampTz until)
{
	if (delivery->expires_at != 0)
		until = Min(until, delivery->expires_at);
	accord_delivery_defer(desk, delivery, until);
}

/*
 * What became of it, or whether the channel has it, is asked as the delivery
 * itself would be sent. What cannot be asked is not known.
 */
static void
send_question(AccordDesk *desk, AccordDelivery *delivery,
			  AccordChannel *channel,
			  AccordAccount *account, AccordRoute *route, TimestampTz now)
{
	TimestampTz ready = accord_flow_event_ready(delivery, route, account, now);
	AccordRequest request;

	if (ready != ACCORD_LIMIT_NOW)
	{
		accord_flow_return(delivery, now);
		delivery->limit_at = ready;
		accord_delivery_defer(desk, delivery, ready);
		return;
	}
	accord_ask_make(&request, delivery, route, account, now);
	if (request.error == NULL)
		accord_request_equip(&request, channel, account, false);
	if (request.error != NULL)
	{
		delivery->attempts++;
		accord_settle_without(delivery, request.transient ?
							  ACCORD_OUTCOME_RETRY : ACCORD_OUTCOME_UNCLEAR,
							  request.error, now);
		return;
	}
	accord_flow_take_event(now);
	submit(delivery, &request, now);
}

void
accord_send(AccordDesk *desk, AccordDelivery *delivery, TimestampTz now)
{
	AccordChannel *channel;
	AccordAccount *account;
	AccordRoute *route;
	AccordRequest *request;
	AccordOutcome outcome;
	const char *error;
	TimestampTz ready;
	Jsonb	   *frozen = NULL;
	MemoryContext context;
	MemoryContext old;

	if (!find_route(desk, delivery, &channel, &account, &route, now))
		return;
	if (accord_delivery_asks(delivery))
	{
		send_question(desk, delivery, channel, account, route, now);
		return;
	}
	if (route->batch_size > 1 && !route->command)
	{
		accord_batch_join(desk, delivery, route, account, now);
		return;
	}
	if (is_settled_before(desk, delivery, now, &outcome, &error))
	{
		accord_settle_without(delivery, outcome, error, now);
		return;
	}
	ready = accord_flow_event_ready(delivery, route, account, now);
	if (ready != ACCORD_LIMIT_NOW)
	{
		accord_flow_return(delivery, now);
		delivery->limit_at = ready;
		accord_send_defer(desk, delivery, ready);
		accord_merge_enter(desk, delivery);
		return;
	}

	context = AllocSetContextCreate(desk->context, "pg_accord request",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	request = palloc(sizeof(AccordRequest));
	make_request(request, delivery, route, account);
	request->context = context;
	if (request->error == NULL && !request->skip &&
		needs_intent(delivery, route, channel) && route->body_function != NULL)
		frozen = accord_request_freeze(request);
	if (request->error == NULL && !request->skip)
		accord_request_equip(request, channel, account, route->command &&
							 !route->keyed);
	MemoryContextSwitchTo(old);

	if (request->error != NULL)
	{
		delivery->attempts++;
		accord_settle_without(delivery, request->transient ?
							  ACCORD_OUTCOME_RETRY : ACCORD_OUTCOME_INVALID,
							  request->error, now);
	}
	else if (request->skip)
		accord_settle_without(delivery, ACCORD_OUTCOME_SKIPPED, NULL, now);
	else if (route->skip_unchanged &&
			 accord_fingerprint_same(delivery, request) &&
			 delivery->decided_by == 0 && delivery->replay == NULL)
		accord_settle_without(delivery, ACCORD_OUTCOME_SKIPPED,
							  "unchanged since it was last accepted", now);
	else if (needs_intent(delivery, route, channel))
	{
		accord_flow_take_event(now);
		accord_settle_intent(delivery, frozen, now);
		delivery->request = request;
		return;
	}
	else
	{
		accord_flow_take_event(now);
		submit(delivery, request, now);
	}
	MemoryContextDelete(context);
}

bool
accord_send_needs_transaction(AccordDelivery **deliveries, int n)
{
	for (int i = 0; i < n; i++)
	{
		AccordChannel *channel;
		AccordAccount *account;
		AccordRoute *route;

		if (deliveries[i]->event == NULL)
			return true;
		if (accord_assign_route(deliveries[i], &channel, &account, &route) &&
			accord_request_needs_transaction(route))
			return true;
	}
	return false;
}

/* Concludes about members that are not to be sent; how many are. */
static int
sift_batch(AccordDesk *desk, AccordBatch *batch, AccordChannel **channel,
		   AccordAccount **account, AccordRoute **route, TimestampTz now)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &batch->members)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, batch_node,
												   iter.cur);
		AccordOutcome outcome;
		const char *error;

		if (delivery->event == NULL || delivery->discard ||
			!accord_assign_route(delivery, channel, account, route))
		{
			accord_batch_remove(delivery);
			(void) find_route(desk, delivery, channel, account, route, now);
		}
		else if (is_settled_before(desk, delivery, now, &outcome, &error))
		{
			accord_batch_remove(delivery);
			accord_settle_without(delivery, outcome, error, now);
		}
	}
	return batch->n;
}

/* The batch leaves: its first member counts as the request. */
static void
submit_batch(AccordDesk *desk, AccordBatch *batch, AccordRequest *request,
			 TimestampTz now)
{
	AccordDelivery *first = dlist_head_element(AccordDelivery, batch_node,
											   &batch->members);
	const char *error = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &batch->members)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, batch_node,
												   iter.cur);

		accord_fingerprint_forget(delivery);
		delivery->limit_at = 0;
		delivery->attempts++;
		delivery->started_at = now;
		if (delivery->attempted_at == 0)
			delivery->attempted_at = now;
		delivery->sent = true;
		delivery->rider = delivery != first;
	}
	if (!accord_http_submit(&request->http, first, &error))
		accord_batch_fail(desk, batch,
						  accord_http_check_request(&request->http) == NULL,
						  error, now);
}

/* Sends a batch, or concludes why it cannot be sent. In a transaction. */
static void
send_batch(AccordDesk *desk, AccordBatch *batch, TimestampTz now)
{
	AccordDelivery *first;
	AccordChannel *channel;
	AccordAccount *account;
	AccordRoute *route;
	AccordRequest request;
	const AccordEvent **events;
	TimestampTz ready;
	dlist_iter	iter;
	int			n = 0;

	if (sift_batch(desk, batch, &channel, &account, &route, now) == 0)
	{
		accord_batch_free(batch);
		return;
	}
	first = dlist_head_element(AccordDelivery, batch_node, &batch->members);
	if (!accord_assign_route(first, &channel, &account, &route))
		elog(ERROR, "a batch has lost its route");
	ready = accord_flow_event_ready(first, route, account, now);
	if (ready != ACCORD_LIMIT_NOW)
	{
		first->limit_at = ready;
		accord_batch_defer(desk, batch, ready);
		return;
	}
	events = palloc(batch->n * sizeof(AccordEvent *));
	dlist_foreach(iter, &batch->members)
		events[n++] = dlist_container(AccordDelivery, batch_node,
									  iter.cur)->event;
	accord_remote_enter(channel->remembers ?
						accord_choose_scope(first, account, route) : NULL);
	accord_request_make_batch(&request, route, account, events, n);
	if (request.error == NULL && !request.skip)
		accord_request_equip(&request, channel, account, false);
	if (request.error != NULL)
		accord_batch_fail(desk, batch, request.transient, request.error, now);
	else if (request.skip)
		accord_batch_skip(batch, now);
	else
	{
		accord_delivery_count(desk, first);
		accord_flow_take(first, now);
		accord_flow_take_event(now);
		submit_batch(desk, batch, &request, now);
	}
}

void
accord_send_batches(AccordDesk *desk, TimestampTz now)
{
	MemoryContext turn = CurrentMemoryContext;
	bool		transaction = false;
	AccordBatch *batch;

	while (accord_http_in_flight() < accord_http_capacity() &&
		   !accord_settle_full() &&
		   (batch = accord_batch_next(desk, now)) != NULL)
	{
		if (!transaction)
			accord_db_begin();
		transaction = true;
		MemoryContextSwitchTo(turn);
		send_batch(desk, batch, now);
	}
	if (transaction)
		accord_db_commit();
	MemoryContextSwitchTo(turn);
}
