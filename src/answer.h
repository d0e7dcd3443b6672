/*
 * answer.h: exports of answer.c
 *
 * Layer 5: the answer to a delivery of its own, judged and settled.
 */
#ifndef ACCORD_ANSWER_H
#define ACCORD_ANSWER_H

#include "endpoint.h"
#include "http.h"

/* An answer (or none) came back for a TAKEN delivery that is in no batch. */
extern void accord_answer_land(AccordDesk *desk, AccordDelivery *delivery,
							   const AccordHttpResponse *response,
							   TimestampTz now);

#endif							/* ACCORD_ANSWER_H */
