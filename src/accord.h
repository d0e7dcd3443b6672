/*
 * accord.h: names and sizes that every file of pg_accord shares.
 *
 * Layer 0. Words that are stored (states, outcomes, ops) are spelled here
 * once; SQL, C, logs and documentation use the same words.
 */
#ifndef ACCORD_H
#define ACCORD_H

#define ACCORD_VERSION "1.0"
#define ACCORD_SCHEMA "accord"
#define ACCORD_EXTENSION "pg_accord"

#define ACCORD_LOG_SLOTS 8		/* partitions of event_log and commit_log */
#define ACCORD_ATTEMPT_SLOTS 8	/* partitions of attempt_log */
#define ACCORD_BACKLOG_SLOTS 4	/* partitions of backlog_log and cursor_log */
#define ACCORD_MAX_DISPATCHERS 16	/* position sequences made at CREATE
									 * EXTENSION */

#define ACCORD_MAX_TOPIC 255	/* bytes */
#define ACCORD_MAX_KEY 2048		/* bytes */

#endif							/* ACCORD_H */
