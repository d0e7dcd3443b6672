/*
 * shmem.c: what writers and readers of the log share: floors, and how far the
 * WAL of commits reaches; and how many keys were stored. The rest of shared
 * memory is in places.c.
 *
 * Runs in every process of a server that preloads the library.
 *
 * Invariants: a floor is published, and a full barrier issued, before the
 * number it bounds is drawn, and stands until the transaction has left the
 * proc array and its invalidations have been sent. Each process writes its
 * own only. Nothing here takes a lock.
 *
 * On failure: a transaction that aborts takes its floor down, also when the
 * process exits; an exit callback does so should that have been left undone. A
 * crash of any process makes PostgreSQL start over with empty memory.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/resowner.h"

#include "accord.h"
#include "board.h"
#include "clock.h"
#include "compat.h"
#include "counter.h"
#include "inquiry.h"
#include "shmem.h"

/* What a process publishes about itself; a cache line of its own. */
typedef union Backend
{
	struct
	{
		pg_atomic_uint64 floor; /* 0: none; written after database */
		Oid			database;
	}			own;
	char		pad[PG_CACHE_LINE_SIZE];
} Backend;

/*
 * What they all write; a cache line of its own. unplaced is written when
 * something has failed.
 */
typedef union CommitLsn
{
	struct
	{
		pg_atomic_uint64 reached;	/* grows only */
		pg_atomic_uint32 unplaced;	/* counts */
	};
	char		pad[PG_CACHE_LINE_SIZE];
} CommitLsn;

/*
 * How many keys were stored, in all databases, by their hashes: who sees the
 * same number twice knows that none of these was in between (keys.c).
 */
#define KEY_COUNTS 1024

typedef struct KeyCounts
{
	pg_atomic_uint32 stored[KEY_COUNTS];
} KeyCounts;

static shmem_request_hook_type next_shmem_request_hook = NULL;
static shmem_startup_hook_type next_shmem_startup_hook = NULL;

static CommitLsn *commit_lsn = NULL;
static Backend *backends = NULL;	/* MaxBackends of them */
static KeyCounts *keys = NULL;
static bool exit_registered = false;
static bool stands = false;		/* this process has published a floor */

static void at_release(ResourceReleasePhase phase, bool is_commit,
					   bool is_top_level, void *arg);

static Size
floors_size(void)
{
	return add_size(sizeof(CommitLsn) + sizeof(KeyCounts),
					mul_size(MaxBackends, sizeof(Backend)));
}

static void
request_shmem(void)
{
	if (next_shmem_request_hook)
		next_shmem_request_hook();
	RequestAddinShmemSpace(add_size(floors_size(), accord_places_size()));
	RequestAddinShmemSpace(add_size(accord_board_size(),
									accord_clock_size()));
	RequestAddinShmemSpace(accord_counter_size());
	RequestAddinShmemSpace(accord_inquiry_size());
	RequestNamedLWLockTranche("pg_accord", 3);
}

static void
start_shmem(void)
{
	bool		found;

	if (next_shmem_startup_hook)
		next_shmem_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	commit_lsn = ShmemInitStruct("pg_accord floors", floors_size(), &found);
	backends = (Backend *) (commit_lsn + 1);
	keys = (KeyCounts *) (backends + MaxBackends);
	if (!found)
	{
		memset(commit_lsn, 0, floors_size());
		pg_atomic_init_u64(&commit_lsn->reached, 0);
		pg_atomic_init_u32(&commit_lsn->unplaced, 0);
		for (int i = 0; i < MaxBackends; i++)
			pg_atomic_init_u64(&backends[i].own.floor, 0);
		for (int i = 0; i < KEY_COUNTS; i++)
			pg_atomic_init_u32(&keys->stored[i], 0);
	}
	accord_places_start(&GetNamedLWLockTranche("pg_accord")->lock);
	accord_board_start();
	accord_counter_start();
	accord_clock_start(&GetNamedLWLockTranche("pg_accord")[1].lock);
	accord_inquiry_start(&GetNamedLWLockTranche("pg_accord")[2].lock);
	LWLockRelease(AddinShmemInitLock);
}

void
accord_shmem_init(void)
{
	next_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	next_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_shmem;
	RegisterResourceReleaseCallback(at_release, NULL);
}

bool
accord_shmem_ready(void)
{
	return backends != NULL;
}

static Backend *
own_backend(void)
{
	int			number = accord_my_proc_number();

	Assert(number >= 0 && number < MaxBackends);
	return &backends[number];
}

static void
clear_floor(void)
{
	if (!stands)
		return;
	stands = false;
	pg_memory_barrier();
	pg_atomic_write_u64(&own_backend()->own.floor, 0);
	accord_shmem_wake_dispatchers();
}

/*
 * The end of a transaction, committed or aborted: an aborted one's floor may
 * have been all that others waited for. Not a transaction callback, as those
 * come before invalidations are sent: who reads an event by the configuration
 * of before its own transaction would miss a route.
 */
static void
at_release(ResourceReleasePhase phase, bool is_commit, bool is_top_level,
		   void *arg)
{
	if (phase == RESOURCE_RELEASE_AFTER_LOCKS && is_top_level)
		clear_floor();
}

/* The transaction in progress, if any, has been aborted already. */
static void
leave(int code, Datum arg)
{
	clear_floor();
}

void
accord_shmem_floor_publish(int64 floor)
{
	Backend    *backend = own_backend();

	Assert(floor > 0);
	if (!exit_registered)
	{
		on_shmem_exit(leave, (Datum) 0);
		exit_registered = true;
	}
	stands = true;
	backend->own.database = MyDatabaseId;
	pg_write_barrier();
	pg_atomic_write_u64(&backend->own.floor, (uint64) floor);
	pg_memory_barrier();
}

bool
accord_shmem_floor_stands(void)
{
	return stands;
}

int64
accord_shmem_floor_lowest(void)
{
	int64		lowest = PG_INT64_MAX;

	pg_memory_barrier();
	for (int i = 0; i < MaxBackends; i++)
	{
		int64		floor = (int64) pg_atomic_read_u64(&backends[i].own.floor);

		if (floor == 0 || floor >= lowest)
			continue;
		pg_read_barrier();
		if (backends[i].own.database == MyDatabaseId)
			lowest = floor;
	}
	/* a snapshot taken from here on sees those whose floors were down */
	pg_memory_barrier();
	return lowest;
}

void
accord_shmem_commit_lsn_raise(XLogRecPtr lsn)
{
	uint64		seen = pg_atomic_read_u64(&commit_lsn->reached);

	while (seen < lsn &&
		   !pg_atomic_compare_exchange_u64(&commit_lsn->reached, &seen, lsn))
		;
}

XLogRecPtr
accord_shmem_commit_lsn(void)
{
	pg_memory_barrier();
	return pg_atomic_read_u64(&commit_lsn->reached);
}

void
accord_shmem_unplaced_add(void)
{
	pg_atomic_fetch_add_u32(&commit_lsn->unplaced, 1);
	accord_shmem_wake_dispatchers();
}

uint32
accord_shmem_unplaced(void)
{
	return pg_atomic_read_u32(&commit_lsn->unplaced);
}

uint32
accord_shmem_keys_stored(uint64 hash)
{
	uint32		stored;

	if (keys == NULL)
		return 0;
	stored = pg_atomic_read_u32(&keys->stored[hash % KEY_COUNTS]);
	/* what is looked for from here on is there if it was counted */
	pg_memory_barrier();
	return stored;
}

void
accord_shmem_key_stored(uint64 hash)
{
	if (keys != NULL)
		(void) pg_atomic_fetch_add_u32(&keys->stored[hash % KEY_COUNTS], 1);
}
