/*
 * board.h: exports of board.c
 *
 * Layer 2: what dispatchers show of their endpoints, and have counted of them,
 * in shared memory.
 */
#ifndef ACCORD_BOARD_H
#define ACCORD_BOARD_H

#include "datatype/timestamp.h"
#include "gauge.h"

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

/* What is counted of an endpoint. */
typedef enum AccordTally
{
	ACCORD_TALLY_REQUESTS,		/* that ended, whatever their end; a batch is
								 * one */
	ACCORD_TALLY_ANSWERED,		/* ... with a complete answer */
	ACCORD_TALLY_DELIVERED,		/* deliveries: their ends */
	ACCORD_TALLY_SKIPPED,
	ACCORD_TALLY_SUPERSEDED,
	ACCORD_TALLY_EXPIRED,
	ACCORD_TALLY_DISCARDED,
	ACCORD_TALLY_DEAD,
	ACCORD_TALLY_HELD,			/* ... or wait for a person */
	ACCORD_TALLY_RETRIED,		/* attempts that are made again */
	ACCORD_TALLY_REJECTED,		/* attempts: how they failed */
	ACCORD_TALLY_INVALID,
	ACCORD_TALLY_UNAUTHORIZED,
	ACCORD_TALLY_UNREACHABLE,
	ACCORD_TALLY_TIMEOUTS,
	ACCORD_TALLY_CUT_OFF,
	ACCORD_TALLY_THROTTLES,		/* pauses that the server asked for */
	ACCORD_TALLY_OPENINGS,		/* of the circuit breaker */
	ACCORD_TALLY_BYTES_SENT,	/* of bodies */
	ACCORD_TALLY_BYTES_RECEIVED,
	ACCORD_TALLY_ANSWER_TIME,	/* us, of what was answered */
	ACCORD_TALLY_LATENCY,		/* ... and how often it took how long:
								 * accord_gauge_bucket() */
	ACCORD_TALLIES = ACCORD_TALLY_LATENCY + ACCORD_GAUGE_BOUNDS + 1
} AccordTally;

/* What was counted of an endpoint; also a record of the file that keeps it. */
typedef struct AccordBoardTallies
{
	uint64		endpoint;		/* its hash */
	Oid			database;
	TimestampTz since;			/* when counting began */
	int64		tallies[ACCORD_TALLIES];
} AccordBoardTallies;

/* For shmem.c: the size of its memory; its start. */
extern Size accord_board_size(void);
extern void accord_board_start(void);

/*
 * A dispatcher's place for an endpoint of its database, by the endpoint's
 * hash; -1: there is none left (accord.max_endpoints). What it shows ends with
 * the process; what was counted does not, and is counted on by the next one.
 */
extern int	accord_board_enter(uint64 endpoint);
extern void accord_board_write(int place, const AccordBoardRow *row);

/* What is shown of an endpoint of this database; false: nothing. */
extern bool accord_board_read(uint64 endpoint, AccordBoardRow *row);

/* A dispatcher counts what happened at a place of its own. */
extern void accord_board_count(int place, AccordTally tally, int64 n);

/* What was counted of an endpoint of this database; false: nothing. */
extern bool accord_board_counted(uint64 endpoint, AccordBoardTallies *counted);

/* Begins to count anew: an endpoint of this database; 0: all of them. */
extern void accord_board_reset(uint64 endpoint);

/*
 * For the file that keeps it while the server is down: what was counted at
 * that place (false: nothing), out of accord_max_endpoints; and putting it
 * back.
 */
extern bool accord_board_export(int place, AccordBoardTallies *counted);
extern void accord_board_import(const AccordBoardTallies *counted);

#endif							/* ACCORD_BOARD_H */
