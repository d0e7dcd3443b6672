/*
 * errand.h: exports of errand.c
 *
 * Layer 5: requests of a dispatcher's own, which deliver no event: a token is
 * fetched, something looked up, a page of a feed read.
 */
#ifndef ACCORD_ERRAND_H
#define ACCORD_ERRAND_H

#include "endpoint.h"
#include "request.h"

struct AccordErrand;

/*
 * Called once, outside any transaction and in the turn's memory, with what
 * came of it. response->result.transport tells a failure; one that was never
 * sent has ACCORD_TRANSPORT_INVALID and an error. Must not raise. May start
 * others; the errand itself is gone afterwards.
 */
typedef void (*AccordErrandDone) (struct AccordErrand *errand,
								  const AccordHttpResponse *response,
								  TimestampTz now);

typedef struct AccordErrand
{
	AccordRequest request;		/* request.context: the errand and all it
								 * needs */
	AccordConnection *connection;	/* for whom, by its credentials, limits
									 * and timeouts; NULL: for nobody's */
	AccordErrandDone done;		/* NULL: nobody wants to know any more */
	void	   *arg;			/* the caller's */
	TimestampTz started_at;		/* 0: it has not left */
	bool		probe;			/* of its connection's breaker */
	dlist_node	node;			/* in the waiting ones, or those in flight */
} AccordErrand;

/*
 * A new errand. The caller fills request.http with what is allocated in
 * request.context: method, url, headers, body; for nobody's connection also
 * the credentials and limits, which are else put in when it leaves. So is
 * max_response, unless one is given.
 */
extern AccordErrand *accord_errand_create(AccordDesk *desk,
										  AccordConnection *connection,
										  AccordErrandDone done, void *arg);

/*
 * It leaves as soon as may be: when its connection is not paused and its gates,
 * limits and breaker let it through, before any delivery that waits there.
 * Its answer counts for them like a delivery's.
 */
extern void accord_errand_start(AccordErrand *errand);

/* Its answer is not wanted any more; done is not called. */
extern void accord_errand_cancel(AccordErrand *errand);

/* Sends those that may go. */
extern void accord_errand_turn(AccordDesk *desk, TimestampTz now);

/* When one that waits for a limit or a breaker may go; 0: none does. */
extern TimestampTz accord_errand_due(void);

/* Whether one waits for room that settling may have made. */
extern bool accord_errand_blocked(void);

/* The answer to an errand: response->errand says that it is one. */
extern void accord_errand_land(AccordDesk *desk,
							   const AccordHttpResponse *response,
							   TimestampTz now);

#endif							/* ACCORD_ERRAND_H */
