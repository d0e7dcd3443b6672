/*
 * db.h: exports of db.c
 *
 * Layer 1: the database as workers and hot paths use it: a transaction
 * bracket, our relations' OIDs, sequences read without SQL, rows inserted
 * without an executor.
 */
#ifndef ACCORD_DB_H
#define ACCORD_DB_H

#include "executor/spi.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "postmaster/bgworker.h"
#include "utils/rel.h"

/* Starts and ends a worker's transaction with an active snapshot. */
extern void accord_db_begin(void);
extern void accord_db_commit(void);
extern void accord_db_abort(void);	/* after an error was caught */

/* A worker's session: nobody's defaults shall stop or divert it. */
extern void accord_db_set_session(void);

/*
 * Describes a worker of a database, to be started by this process and not to be
 * started again by the postmaster: of which type, and where it begins.
 */
extern void accord_db_worker(BackgroundWorker *worker, const char *type,
							 const char *entry, Oid database);

/* Our relations, by name; cached, and forgotten when the extension goes. */
extern Oid	accord_db_relid(const char *name);

/* The same, InvalidOid when it does not exist. */
extern Oid	accord_db_relid_if_any(const char *name);

/* Whether any of our relations changed since the last call: or went. */
extern bool accord_db_changed(void);

/* Whether the extension exists in this database (and its schema's OID). */
extern bool accord_db_installed(void);

/* The last value drawn from (or set in) a sequence; 0 when none was. */
extern int64 accord_db_sequence_last(Oid sequence);
extern int64 accord_db_sequence_next(Oid sequence);
extern void accord_db_sequence_set(Oid sequence, int64 value);

/*
 * Plans a kept statement about rows by their key, within SPI: by the key's
 * index, however few rows statistics say there are. Again when the plan is not
 * valid any more.
 */
extern void accord_db_pin_plan(SPIPlanPtr plan);

/*
 * Inserts at the end of a log, and into its indexes: no triggers, no
 * constraint checks (the caller's values are right by construction), no
 * permission checks. rel is locked RowExclusive by the caller.
 */
extern void accord_db_insert(Relation rel, HeapTuple *tuples, int n);

/*
 * Makes the entries that the table's indexes have for rows that are in it;
 * those of its summarizing indexes alone, where they are all that is missing.
 * unchanged: other versions of the rows have the same entries.
 */
extern void accord_db_index(Relation rel, TupleTableSlot **slots, int n,
							bool unchanged, bool summarizing);

/*
 * An index of ours may be of those rows only in which a column is not null:
 * that column; 0: its predicate, if it has one, is another.
 */
extern AttrNumber accord_db_required_column(const IndexInfo *info);

/* Who owns our tables: what we do on a user's behalf is done as this role. */
extern Oid	accord_db_owner(void);

/* As whom the session acts: to be put back, by hand or by an abort. */
typedef struct AccordDbUser
{
	Oid			user;
	int			context;
} AccordDbUser;

/*
 * Acts as a role, whom row security does not concern even where it is forced
 * on owners, as the checks of foreign keys do; returns who it was before.
 */
extern AccordDbUser accord_db_become(Oid role);
extern void accord_db_be_again(AccordDbUser before);

/* A ring's partition: "event_log", 3 -> accord.event_log_3. */
extern Oid	accord_db_slot_relid(const char *table, int slot);

#endif							/* ACCORD_DB_H */
