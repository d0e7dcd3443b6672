/*
 * recovery.h: exports of recovery.c
 *
 * Layer 5: what a dispatcher finds in the logs when it starts, and what did
 * not fit into its memory then.
 */
#ifndef ACCORD_RECOVERY_H
#define ACCORD_RECOVERY_H

#include "endpoint.h"

/* Recovers what was owed when the last dispatcher of this number ended. In a
 * transaction. */
extern void accord_recovery_start(AccordDesk *desk);

/* Whether an event that is read again is known to be settled. */
extern bool accord_recovery_settled(AccordEndpoint *endpoint, int64 seq,
									int ord);

/* It is being settled, though somebody has yet to read it. */
extern void accord_recovery_remember(AccordDesk *desk,
									 AccordEndpoint *endpoint, int64 seq,
									 int ord);

/* Forgets what is known once everybody has read past it. */
extern void accord_recovery_forget(AccordDesk *desk);

/* An endpoint's exceptions do not fit: from now on they are read in turn. */
extern void accord_recovery_overflow(AccordDesk *desk,
									 AccordEndpoint *endpoint);

/* Reads on in its backlog; ends the overflow with its end. In a transaction;
 * nothing is being settled. */
extern void accord_recovery_load(AccordDesk *desk, AccordEndpoint *endpoint);

#endif							/* ACCORD_RECOVERY_H */
