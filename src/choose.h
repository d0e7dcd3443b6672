/*
 * choose.h: exports of choose.c
 *
 * Layer 5: by what a channel has of a thing: which route, and whether yet.
 */
#ifndef ACCORD_CHOOSE_H
#define ACCORD_CHOOSE_H

#include "endpoint.h"
#include "remote.h"

/*
 * A TAKEN delivery of a channel that remembers: its route, of those that take
 * the event, by what the channel has of it. False: it was concluded, or waits
 * for what it needs. Names of what the channel has can be looked up until the
 * next one is chosen. In a transaction.
 */
extern bool accord_choose_route(AccordDesk *desk, AccordDelivery *delivery,
								const AccordAccount *account,
								AccordRoute **route, TimestampTz now);

/*
 * The same of an event that is only looked at; account may be NULL. NULL: there
 * is nothing to send. What it needs it may lack.
 */
extern AccordRoute *accord_choose_for(AccordEvent *event,
									  const AccordAccount *account,
									  AccordRoute *route);

/* What the channel has of a delivery's thing, and of what its route needs. */
extern AccordRemoteScope *accord_choose_scope(const AccordDelivery *delivery,
											  const AccordAccount *account,
											  const AccordRoute *route);

/* What a route's events are about; its key is NULL when there is none. */
extern AccordRemote accord_choose_remote(const AccordDelivery *delivery,
										 const AccordAccount *account,
										 const AccordRoute *route);

#endif							/* ACCORD_CHOOSE_H */
