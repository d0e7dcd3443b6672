/*
 * assign.h: exports of assign.c
 *
 * Layer 5: today's configuration, as it applies to endpoints and deliveries.
 */
#ifndef ACCORD_ASSIGN_H
#define ACCORD_ASSIGN_H

#include "endpoint.h"

/*
 * Reloads the configuration if it changed, and gives every endpoint its
 * limits. In a transaction with a snapshot.
 */
extern void accord_assign_refresh(AccordDesk *desk);

/* The configuration as of the last refresh. */
extern AccordConfig *accord_assign_config(void);

/* The endpoint, made when it is new; NULL: another dispatcher owns it. */
extern AccordEndpoint *accord_assign_endpoint(AccordDesk *desk,
											  const char *channel,
											  const char *account);

/* Today's configuration of a delivery; false: its channel, account or route is
 * gone. */
extern bool accord_assign_route(AccordDelivery *delivery,
								AccordChannel **channel,
								AccordAccount **account, AccordRoute **route);

#endif							/* ACCORD_ASSIGN_H */
