/*
 * clerk.c: takes in what a dispatcher has fetched.
 *
 * Runs in dispatchers, and in a background worker that a dispatcher starts
 * when it has a page of a feed, or a step of a reconciliation, to be taken in.
 * The worker takes rows' locks, runs functions of users, and reads much of
 * the log: deliveries shall not wait for that. It stays for a few seconds
 * after its last order, and ends with its dispatcher.
 *
 * Invariants
 *   - One order at a time; it is one call of accord.pull_take(), in one
 *     transaction. What raises is rolled back, and told to accord.pull_fail().
 *   - The two share a segment (Pad) and, for each order, another one. The
 *     pad's state says whose turn it is: whoever moves it on has written
 *     before, and wakes the other after.
 *
 * On failure (the worker is ended, no segment can be had) nothing of the order
 * was done, and the dispatcher does it again, from what is committed.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "clerk.h"
#include "compat.h"
#include "db.h"
#include "json.h"

#define STAY 5000				/* ms without an order */

PGDLLEXPORT void accord_clerk_main(Datum arg);

typedef enum PadState
{
	PAD_IDLE,					/* next: GIVEN (dispatcher), GONE (clerk) */
	PAD_GIVEN,					/* next: DONE (clerk) */
	PAD_DONE,					/* next: IDLE (dispatcher) */
	PAD_GONE					/* next: GIVEN, to another clerk */
} PadState;

/* What dispatcher and clerk share. */
typedef struct Pad
{
	pg_atomic_uint32 state;		/* PadState */
	dsm_handle	order;			/* GIVEN: the segment of the order */
	TimestampTz due_at;			/* DONE */
	Latch	   *dispatcher;
	Latch	   *clerk;			/* NULL: it has not come yet */
} Pad;

/* An order as it lies in its segment: the strings follow, each terminated. */
typedef struct Sheet
{
	char		kind[16];
	int64		id;
	int64		version;
	int			status;
	bool		has_headers;
	bool		has_error;
	bool		has_body;
	size_t		account;		/* where each begins */
	size_t		headers;
	size_t		error;
	size_t		body;
	size_t		body_len;
	char		text[FLEXIBLE_ARRAY_MEMBER];
} Sheet;

/* A clerk as its dispatcher knows it. */
typedef struct Clerk
{
	Pad		   *pad;			/* NULL: none was ever started */
	dsm_handle	handle;			/* of the pad */
	BackgroundWorkerHandle *worker;
	dsm_segment *order;			/* given; NULL: none is */
} Clerk;

static Clerk clerks[ACCORD_CLERKS];
static bool am_clerk = false;

/* ---- in the dispatcher ---- */

/* The dispatcher exits: whoever waits for that must not find a clerk. */
static void
stop_clerks(int code, Datum arg)
{
	for (int i = 0; i < ACCORD_CLERKS; i++)
	{
		pid_t		pid;

		if (clerks[i].worker == NULL ||
			GetBackgroundWorkerPid(clerks[i].worker, &pid) == BGWH_STOPPED)
			continue;
		TerminateBackgroundWorker(clerks[i].worker);
		(void) WaitForBackgroundWorkerShutdown(clerks[i].worker);
	}
}

static void
make_pad(Clerk *clerk)
{
	static bool registered = false;
	dsm_segment *segment = dsm_create(sizeof(Pad), 0);

	if (!registered)
		before_shmem_exit(stop_clerks, (Datum) 0);
	registered = true;
	clerk->pad = dsm_segment_address(segment);
	clerk->handle = dsm_segment_handle(segment);
	memset(clerk->pad, 0, sizeof(Pad));
	pg_atomic_init_u32(&clerk->pad->state, PAD_GONE);
	clerk->pad->dispatcher = MyLatch;
}

static bool
is_at_work(Clerk *clerk)
{
	pid_t		pid;

	return clerk->worker != NULL &&
		GetBackgroundWorkerPid(clerk->worker, &pid) != BGWH_STOPPED;
}

static size_t
string_size(const char *string)
{
	return (string ? strlen(string) : 0) + 1;
}

/* Writes a string at the sheet's end; returns where it begins. */
static size_t
write_string(Sheet *sheet, size_t *end, const char *string, size_t len)
{
	size_t		start = *end;

	Assert(len == 0 || string != NULL);
	if (len > 0)
		memcpy(sheet->text + start, string, len);
	sheet->text[start + len] = '\0';
	*end = start + len + 1;
	return start;
}

static dsm_segment *
write_order(const AccordClerkOrder *order)
{
	size_t		size = offsetof(Sheet, text) + string_size(order->account) +
	string_size(order->headers) + string_size(order->error) +
	order->body_len + 1;
	dsm_segment *segment = dsm_create(size, DSM_CREATE_NULL_IF_MAXSEGMENTS);
	Sheet	   *sheet;
	size_t		end = 0;

	if (segment == NULL)
		return NULL;
	sheet = dsm_segment_address(segment);
	memset(sheet, 0, offsetof(Sheet, text));
	strlcpy(sheet->kind, order->kind, sizeof(sheet->kind));
	sheet->id = order->id;
	sheet->version = order->version;
	sheet->status = order->status;
	sheet->has_headers = order->headers != NULL;
	sheet->has_error = order->error != NULL;
	sheet->has_body = order->body != NULL;
	sheet->account = write_string(sheet, &end, order->account,
								  string_size(order->account) - 1);
	sheet->headers = write_string(sheet, &end, order->headers,
								  string_size(order->headers) - 1);
	sheet->error = write_string(sheet, &end, order->error,
								string_size(order->error) - 1);
	sheet->body_len = order->body_len;
	sheet->body = write_string(sheet, &end, order->body, order->body_len);
	return segment;
}

static bool
start_worker(Clerk *clerk)
{
	BackgroundWorker worker;
	MemoryContext old;
	bool		started;

	accord_db_worker(&worker, "pg_accord clerk", "accord_clerk_main",
					 MyDatabaseId);
	memcpy(worker.bgw_extra, &clerk->handle, sizeof(clerk->handle));
	if (clerk->worker != NULL)
		pfree(clerk->worker);
	clerk->worker = NULL;
	old = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&worker, &clerk->worker);
	MemoryContextSwitchTo(old);
	if (!started)
	{
		clerk->worker = NULL;
		ereport(LOG,
				(errmsg("could not start a clerk: no free background worker"),
				 errdetail("Feeds are not taken in, and reconciliations do "
						   "not go on, until one can be started."),
				 errhint("You might need to increase "
						 "\"max_worker_processes\".")));
	}
	return started;
}

bool
accord_clerk_give(AccordClerkDesk desk, const AccordClerkOrder *order)
{
	Clerk	   *clerk = &clerks[desk];
	uint32		state = PAD_IDLE;

	Assert(clerk->order == NULL);
	if (clerk->pad == NULL)
		make_pad(clerk);
	clerk->order = write_order(order);
	if (clerk->order == NULL)
		return false;
	clerk->pad->order = dsm_segment_handle(clerk->order);
	if (is_at_work(clerk) &&
		pg_atomic_compare_exchange_u32(&clerk->pad->state, &state, PAD_GIVEN))
	{
		SetLatch(clerk->pad->clerk);
		return true;
	}
	clerk->pad->clerk = NULL;
	pg_atomic_write_u32(&clerk->pad->state, PAD_GIVEN);
	if (start_worker(clerk))
		return true;
	pg_atomic_write_u32(&clerk->pad->state, PAD_GONE);
	dsm_detach(clerk->order);
	clerk->order = NULL;
	return false;
}

AccordClerkState
accord_clerk_ask(AccordClerkDesk desk, TimestampTz *due_at)
{
	Clerk	   *clerk = &clerks[desk];
	bool		done;

	if (clerk->order == NULL)
		return ACCORD_CLERK_FREE;
	done = pg_atomic_read_u32(&clerk->pad->state) == PAD_DONE;
	if (!done && is_at_work(clerk))
		return ACCORD_CLERK_BUSY;
	/* its last word may have come in between */
	done = pg_atomic_read_u32(&clerk->pad->state) == PAD_DONE;
	pg_read_barrier();
	*due_at = clerk->pad->due_at;
	dsm_detach(clerk->order);
	clerk->order = NULL;
	pg_atomic_write_u32(&clerk->pad->state, done ? PAD_IDLE : PAD_GONE);
	return done ? ACCORD_CLERK_DONE : ACCORD_CLERK_LOST;
}

/* ---- the clerk ---- */

bool
accord_clerk_is(void)
{
	return am_clerk;
}

static TimestampTz
run_query(const char *query, int n, Oid *types, Datum *values,
		  const char *nulls)
{
	bool		isnull;
	Datum		value;

	SPI_connect();
	if (SPI_execute_with_args(query, n, types, values, nulls, false, 0) !=
		SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not run accord.pull_take()");
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  &isnull);
	SPI_finish();
	return isnull ? DT_NOEND : DatumGetTimestampTz(value);
}

/* Bytes of an answer as text of this database; raises when they are not. */
static Datum
body_datum(const Sheet *sheet)
{
	const char *bytes = sheet->text + sheet->body;
	char	   *text = pg_any_to_server(bytes, sheet->body_len, PG_UTF8);

	return PointerGetDatum(text == bytes ?
						   cstring_to_text_with_len(bytes, sheet->body_len) :
						   cstring_to_text(text));
}

/* Does what the order says; returns when there is more to do. */
static TimestampTz
take(const Sheet *sheet)
{
	Oid			types[] = {TEXTOID, INT8OID, TEXTOID, INT8OID, INT4OID,
	JSONBOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)] = {0};
	char		nulls[lengthof(types)];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = CStringGetTextDatum(sheet->kind);
	values[1] = Int64GetDatum(sheet->id);
	values[2] = CStringGetTextDatum(sheet->text + sheet->account);
	values[3] = Int64GetDatum(sheet->version);
	values[4] = Int32GetDatum(sheet->status);
	nulls[5] = sheet->has_headers ? ' ' : 'n';
	if (sheet->has_headers)
		values[5] = DirectFunctionCall1(jsonb_in,
										CStringGetDatum(sheet->text +
														sheet->headers));
	nulls[6] = sheet->has_body ? ' ' : 'n';
	if (sheet->has_body)
		values[6] = body_datum(sheet);
	nulls[7] = sheet->has_error ? ' ' : 'n';
	if (sheet->has_error)
		values[7] = CStringGetTextDatum(sheet->text + sheet->error);
	return run_query("SELECT accord.pull_take($1, $2, $3, $4, $5, $6, $7, $8)",
					 lengthof(types), types, values, nulls);
}

/* Nothing came of it: that is written down, and when to try again. */
static TimestampTz
give_up(const Sheet *sheet, const char *error)
{
	Oid			types[] = {TEXTOID, INT8OID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[] = {
		CStringGetTextDatum(sheet->kind), Int64GetDatum(sheet->id),
		CStringGetTextDatum(sheet->text + sheet->account),
		Int64GetDatum(sheet->version), CStringGetTextDatum(error)
	};

	return run_query("SELECT accord.pull_fail($1, $2, $3, $4, $5)",
					 lengthof(types), types, values, NULL);
}

/*
 * One of the two, in a transaction of its own: what raised is told; NULL:
 * nothing did.
 */
static char *
attempt(const Sheet *sheet, const char *error, TimestampTz *due_at)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *volatile message = NULL;

	PG_TRY();
	{
		accord_db_begin();
		*due_at = error == NULL ? take(sheet) : give_up(sheet, error);
		accord_db_commit();
	}
	PG_CATCH();
	{
		ErrorData  *data;

		MemoryContextSwitchTo(caller);
		data = CopyErrorData();
		message = data->message ? pstrdup(data->message) : pstrdup("unknown");
		FlushErrorState();
		accord_db_abort();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return message;
}

static void
do_order(Pad *pad)
{
	dsm_segment *segment = dsm_attach(pad->order);
	TimestampTz due_at = GetCurrentTimestamp() + USECS_PER_MINUTE;
	char	   *error;

	if (segment != NULL)
	{
		const Sheet *sheet = dsm_segment_address(segment);

		pgstat_report_activity(STATE_RUNNING,
							   psprintf("taking in %s " INT64_FORMAT,
										sheet->kind, sheet->id));
		error = attempt(sheet, NULL, &due_at);
		if (error != NULL)
			error = attempt(sheet, error, &due_at);
		if (error != NULL)
			ereport(LOG,
					(errmsg("could not take in %s " INT64_FORMAT ": %s",
							sheet->kind, sheet->id, error)));
		dsm_detach(segment);
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);
	}
	pad->due_at = due_at;
	pg_write_barrier();
	pg_atomic_write_u32(&pad->state, PAD_DONE);
	SetLatch(pad->dispatcher);
}

/* Until there is an order; false: there was none for so long that we go. */
static bool
await_order(Pad *pad)
{
	TimestampTz since = GetCurrentTimestamp();

	while (pg_atomic_read_u32(&pad->state) != PAD_GIVEN)
	{
		uint32		state = PAD_IDLE;

		if (TimestampDifferenceExceeds(since, GetCurrentTimestamp(), STAY) &&
			pg_atomic_compare_exchange_u32(&pad->state, &state, PAD_GONE))
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, STAY, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
	return true;
}

void
accord_clerk_main(Datum arg)
{
	MemoryContext context;
	dsm_segment *segment;
	dsm_handle	handle;
	Pad		   *pad;

	memcpy(&handle, MyBgworkerEntry->bgw_extra, sizeof(handle));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg),
											  InvalidOid, 0);
	accord_db_set_session();
	am_clerk = true;
	segment = dsm_attach(handle);
	if (segment == NULL)
		proc_exit(0);			/* the dispatcher is gone */
	pad = dsm_segment_address(segment);
	pad->clerk = MyLatch;
	context = AllocSetContextCreate(TopMemoryContext, "pg_accord clerk",
									ALLOCSET_DEFAULT_SIZES);
	while (await_order(pad))
	{
		MemoryContextSwitchTo(context);
		do_order(pad);
		MemoryContextReset(context);
	}
	proc_exit(0);
}
