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

/* Pauses that end by themselves have ended, perhaps. */
extern void accord_assign_resume(AccordDesk *desk, TimestampTz now);

/* Made when it is new; NULL: another dispatcher owns the channel. */
extern AccordConnection *accord_assign_connection(AccordDesk *desk,
												  const char *channel,
												  const char *account);
extern AccordEndpoint *accord_assign_endpoint(AccordDesk *desk,
											  const char *channel,
											  const char *account,
											  int priority);

/* Today's account of a delivery; NULL: its channel has none of that name. */
extern AccordAccount *accord_assign_account(const AccordDelivery *delivery);

/* Today's configuration of a delivery; false: its channel, account or route is
 * gone. */
extern bool accord_assign_route(AccordDelivery *delivery,
								AccordChannel **channel,
								AccordAccount **account, AccordRoute **route);

#endif							/* ACCORD_ASSIGN_H */
