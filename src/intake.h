/*
 * intake.h: exports of intake.c
 *
 * Layer 5: from the log and the backlog into a dispatcher's memory.
 */
#ifndef ACCORD_INTAKE_H
#define ACCORD_INTAKE_H

#include "endpoint.h"

/*
 * Reads on, in one transaction: the log as far as it is safe, pages of
 * endpoints that lag, exceptions that were left in the backlog. A slice at a
 * time: true when there is more to be read at once.
 */
extern bool accord_intake_read(AccordDesk *desk);

/*
 * Whether endpoints have room for what was left on disk. With thousands of
 * them that is looked at every few milliseconds only: in how many it is worth
 * asking again, -1: something else will come before.
 */
extern bool accord_intake_hungry(AccordDesk *desk);
extern long accord_intake_timeout(AccordDesk *desk, TimestampTz now);

/* Whether that may be a part of the backlog: nothing may be settling then. */
extern bool accord_intake_short(AccordDesk *desk);

/*
 * Whether a connection reads on before it sends: where events are coalesced, a
 * newer one may be about to come. Not for more than a few seconds.
 */
extern bool accord_intake_ahead(AccordDesk *desk, AccordConnection *connection,
								TimestampTz now);

/* Queues the deliveries that are due. */
extern void accord_intake_due(AccordDesk *desk, TimestampTz now);

/*
 * Reads the events of TAKEN deliveries that have none in memory. In a
 * transaction. An event that is not in the log any more stays NULL. Stops
 * when memory is full, but not before the first when at_least_one; returns
 * how many deliveries have been dealt with.
 */
extern int	accord_intake_events(AccordDesk *desk, AccordDelivery **deliveries,
								 int n, bool at_least_one);

#endif							/* ACCORD_INTAKE_H */
