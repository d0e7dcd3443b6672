/*
 * counter.c: what is counted of each database; and the file that keeps all
 * counters while the server is down.
 *
 * Runs in every process of a server that preloads the library. A transaction
 * notes what it does in its own memory, and adds that to the process's own
 * part of shared memory when it has committed; a process that exits adds its
 * part to its database's. So writers share nothing, and whoever asks adds up.
 *
 * Invariants
 *   - A part is written by its process only; its database is set before it is.
 *   - Parts are added up, moved into their database's row, and emptied, under
 *     the lock of the table of databases, so that nothing counts twice.
 *   - A row is found by its database's OID, and never emptied. When there is no
 *     row left, that of a database in which nobody counts is taken.
 *   - The file is written by the postmaster, when it shuts down in order, and
 *     removed when it has been read.
 *
 * On failure: what an aborted transaction noted is forgotten. After a crash
 * shared memory is new and there is no file, so counting begins anew, as
 * PostgreSQL's own statistics do. A file that cannot be read or written costs
 * the counters, and a message.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "board.h"
#include "compat.h"
#include "counter.h"
#include "guc.h"
#include "shmem.h"

#define FILE_NAME PGSTAT_STAT_PERMANENT_DIRECTORY "/pg_accord.stat"
#define FILE_HEAD 0x41434331	/* changes with what is in the file */

/* A process's own part; cache lines of its own. */
typedef union Part
{
	struct
	{
		Oid			database;	/* InvalidOid: nothing was counted */
		pg_atomic_uint64 n[ACCORD_COUNTERS];
	}			own;
	char		pad[2 * PG_CACHE_LINE_SIZE];
} Part;

/* What was noted up to the beginning of a subtransaction. */
typedef struct Savepoint
{
	int			level;
	int64		n[ACCORD_COUNTERS];
	struct Savepoint *outer;
} Savepoint;

static AccordCounted *rows = NULL;	/* accord_max_databases of them */
static Part *parts = NULL;		/* MaxBackends of them */

/* This process's own affairs. */
static int64 noted[ACCORD_COUNTERS];	/* in this transaction */
static bool has_noted = false;
static Savepoint *savepoints = NULL;	/* TopTransactionContext */
static bool exit_registered = false;

static void read_file(void);
static void write_file(int code, Datum arg);

/*
 * Shared memory
 */

Size
accord_counter_size(void)
{
	return add_size(mul_size(MaxBackends, sizeof(Part)),
					mul_size(accord_max_databases, sizeof(AccordCounted)));
}

void
accord_counter_start(void)
{
	bool		found;

	parts = ShmemInitStruct("pg_accord counters", accord_counter_size(),
							&found);
	rows = (AccordCounted *) (parts + MaxBackends);
	if (found)
		return;
	memset(parts, 0, accord_counter_size());
	for (int i = 0; i < MaxBackends; i++)
		for (int j = 0; j < ACCORD_COUNTERS; j++)
			pg_atomic_init_u64(&parts[i].own.n[j], 0);
	if (IsUnderPostmaster)
		return;
	on_shmem_exit(write_file, (Datum) 0);
	read_file();
}

/* Whether anybody counts there; needs the lock. */
static bool
is_in_use(Oid database)
{
	for (int i = 0; i < MaxBackends; i++)
		if (parts[i].own.database == database)
			return true;
	return false;
}

/* The row of a database, made when there is none; needs the lock. */
static AccordCounted *
enter_row(Oid database)
{
	AccordCounted *free = NULL;

	for (int i = 0; i < accord_max_databases; i++)
	{
		if (rows[i].database == database)
			return &rows[i];
		if (!OidIsValid(rows[i].database) &&
			(free == NULL || OidIsValid(free->database)))
			free = &rows[i];
		else if (free == NULL && !is_in_use(rows[i].database))
			free = &rows[i];
	}
	Assert(rows != NULL);
	if (free == NULL)
		free = &rows[0];
	memset(free, 0, sizeof(*free));
	free->database = database;
	free->since = GetCurrentTimestamp();
	return free;
}

/* Moves a part into its database's row; needs the lock. */
static void
collect(Part *part)
{
	AccordCounted *row = enter_row(part->own.database);

	for (int i = 0; i < ACCORD_COUNTERS; i++)
		row->n[i] += (int64) pg_atomic_exchange_u64(&part->own.n[i], 0);
}

/* Exit callback: the part is another process's from here on. */
static void
leave(int code, Datum arg)
{
	Part	   *part = &parts[accord_my_proc_number()];

	accord_shmem_table_lock();
	collect(part);
	part->own.database = InvalidOid;
	accord_shmem_table_unlock();
}

/*
 * Noting
 */

void
accord_counter_note(AccordCounter counter, int64 n)
{
	int			level = GetCurrentTransactionNestLevel();

	if (parts == NULL)
		return;
	if (level > 1 && (savepoints == NULL || savepoints->level < level))
	{
		Savepoint  *savepoint = MemoryContextAlloc(TopTransactionContext,
												   sizeof(Savepoint));

		savepoint->level = level;
		memcpy(savepoint->n, noted, sizeof(noted));
		savepoint->outer = savepoints;
		savepoints = savepoint;
	}
	noted[counter] += n;
	has_noted = true;
}

/* What was noted counts. */
static void
add_noted(void)
{
	Part	   *part = &parts[accord_my_proc_number()];

	if (!exit_registered)
	{
		on_shmem_exit(leave, (Datum) 0);
		exit_registered = true;
		part->own.database = MyDatabaseId;
		pg_write_barrier();
	}
	for (int i = 0; i < ACCORD_COUNTERS; i++)
		if (noted[i] != 0)
			pg_atomic_fetch_add_u64(&part->own.n[i], noted[i]);
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	bool		counts = event == XACT_EVENT_COMMIT ||
	event == XACT_EVENT_PREPARE || event == XACT_EVENT_PARALLEL_COMMIT;

	if (!has_noted || !(counts || event == XACT_EVENT_ABORT ||
						event == XACT_EVENT_PARALLEL_ABORT))
		return;
	if (counts)
		add_noted();
	memset(noted, 0, sizeof(noted));
	has_noted = false;
	savepoints = NULL;
}

static void
at_subtransaction_event(SubXactEvent event, SubTransactionId id,
						SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	Savepoint  *savepoint = savepoints;

	if (savepoint == NULL || savepoint->level != level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		memcpy(noted, savepoint->n, sizeof(noted));
		savepoints = savepoint->outer;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (level == 2 || (savepoint->outer != NULL &&
						   savepoint->outer->level == level - 1))
			savepoints = savepoint->outer;
		else
			savepoint->level = level - 1;
	}
}

void
accord_counter_init(void)
{
	RegisterXactCallback(at_transaction_event, NULL);
	RegisterSubXactCallback(at_subtransaction_event, NULL);
}

/*
 * Asking
 */

void
accord_counter_read(AccordCounted *counted)
{
	memset(counted, 0, sizeof(*counted));
	if (parts == NULL)
		return;
	accord_shmem_table_lock();
	*counted = *enter_row(MyDatabaseId);
	for (int i = 0; i < MaxBackends; i++)
		for (int j = 0; j < ACCORD_COUNTERS &&
			 parts[i].own.database == MyDatabaseId; j++)
			counted->n[j] += (int64) pg_atomic_read_u64(&parts[i].own.n[j]);
	accord_shmem_table_unlock();
}

void
accord_counter_reset(void)
{
	AccordCounted *row;

	if (parts == NULL)
		return;
	accord_shmem_table_lock();
	for (int i = 0; i < MaxBackends; i++)
		if (parts[i].own.database == MyDatabaseId)
			collect(&parts[i]);
	row = enter_row(MyDatabaseId);
	memset(row->n, 0, sizeof(row->n));
	row->since = GetCurrentTimestamp();
	accord_shmem_table_unlock();
}

/*
 * The file: a head, the sizes of what follows, records of endpoints, records of
 * databases, and a checksum of it all.
 */

typedef struct FileHead
{
	uint32		head;
	uint32		record_sizes;	/* those of both kinds, added */
	int32		n_endpoints;
	int32		n_databases;
} FileHead;

static bool
write_part(FILE *file, pg_crc32c *crc, const void *data, size_t size)
{
	COMP_CRC32C(*crc, data, size);
	return fwrite(data, size, 1, file) == 1;
}

static bool
read_part(FILE *file, pg_crc32c *crc, void *data, size_t size)
{
	if (fread(data, size, 1, file) != 1)
		return false;
	COMP_CRC32C(*crc, data, size);
	return true;
}

static FileHead
file_head(void)
{
	FileHead	head = {.head = FILE_HEAD};
	AccordBoardTallies tallies;

	head.record_sizes = sizeof(AccordBoardTallies) + sizeof(AccordCounted);
	for (int i = 0; i < accord_max_endpoints; i++)
		head.n_endpoints += accord_board_export(i, &tallies);
	for (int i = 0; i < accord_max_databases; i++)
		head.n_databases += OidIsValid(rows[i].database);
	return head;
}

static bool
write_records(FILE *file)
{
	FileHead	head = file_head();
	AccordBoardTallies tallies;
	pg_crc32c	crc;
	bool		written;

	INIT_CRC32C(crc);
	written = write_part(file, &crc, &head, sizeof(head));
	for (int i = 0; written && i < accord_max_endpoints; i++)
		if (accord_board_export(i, &tallies))
			written = write_part(file, &crc, &tallies, sizeof(tallies));
	for (int i = 0; written && i < accord_max_databases; i++)
		if (OidIsValid(rows[i].database))
			written = write_part(file, &crc, &rows[i], sizeof(rows[i]));
	FIN_CRC32C(crc);
	return written && fwrite(&crc, sizeof(crc), 1, file) == 1;
}

/* Exit callback of the postmaster, and of a server of a single user. */
static void
write_file(int code, Datum arg)
{
	FILE	   *file;
	bool		written;

	if (code != 0)
		return;					/* a crash: what is counted may be wrong */
	file = AllocateFile(FILE_NAME ".tmp", PG_BINARY_W);
	written = file != NULL && write_records(file);
	if (file != NULL && FreeFile(file) != 0)
		written = false;
	if (written && durable_rename(FILE_NAME ".tmp", FILE_NAME, LOG) == 0)
		return;
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", FILE_NAME ".tmp")));
	unlink(FILE_NAME ".tmp");
}

/* Reads it, and with take puts what it says into memory. */
static bool
read_records(FILE *file, bool take)
{
	FileHead	head;
	AccordBoardTallies tallies;
	AccordCounted counted;
	pg_crc32c	crc;
	pg_crc32c	stored;

	INIT_CRC32C(crc);
	if (!read_part(file, &crc, &head, sizeof(head)) ||
		head.head != FILE_HEAD ||
		head.record_sizes != sizeof(AccordBoardTallies) +
		sizeof(AccordCounted))
		return false;
	for (int i = 0; i < head.n_endpoints; i++)
	{
		if (!read_part(file, &crc, &tallies, sizeof(tallies)))
			return false;
		if (take)
			accord_board_import(&tallies);
	}
	for (int i = 0; i < head.n_databases; i++)
	{
		if (!read_part(file, &crc, &counted, sizeof(counted)))
			return false;
		if (take)
			*enter_row(counted.database) = counted;
	}
	FIN_CRC32C(crc);
	return fread(&stored, sizeof(stored), 1, file) == 1 &&
		EQ_CRC32C(crc, stored);
}

/* At the server's start, before anybody else is there. */
static void
read_file(void)
{
	FILE	   *file = AllocateFile(FILE_NAME, PG_BINARY_R);

	if (file == NULL && errno == ENOENT)
		return;
	if (file == NULL)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", FILE_NAME)));
	else if (!read_records(file, false) || fseek(file, 0, SEEK_SET) != 0 ||
			 !read_records(file, true))
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" does not hold what was written into it",
						FILE_NAME),
				 errhint("What accord.pg_stat_accord shows begins anew.")));
	if (file != NULL)
		FreeFile(file);
	unlink(FILE_NAME);
}
