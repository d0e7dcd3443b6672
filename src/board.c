/*
 * board.c: what dispatchers show of their endpoints, and count.
 *
 * Written by dispatchers: what is shown, a few times a second; what is
 * counted, as it happens. Read by whoever asks for accord.status and
 * accord.pg_stat_accord. A fixed table in shared memory, found by the
 * endpoint's hash with open addressing.
 *
 * Invariants
 *   - A place belongs to one process at a time; it alone writes it. Taking a
 *     place needs the lock of the table of databases; reading needs none.
 *   - A place's name (database and endpoint) changes only when it shows
 *     nothing, and is never emptied, so that a search can end at a place that
 *     never had one.
 *   - What was counted stays with the place's name. Where no place is free that
 *     never had one, a place that shows nothing is taken, and forgotten.
 *   - Counters are atomic: their owner adds, and anybody may begin anew.
 *   - A row is written between two steps of its counter: odd while it is being
 *     written, so that a reader repeats until it has seen the same even count
 *     before and after.
 *
 * On failure: a process that exits takes its rows down; after a crash of any
 * process all of shared memory is new, and counting begins anew.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "board.h"
#include "guc.h"
#include "shmem.h"

#define READ_TRIES 1000

typedef struct Place
{
	uint64		endpoint;		/* its hash; 0: never used */
	Oid			database;
	pid_t		owner;			/* 0: shows nothing */
	pg_atomic_uint32 changes;
	AccordBoardRow row;
	pg_atomic_uint64 since;		/* counting began */
	pg_atomic_uint64 tallies[ACCORD_TALLIES];
} Place;

static Place *places = NULL;
static bool exit_registered = false;

Size
accord_board_size(void)
{
	return mul_size(accord_max_endpoints, sizeof(Place));
}

void
accord_board_start(void)
{
	bool		found;

	places = ShmemInitStruct("pg_accord board", accord_board_size(), &found);
	if (found)
		return;
	memset(places, 0, accord_board_size());
	for (int i = 0; i < accord_max_endpoints; i++)
	{
		pg_atomic_init_u32(&places[i].changes, 0);
		pg_atomic_init_u64(&places[i].since, 0);
		for (int j = 0; j < ACCORD_TALLIES; j++)
			pg_atomic_init_u64(&places[i].tallies[j], 0);
	}
}

/* Exit callback: what we showed is not true any more. */
static void
leave(int code, Datum arg)
{
	for (int i = 0; i < accord_max_endpoints; i++)
		if (places[i].owner == MyProcPid)
			places[i].owner = 0;
}

static uint64
place_name(uint64 endpoint)
{
	return endpoint == 0 ? 1 : endpoint;
}

/*
 * The place of an endpoint: its own, or -1. free: the one it may take, which
 * was never taken, or whose owner is gone.
 */
static int
find_place(uint64 endpoint, Oid database, int *free)
{
	int			start = (int) ((endpoint ^ database) % accord_max_endpoints);

	*free = -1;
	for (int i = 0; i < accord_max_endpoints; i++)
	{
		int			at = (start + i) % accord_max_endpoints;
		Place	   *place = &places[at];

		if (place->endpoint == 0)
		{
			*free = at;
			return -1;
		}
		if (place->endpoint == endpoint && place->database == database)
			return at;
		if (place->owner == 0 && *free < 0)
			*free = at;
	}
	return -1;
}

/* Counts from zero on. */
static void
begin_anew(Place *place)
{
	for (int i = 0; i < ACCORD_TALLIES; i++)
		pg_atomic_write_u64(&place->tallies[i], 0);
	pg_atomic_write_u64(&place->since, GetCurrentTimestamp());
}

int
accord_board_enter(uint64 endpoint)
{
	uint64		name = place_name(endpoint);
	int			free;
	int			at;

	if (places == NULL)
		return -1;
	if (!exit_registered)
		on_shmem_exit(leave, (Datum) 0);
	exit_registered = true;
	accord_shmem_table_lock();
	at = find_place(name, MyDatabaseId, &free);
	if (at < 0)
	{
		at = free;
		if (at >= 0)
			begin_anew(&places[at]);
	}
	if (at >= 0)
	{
		Place	   *place = &places[at];

		pg_atomic_fetch_add_u32(&place->changes, 1);
		place->endpoint = name;
		place->database = MyDatabaseId;
		place->owner = MyProcPid;
		memset(&place->row, 0, sizeof(place->row));
		place->row.tokens = -1;
		place->row.p50_ms = -1;
		place->row.p99_ms = -1;
		place->row.last_outcome = -1;
		pg_atomic_fetch_add_u32(&place->changes, 1);
	}
	accord_shmem_table_unlock();
	return at;
}

void
accord_board_write(int at, const AccordBoardRow *row)
{
	Place	   *place = &places[at];

	pg_atomic_fetch_add_u32(&place->changes, 1);
	place->row = *row;
	place->owner = MyProcPid;
	pg_atomic_fetch_add_u32(&place->changes, 1);
}

bool
accord_board_read(uint64 endpoint, AccordBoardRow *row)
{
	uint64		name = place_name(endpoint);
	int			free;
	int			at = places == NULL ? -1 :
	find_place(name, MyDatabaseId, &free);
	Place	   *place = at < 0 ? NULL : &places[at];

	if (place == NULL)
		return false;
	for (int i = 0; i < READ_TRIES; i++)
	{
		uint32		before = pg_atomic_read_u32(&place->changes);
		bool		valid;

		pg_read_barrier();
		*row = place->row;
		valid = place->owner != 0 && place->endpoint == name &&
			place->database == MyDatabaseId;
		pg_read_barrier();
		if (before % 2 == 0 && pg_atomic_read_u32(&place->changes) == before)
			return valid;
	}
	return false;
}

/*
 * What is counted
 */

void
accord_board_count(int at, AccordTally tally, int64 n)
{
	pg_atomic_fetch_add_u64(&places[at].tallies[tally], n);
}

bool
accord_board_export(int at, AccordBoardTallies *counted)
{
	Place	   *place = &places[at];

	if (place->endpoint == 0)
		return false;
	memset(counted, 0, sizeof(*counted));
	counted->endpoint = place->endpoint;
	counted->database = place->database;
	counted->since = (TimestampTz) pg_atomic_read_u64(&place->since);
	for (int i = 0; i < ACCORD_TALLIES; i++)
		counted->tallies[i] = (int64) pg_atomic_read_u64(&place->tallies[i]);
	return true;
}

void
accord_board_import(const AccordBoardTallies *counted)
{
	int			free;
	int			at = find_place(counted->endpoint, counted->database, &free);
	Place	   *place;

	if (at < 0)
		at = free;
	if (at < 0)
		return;					/* there are fewer places than before */
	place = &places[at];
	place->endpoint = counted->endpoint;
	place->database = counted->database;
	pg_atomic_write_u64(&place->since, (uint64) counted->since);
	for (int i = 0; i < ACCORD_TALLIES; i++)
		pg_atomic_write_u64(&place->tallies[i], (uint64) counted->tallies[i]);
}

bool
accord_board_counted(uint64 endpoint, AccordBoardTallies *counted)
{
	uint64		name = place_name(endpoint);
	int			free;
	int			at = places == NULL ? -1 :
	find_place(name, MyDatabaseId, &free);

	/* what it was may have been forgotten meanwhile, for another's sake */
	return at >= 0 && accord_board_export(at, counted) &&
		counted->endpoint == name && counted->database == MyDatabaseId;
}

void
accord_board_reset(uint64 endpoint)
{
	accord_shmem_table_lock();
	for (int i = 0; i < accord_max_endpoints; i++)
		if (places[i].endpoint != 0 && places[i].database == MyDatabaseId &&
			(endpoint == 0 || places[i].endpoint == place_name(endpoint)))
			begin_anew(&places[i]);
	accord_shmem_table_unlock();
}
