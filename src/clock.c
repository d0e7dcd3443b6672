/*
 * clock.c: the hybrid logical clock (Kulkarni et al., 2014).
 *
 * Runs in the application's backends. A reading is a time in microseconds;
 * where the wall clock has not moved on, or has gone back, or where a change
 * with a later time was heard of, it is the last reading plus one. So the
 * logical part lies in the low microseconds, and a reading is a timestamp as
 * any other.
 *
 * Invariants
 *   - The last reading is in shared memory and only grows. It is one for all
 *     databases of the server; that does no harm.
 *   - No reading is given beyond the bound, a sequence of the database
 *     (clock_bound), which is moved a few seconds ahead when it is reached.
 *     The WAL of that comes before the commit of whatever was stamped. So a
 *     server that starts, with a wall clock that may have been put back,
 *     begins after the bound. Which run of the server has begun there is kept
 *     in another sequence (clock_run).
 *   - The lock is taken to move the bound; never for a reading.
 *
 * On failure, should a sequence not be writable, the statement raises; the
 * clock is as it was.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lmgr.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "db.h"

#define AHEAD (10 * USECS_PER_SEC)

typedef struct Clock
{
	pg_atomic_uint64 reading;	/* the last one, as int64 */
	int64		run;			/* which run of the server this is; random */
} Clock;

static Clock *shared = NULL;
static LWLock *bound_lock = NULL;

/* What this backend knows of the database's bound. */
static TimestampTz bound = 0;
static Oid	bound_sequence = InvalidOid;	/* whose it is */

/* The latest change that was stamped, and in which transaction. */
static struct
{
	Oid			relid;
	TransactionId xid;
	TimestampTz clock;
}			published;

Size
accord_clock_size(void)
{
	return sizeof(Clock);
}

void
accord_clock_start(LWLock *lock)
{
	bool		found;

	bound_lock = lock;
	shared = ShmemInitStruct("pg_accord clock", sizeof(Clock), &found);
	if (found)
		return;
	pg_atomic_init_u64(&shared->reading, 0);
	if (!pg_strong_random(&shared->run, sizeof(shared->run)))
		shared->run = GetCurrentTimestamp();
	shared->run &= PG_INT64_MAX >> 1;
	shared->run |= 1;
}

/* Sequences are the extension's; whoever writes a row moves them. */
static void
set_sequence(const char *name, int64 value)
{
	AccordDbUser before;

	before = accord_db_become(accord_db_owner());
	accord_db_sequence_set(accord_db_relid(name), value);
	accord_db_be_again(before);
}

static void
raise_reading(TimestampTz at_least)
{
	uint64		seen = pg_atomic_read_u64(&shared->reading);

	while ((int64) seen < at_least &&
		   !pg_atomic_compare_exchange_u64(&shared->reading, &seen,
										   (uint64) at_least))
		;
}

/*
 * Moves the bound beyond a reading. In a run of the server that has not been
 * here yet, what was stamped before it may reach up to the bound: the clock
 * goes there first.
 */
static void
move_bound(TimestampTz reading)
{
	Oid			bounds = accord_db_relid("clock_bound");
	Oid			runs = accord_db_relid("clock_run");

	/* nobody is waited for while the lightweight lock is held */
	LockRelationOid(bounds, RowExclusiveLock);
	LockRelationOid(runs, RowExclusiveLock);
	LWLockAcquire(bound_lock, LW_EXCLUSIVE);
	bound = accord_db_sequence_last(bounds);
	bound_sequence = bounds;
	if (accord_db_sequence_last(runs) != shared->run)
	{
		raise_reading(bound);
		bound = Max(bound, reading) + AHEAD;
		set_sequence("clock_bound", bound);
		set_sequence("clock_run", shared->run);
	}
	else if (reading > bound)
	{
		bound = reading + AHEAD;
		set_sequence("clock_bound", bound);
	}
	LWLockRelease(bound_lock);
}

/* The last reading plus one, or the wall clock's time. */
static TimestampTz
advance(void)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		seen = pg_atomic_read_u64(&shared->reading);
	TimestampTz next;

	do
	{
		next = Max((int64) seen + 1, now);
	} while (!pg_atomic_compare_exchange_u64(&shared->reading, &seen,
											 (uint64) next));
	return next;
}

TimestampTz
accord_clock_next(void)
{
	TimestampTz next;

	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_accord must be loaded via "
						"shared_preload_libraries"),
				 errhint("Add pg_accord to shared_preload_libraries in "
						 "postgresql.conf and restart the server.")));
	/* the first time in a backend, the run has to be looked at */
	if (bound_sequence != accord_db_relid("clock_bound"))
		move_bound(0);
	next = advance();
	if (next > bound)
	{
		move_bound(next);
		/* a bound of an earlier run may have moved the clock on */
		if ((int64) pg_atomic_read_u64(&shared->reading) > next)
			next = advance();
	}
	return next;
}

void
accord_clock_heed(TimestampTz heard)
{
	if (shared != NULL)
		raise_reading(heard);
}

void
accord_clock_publish(Oid relid, TimestampTz clock)
{
	published.relid = relid;
	published.xid = GetTopTransactionId();
	published.clock = clock;
}

TimestampTz
accord_clock_published(Oid relid)
{
	return published.relid == relid && TransactionIdIsValid(published.xid) &&
		published.xid == GetTopTransactionIdIfAny() ? published.clock : 0;
}
