/*
 * send.h: exports of send.c
 *
 * Layer 5: what leaves.
 */
#ifndef ACCORD_SEND_H
#define ACCORD_SEND_H

#include "endpoint.h"

/* Whether making these requests needs the database. */
extern bool accord_send_needs_transaction(AccordDelivery **deliveries, int n);

/*
 * Sends a TAKEN delivery, or concludes why it cannot be sent. In a transaction
 * where accord_send_needs_transaction() says so.
 */
extern void accord_send(AccordDesk *desk, AccordDelivery *delivery,
						TimestampTz now);

/* Callback of accord_settle_commit(): the intent of a command is durable. */
extern void accord_send_intended(AccordDelivery *delivery);

/* A TAKEN delivery waits until then, or until its time is over. */
extern void accord_send_defer(AccordDesk *desk, AccordDelivery *delivery,
							  TimestampTz until);

/*
 * Sends the batches that are full, or whose time has come, in a transaction of
 * its own.
 */
extern void accord_send_batches(AccordDesk *desk, TimestampTz now);

#endif							/* ACCORD_SEND_H */
