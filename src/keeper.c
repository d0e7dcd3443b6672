/*
 * keeper.c: housekeeping, in a process of its own.
 *
 * A background worker that dispatcher 0 starts once a minute while events
 * come; it archives what is to be archived, turns the rings, and exits. What
 * it does may take minutes (an archive function copies a slot), and no
 * delivery shall wait for that. The rules are SQL (sql/65_ring.sql and later).
 *
 * Invariants: at most one keeper per database, as its dispatcher 0 starts one
 * when the last has gone, and takes it along when it exits itself: whoever
 * asks the dispatchers to leave a database finds no keeper there either. Each
 * step is a transaction of its own and waits for no lock.
 *
 * On failure (disk full, an archive function that raises) a step is rolled
 * back and logged, and the next keeper tries again: housekeeping never stops
 * deliveries.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "db.h"
#include "keeper.h"

PGDLLEXPORT void accord_keeper_main(Datum arg);

static BackgroundWorkerHandle *keeper = NULL;	/* the last one started */

/* ---- in the dispatcher ---- */

/* The dispatcher exits: whoever waits for that must not find the keeper. */
static void
stop_keeper(int code, Datum arg)
{
	pid_t		pid;

	if (keeper == NULL || GetBackgroundWorkerPid(keeper, &pid) == BGWH_STOPPED)
		return;
	TerminateBackgroundWorker(keeper);
	(void) WaitForBackgroundWorkerShutdown(keeper);
}

static bool
keeper_is_at_work(void)
{
	pid_t		pid;

	if (keeper == NULL)
		return false;
	if (GetBackgroundWorkerPid(keeper, &pid) != BGWH_STOPPED)
		return true;
	pfree(keeper);
	keeper = NULL;
	return false;
}

void
accord_keeper_start(void)
{
	static bool registered = false;
	BackgroundWorker worker;
	MemoryContext old;

	if (keeper_is_at_work())
		return;
	if (!registered)
	{
		before_shmem_exit(stop_keeper, (Datum) 0);
		registered = true;
	}
	accord_db_worker(&worker, "pg_accord keeper", "accord_keeper_main",
					 MyDatabaseId);
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &keeper))
	{
		keeper = NULL;
		ereport(LOG,
				(errmsg("could not start a keeper: no free background worker"),
				 errdetail("The logs of pg_accord are not emptied until one "
						   "can be started."),
				 errhint("You might need to increase "
						 "\"max_worker_processes\".")));
	}
	MemoryContextSwitchTo(old);
}

/* ---- the keeper ---- */

/* A function without arguments that returns how much it did; or nothing. */
static int
run_step(const char *function)
{
	char	   *query = psprintf("SELECT accord.%s()", function);
	int			done = 0;

	pgstat_report_activity(STATE_RUNNING, query);
	accord_db_begin();
	SPI_connect();
	if (SPI_execute(query, false, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not run accord.%s()", function);
	if (SPI_gettypeid(SPI_tuptable->tupdesc, 1) == INT4OID)
	{
		bool		isnull;

		done = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1,
										   &isnull));
	}
	SPI_finish();
	accord_db_commit();
	return done;
}

/* What goes wrong is logged, and tried again by the next keeper. */
static int
try_step(const char *function)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile int done = 0;

	PG_TRY();
	{
		done = run_step(function);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		accord_db_abort();
		ereport(LOG,
				(errmsg("could not run accord.%s(): %s", function,
						error->message)));
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return done;
}

/* Whether the extension is (still) there. */
static bool
is_installed(void)
{
	bool		installed;

	accord_db_begin();
	installed = accord_db_installed();
	accord_db_commit();
	return installed;
}

void
accord_keeper_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg),
											  InvalidOid, 0);
	accord_db_set_session();
	/* one slot at a time, so that what was archived goes before the next */
	while (is_installed())
	{
		int			archived;

		(void) try_step("seal");
		archived = try_step("archive_slots");
		(void) try_step("turn_rings");
		if (archived == 0)
			break;
	}
	proc_exit(0);
}
