/*
 * answer.h: exports of answer.c
 *
 * Layer 5: what a channel answered about a delivery, judged and settled.
 */
#ifndef ACCORD_ANSWER_H
#define ACCORD_ANSWER_H

#include "endpoint.h"
#include "judge.h"

/* An answer (or none) came back for a TAKEN delivery that is in no batch. */
extern void accord_answer_land(AccordDesk *desk, AccordDelivery *delivery,
							   const AccordHttpResponse *response,
							   TimestampTz now);

/*
 * A TAKEN delivery's answer was judged; what it tells of the thing is kept, and
 * the delivery settled. json: the answer, or the batch's result that is its
 * own; NULL: it is still in the response.
 */
extern void accord_answer_settle(AccordDesk *desk, AccordDelivery *delivery,
								 const AccordRoute *route,
								 const AccordAccount *account,
								 const AccordHttpResponse *response,
								 AccordJudgement *judgement, Jsonb *json,
								 TimestampTz now);

#endif							/* ACCORD_ANSWER_H */
