/*
 * lane.h: exports of lane.c
 *
 * Layer 5: the deliveries of one key, in their order. No I/O and no clock.
 */
#ifndef ACCORD_LANE_H
#define ACCORD_LANE_H

#include "endpoint.h"

/* The delivery is READY: the last of its queue. */
extern void accord_lane_ready(AccordDesk *desk, AccordDelivery *delivery);

/*
 * Joins the lane of a delivery's key. False: another holds it, and the
 * delivery is WAITING now.
 */
extern bool accord_lane_join(AccordDesk *desk, AccordDelivery *delivery);

/* Gives a lane to the next of its key, or forgets it. */
extern void accord_lane_leave(AccordDesk *desk, AccordDelivery *delivery);

/* The same for the lane that a replay has of its own. */
extern bool accord_order_join(AccordDesk *desk, AccordDelivery *delivery);
extern void accord_order_leave(AccordDesk *desk, AccordDelivery *delivery);

/* Takes a delivery out of whatever queue its phase has it in. */
extern void accord_lane_unqueue(AccordDesk *desk, AccordDelivery *delivery);

/* Lanes that another holds may be gone when they are wanted again. */
extern void accord_lane_forget(AccordDelivery *delivery);

/* Who holds that lane of a replay, or NULL. */
extern AccordDelivery *accord_desk_replayed(AccordDesk *desk,
											uint64 order_hash);

#endif							/* ACCORD_LANE_H */
