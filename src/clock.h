/*
 * clock.h: exports of clock.c
 *
 * Layer 2: the hybrid logical clock that stamps changes.
 */
#ifndef ACCORD_CLOCK_H
#define ACCORD_CLOCK_H

#include "datatype/timestamp.h"
#include "storage/lwlock.h"

/* Shared memory; for shmem.c. */
extern Size accord_clock_size(void);
extern void accord_clock_start(LWLock *lock);

/*
 * The next reading: later than every one before it and than everything heard
 * of, in this database, also over a restart; no earlier than the wall clock.
 */
extern TimestampTz accord_clock_next(void);

/* Changes of that time are known here: what is stamped from now on is later. */
extern void accord_clock_heed(TimestampTz heard);

/*
 * Hands the time of a change of a table's row to whoever makes an event of it
 * in the same transaction: the event has to tell others the time by which the
 * change counts here. 0: no such change was stamped.
 */
extern void accord_clock_publish(Oid relid, TimestampTz clock);
extern TimestampTz accord_clock_published(Oid relid);

#endif							/* ACCORD_CLOCK_H */
