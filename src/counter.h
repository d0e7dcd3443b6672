/*
 * counter.h: exports of counter.c
 *
 * Layer 2: what is counted of each database; and the file that keeps all
 * counters while the server is down.
 */
#ifndef ACCORD_COUNTER_H
#define ACCORD_COUNTER_H

#include "datatype/timestamp.h"

typedef enum AccordCounter
{
	ACCORD_COUNTER_TRANSACTIONS,	/* that wrote events */
	ACCORD_COUNTER_EVENTS,
	ACCORD_COUNTER_CAPTURED,	/* ... of captured tables */
	ACCORD_COUNTER_RECEIVED,	/* messages that were new */
	ACCORD_COUNTER_DUPLICATES,	/* ... that were not */
	ACCORD_COUNTER_REPEATED,	/* events, rows and work whose key was used */
	ACCORD_COUNTER_CONFLICTS,	/* decisions that had a loser */
	ACCORD_COUNTER_DISPATCHERS, /* that were started */
	ACCORD_COUNTERS
} AccordCounter;

/* What was counted in a database; also a record of the file. */
typedef struct AccordCounted
{
	Oid			database;
	TimestampTz since;			/* when counting began */
	int64		n[ACCORD_COUNTERS];
} AccordCounted;

/* From _PG_init() under preload. */
extern void accord_counter_init(void);

/* For shmem.c: the size of its memory; its start. */
extern Size accord_counter_size(void);
extern void accord_counter_start(void);

/*
 * Something happened n times in this transaction: it counts once that has
 * committed, unless it is rolled back to a savepoint.
 */
extern void accord_counter_note(AccordCounter counter, int64 n);

/* What was counted in this database; zeros without preload. */
extern void accord_counter_read(AccordCounted *counted);

/* Begins anew in this database. */
extern void accord_counter_reset(void);

#endif							/* ACCORD_COUNTER_H */
