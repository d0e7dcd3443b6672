/*
 * coalesce.h: exports of coalesce.c
 *
 * Layer 5: of several unsent events of one kind only the newest is sent.
 */
#ifndef ACCORD_COALESCE_H
#define ACCORD_COALESCE_H

#include "endpoint.h"

/* What of its event decides what it may supersede. */
extern void accord_coalesce_know(AccordDesk *desk, AccordDelivery *delivery,
								 const char *op, TimestampTz expires_at);

/*
 * What a delivery of a state route is coalesced by; 0: it is not. Its lane
 * follows from it where the event has no key or the channel no order.
 */
extern void accord_coalesce_identify(AccordDesk *desk,
									 AccordDelivery *delivery,
									 const AccordRoute *route,
									 const AccordAccount *account);

/*
 * A NEW delivery is about to be owed: those it makes superfluous are settled
 * as superseded. False: it was superfluous itself, and is settled.
 */
extern bool accord_coalesce_owe(AccordDesk *desk, AccordDelivery *delivery,
								const AccordRoute *route, TimestampTz now);

/*
 * A TAKEN delivery is about to be sent. The one that goes instead, or NULL:
 * then it is sent, and nothing supersedes it any more.
 */
extern AccordDelivery *accord_coalesce_send(AccordDesk *desk,
											AccordDelivery *delivery);

/* Whether nothing of it was sent, so that it can still be made superfluous, or
 * be cancelled: by accord_delivery_claim(). */
extern bool accord_coalesce_unsent(const AccordDelivery *delivery);

/* What is put down of a delivery that another supersedes; palloc'd. */
extern const char *accord_coalesce_reason(const AccordDelivery *newer);

#endif							/* ACCORD_COALESCE_H */
