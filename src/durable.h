/*
 * durable.h: exports of durable.c
 *
 * Layer 4: up to where the log may be sent.
 */
#ifndef ACCORD_DURABLE_H
#define ACCORD_DURABLE_H

/*
 * The commit number up to which everything is where accord.dispatch_after
 * wants it to be before it is sent: flushed here, and by the synchronous
 * standbys. Called before the reader's snapshot is taken, as
 * accord_log_safe_seq() is; never less than before.
 */
extern int64 accord_durable_seq(void);

/*
 * Milliseconds until accord_durable_seq() is to be asked again because it gave
 * less than what is committed; -1: it did not.
 */
extern long accord_durable_timeout(void);

#endif							/* ACCORD_DURABLE_H */
