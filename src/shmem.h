/*
 * shmem.h: exports of shmem.c (floors) and places.c (dispatchers)
 *
 * Layer 2: what processes share: the floors of committing writers, and per
 * database the places of its dispatchers.
 */
#ifndef ACCORD_SHMEM_H
#define ACCORD_SHMEM_H

#include "access/xlogdefs.h"
#include "accord.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/lwlock.h"

/* Requests the memory and installs the hooks; from _PG_init() under preload. */
extern void accord_shmem_init(void);

/* False when the library was not preloaded: nothing below may be called. */
extern bool accord_shmem_ready(void);

/*
 * Floors (DESIGN section 4). A writer about to draw its commit number
 * publishes a lower bound of it, then draws. It may raise it meanwhile. The
 * floor is taken down, and dispatchers are woken, when the transaction has
 * left the proc array and its cache invalidations have been sent; no caller
 * does that.
 */
extern void accord_shmem_floor_publish(int64 floor);

/* Whether this transaction has one. */
extern bool accord_shmem_floor_stands(void);

/* The lowest floor published in this database, or PG_INT64_MAX. */
extern int64 accord_shmem_floor_lowest(void);

/* WAL up to which commits with events reach; a reader flushes up to it. */
extern void accord_shmem_commit_lsn_raise(XLogRecPtr lsn);
extern XLogRecPtr accord_shmem_commit_lsn(void);

/*
 * A prepared transaction may have been committed without a place in the log:
 * counted, of all databases, and dispatchers are woken. Safe in a callback.
 */
extern void accord_shmem_unplaced_add(void);
extern uint32 accord_shmem_unplaced(void);

/*
 * Waking. All of these are safe in a commit callback.
 */

/* Wakes this database's dispatchers; when there are none, the launcher is
 * asked for them (once, not at every commit). */
extern void accord_shmem_wake_dispatchers(void);

/* Asks the launcher to see to it that this database has its dispatchers; wakes
 * it unless it has been asked already. */
extern void accord_shmem_wake_launcher(void);

/*
 * This transaction changes the configuration: when it commits, dispatchers
 * are woken, and events that commit later are routed by what it changed.
 */
extern void accord_shmem_config_changed(void);

/* The extension was created or dropped: when the top-level transaction
 * commits, the dispatchers there are go, and a new one has a look. */
extern void accord_shmem_relaunch_at_commit(void);

/*
 * Dispatchers. A database that has any, or is to have, has an entry in the
 * table; each of its dispatchers has a place therein.
 */

/* What a dispatcher is told at its start, in bgw_extra. */
typedef struct AccordDispatchArgs
{
	Oid			database;
	int			number;			/* 0 is the first */
	int			count;			/* of them in this database */
	uint32		generation;		/* of its place */
} AccordDispatchArgs;

/*
 * First act of a dispatcher, before it connects to the database: takes the
 * place made for it, and frees it when the process has left the proc array.
 * False: it is not wanted (any more), and exits with code 0.
 */
extern bool accord_shmem_dispatcher_attach(Oid database, int number,
										   int count);

/* The extension is there: the other dispatchers may come. */
extern void accord_shmem_dispatcher_present(void);

/* The extension is not there: exit; none is started until asked for. */
extern void accord_shmem_dispatcher_absent(void);

/*
 * Keeps a database clear of our workers while a statement needs it to be:
 * no new ones start, those there are go, and the caller waits until they have
 * (at most ten seconds: then the statement says what is in its way). Holds
 * until released, or until the end of the top-level transaction, however it
 * ends. May raise (a cancelled wait); it holds then as well.
 */
extern void accord_shmem_database_clear(Oid database);
extern void accord_shmem_database_release(Oid database);

/*
 * For the launcher: the table itself.
 */
typedef enum AccordPlaceState
{
	ACCORD_PLACE_EMPTY,			/* next: STARTING */
	ACCORD_PLACE_STARTING,		/* registered; next: RUNNING, EMPTY (did not
								 * start, or was not wanted any more) */
	ACCORD_PLACE_RUNNING		/* next: EMPTY (exited) */
} AccordPlaceState;

typedef enum AccordPresence
{
	ACCORD_PRESENCE_UNKNOWN,	/* next: PRESENT, ABSENT; a single dispatcher
								 * is started to find out */
	ACCORD_PRESENCE_PRESENT,	/* next: UNKNOWN, ABSENT */
	ACCORD_PRESENCE_ABSENT		/* next: UNKNOWN (asked for) */
} AccordPresence;

/* Guarded by the table's lock, but for what is said. */
typedef struct AccordPlace
{
	pg_atomic_uint32 state;		/* read without the lock; RUNNING -> EMPTY is
								 * made without it */
	int			proc_number;	/* valid while RUNNING; read without the lock */
	pid_t		pid;			/* valid while RUNNING */
	uint32		generation;		/* of the latest start */
	bool		dismissed;		/* asked to exit: need not wait to return */
	TimestampTz started_at;		/* 0: may start at once */
} AccordPlace;

typedef struct AccordDatabase
{
	Oid			database;		/* InvalidOid: free; read without the lock */
	AccordPresence presence;	/* of the extension, as far as is known */
	bool		asked;			/* for dispatchers, since the latest start;
								 * read without the lock */
	bool		anew;			/* none that runs may stay */
	int			clear_count;	/* statements that keep it clear */
	int			count;			/* dispatchers it may have now; 0: none; read
								 * without the lock */
	AccordPlace places[ACCORD_MAX_DISPATCHERS];
} AccordDatabase;

/* The table, accord_max_databases long, and what guards it: held briefly,
 * and always exclusively. */
extern AccordDatabase *accord_shmem_table(void);
extern void accord_shmem_table_lock(void);
extern void accord_shmem_table_unlock(void);

/* The caller is the launcher from now on. */
extern void accord_shmem_launcher_attach(void);

/* Nothing is started before this time (a crash was just recovered from). */
extern TimestampTz accord_shmem_not_before(void);

/* These need the table's lock. */

/* Whether an entry was asked for in vain. */
extern bool accord_shmem_table_overflowed(void);

/* Whether there is room again; what was asked for is forgotten then. */
extern bool accord_shmem_table_drained(void);

/* The database's entry, made when there is none; NULL: the table is full. */
extern AccordDatabase *accord_shmem_database_enter(Oid database);

/* Whether none of its places is taken. */
extern bool accord_shmem_database_vacant(const AccordDatabase *entry);

/* Tells those who run to exit. */
extern void accord_shmem_database_dismiss(AccordDatabase *entry);

/* Frees the entry when nothing is owed to it; whether it did. */
extern bool accord_shmem_database_forget(AccordDatabase *entry);

/* Counts a key, after its row was written; how many of this hash were. */
extern void accord_shmem_key_stored(uint64 hash);
extern uint32 accord_shmem_keys_stored(uint64 hash);

/* For shmem.c: the size of places.c's memory; its start. */
extern Size accord_places_size(void);
extern void accord_places_start(LWLock *lock);

#endif							/* ACCORD_SHMEM_H */
