/*
 * renew.h: exports of renew.c
 *
 * Layer 5: the tokens that connections wait for are fetched.
 */
#ifndef ACCORD_RENEW_H
#define ACCORD_RENEW_H

#include "endpoint.h"

/* Looks after tokens that are wanted. awake: somebody may have told news. */
extern void accord_renew_turn(AccordDesk *desk, bool awake, TimestampTz now);

/* When to look again; 0: when something happens. */
extern TimestampTz accord_renew_due(void);

#endif							/* ACCORD_RENEW_H */
