/*
 * tally.h: exports of tally.c
 *
 * Layer 5: a dispatcher counts what it does, for each of its endpoints.
 */
#ifndef ACCORD_TALLY_H
#define ACCORD_TALLY_H

#include "board.h"
#include "endpoint.h"
#include "http.h"

/* The connection's place on the board; negative: there is none left. */
extern int	accord_tally_place(AccordConnection *connection);

/* Something happened once. */
extern void accord_tally(AccordConnection *connection, AccordTally tally);

/* A request ended: answered, or not. */
extern void accord_tally_request(AccordConnection *connection,
								 const AccordHttpResponse *response);

/* An attempt, or what was no attempt, ended so, and this follows. */
extern void accord_tally_attempt(AccordConnection *connection,
								 AccordOutcome outcome);
extern void accord_tally_verdict(AccordConnection *connection,
								 AccordOutcome outcome, AccordVerdict verdict);

#endif							/* ACCORD_TALLY_H */
