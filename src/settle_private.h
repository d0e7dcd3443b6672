/*
 * settle_private.h: what settle.c and its parts, settle_*.c, share
 *
 * Layer 5. Included by those only.
 */
#ifndef ACCORD_SETTLE_PRIVATE_H
#define ACCORD_SETTLE_PRIVATE_H

#include "common/pg_prng.h"

#include "settle.h"

#define ACCORD_SETTLE_LIMIT 1000	/* deliveries that settle together */
#define ACCORD_SPILL_AFTER 1000 /* ms */
#define ACCORD_SETTLE_REPLAYS 64	/* replays whose progress is written
									 * together */

/* What happens to a delivery once its rows are durable. */
typedef enum AccordSequel
{
	ACCORD_SEQUEL_FREE,			/* settled, or dead: forgotten here */
	ACCORD_SEQUEL_PARK,			/* until due_at */
	ACCORD_SEQUEL_HOLD,			/* until a person decides */
	ACCORD_SEQUEL_SEND,			/* the intent is durable */
	ACCORD_SEQUEL_SPILL,		/* goes on flying, or waiting */
	ACCORD_SEQUEL_QUEUE,		/* its turn is now */
	ACCORD_SEQUEL_AGAIN			/* ... again: TAKEN as it is */
} AccordSequel;

typedef struct AccordSettlement
{
	AccordDelivery *delivery;
	AccordSequel sequel;
	AccordState state;			/* of its row, when has_row */
	bool		has_row;
	int			row;			/* ... in accord_settling.rows */
	TimestampTz due_at;
} AccordSettlement;

/* The batch: settlements, and rows of the three logs. */
typedef struct AccordSettling
{
	AccordDesk *desk;
	MemoryContext context;		/* of everything in the batch; reset after it */
	AccordSettlement settlements[2 * ACCORD_SETTLE_LIMIT];
	AccordBacklogRow rows[2 * ACCORD_SETTLE_LIMIT];
	AccordAttemptRow attempts[2 * ACCORD_SETTLE_LIMIT];
	AccordCursorRow *cursors;
	AccordReplayRow replays[ACCORD_SETTLE_REPLAYS];
	int			n_replays;
	int			n_settlements;
	int			n_rows;
	int			n_attempts;
	int			n_cursors;
	int			n_active;		/* endpoints with a cursor, or that owe */
	int			max_cursors;
	bool		urgent;			/* an endpoint waits for the commit */
	TimestampTz since;			/* first one's arrival */
	TimestampTz looked_at;		/* for what lasts, and at cursors */
	TimestampTz positioned_at;	/* the position was found anew */
	TimestampTz last_commit;
	TimestampTz last_duration;	/* microseconds the last commit took */
	int64		position;		/* what committed batches allow */
	int64		position_written;
	pg_prng_state dice;
	double		throw;			/* of those who fail together; -1: of each */
} AccordSettling;

/* settle_commit.c: of the process, empty between two commits */
extern AccordSettling accord_settling;

/* settle_rows.c */

/*
 * A delivery settles with the batch. Callers leave room: see
 * accord_settle_full().
 */
extern AccordSettlement *accord_settle_add(AccordDelivery *delivery,
										   AccordSequel sequel);

/* The next version of its backlog row, in the batch; request is in it, too. */
extern AccordBacklogRow *accord_settle_row(AccordSettlement *settlement,
										   AccordState state,
										   const char *error, Jsonb *request);

/*
 * What attempt_log and the endpoint tell of an attempt; response is NULL when
 * no request was made. Its row, until the commit.
 */
extern AccordAttemptRow *accord_settle_attempt(AccordDelivery *delivery,
											   AccordOutcome outcome,
											   const AccordHttpResponse *response,
											   const char *error,
											   TimestampTz now);

/* settle_position.c: what a batch's transaction writes besides conclusions */

/* Up to where everything is settled, before this batch. */
extern void accord_settle_find_position(TimestampTz now);

/* Rows of what lasts, and cursors of endpoints that lag. */
extern void accord_settle_prepare_positions(TimestampTz now);

/* How far replays have come. */
extern void accord_settle_prepare_replays(TimestampTz now);

#endif							/* ACCORD_SETTLE_PRIVATE_H */
