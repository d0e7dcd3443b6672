/*
 * board.c: what dispatchers show of their endpoints.
 *
 * Written by dispatchers, a few times a second; read by whoever asks for
 * accord.status. A fixed table in shared memory, found by the endpoint's hash
 * with open addressing.
 *
 * Invariants
 *   - A place belongs to one process at a time; it alone writes it. Taking a
 *     place needs the lock of the table of databases; reading needs none.
 *   - A place's name (database and endpoint) changes only when it shows
 *     nothing, and is never emptied, so that a search can end at a place that
 *     never had one.
 *   - A row is written between two steps of its counter: odd while it is being
 *     written, so that a reader repeats until it has seen the same even count
 *     before and after.
 *
 * On failure: a process that exits takes its rows down; after a crash of any
 * process all of shared memory is new.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

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
		pg_atomic_init_u32(&places[i].changes, 0);
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

/* The place of an endpoint: its own, or -1. free: the first one it may take. */
static int
find_place(uint64 endpoint, int *free)
{
	int			start = (int) ((endpoint ^ MyDatabaseId) %
							   accord_max_endpoints);

	*free = -1;
	for (int i = 0; i < accord_max_endpoints; i++)
	{
		int			at = (start + i) % accord_max_endpoints;
		Place	   *place = &places[at];

		if (place->endpoint == 0)
		{
			if (*free < 0)
				*free = at;
			return -1;
		}
		if (place->endpoint == endpoint && place->database == MyDatabaseId)
			return at;
		if (place->owner == 0 && *free < 0)
			*free = at;
	}
	return -1;
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
	at = find_place(name, &free);
	if (at < 0)
		at = free;
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
	int			at = places == NULL ? -1 : find_place(name, &free);
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
