/*
 * launcher.c: keeps every database's dispatchers running.
 *
 * One background worker per server, connected to no database, asleep unless
 * told something: a dispatcher started or ended (the postmaster signals it),
 * somebody asked for dispatchers or released a database, the settings were
 * reloaded. Nothing is polled; it sleeps with a timeout only while a restart
 * is due.
 *
 * Only the inside of a database tells whether the extension is there. So at
 * its start the launcher sends a scout into each database, a few at a time: a
 * dispatcher, which exits at once where there is no extension, and stays where
 * there is one. Afterwards a database is looked at when CREATE or DROP
 * EXTENSION, the first event of a database without dispatchers, or a new row
 * of pg_database says so.
 *
 * Invariants
 *   - Only the launcher makes a place STARTING.
 *   - A place is used again when its last process is gone for good: the place
 *     is EMPTY, and the postmaster has forgotten the worker.
 *   - All dispatchers of a database were started with the same count, as they
 *     divide the endpoints among themselves: when the setting changes, all of
 *     the old ones are gone before the first new one starts.
 *   - A dispatcher that ended by itself is started again no sooner than
 *     accord.restart_interval after its last start.
 *
 * On failure: an error ends the process, and the postmaster starts another a
 * second later. The dispatchers live on; the new launcher finds them in the
 * table, and does not trust what was STARTING.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "guc.h"
#include "launcher.h"
#include "shmem.h"

#define SCOUTS_AT_ONCE 4
#define NEVER PG_INT64_MAX		/* a time that does not come */

/* A row of pg_database. */
typedef struct DatabaseRow
{
	Oid			database;		/* hash key */
	NameData	name;
	bool		connectable;
} DatabaseRow;

/* A dispatcher to be started, decided upon under the lock. */
typedef struct Order
{
	int			entry;			/* in the table */
	AccordDispatchArgs args;
	NameData	name;			/* of the database */
} Order;

static MemoryContext look_context = NULL;	/* reset before every look */
static BackgroundWorkerHandle **handles = NULL; /* by entry and number; NULL:
												 * the worker is gone */
static HTAB *scouted = NULL;	/* databases that were looked into, by OID */
static TimestampTz full_until = 0;	/* the postmaster had no slot for a worker */

/* ---- what there is ---- */

/* Reads pg_database, without its caches: others' changes count at once. */
static HTAB *
read_databases(void)
{
	HASHCTL		ctl;
	HTAB	   *rows;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(DatabaseRow);
	ctl.hcxt = look_context;
	rows = hash_create("pg_accord databases", 64, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		DatabaseRow *row = hash_search(rows, &form->oid, HASH_ENTER, NULL);

		row->name = form->datname;
		/* -2: an interrupted DROP DATABASE left it invalid */
		row->connectable = form->datallowconn && form->datconnlimit != -2;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	return rows;
}

static BackgroundWorkerHandle **
handle_of(int entry, int number)
{
	return &handles[entry * ACCORD_MAX_DISPATCHERS + number];
}

/*
 * Notes which of an entry's workers are gone. One that is gone without having
 * attached did not start at all.
 */
static void
collect_gone(AccordDatabase *entry, int index)
{
	for (int i = 0; i < ACCORD_MAX_DISPATCHERS; i++)
	{
		AccordPlace *place = &entry->places[i];
		BackgroundWorkerHandle **handle = handle_of(index, i);
		pid_t		pid;

		if (*handle != NULL &&
			pg_atomic_read_u32(&place->state) != ACCORD_PLACE_RUNNING &&
			GetBackgroundWorkerPid(*handle, &pid) == BGWH_STOPPED)
		{
			pfree(*handle);
			*handle = NULL;
			/* it may have attached, run and left since we looked */
			if (pg_atomic_read_u32(&place->state) == ACCORD_PLACE_STARTING)
				pg_atomic_write_u32(&place->state, ACCORD_PLACE_EMPTY);
		}
	}
}

/* Whether no worker of the entry is left, in any state. */
static bool
is_vacant(AccordDatabase *entry, int index)
{
	for (int i = 0; i < ACCORD_MAX_DISPATCHERS; i++)
		if (*handle_of(index, i) != NULL)
			return false;
	return accord_shmem_database_vacant(entry);
}

/* ---- what to do ---- */

/* When a place whose last process is gone may be used again. */
static TimestampTz
due_time(AccordPlace *place, TimestampTz now)
{
	if (place->dismissed)
	{
		place->dismissed = false;
		place->started_at = 0;
	}
	if (place->started_at > now)	/* the clock was set back */
		place->started_at = now;
	if (place->started_at == 0)
		return now;
	return TimestampTzPlusMilliseconds(place->started_at,
									   accord_restart_interval);
}

/*
 * Makes the places STARTING that are due, and appends their orders; returns
 * when the next one will be due. Until the extension is known to be there a
 * single dispatcher goes to see.
 */
static TimestampTz
order_due(AccordDatabase *entry, int index, const DatabaseRow *row,
		  TimestampTz now, List **orders)
{
	TimestampTz next = NEVER;
	int			count = entry->count;

	if (entry->presence != ACCORD_PRESENCE_PRESENT)
		count = Min(count, 1);
	for (int i = 0; i < count; i++)
	{
		AccordPlace *place = &entry->places[i];
		TimestampTz due;
		Order	   *order;

		if (*handle_of(index, i) != NULL ||
			pg_atomic_read_u32(&place->state) != ACCORD_PLACE_EMPTY)
			continue;
		due = due_time(place, now);
		if (due > now)
		{
			next = Min(next, due);
			continue;
		}
		place->started_at = now;
		place->generation++;
		pg_atomic_write_u32(&place->state, ACCORD_PLACE_STARTING);
		entry->asked = false;
		order = palloc0(sizeof(Order));
		order->entry = index;
		order->args.database = entry->database;
		order->args.number = i;
		order->args.count = entry->count;
		order->args.generation = place->generation;
		order->name = row->name;
		*orders = lappend(*orders, order);
	}
	return next;
}

/*
 * Decides about one database. Returns when it is to be looked at again if
 * nothing happens before. The table's lock is held.
 */
static TimestampTz
tend_database(AccordDatabase *entry, int index, const DatabaseRow *row,
			  TimestampTz now, List **orders)
{
	int			count = accord_dispatch ? accord_dispatchers : 0;
	bool		vacant;

	collect_gone(entry, index);
	vacant = is_vacant(entry, index);
	if (row == NULL || (vacant && !row->connectable))
	{
		entry->asked = entry->anew = false;
		entry->presence = ACCORD_PRESENCE_ABSENT;
		(void) hash_search(scouted, &entry->database, HASH_REMOVE, NULL);
	}
	if (!vacant && (row == NULL || entry->anew || entry->count != count ||
					entry->presence == ACCORD_PRESENCE_ABSENT))
	{
		entry->count = 0;		/* those about to attach are refused */
		accord_shmem_database_dismiss(entry);
		return NEVER;
	}
	if (entry->clear_count > 0)
		return NEVER;
	if (accord_shmem_database_forget(entry))
		return NEVER;
	if (vacant)
	{
		if (entry->anew || entry->presence == ACCORD_PRESENCE_ABSENT)
			entry->presence = ACCORD_PRESENCE_UNKNOWN;
		entry->anew = false;
		entry->count = count;
	}
	return row->connectable ? order_due(entry, index, row, now, orders) : NEVER;
}

/* How many scouts have not come back yet. */
static int
count_scouts(void)
{
	AccordDatabase *table = accord_shmem_table();
	int			n = 0;

	for (int i = 0; i < accord_max_databases; i++)
		if (OidIsValid(table[i].database) &&
			table[i].presence == ACCORD_PRESENCE_UNKNOWN &&
			!accord_shmem_database_vacant(&table[i]))
			n++;
	return n;
}

/* Whether every entry is that of a database with the extension. */
static bool
is_table_full(void)
{
	AccordDatabase *table = accord_shmem_table();

	for (int i = 0; i < accord_max_databases; i++)
		if (!OidIsValid(table[i].database) ||
			table[i].presence != ACCORD_PRESENCE_PRESENT)
			return false;
	return true;
}

/* Nobody is known to have been looked into. */
static void
forget_scouted(void)
{
	HASH_SEQ_STATUS scan;
	Oid		   *database;

	hash_seq_init(&scan, scouted);
	while ((database = hash_seq_search(&scan)) != NULL)
		(void) hash_search(scouted, database, HASH_REMOVE, NULL);
}

/*
 * Asks for dispatchers of databases nobody has looked into yet, as many as
 * may be looked into now; the end of each brings the next. Returns whether
 * some must wait.
 */
static bool
send_scouts(HTAB *rows, TimestampTz now)
{
	int			room = SCOUTS_AT_ONCE - count_scouts();
	HASH_SEQ_STATUS scan;
	DatabaseRow *row;

	if (!accord_dispatch || now < full_until)
		return false;
	/* we do not know who found no room: look everywhere again */
	if (accord_shmem_table_drained())
		forget_scouted();
	hash_seq_init(&scan, rows);
	while ((row = hash_seq_search(&scan)) != NULL)
	{
		AccordDatabase *entry;

		if (!row->connectable ||
			hash_search(scouted, &row->database, HASH_FIND, NULL) != NULL)
			continue;
		if (room-- <= 0 ||
			(entry = accord_shmem_database_enter(row->database)) == NULL)
		{
			hash_seq_term(&scan);
			return true;
		}
		(void) hash_search(scouted, &row->database, HASH_ENTER, NULL);
		if (accord_shmem_database_vacant(entry))
			entry->asked = true;
	}
	return false;
}

/*
 * Says once that the table is too small: every place in it is held by a
 * database with the extension, and others wait for one. Only a restart can
 * make it larger.
 */
static void
report_overflow(void)
{
	static bool told = false;

	if (told)
		return;
	ereport(LOG,
			(errmsg("no room for the dispatchers of another database"),
			 errdetail("All %d places are taken.", accord_max_databases),
			 errhint("Consider increasing accord.max_databases.")));
	told = true;
}

/* ---- doing it ---- */

/* The postmaster did not take the order: as if the worker had crashed. */
static void
cancel_order(const Order *order)
{
	AccordDatabase *entry = &accord_shmem_table()[order->entry];

	accord_shmem_table_lock();
	pg_atomic_write_u32(&entry->places[order->args.number].state,
						ACCORD_PLACE_EMPTY);
	accord_shmem_table_unlock();
}

static bool
register_dispatcher(const Order *order)
{
	BackgroundWorker worker;
	MemoryContext old;
	bool		registered;

	StaticAssertStmt(sizeof(order->args) <= BGW_EXTRALEN,
					 "arguments must fit");
	accord_db_worker(&worker, "pg_accord dispatcher", "accord_dispatch_main",
					 order->args.database);
	snprintf(worker.bgw_name, BGW_MAXLEN, "pg_accord dispatcher %d of %s",
			 order->args.number, NameStr(order->name));
	memcpy(worker.bgw_extra, &order->args, sizeof(order->args));

	old = MemoryContextSwitchTo(TopMemoryContext);	/* for the handle */
	registered = RegisterDynamicBackgroundWorker
		(&worker, handle_of(order->entry, order->args.number));
	MemoryContextSwitchTo(old);
	return registered;
}

/*
 * Returns when what could not be started is to be tried again. As long as
 * that goes on it is told once.
 */
static TimestampTz
carry_out(List *orders, TimestampTz now)
{
	const Order *failed = NULL;
	bool		told = now < TimestampTzPlusMilliseconds(full_until,
														 accord_restart_interval);
	ListCell   *lc;

	foreach(lc, orders)
	{
		const Order *order = lfirst(lc);

		if (register_dispatcher(order))
			continue;
		cancel_order(order);
		failed = order;
	}
	if (failed == NULL)
		return NEVER;
	if (!told)
		ereport(LOG,
				(errmsg("could not start a dispatcher for database \"%s\"",
						NameStr(failed->name)),
				 errdetail("Trying again every %d ms.",
						   accord_restart_interval),
				 errhint("Consider increasing max_worker_processes.")));
	full_until = TimestampTzPlusMilliseconds(now, accord_restart_interval);
	return full_until;
}

/* ---- the loop ---- */

/* Sees to every database; returns when to look again at the latest. */
static TimestampTz
look(void)
{
	AccordDatabase *table = accord_shmem_table();
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = now < full_until ? full_until : NEVER;
	TimestampTz retry;
	List	   *orders = NIL;
	HTAB	   *rows;
	bool		waiting;
	bool		full;

	MemoryContextReset(look_context);
	rows = read_databases();
	MemoryContextSwitchTo(look_context);

	accord_shmem_table_lock();
	waiting = send_scouts(rows, now);
	waiting |= accord_shmem_table_overflowed();
	for (int i = 0; i < accord_max_databases; i++)
		if (OidIsValid(table[i].database))
		{
			DatabaseRow *row = hash_search(rows, &table[i].database,
										   HASH_FIND, NULL);
			TimestampTz due = tend_database(&table[i], i, row, now, &orders);

			/* an entry came free, and others wait for one */
			if (waiting && !OidIsValid(table[i].database))
				due = now;
			next = Min(next, due);
		}
	full = is_table_full();
	accord_shmem_table_unlock();

	if (waiting && full)
		report_overflow();
	retry = carry_out(orders, now);
	return Min(next, retry);
}

/* Sleeps until something happens, or until the given time. */
static void
sleep_until(TimestampTz time)
{
	static uint32 wait_event = 0;
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	if (wait_event == 0)
		wait_event = accord_wait_event("AccordLauncherMain");
	if (time != NEVER)
	{
		events |= WL_TIMEOUT;
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), time);
	}
	(void) WaitLatch(MyLatch, events, timeout, wait_event);
	ResetLatch(MyLatch);
	if (ProcDiePending)			/* shutting down is nothing to log */
		proc_exit(1);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* What an earlier launcher has ordered but not seen start, it will not. */
static void
revoke_orders(void)
{
	AccordDatabase *table = accord_shmem_table();

	accord_shmem_table_lock();
	for (int i = 0; i < accord_max_databases; i++)
		for (int j = 0; j < ACCORD_MAX_DISPATCHERS; j++)
		{
			AccordPlace *place = &table[i].places[j];

			if (OidIsValid(table[i].database) &&
				pg_atomic_read_u32(&place->state) == ACCORD_PLACE_STARTING)
			{
				place->generation++;
				pg_atomic_write_u32(&place->state, ACCORD_PLACE_EMPTY);
			}
		}
	accord_shmem_table_unlock();
}

static void
start_launcher(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = ctl.entrysize = sizeof(Oid);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	look_context = AllocSetContextCreate(TopMemoryContext, "pg_accord look",
										 ALLOCSET_DEFAULT_SIZES);
	handles = MemoryContextAllocZero(TopMemoryContext,
									 sizeof(*handles) *
									 ACCORD_MAX_DISPATCHERS *
									 accord_max_databases);
	scouted = hash_create("pg_accord scouted databases", 64, &ctl,
						  HASH_ELEM | HASH_BLOBS);
	accord_shmem_launcher_attach();
	revoke_orders();
	pgstat_report_activity(STATE_IDLE, NULL);
}

void
accord_launcher_main(Datum arg)
{
	start_launcher();
	while (accord_shmem_not_before() > GetCurrentTimestamp())
		sleep_until(accord_shmem_not_before());
	for (;;)
		sleep_until(look());
}

void
accord_launcher_init(void)
{
	BackgroundWorker worker;

	if (IsBinaryUpgrade)
		return;
	memset(&worker, 0, sizeof(worker));
	strlcpy(worker.bgw_name, "pg_accord launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "pg_accord launcher", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "pg_accord",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "accord_launcher_main",
			sizeof(worker.bgw_function_name));
	RegisterBackgroundWorker(&worker);
}
