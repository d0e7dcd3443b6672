/*
 * dispatch.c: the dispatcher: read, route, admit, send, settle.
 *
 * A background worker, one or several per database, started by the launcher.
 * One loop waits on one wait event set: its latch (set by committing writers),
 * the postmaster's death, and curl's sockets.
 *
 * Invariants
 *   - No transaction is open, and so no snapshot or lock held, while the loop
 *     waits or curl works.
 *   - A delivery is sent once its event is durable (the log's reader flushes
 *     WAL up to it); a command that its channel could not recognise as a
 *     repetition is sent once the intent to do so is durable.
 *   - Nothing about one event raises: it becomes that delivery's outcome.
 *   - The next event of a key is let through when the one before is settled,
 *     that is, committed.
 *
 * On failure: an error of the database session (disk full, lost catalog) ends
 * the process; the launcher starts another after accord.restart_interval,
 * which recovers from the logs. SIGTERM: what has been answered is settled,
 * what is in flight is abandoned.
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "accord.h"
#include "answer.h"
#include "ask.h"
#include "assign.h"
#include "batch.h"
#include "choose.h"
#include "coalesce.h"
#include "compat.h"
#include "counter.h"
#include "db.h"
#include "delivery.h"
#include "dispatch.h"
#include "durable.h"
#include "endpoint.h"
#include "errand.h"
#include "fingerprint.h"
#include "flow.h"
#include "guc.h"
#include "http.h"
#include "identity.h"
#include "intake.h"
#include "keeper.h"
#include "prepared.h"
#include "probe.h"
#include "pull.h"
#include "recovery.h"
#include "remote.h"
#include "renew.h"
#include "replay.h"
#include "request.h"
#include "round.h"
#include "settle.h"
#include "shmem.h"
#include "show.h"

#define ADMIT_AT_ONCE 256		/* deliveries made ready for sending together */
#define ADMIT_ROUNDS 8			/* ... so often before the network's turn */
#define RELEASE_EVERY 100000	/* us */
#define READ_EVERY 1000			/* microseconds between looks at the log */
#define HOUSEKEEPING_EVERY 60000	/* ms */

static AccordDesk *desk = NULL;
static MemoryContext turn_context = NULL;	/* reset every turn of the loop */
static bool awake = true;		/* the latch was set: there may be news */
static TimestampTz read_at = 0; /* the log was last looked at */
static bool here = false;		/* not a copy: it may send */
static TimestampTz housekept_at = 0;	/* a keeper was started */

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
		accord_settle_without(delivery, accord_http_check_request(&request->http) ?
							  ACCORD_OUTCOME_INVALID : ACCORD_OUTCOME_RETRY,
							  error, now);
}

/* Callback of settling: the intent of a command is durable. */
static void
send_intended(AccordDelivery *delivery)
{
	AccordRequest *request = delivery->request;

	Assert(request != NULL);
	submit(delivery, request, GetCurrentTimestamp());
	MemoryContextDelete(request->context);
	delivery->request = NULL;
}

static void
settle(TimestampTz now)
{
	accord_settle_commit(now, send_intended);
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
is_settled_before(AccordDelivery *delivery, TimestampTz now,
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
find_route(AccordDelivery *delivery, AccordChannel **channel,
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

/* It waits until its turn, or until its time is over. */
static void
defer_delivery(AccordDelivery *delivery, TimestampTz until)
{
	if (delivery->expires_at != 0)
		until = Min(until, delivery->expires_at);
	accord_delivery_defer(desk, delivery, until);
}

/*
 * When somebody who had been promised a time at a limit is gone, the others
 * may come earlier: now and then they ask anew.
 */
static void
release_waiting(TimestampTz now)
{
	if (!desk->release || (now >= desk->released_at &&
						   now - desk->released_at < RELEASE_EVERY))
		return;
	desk->release = false;
	desk->released_at = now;
	accord_flow_release(desk);
}

/*
 * What became of it, or whether the channel has it, is asked as the delivery
 * itself would be sent. What cannot be asked is not known.
 */
static void
send_question(AccordDelivery *delivery, AccordChannel *channel,
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

/* Sends one delivery, or concludes why it cannot be sent. */
static void
send_delivery(AccordDelivery *delivery, TimestampTz now)
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

	if (!find_route(delivery, &channel, &account, &route, now))
		return;
	if (accord_delivery_asks(delivery))
	{
		send_question(delivery, channel, account, route, now);
		return;
	}
	if (route->batch_size > 1 && !route->command)
	{
		accord_batch_join(desk, delivery, route, account, now);
		return;
	}
	if (is_settled_before(delivery, now, &outcome, &error))
	{
		accord_settle_without(delivery, outcome, error, now);
		return;
	}
	ready = accord_flow_event_ready(delivery, route, account, now);
	if (ready != ACCORD_LIMIT_NOW)
	{
		accord_flow_return(delivery, now);
		delivery->limit_at = ready;
		defer_delivery(delivery, ready);
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

/* Concludes about members that are not to be sent; how many are. */
static int
sift_batch(AccordBatch *batch, AccordChannel **channel,
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
			(void) find_route(delivery, channel, account, route, now);
		}
		else if (is_settled_before(delivery, now, &outcome, &error))
		{
			accord_batch_remove(delivery);
			accord_settle_without(delivery, outcome, error, now);
		}
	}
	return batch->n;
}

/* The batch leaves: its first member counts as the request. */
static void
submit_batch(AccordBatch *batch, AccordRequest *request, TimestampTz now)
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
send_batch(AccordBatch *batch, TimestampTz now)
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

	if (sift_batch(batch, &channel, &account, &route, now) == 0)
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
		submit_batch(batch, &request, now);
	}
}

/* Sends the batches that are full, or whose time has come. */
static void
send_batches(TimestampTz now)
{
	bool		transaction = false;
	AccordBatch *batch;

	while (accord_http_in_flight() < accord_http_capacity() &&
		   !accord_settle_full() &&
		   (batch = accord_batch_next(desk, now)) != NULL)
	{
		if (!transaction)
			accord_db_begin();
		transaction = true;
		MemoryContextSwitchTo(turn_context);
		send_batch(batch, now);
	}
	if (transaction)
		accord_db_commit();
	MemoryContextSwitchTo(turn_context);
}

/*
 * Takes deliveries off the channels in turn, and of each channel off its
 * connections, as far as there is room and limits allow; whoever must wait
 * leaves the round until it is time.
 */
static int
take_ready(AccordDelivery **taken, int max, TimestampTz now)
{
	AccordHub  *hub;
	int			n = 0;

	while (n < max && (hub = accord_desk_turn(desk)) != NULL)
	{
		AccordConnection *connection = accord_hub_turn(desk, hub);
		AccordDelivery *delivery;
		TimestampTz ready;

		if (connection == NULL)
			continue;
		ready = accord_flow_hub_ready(hub, now);
		if (ready != ACCORD_LIMIT_NOW)
		{
			accord_hub_sleep(desk, hub, ready);
			continue;
		}
		ready = accord_flow_connection_ready(connection, now);
		if (ready == ACCORD_LIMIT_NOW &&
			accord_intake_ahead(desk, connection, now))
			ready = now + READ_EVERY;
		if (ready != ACCORD_LIMIT_NOW)
		{
			accord_connection_sleep(desk, connection, ready);
			continue;
		}
		delivery = accord_connection_take(desk, connection);
		ready = Max(delivery->not_before, delivery->limit_at);
		if (delivery->expires_at != 0 && delivery->expires_at <= now &&
			!accord_delivery_asks(delivery))
		{
			/* it takes nobody else's turn */
			desk->release |= delivery->limit_at != 0;
			accord_settle_without(delivery, ACCORD_OUTCOME_EXPIRED, NULL, now);
			if (accord_settle_full())
				break;
		}
		else if (ready > now)
			defer_delivery(delivery, ready);
		else
		{
			accord_flow_take(delivery, now);
			taken[n++] = delivery;
		}
		accord_connection_served(desk, connection);
	}
	return n;
}

/* Whether making these requests needs the database. */
static bool
needs_transaction(AccordDelivery **deliveries, int n)
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

/*
 * Sends what is ready. True: more is, and there is room for it; as there is
 * when what was taken joined batches.
 */
static bool
admit(TimestampTz now)
{
	AccordDelivery *taken[ADMIT_AT_ONCE];
	int			room = accord_http_capacity() - accord_http_in_flight();
	int			n = take_ready(taken, Min(room, ADMIT_AT_ONCE), now);
	int			held = n;		/* so many whose events are in memory */
	bool		transaction = n > 0 && needs_transaction(taken, n);

	if (transaction)
	{
		accord_db_begin();
		MemoryContextSwitchTo(turn_context);
		held = accord_intake_events(desk, taken, n,
									accord_http_in_flight() == 0);
	}
	for (int i = n - 1; i >= held; i--)
	{
		accord_flow_return(taken[i], now);
		accord_delivery_put_back(desk, taken[i]);
	}
	for (int i = 0; i < held; i++)
		send_delivery(taken[i], now);
	if (transaction)
	{
		accord_db_commit();
		MemoryContextSwitchTo(turn_context);
	}
	return n > 0 && n < room && held == n && !accord_settle_full() &&
		accord_desk_turn(desk) != NULL;
}

/* The answer to a batch is each member's. */
static void
land_batch(AccordDelivery *first, const AccordHttpResponse *response,
		   TimestampTz now)
{
	AccordChannel *channel;
	AccordAccount *account;
	AccordRoute *route;

	/* a batch may be as large as what settles together */
	if (accord_settle_pending())
		settle(now);
	if (!accord_assign_route(first, &channel, &account, &route))
		route = NULL;
	accord_batch_respond(desk, first->batch, route, account, response, now);
}

/* Takes in what the network has answered. */
static void
land(TimestampTz now)
{
	AccordHttpResponse *response;

	accord_http_drive();
	while ((response = accord_http_next()) != NULL)
	{
		AccordDelivery *delivery = response->owner;

		if (response->errand)
		{
			accord_errand_land(desk, response, now);
			continue;
		}
		delivery->sent = false;
		if (delivery->batch != NULL)
			land_batch(delivery, response, now);
		else
			accord_answer_land(desk, delivery, response, now);
		if (accord_settle_full())
			settle(now);
	}
}

/* Reads what is new, if anything may be. True: more at once. */
static bool
take_in(TimestampTz now)
{
	bool		more = false;

	accord_intake_due(desk, now);
	if ((awake || accord_intake_hungry(desk) ||
		 accord_durable_timeout() >= 0) && !accord_settle_full())
	{
		awake = false;
		read_at = now;
		if (accord_settle_pending() && accord_intake_short(desk))
			settle(now);
		more = accord_intake_read(desk);
		awake |= more;
		MemoryContextSwitchTo(turn_context);
	}
	return more;
}

/* The earliest of two waits in milliseconds, -1 being none. */
static long
earlier(long a, long b)
{
	if (a < 0 || b < 0)
		return Max(a, b);
	return Min(a, b);
}

/* Milliseconds until a time; 0: there is none to wait for. */
static long
time_until(TimestampTz at, TimestampTz now)
{
	if (at == 0)
		return -1;
	return at <= now ? 0 : Min((at - now + 999) / 1000, 3600000L);
}

/* Until a delivery is due, somebody's alarm rings, or a pause ends. */
static long
due_timeout(TimestampTz now)
{
	AccordDelivery *delivery = accord_desk_next_due(desk);
	long		timeout = time_until(delivery ? delivery->due_at : 0, now);

	timeout = earlier(timeout, time_until(accord_desk_next_alarm(desk), now));
	timeout = earlier(timeout, time_until(accord_batch_due(desk), now));
	timeout = earlier(timeout, time_until(accord_errand_due(), now));
	timeout = earlier(timeout, time_until(accord_pull_due(), now));
	timeout = earlier(timeout, time_until(accord_renew_due(), now));
	if (desk->release)
		timeout = earlier(timeout, time_until(desk->released_at +
											  RELEASE_EVERY, now));
	return earlier(timeout, time_until(desk->resume_at, now));
}

/*
 * Takes note of a set latch; but not sooner than READ_EVERY after the log was
 * last read: under a flood of commits one look serves many, and a latch left
 * set costs the writers nothing. True: a set latch is left for later.
 */
static bool
defer_latch(TimestampTz now)
{
	if (!MyLatch->is_set)
		return false;
	if (now - read_at < READ_EVERY)
		return true;
	ResetLatch(MyLatch);
	awake = true;
	return false;
}

/*
 * Waits for the latch, the network, or the earliest thing due; not for the
 * latch when it is set and left for later.
 */
static void
wait_for_news(WaitEventSet *set, int latch, long timeout, bool deferred)
{
	static uint32 for_answers = 0;
	static uint32 for_events = 0;
	WaitEvent	events[3];
	bool		in_flight = accord_http_in_flight() > 0;

	if (for_events == 0)
	{
		for_answers = accord_wait_event("AccordDispatcherAnswers");
		for_events = accord_wait_event("AccordDispatcherMain");
	}
	if (timeout != 0)
	{
		pgstat_report_activity(STATE_IDLE, in_flight ?
							   "waiting for answers" :
							   accord_durable_timeout() >= 0 ?
							   "waiting for synchronous standbys" :
							   "waiting for events");
		/* autovacuum lives on what is counted; before a long wait, all of it */
		pgstat_report_stat(timeout < 0 || timeout > 1000);
	}
	if (deferred)
		ModifyWaitEvent(set, latch, WL_LATCH_SET, NULL);
	(void) WaitEventSetWait(set, deferred ? earlier(timeout, 1) : timeout,
							events, lengthof(events),
							in_flight ? for_answers : for_events);
	if (deferred)
		ModifyWaitEvent(set, latch, WL_LATCH_SET, MyLatch);
	if (timeout != 0)
		pgstat_report_activity(STATE_RUNNING, "delivering events");
}

/* Signals, settings, and whether the extension and we still belong here. */
static void
heed(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		accord_config_with_secrets();
		awake = true;
	}
	/* a wake-up may be about the extension itself */
	AcceptInvalidationMessages();
	if (!accord_db_changed() && !accord_identity_stale())
		return;
	awake = true;
	StartTransactionCommand();
	if (!accord_db_installed())
	{
		ereport(LOG,
				(errmsg("extension \"%s\" was dropped: its dispatcher ends",
						ACCORD_EXTENSION)));
		accord_shmem_dispatcher_absent();
		proc_exit(0);
	}
	if (accord_identity_stale())
	{
		bool		was_here = here;

		PushActiveSnapshot(GetTransactionSnapshot());
		here = accord_identity_here();
		PopActiveSnapshot();
		/* adopted: what was found at the start may have been restored since */
		if (here && !was_here)
		{
			/* and nothing is begun that would be abandoned at once */
			here = false;
			ShutdownRequestPending = true;
			SetLatch(MyLatch);
		}
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(turn_context);
}

/* Has the house kept now and then; one dispatcher does it for all. */
static void
keep_house(TimestampTz now)
{
	if (desk->number != 0 || !awake ||
		!TimestampDifferenceExceeds(housekept_at, now, HOUSEKEEPING_EVERY))
		return;
	housekept_at = now;
	accord_keeper_start();
}

/* Prepared transactions that were committed without a place in the log. */
static void
place_prepared(void)
{
	static bool pending = false;

	pending |= accord_prepared_incomplete();
	if (desk->number != 0 || !here || !pending)
		return;
	accord_db_begin();
	pending = accord_prepared_complete() < 0;
	accord_db_commit();
	MemoryContextSwitchTo(turn_context);
}

/*
 * SIGTERM: ends the loop at its next turn; a body function that is running is
 * cancelled.
 */
static void
handle_shutdown(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	if (accord_request_in_function)
	{
		InterruptPending = true;
		QueryCancelPending = true;
	}
	SetLatch(MyLatch);
	errno = save_errno;
}

/* One turn of the loop; returns how long to wait for the next one. */
static long
turn(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		more;
	bool		admitting = false;
	bool		news;
	bool		idle;
	long		showing;
	long		timeout;

	land(now);
	if (!here)
	{
		awake = false;
		return -1;
	}
	keep_house(now);
	place_prepared();
	news = awake;
	more = take_in(now);
	accord_assign_resume(desk, now);
	accord_remote_heed(desk);
	accord_desk_wake(desk, now);
	release_waiting(now);
	accord_pull_turn(desk, now);
	accord_probe_turn(desk);
	accord_renew_turn(desk, news, now);
	MemoryContextSwitchTo(turn_context);
	accord_errand_turn(desk, now);
	for (int i = 0; i < ADMIT_ROUNDS && (admitting = admit(now)); i++)
		;
	more |= admitting;
	if (accord_replay_turn(desk, now))
		more |= admit(now);
	send_batches(now);
	/* the network works while what was answered is committed */
	if (accord_http_submitted())
		accord_http_drive();
	idle = accord_http_in_flight() == 0 && !more;
	if (accord_settle_timeout(now, idle) == 0)
	{
		settle(now);
		more |= !dlist_is_empty(&desk->ready) ||
			!dlist_is_empty(&desk->batches_due) ||
			accord_errand_blocked() || accord_intake_hungry(desk);
		now = GetCurrentTimestamp();
	}
	showing = accord_show(desk, idle && !more && !awake, now);
	if (more || awake)
		return 0;
	timeout = earlier(accord_http_timeout(), due_timeout(now));
	timeout = earlier(timeout, accord_settle_timeout(now, idle));
	timeout = earlier(timeout, accord_intake_timeout(desk, now));
	timeout = earlier(timeout, accord_durable_timeout());
	timeout = earlier(timeout, accord_replay_timeout(desk, now));
	return earlier(timeout, showing);
}

/* Connects, and finds out whether there is anything to do here. */
static void
start(int number, int count)
{
	accord_config_with_secrets();
	accord_http_init();
	desk = accord_desk_create(number, count);
	turn_context = AllocSetContextCreate(TopMemoryContext, "pg_accord turn",
										 ALLOCSET_DEFAULT_SIZES);
	accord_db_begin();
	if (!accord_db_installed())
	{
		accord_shmem_dispatcher_absent();
		proc_exit(0);
	}
	accord_shmem_dispatcher_present();
	accord_counter_note(ACCORD_COUNTER_DISPATCHERS, 1);
	here = accord_identity_here();
	accord_backlog_share_positions(count);
	accord_db_commit();

	accord_flow_init(desk);
	accord_fingerprint_init(desk);
	accord_db_begin();
	accord_recovery_start(desk);
	accord_settle_init(desk);
	accord_db_commit();
}

/* The last act: what has been answered need not be sent again. */
static void
wind_up(void)
{
	bool		installed;

	MemoryContextSwitchTo(turn_context);
	StartTransactionCommand();
	installed = accord_db_installed();
	CommitTransactionCommand();
	if (!installed)
		return;
	MemoryContextSwitchTo(turn_context);
	land(GetCurrentTimestamp());
	settle(GetCurrentTimestamp());
}

void
accord_dispatch_main(Datum arg)
{
	AccordDispatchArgs args;
	WaitEventSet *set;
	int			latch;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_shutdown);
	BackgroundWorkerUnblockSignals();
	if (!accord_shmem_dispatcher_attach(args.database, args.number,
										args.count))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(args.database, InvalidOid, 0);
	accord_db_set_session();
	start(args.number, args.count);

	set = accord_create_wait_event_set(3);
	latch = AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
							  NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(set, WL_SOCKET_READABLE, accord_http_fd(), NULL, NULL);

	while (!ShutdownRequestPending)
	{
		bool		deferred = defer_latch(GetCurrentTimestamp());
		long		timeout;

		MemoryContextSwitchTo(turn_context);
		heed();
		/* just adopted: what we found may not be what is there now */
		if (ShutdownRequestPending)
			break;
		timeout = turn();
		MemoryContextReset(turn_context);
		wait_for_news(set, latch, timeout, deferred);
	}
	wind_up();
	proc_exit(0);
}
