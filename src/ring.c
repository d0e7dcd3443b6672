/*
 * ring.c: the rings' housekeeping, as a worker calls it.
 *
 * Runs in dispatcher 0, at most once a minute and only when it is awake. The
 * rules are SQL (sql/65_ring.sql); they take no lock that they would have to
 * wait for.
 *
 * On failure (disk full, a lock taken in between) the transaction is rolled
 * back and the next turn tries again: housekeeping never stops deliveries.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "db.h"
#include "ring.h"

static void
run_turn(void)
{
	accord_db_begin();
	SPI_connect();
	if (SPI_execute("SELECT accord.turn_rings(false)", false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run accord.turn_rings()");
	SPI_finish();
	accord_db_commit();
}

void
accord_ring_turn(void)
{
	MemoryContext caller = CurrentMemoryContext;

	PG_TRY();
	{
		run_turn();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		accord_db_abort();
		ereport(LOG,
				(errmsg("could not turn the rings of pg_accord's logs: %s",
						error->message)));
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
}
