/*
 * clerk.h: exports of clerk.c
 *
 * Layer 5: what was fetched is taken in by a process of its own, so that
 * deliveries wait for nobody's locks or functions.
 */
#ifndef ACCORD_CLERK_H
#define ACCORD_CLERK_H

#include "datatype/timestamp.h"

/* Who takes in what: a long comparison shall not hold up feeds. */
typedef enum AccordClerkDesk
{
	ACCORD_CLERK_FEEDS,
	ACCORD_CLERK_JOBS,
	ACCORD_CLERKS
} AccordClerkDesk;

/* What there is to be done: the arguments of accord.pull_take(). */
typedef struct AccordClerkOrder
{
	const char *kind;
	int64		id;
	const char *account;		/* "": the channel itself */
	int64		version;
	int			status;			/* 0: there was no answer */
	const char *headers;		/* an object, as JSON; NULL: none */
	const char *error;			/* NULL: none */
	const char *body;			/* NULL: none; not terminated */
	size_t		body_len;
} AccordClerkOrder;

typedef enum AccordClerkState
{
	ACCORD_CLERK_FREE,
	ACCORD_CLERK_BUSY,
	ACCORD_CLERK_DONE,			/* *due_at is when there is more to do;
								 * DT_NOEND: never */
	ACCORD_CLERK_LOST			/* it ended without a word */
} AccordClerkState;

/* How that clerk is doing. After DONE or LOST it is FREE. */
extern AccordClerkState accord_clerk_ask(AccordClerkDesk desk,
										 TimestampTz *due_at);

/* Gives an order to a FREE clerk. False: none can be started now. */
extern bool accord_clerk_give(AccordClerkDesk desk,
							  const AccordClerkOrder *order);

/* Whether this process is a clerk: functions of users have a time limit. */
extern bool accord_clerk_is(void);

#endif							/* ACCORD_CLERK_H */
