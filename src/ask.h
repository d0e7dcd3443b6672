/*
 * ask.h: exports of ask.c
 *
 * Layer 5: what a channel is asked about a delivery.
 */
#ifndef ACCORD_ASK_H
#define ACCORD_ASK_H

#include "endpoint.h"
#include "request.h"

/*
 * Makes the question that a delivery is at: what became of it (ACCEPTED), or
 * whether the channel has it (VERIFYING). request->error: it cannot be asked;
 * then it is not known what became of it. In a transaction.
 */
extern void accord_ask_make(AccordRequest *request,
							const AccordDelivery *delivery,
							const AccordRoute *route,
							const AccordAccount *account, TimestampTz now);

/*
 * What is kept of a delivery that its channel has accepted: how to ask what
 * became of it, and until when; palloc'd. answer: what the channel said, as
 * JSON, or NULL. *error: a sentence fragment when it cannot be asked.
 */
extern Jsonb *accord_ask_keep(const AccordDelivery *delivery,
							  const AccordRoute *route,
							  const AccordAccount *account,
							  const AccordHttpResponse *response,
							  Jsonb *answer, TimestampTz now,
							  const char **error);

/* Until when that may be asked, and whether there is a question at all. */
extern TimestampTz accord_ask_until(Jsonb *kept);
extern bool accord_ask_polls(Jsonb *kept);

/* What was kept of an accepted delivery; NULL: nothing. In a transaction. */
extern Jsonb *accord_ask_kept(const AccordDelivery *delivery);

#endif							/* ACCORD_ASK_H */
