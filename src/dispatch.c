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
 * unless somebody keeps our tables locked; what is in flight is abandoned.
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
#include "storage/proc.h"
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
#include "assign.h"
#include "batch.h"
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
#include "send.h"
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

static void
settle(TimestampTz now)
{
	accord_settle_commit(now, accord_send_intended);
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
			accord_send_defer(desk, delivery, ready);
		else
		{
			accord_flow_take(delivery, now);
			taken[n++] = delivery;
		}
		accord_connection_served(desk, connection);
	}
	return n;
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
	bool		transaction = n > 0 && accord_send_needs_transaction(taken, n);

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
		accord_send(desk, taken[i], now);
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
 * cancelled. Who waits for a lock ends at once: its holder may be a prepared
 * transaction, which no shutdown ends.
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
	if (MyProc != NULL && MyProc->waitLock != NULL)
	{
		InterruptPending = true;
		ProcDiePending = true;
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
	accord_send_batches(desk, now);
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

/*
 * The last act: what has been answered need not be sent again. Nobody shall
 * have to wait long for it.
 */
static void
wind_up(void)
{
	bool		installed;

	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
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
