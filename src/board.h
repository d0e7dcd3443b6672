/*
 * board.h: exports of board.c
 *
 * Layer 2: what dispatchers show of their endpoints, in shared memory.
 */
#ifndef ACCORD_BOARD_H
#define ACCORD_BOARD_H

#include "datatype/timestamp.h"

/* What a dispatcher knows of an endpoint. Times: 0 is none. */
typedef struct AccordBoardRow
{
	bool		lagging;
	int			breaker;		/* AccordBreakerState */
	TimestampTz probe_at;		/* breaker open: when the next probe is due */
	TimestampTz throttled_until;	/* the server asked for a pause */
	int64		owed;
	int64		queued;
	int64		scheduled;
	int64		sending;
	int64		retrying;
	int64		held;
	int64		dead;
	TimestampTz oldest_owed;
	int			in_flight;
	int64		tokens;			/* of its tightest limit; -1: it has none */
	double		delivered[2];	/* per second, over 1 and 5 minutes, as of */
	double		failed[2];		/* ... written_at */
	TimestampTz written_at;
	double		p50_ms;			/* negative: none */
	double		p99_ms;
	TimestampTz last_delivered_at;
	TimestampTz last_attempt_at;
	TimestampTz last_error_at;
	int			last_outcome;	/* AccordOutcome; -1: none */
	int			replaying;		/* replays of it that are running */
	char		last_error[200];	/* empty: none */
} AccordBoardRow;

/* For shmem.c: the size of its memory; its start. */
extern Size accord_board_size(void);
extern void accord_board_start(void);

/*
 * A dispatcher's place for an endpoint of its database, by the endpoint's
 * hash; -1: there is none left (accord.max_endpoints). What it shows ends with
 * the process.
 */
extern int	accord_board_enter(uint64 endpoint);
extern void accord_board_write(int place, const AccordBoardRow *row);

/* What is shown of an endpoint of this database; false: nothing. */
extern bool accord_board_read(uint64 endpoint, AccordBoardRow *row);

#endif							/* ACCORD_BOARD_H */
