/*
 * backlog.h: exports of backlog.c
 *
 * Layer 4: what dispatchers write: attempts, backlog versions, cursors and
 * positions; and how they find them again when they start.
 */
#ifndef ACCORD_BACKLOG_H
#define ACCORD_BACKLOG_H

#include "log.h"
#include "utils/jsonb.h"

/* States of a delivery in the backlog; the words of backlog_log.state. */
typedef enum AccordState
{
	ACCORD_STATE_SCHEDULED,		/* next: SENDING, a closed one, RETRYING */
	ACCORD_STATE_WAITING,		/* behind another of its key that is retrying
								 * or held; next: SENDING, a closed one,
								 * RETRYING, HELD, DEAD */
	ACCORD_STATE_SENDING,		/* next: any but SCHEDULED; after a crash
								 * RETRYING or HELD */
	ACCORD_STATE_RETRYING,		/* next: SENDING, RETRYING, HELD, DEAD, a
								 * closed one */
	ACCORD_STATE_REPLAYED,		/* by redeliver(); next: as RETRYING */
	ACCORD_STATE_ACCEPTED,		/* the channel is asked what became of it;
								 * next: any but SCHEDULED, WAITING */
	ACCORD_STATE_VERIFYING,		/* the channel is asked whether it has it;
								 * next: as ACCEPTED */
	ACCORD_STATE_HELD,			/* next: REPLAYED, DISCARDED */
	ACCORD_STATE_DEAD,			/* next: REPLAYED, DISCARDED */
	ACCORD_STATE_DELIVERED,		/* closed; next: REPLAYED */
	ACCORD_STATE_SKIPPED,		/* closed; next: REPLAYED */
	ACCORD_STATE_SUPERSEDED,	/* closed; next: REPLAYED */
	ACCORD_STATE_EXPIRED,		/* closed; next: REPLAYED */
	ACCORD_STATE_DISCARDED		/* closed; next: REPLAYED */
} AccordState;

extern const char *accord_backlog_word(AccordState state);

typedef struct AccordBacklogRow
{
	int64		seq;
	int64		tx_id;
	TimestampTz owed_since;
	TimestampTz attempted_at;	/* 0: never */
	TimestampTz due_at;			/* 0: none */
	int64		route;			/* 0: none */
	int64		decided_by;		/* 0: nobody */
	int64		replay;			/* 0: live */
	int			ord;
	int			version;
	int			attempts;
	int			event_slot;
	int			priority;
	const char *channel;
	const char *account;
	const char *key;			/* NULL: none */
	AccordState state;
	const char *error;			/* NULL: none */
	Jsonb	   *request;		/* NULL: made anew each time */
} AccordBacklogRow;

typedef struct AccordAttemptRow
{
	int64		seq;
	int64		replay;			/* 0: live */
	int			ord;
	int			attempt;
	double		duration_ms;	/* negative: null */
	int			status;			/* 0: null */
	int64		rule;			/* 0: a built-in one */
	const char *channel;
	const char *account;
	const char *outcome;
	const char *sent;			/* NULL: null */
	const char *error;
	const char *response;
	const char *request_id;
} AccordAttemptRow;

/* A change of an endpoint's state, for endpoint_log. */
typedef struct AccordTransitionRow
{
	const char *channel;
	const char *account;
	const char *state;
	const char *reason;			/* NULL: null */
	TimestampTz until;			/* 0: null */
} AccordTransitionRow;

typedef struct AccordCursorRow
{
	int64		version;
	int			priority;
	AccordPoint point;
	int64		behind;			/* owed after the point, and not in the
								 * backlog, */
	int64		counted;		/* ... of the log up to this transaction */
	bool		done;			/* lags no longer: a null seq */
	const char *channel;
	const char *account;
} AccordCursorRow;

/* How far a replay has come, for replay_log. */
typedef struct AccordReplayRow
{
	int64		id;
	int64		version;
	AccordPoint point;			/* all up to here is settled or in the backlog */
	int64		first_seq;		/* from here on it needs the log */
	int64		pass_low;
	int64		pass_high;
	int64		done;			/* events of the selection up to the point */
	int64		delivered;
	int64		failed;
	int64		passed;
	TimestampTz since;			/* what was settled beyond it, was after this */
	TimestampTz started_at;
	const char *state;
	const char *reason;			/* NULL: null */
} AccordReplayRow;

/* Appends, in the current transaction, many at a time. */
extern void accord_backlog_append(const AccordBacklogRow *rows, int n);
extern void accord_backlog_append_attempts(const AccordAttemptRow *rows, int n);
extern void accord_backlog_append_cursors(const AccordCursorRow *rows, int n);
extern void accord_backlog_append_transitions(const AccordTransitionRow *rows,
											  int n);
extern void accord_backlog_append_replays(const AccordReplayRow *rows, int n);

/*
 * Reading back; SPI connected by the callee, one callback per row, whose
 * strings live for the callback only.
 *
 * load: the highest version of each delivery that is open and not dead, in
 *   (seq, ord) order; of one endpoint after a point when channel is not NULL.
 *   Stops when the callback returns false.
 * find: the highest version of one delivery, without error and request; key
 *   palloc'd.
 * settled: what was settled for good after seq, in either log.
 * cursors: the last cursor of each endpoint and priority that ever had one; it
 *   is in force unless it is done. Versions go on from there.
 * dead: how many dead letters each endpoint has.
 * breakers: of each endpoint whose circuit breaker was not closed, when its
 *   next probe is due.
 */
typedef bool (*AccordBacklogVisit) (const AccordBacklogRow *row, void *arg);
typedef void (*AccordSettledVisit) (const char *channel, const char *account,
									int64 seq, int ord, void *arg);
typedef void (*AccordCursorVisit) (const AccordCursorRow *row, void *arg);
typedef void (*AccordDeadVisit) (const char *channel, const char *account,
								 int64 n, void *arg);
typedef void (*AccordBreakerVisit) (const AccordTransitionRow *row, void *arg);

extern void accord_backlog_load(const char *channel, const char *account,
								AccordPoint after, AccordBacklogVisit visit,
								void *arg);
extern bool accord_backlog_find(const char *channel, const char *account,
								int64 seq, int ord, AccordBacklogRow *row);

/*
 * The request kept for a delivery, by that replay (0: live); NULL when there is
 * none.
 */
extern Jsonb *accord_backlog_request(const char *channel, const char *account,
									 int64 seq, int ord, int64 replay);
extern void accord_backlog_settled(int64 after, AccordSettledVisit visit,
								   void *arg);
extern void accord_backlog_dead(AccordDeadVisit visit, void *arg);
extern void accord_backlog_breakers(AccordBreakerVisit visit, void *arg);
extern void accord_backlog_cursors(AccordCursorVisit visit, void *arg);

/* A dispatcher's persisted position. */
extern int64 accord_backlog_position(int dispatcher);
extern void accord_backlog_set_position(int dispatcher, int64 seq);

/*
 * Makes the positions those of "count" dispatchers: when they were another
 * number's, all start at the lowest. Serialised by a lock on dispatcher_count.
 */
extern void accord_backlog_share_positions(int count);

#endif							/* ACCORD_BACKLOG_H */
