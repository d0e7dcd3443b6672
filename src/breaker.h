/*
 * breaker.h: exports of breaker.c
 *
 * Layer 1: the circuit breaker of an endpoint. Pure: no I/O, no memory, and
 * the clock is an argument. (Nygard, Release It!, "Circuit Breaker".)
 */
#ifndef ACCORD_BREAKER_H
#define ACCORD_BREAKER_H

#include "datatype/timestamp.h"

/* The words of endpoint_log.state. */
typedef enum AccordBreakerState
{
	ACCORD_BREAKER_CLOSED,		/* all may pass; next: OPEN */
	ACCORD_BREAKER_OPEN,		/* nothing passes; next: HALF_OPEN, at
								 * probe_at */
	ACCORD_BREAKER_HALF_OPEN	/* one passes, the probe; next: CLOSED, OPEN */
} AccordBreakerState;

typedef struct AccordBreakerPolicy
{
	int			failures;		/* in a row that open it; 0: that does not */
	double		ratio;			/* of failures in the window that open it, in
								 * (0, 1]; 0: that does not */
	int			minimum;		/* attempts in the window before the ratio
								 * counts */
	int64		window_ms;
	int64		cooldown_ms;	/* open so long the first time; doubles with
								 * every probe that fails */
	int64		cap_ms;			/* open so long at most */
} AccordBreakerPolicy;

/* What an attempt says about the endpoint. */
typedef enum AccordBreakerResult
{
	ACCORD_BREAKER_SUCCESS,		/* it works, whatever it thinks of the event */
	ACCORD_BREAKER_FAILURE,		/* it does not */
	ACCORD_BREAKER_NEUTRAL		/* nothing: no request was made, or it was
								 * refused as too early */
} AccordBreakerResult;

#define ACCORD_BREAKER_PARTS 8	/* of the window, which moves by one of them */

/* All zero: closed, nothing known. */
typedef struct AccordBreaker
{
	AccordBreakerState state;
	int			consecutive;	/* failures in a row */
	int			trips;			/* openings since it was last closed */
	bool		probing;		/* HALF_OPEN: the probe is under way */
	TimestampTz probe_at;		/* OPEN: when it becomes HALF_OPEN */
	int64		part;			/* number of the newest part of the window */
	uint32		attempts[ACCORD_BREAKER_PARTS];
	uint32		failed[ACCORD_BREAKER_PARTS];
} AccordBreaker;

/* The state's word. */
extern const char *accord_breaker_word(AccordBreakerState state);

/*
 * The time passes: an OPEN one whose time has come becomes HALF_OPEN. True: it
 * did.
 */
extern bool accord_breaker_tick(AccordBreaker *breaker, TimestampTz now);

/* Whether a request may be sent now. HALF_OPEN: unless the probe is away. */
extern bool accord_breaker_allows(const AccordBreaker *breaker);

/* A request is taken to be sent. True: it is the probe. */
extern bool accord_breaker_sent(AccordBreaker *breaker);

/*
 * A request came back, or came to nothing. probe: what accord_breaker_sent()
 * said of it. While it is not CLOSED only the probe counts; a probe that says
 * nothing makes room for another. dice, uniform in [0, 1), spreads probes: an
 * opening lasts between 1/2 and 1 of its time. With a policy that says 0
 * twice it never opens, and closes at once if it was open. True: the state
 * changed.
 */
extern bool accord_breaker_result(AccordBreaker *breaker,
								  const AccordBreakerPolicy *policy,
								  AccordBreakerResult result, bool probe,
								  double dice, TimestampTz now);

/* Closes it by hand, forgetting everything. True: it was not closed. */
extern bool accord_breaker_reset(AccordBreaker *breaker);

#endif							/* ACCORD_BREAKER_H */
