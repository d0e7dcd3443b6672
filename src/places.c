/*
 * places.c: which database has which dispatchers, in shared memory.
 *
 * Runs in every process of a server that preloads the library: writers wake
 * dispatchers, dispatchers take places, statements that need a database to
 * themselves keep it clear, the launcher keeps the table.
 *
 * Invariants
 *   - A place is taken by an attach that finds it STARTING, in the generation
 *     it was started in, in a database that is not kept clear; and freed by
 *     the same process once it has left the proc array. So where no place is
 *     RUNNING, none of our dispatchers is connected.
 *   - A writer looks at the places after its transaction has left the proc
 *     array; a dispatcher looks at the log after it has attached. One of them
 *     sees the other.
 *   - An entry is freed only when none of its places is taken, and nobody
 *     asked for it; asking is done under the lock.
 *
 * Locks: the table's lock guards the table; what is read or written without it
 * is said beside the field. Below it only PostgreSQL's own
 * BackgroundWorkerLock is taken, by the launcher.
 *
 * On failure: whoever exits, by error or by FATAL, gives his place back and
 * releases the databases he kept clear, by exit callbacks. After a crash
 * PostgreSQL starts over with empty memory; the launcher then waits for a
 * restart interval, so that a dispatcher that crashes at once does not keep
 * the server from working.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "guc.h"
#include "shmem.h"

#define NO_PROCESS (-1)
#define CLEAR_TIMEOUT_MS 10000

typedef struct Shared
{
	int			launcher;		/* its proc number, or NO_PROCESS; read
								 * without the lock */
	bool		overflowed;		/* an entry was asked for in vain */
	TimestampTz not_before;		/* set at start, never changed */
	AccordDatabase table[FLEXIBLE_ARRAY_MEMBER];
} Shared;

static Shared *shared = NULL;
static Oid *clearing = NULL;	/* by proc number, MaxBackends long: the
								 * database that process waits for; no lock */
static LWLock *table_lock = NULL;

/* This process's own affairs. */
static AccordDatabase *my_database = NULL;	/* last seen entry of MyDatabaseId */
static AccordPlace *my_place = NULL;	/* in my_database; dispatchers only */
static bool callbacks_registered = false;
static bool config_changed = false; /* by this transaction */
static bool relaunch_wanted = false;	/* at commit */
static List *kept_clear = NIL;	/* database OIDs; TopMemoryContext */

/* ---- memory ---- */

static Size
shared_size(void)
{
	return add_size(offsetof(Shared, table),
					mul_size(accord_max_databases, sizeof(AccordDatabase)));
}

Size
accord_places_size(void)
{
	return add_size(shared_size(), mul_size(MaxBackends, sizeof(Oid)));
}

/* Runs in the postmaster, again after every crash: static data survives. */
static void
initialize_shared(void)
{
	static bool started_before = false;

	memset(shared, 0, accord_places_size());
	shared->launcher = NO_PROCESS;
	if (started_before)
		shared->not_before =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										accord_restart_interval);
	started_before = true;
	for (int i = 0; i < accord_max_databases; i++)
		for (int j = 0; j < ACCORD_MAX_DISPATCHERS; j++)
			pg_atomic_init_u32(&shared->table[i].places[j].state,
							   ACCORD_PLACE_EMPTY);
}

void
accord_places_start(LWLock *lock)
{
	bool		found;

	table_lock = lock;
	shared = ShmemInitStruct("pg_accord places", accord_places_size(),
							 &found);
	clearing = (Oid *) ((char *) shared + shared_size());
	if (!found)
		initialize_shared();
}

/* ---- the table ---- */

AccordDatabase *
accord_shmem_table(void)
{
	return shared->table;
}

void
accord_shmem_table_lock(void)
{
	LWLockAcquire(table_lock, LW_EXCLUSIVE);
}

void
accord_shmem_table_unlock(void)
{
	LWLockRelease(table_lock);
}

static AccordPlaceState
place_state(const AccordPlace *place)
{
	return (AccordPlaceState)
		pg_atomic_read_u32(unconstify(pg_atomic_uint32 *, &place->state));
}

static AccordDatabase *
find_database(Oid database)
{
	Assert(LWLockHeldByMe(table_lock));
	for (int i = 0; i < accord_max_databases; i++)
		if (shared->table[i].database == database)
			return &shared->table[i];
	return NULL;
}

AccordDatabase *
accord_shmem_database_enter(Oid database)
{
	AccordDatabase *entry = find_database(database);

	Assert(LWLockHeldByMeInMode(table_lock, LW_EXCLUSIVE));
	if (entry != NULL)
		return entry;
	entry = find_database(InvalidOid);
	if (entry == NULL)
		return NULL;
	entry->presence = ACCORD_PRESENCE_ABSENT;
	entry->asked = entry->anew = false;
	entry->clear_count = 0;
	entry->count = 0;
	for (int i = 0; i < ACCORD_MAX_DISPATCHERS; i++)
	{
		entry->places[i].dismissed = false;
		entry->places[i].started_at = 0;
	}
	pg_write_barrier();
	entry->database = database;
	return entry;
}

bool
accord_shmem_database_vacant(const AccordDatabase *entry)
{
	for (int i = 0; i < ACCORD_MAX_DISPATCHERS; i++)
		if (place_state(&entry->places[i]) != ACCORD_PLACE_EMPTY)
			return false;
	return true;
}

void
accord_shmem_database_dismiss(AccordDatabase *entry)
{
	Assert(LWLockHeldByMeInMode(table_lock, LW_EXCLUSIVE));
	for (int i = 0; i < ACCORD_MAX_DISPATCHERS; i++)
	{
		AccordPlace *place = &entry->places[i];

		if (place_state(place) == ACCORD_PLACE_RUNNING && !place->dismissed)
		{
			place->dismissed = true;
			kill(place->pid, SIGTERM);
		}
	}
}

bool
accord_shmem_database_forget(AccordDatabase *entry)
{
	Assert(LWLockHeldByMeInMode(table_lock, LW_EXCLUSIVE));
	if (entry->asked || entry->clear_count > 0 ||
		entry->presence != ACCORD_PRESENCE_ABSENT ||
		!accord_shmem_database_vacant(entry))
		return false;
	entry->database = InvalidOid;
	return true;
}

bool
accord_shmem_table_overflowed(void)
{
	Assert(LWLockHeldByMe(table_lock));
	return shared->overflowed;
}

bool
accord_shmem_table_drained(void)
{
	bool		drained;

	Assert(LWLockHeldByMeInMode(table_lock, LW_EXCLUSIVE));
	drained = shared->overflowed && find_database(InvalidOid) != NULL;
	if (drained)
		shared->overflowed = false;
	return drained;
}

/* ---- waking ---- */

/* Sets the latch of a process that may be another one by now: harmless. */
static void
wake_process(int number)
{
	if (number != NO_PROCESS)
		SetLatch(&GetPGProcByNumber(number)->procLatch);
}

/*
 * Asks for dispatchers of this database; anew: for other ones than there may
 * be. The launcher is woken unless it has been asked already.
 */
static void
ask_launcher(bool anew)
{
	bool	   *asked = &shared->overflowed;
	bool		news;

	accord_shmem_table_lock();
	my_database = accord_shmem_database_enter(MyDatabaseId);
	if (my_database != NULL)
	{
		asked = &my_database->asked;
		my_database->anew |= anew;
	}
	news = anew || !*asked;
	*asked = true;
	accord_shmem_table_unlock();
	if (news)
		wake_process(shared->launcher);
}

/* Wakes those who run; false when there are none, nor any about to run. */
static bool
wake_places(AccordDatabase *entry)
{
	bool		found = false;

	for (int i = 0; i < entry->count; i++)
	{
		AccordPlace *place = &entry->places[i];
		AccordPlaceState state = place_state(place);

		if (state == ACCORD_PLACE_EMPTY)
			continue;
		found = true;
		if (state == ACCORD_PLACE_RUNNING)
		{
			pg_read_barrier();
			wake_process(place->proc_number);
		}
	}
	return found;
}

/*
 * The common case takes no lock: the entry is where it was, and is still this
 * database's. It is asked for under the lock only, and only once; a launcher
 * that cannot start anything (accord.dispatch is off, say) is not woken by
 * every commit.
 */
void
accord_shmem_wake_dispatchers(void)
{
	AccordDatabase *entry = my_database;

	if (!OidIsValid(MyDatabaseId))
		return;
	pg_memory_barrier();
	if (entry != NULL && entry->database == MyDatabaseId)
	{
		if (wake_places(entry))
			return;
		if (entry->asked)
		{
			pg_read_barrier();
			if (entry->database == MyDatabaseId)
				return;
		}
	}
	ask_launcher(false);
	if (my_database != NULL)
		wake_places(my_database);
}

void
accord_shmem_wake_launcher(void)
{
	ask_launcher(false);
}

/* ---- at the end of the transaction, and of the process ---- */

static void
release_all(void)
{
	while (kept_clear != NIL)
		accord_shmem_database_release(linitial_oid(kept_clear));
}

/*
 * Nobody reads an event that commits after us before our invalidations have
 * been sent: a floor holds the readers up, and wakes them when it goes.
 */
static void
hold_readers(void)
{
	Oid			sequence = accord_db_relid_if_any("commit_seq");

	if (OidIsValid(sequence) && !accord_shmem_floor_stands())
		accord_shmem_floor_publish(accord_db_sequence_last(sequence) + 1);
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT && config_changed)
		hold_readers();
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	release_all();
	if (event == XACT_EVENT_COMMIT && relaunch_wanted)
		ask_launcher(true);
	relaunch_wanted = config_changed = false;
}

/* The end of the transaction has released them, if nothing went wrong. */
static void
leave(int code, Datum arg)
{
	release_all();
}

static void
register_callbacks(void)
{
	if (callbacks_registered)
		return;
	RegisterXactCallback(at_transaction_event, NULL);
	on_shmem_exit(leave, (Datum) 0);
	callbacks_registered = true;
}

void
accord_shmem_config_changed(void)
{
	register_callbacks();
	config_changed = true;
}

void
accord_shmem_relaunch_at_commit(void)
{
	register_callbacks();
	relaunch_wanted = true;
}

/* ---- dispatchers ---- */

/* Wakes whoever waits for a database to become clear. */
static void
wake_clearing(Oid database)
{
	for (int i = 0; i < MaxBackends; i++)
		if (clearing[i] == database)
			wake_process(i);
}

/*
 * Runs when the process has left the proc array and has no PGPROC any more,
 * so that no lock can be taken.
 */
static void
leave_place(int code, Datum arg)
{
	Oid			database = my_database->database;

	pg_atomic_write_u32(&my_place->state, ACCORD_PLACE_EMPTY);
	pg_memory_barrier();
	wake_clearing(database);
	wake_process(shared->launcher);
}

bool
accord_shmem_dispatcher_attach(Oid database, int number, int count)
{
	AccordDispatchArgs args;
	AccordDatabase *entry;
	AccordPlace *place;
	bool		expected;
	bool		wanted;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	accord_shmem_table_lock();
	entry = find_database(database);
	place = entry != NULL ? &entry->places[number] : NULL;
	expected = place != NULL && place->generation == args.generation &&
		place_state(place) == ACCORD_PLACE_STARTING;
	wanted = expected && entry->clear_count == 0 && entry->count == count;
	if (wanted)
	{
		my_database = entry;
		my_place = place;
		place->pid = MyProcPid;
		place->proc_number = accord_my_proc_number();
		on_proc_exit(leave_place, (Datum) 0);
		pg_write_barrier();
		pg_atomic_write_u32(&place->state, ACCORD_PLACE_RUNNING);
	}
	else if (expected)
	{
		place->dismissed = true;
		pg_atomic_write_u32(&place->state, ACCORD_PLACE_EMPTY);
	}
	accord_shmem_table_unlock();
	return wanted;
}

static void
report_presence(AccordPresence presence)
{
	Assert(my_place != NULL);
	accord_shmem_table_lock();
	my_database->presence = presence;
	if (presence == ACCORD_PRESENCE_ABSENT)
		my_place->dismissed = true;
	accord_shmem_table_unlock();
	wake_process(shared->launcher);
}

void
accord_shmem_dispatcher_present(void)
{
	report_presence(ACCORD_PRESENCE_PRESENT);
}

void
accord_shmem_dispatcher_absent(void)
{
	report_presence(ACCORD_PRESENCE_ABSENT);
}

/* ---- keeping a database clear ---- */

static bool
is_running_anywhere(AccordDatabase *entry)
{
	for (int i = 0; i < ACCORD_MAX_DISPATCHERS; i++)
		if (place_state(&entry->places[i]) == ACCORD_PLACE_RUNNING)
			return true;
	return false;
}

/* Waits until the entry's dispatchers have exited, or time is up. */
static void
wait_until_clear(AccordDatabase *entry)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   CLEAR_TIMEOUT_MS);
	uint32		wait_event = accord_wait_event("AccordDispatchersExit");

	clearing[accord_my_proc_number()] = entry->database;
	pg_memory_barrier();
	while (is_running_anywhere(entry))
	{
		TimestampTz now = GetCurrentTimestamp();
		long		timeout = TimestampDifferenceMilliseconds(now, deadline);

		if (timeout <= 0)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, wait_event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	clearing[accord_my_proc_number()] = InvalidOid;
}

void
accord_shmem_database_clear(Oid database)
{
	AccordDatabase *entry;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	register_callbacks();
	kept_clear = lappend_oid(kept_clear, database);
	MemoryContextSwitchTo(old);

	accord_shmem_table_lock();
	entry = accord_shmem_database_enter(database);
	if (entry != NULL)
	{
		entry->clear_count++;
		accord_shmem_database_dismiss(entry);
	}
	accord_shmem_table_unlock();
	if (entry != NULL)
		wait_until_clear(entry);
	else						/* it has no dispatchers, nor a place for any */
		kept_clear = list_delete_oid(kept_clear, database);
}

/*
 * The launcher looks in any case: the statement may have made a database, or
 * given it another name.
 */
void
accord_shmem_database_release(Oid database)
{
	AccordDatabase *entry;

	if (!list_member_oid(kept_clear, database))
		return;
	kept_clear = list_delete_oid(kept_clear, database);
	clearing[accord_my_proc_number()] = InvalidOid;
	accord_shmem_table_lock();
	entry = find_database(database);
	if (entry != NULL && entry->clear_count > 0)
	{
		entry->clear_count--;
		(void) accord_shmem_database_forget(entry);
	}
	accord_shmem_table_unlock();
	wake_process(shared->launcher);
}

/* ---- the launcher ---- */

static void
leave_launcher(int code, Datum arg)
{
	shared->launcher = NO_PROCESS;
}

void
accord_shmem_launcher_attach(void)
{
	Assert(shared->launcher == NO_PROCESS);
	on_shmem_exit(leave_launcher, (Datum) 0);
	shared->launcher = accord_my_proc_number();
	/* whoever does not see this asked before we look */
	pg_memory_barrier();
}

TimestampTz
accord_shmem_not_before(void)
{
	return shared->not_before;
}
