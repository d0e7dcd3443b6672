/*
 * owed.h: exports of owed.c
 *
 * Layer 5: what is owed by memory alone, and what has a backlog row. No I/O
 * and no clock.
 */
#ifndef ACCORD_OWED_H
#define ACCORD_OWED_H

#include "endpoint.h"

/* NEW: owed by memory alone, the last of its endpoint. */
extern void accord_owed_list(AccordDesk *desk, AccordDelivery *delivery,
							 TimestampTz now);

/*
 * Takes a delivery off the list of those that only memory knows, if it is
 * there; evicted: it will be read from the log again.
 */
extern void accord_owed_unlist(AccordDesk *desk, AccordDelivery *delivery,
							   bool evicted);

/* It has a row in the backlog from now on; or ceases to be found as one. */
extern void accord_exception_enter(AccordDesk *desk, AccordDelivery *delivery);
extern void accord_exception_leave(AccordDesk *desk, AccordDelivery *delivery);

/* The delivery with a backlog row, or the one owed by memory; or NULL. */
extern AccordDelivery *accord_desk_find(AccordDesk *desk,
										AccordConnection *connection,
										int64 seq, int ord);

#endif							/* ACCORD_OWED_H */
