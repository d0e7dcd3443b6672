/*
 * batch.h: exports of batch.c
 *
 * Layer 5: several deliveries in one request.
 */
#ifndef ACCORD_BATCH_H
#define ACCORD_BATCH_H

#include "endpoint.h"

/*
 * A TAKEN delivery, whose event is in memory, waits for others to go with. It
 * counts no more as in flight, and its tokens are given back: a batch is one
 * request.
 */
extern void accord_batch_join(AccordDesk *desk, AccordDelivery *delivery,
							  const AccordRoute *route,
							  const AccordAccount *account, TimestampTz now);

/*
 * The next batch that is to be sent, and may be: its channel and connection
 * have room and tokens. It is forming no more, and the caller's: to be sent,
 * or freed with accord_batch_free() once it has no members. NULL: none.
 */
extern AccordBatch *accord_batch_next(AccordDesk *desk, TimestampTz now);

/* Not now after all: again at that time. */
extern void accord_batch_defer(AccordDesk *desk, AccordBatch *batch,
							   TimestampTz until);

/* Takes a member out: it has been concluded by itself. */
extern void accord_batch_remove(AccordDelivery *delivery);

extern void accord_batch_free(AccordBatch *batch);

/* When the next batch's time comes; 0: none waits. */
extern TimestampTz accord_batch_due(AccordDesk *desk);

/*
 * What the answer to its request means for each member, and that is settled.
 * The batch is freed. One that was refused as a whole is tried again in two
 * parts, until the event is found that is to blame.
 */
extern void accord_batch_respond(AccordDesk *desk, AccordBatch *batch,
								 const AccordRoute *route,
								 const AccordAccount *account,
								 const AccordHttpResponse *response,
								 TimestampTz now);

/* No request could be made of it: in two parts, or INVALID if it is one. */
extern void accord_batch_fail(AccordDesk *desk, AccordBatch *batch,
							  bool transient, const char *error,
							  TimestampTz now);

/* There is nothing to send for any of them. */
extern void accord_batch_skip(AccordBatch *batch, TimestampTz now);

#endif							/* ACCORD_BATCH_H */
