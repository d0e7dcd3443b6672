/*
 * routing.h: exports of routing.c
 *
 * Layer 5: which endpoints an event is owed to.
 */
#ifndef ACCORD_ROUTING_H
#define ACCORD_ROUTING_H

#include "config.h"
#include "executor/tuptable.h"

/*
 * Called for each endpoint an event goes to. account is "" for the channel's
 * own endpoint; route is NULL when the event is addressed to the channel but
 * none of its routes takes it.
 */
typedef void (*AccordRoutingVisit) (AccordChannel *channel,
									const char *account, AccordRoute *route,
									void *arg);

/*
 * Visits the endpoints of an event, a row of event_log. Allocates in the
 * current context. A control event goes nowhere.
 */
extern void accord_routing_visit(AccordConfig *config, TupleTableSlot *row,
								 AccordRoutingVisit visit, void *arg);

/*
 * The same of one channel, for an event about a row that was there before its
 * table was captured: it is addressed to nobody, and so was sent to nobody.
 * False: it is none.
 */
extern bool accord_routing_visit_baseline(AccordConfig *config,
										  TupleTableSlot *row,
										  const char *channel,
										  AccordRoutingVisit visit, void *arg);

/* "accord.redeliver" or "accord.discard"; NULL: an event of the application. */
extern char *accord_routing_control(TupleTableSlot *row);

/* A text column of a row, palloc'd; NULL when null. */
extern char *accord_routing_text(TupleTableSlot *row, int column);

#endif							/* ACCORD_ROUTING_H */
