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
#define ACCORD_KEY_SLOTS 4		/* partitions of inbox and idempotency_key */
#define ACCORD_CONFLICT_SLOTS 8 /* partitions of conflict_log and change_log */
#define ACCORD_MAX_DISPATCHERS 16	/* position sequences made at CREATE
									 * EXTENSION */

#define ACCORD_TOPIC_SEAL "accord.seal" /* of our own topics, the one that is
										 * sent */

#define ACCORD_PRIORITIES 3		/* urgent, normal, bulk */
#define ACCORD_PRIORITY_NORMAL 1
#define ACCORD_PRIORITY_REPLAY 3	/* what is replayed, behind all of them */
#define ACCORD_QUEUES 4			/* of a connection: the priorities, replays */

#define ACCORD_MAX_TOPIC 255	/* bytes */
#define ACCORD_MAX_KEY 2048		/* bytes */
#define ACCORD_MAX_SOURCE 63	/* bytes: a channel's name */
#define ACCORD_CAPTURE_TRIGGER "0_accord_capture"	/* what the names of row
													 * triggers begin with */
#define ACCORD_MAX_ACCOUNT 1020 /* bytes */

/*
 * SQLSTATEs of our own, class AC. A key, or the id of a message, was used
 * before with other content.
 */
#define ACCORD_ERRCODE_OTHER_CONTENT MAKE_SQLSTATE('A','C','0','0','1')

/* Columns of accord.event_log, in order; 1 is the first. */
typedef enum AccordEventColumn
{
	ACCORD_EVENT_TX_ID = 1,
	ACCORD_EVENT_ORD,
	ACCORD_EVENT_SLOT,
	ACCORD_EVENT_PRIORITY,
	ACCORD_EVENT_EVENT_ID,
	ACCORD_EVENT_OCCURRED_AT,
	ACCORD_EVENT_RECORDED_AT,
	ACCORD_EVENT_DELIVER_AT,
	ACCORD_EVENT_EXPIRES_AT,
	ACCORD_EVENT_ERASED_BY,
	ACCORD_EVENT_TABLE_ID,
	ACCORD_EVENT_SALT,
	ACCORD_EVENT_TOPIC,
	ACCORD_EVENT_KEY,
	ACCORD_EVENT_OP,
	ACCORD_EVENT_SOURCE,
	ACCORD_EVENT_ACCOUNT,
	ACCORD_EVENT_CHANNELS,
	ACCORD_EVENT_IDEMPOTENCY_KEY,
	ACCORD_EVENT_PAYLOAD,
	ACCORD_EVENT_BEFORE,
	ACCORD_EVENT_HEADERS,
	ACCORD_EVENT_ERASED,
	ACCORD_EVENT_COLUMNS = ACCORD_EVENT_ERASED
} AccordEventColumn;

/* Columns of accord.commit_log. */
typedef enum AccordCommitColumn
{
	ACCORD_COMMIT_SEQ = 1,
	ACCORD_COMMIT_TX_ID,
	ACCORD_COMMIT_COMMITTED_AT,
	ACCORD_COMMIT_ROLE,
	ACCORD_COMMIT_EVENTS,
	ACCORD_COMMIT_SLOT,
	ACCORD_COMMIT_DIGEST,
	ACCORD_COMMIT_ACTOR,
	ACCORD_COMMIT_APPLICATION_NAME,
	ACCORD_COMMIT_CLIENT_ADDR,
	ACCORD_COMMIT_REASON,
	ACCORD_COMMIT_CORRELATION_ID,
	ACCORD_COMMIT_COLUMNS = ACCORD_COMMIT_CORRELATION_ID
} AccordCommitColumn;

/* Of accord.prepared: those of commit_log, and one more. */
enum
{
	ACCORD_PREPARED_GID = ACCORD_COMMIT_COLUMNS + 1,
	ACCORD_PREPARED_COLUMNS = ACCORD_PREPARED_GID
};

/* Columns of accord.captured. */
typedef enum AccordCapturedColumn
{
	ACCORD_CAPTURED_ID = 1,
	ACCORD_CAPTURED_SCHEMA_NAME,
	ACCORD_CAPTURED_TABLE_NAME,
	ACCORD_CAPTURED_TOPIC,
	ACCORD_CAPTURED_KEY_COLUMNS,
	ACCORD_CAPTURED_COLUMNS,
	ACCORD_CAPTURED_EXCLUDED,
	ACCORD_CAPTURED_CONDITION,
	ACCORD_CAPTURED_ACCOUNT_COLUMN,
	ACCORD_CAPTURED_ON_TRUNCATE,
	ACCORD_CAPTURED_CAPTURED_AT,
	ACCORD_CAPTURED_RELEASED_AT,
	ACCORD_CAPTURED_SINCE_SLOT,
	ACCORD_CAPTURED_SINCE_TX_ID,
	ACCORD_CAPTURED_SINCE_AT,
	ACCORD_CAPTURED_COLUMNS_END = ACCORD_CAPTURED_SINCE_AT
} AccordCapturedColumn;

#endif							/* ACCORD_H */
