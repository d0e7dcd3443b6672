/*
 * delivery.h: exports of delivery.c
 *
 * Layer 5: the life of a delivery. No I/O and no clock.
 */
#ifndef ACCORD_DELIVERY_H
#define ACCORD_DELIVERY_H

#include "endpoint.h"

/* A new delivery, PHASE_NEW, known to nobody yet. */
extern AccordDelivery *accord_delivery_create(AccordDesk *desk,
											  AccordEndpoint *endpoint,
											  const char *key);

/* NEW: owed by memory alone, queued in the order of its key. */
extern void accord_delivery_owe(AccordDesk *desk, AccordDelivery *delivery,
								TimestampTz now);

/* NEW: owed, but in no queue: TAKEN, to be settled as it is. */
extern void accord_delivery_list(AccordDesk *desk, AccordDelivery *delivery,
								 TimestampTz now);

/* NEW: from now on it is one of the replay's, owed by memory alone. */
extern void accord_delivery_replay(AccordDesk *desk, AccordDelivery *delivery,
								   AccordReplay *replay, TimestampTz now);

/* ... and this one is not to be sent, but settled: TAKEN. */
extern void accord_delivery_take(AccordDesk *desk, AccordDelivery *delivery);

/*
 * NEW, made of the backlog's row: whoever looks for it finds it from now on.
 * version is its row's, 0 when there is none.
 */
extern void accord_delivery_recall(AccordDesk *desk, AccordDelivery *delivery,
								   int version);

/* TAKEN or NEW: now an exception with a backlog row of this state. */
extern void accord_delivery_except(AccordDesk *desk, AccordDelivery *delivery,
								   AccordState state);

/*
 * To PARKED, until due_at. One that is RETRYING holds its lane (behind another
 * that holds it, it is WAITING); a SCHEDULED one takes its turn when due.
 */
extern void accord_delivery_park(AccordDesk *desk, AccordDelivery *delivery,
								 TimestampTz due_at);

/* To HELD; holds its lane (behind another that does, it is WAITING). */
extern void accord_delivery_hold(AccordDesk *desk, AccordDelivery *delivery);

/* Out of any queue, NEW again but for its lane: something is decided. */
extern void accord_delivery_withdraw(AccordDesk *desk,
									 AccordDelivery *delivery);

/*
 * Forgets what waits at the end of an endpoint's queue and was never tried; it
 * will be read again, so nothing before what has passed already is forgotten.
 * Returns how many; *before is the point before them.
 */
extern int	accord_endpoint_evict(AccordDesk *desk, AccordEndpoint *endpoint,
								  AccordPoint *before);

/* Forgets the events of what waits; each is read again when it is its turn. */
extern void accord_endpoint_unload(AccordDesk *desk,
								   AccordEndpoint *endpoint);

/* PARKED, HELD or NEW: queued again; takes its turn in its lane. */
extern void accord_delivery_queue(AccordDesk *desk, AccordDelivery *delivery);

/* READY, WAITING or PARKED: TAKEN, to be settled without being sent. */
extern void accord_delivery_claim(AccordDesk *desk, AccordDelivery *delivery);

/*
 * Coalescing: a delivery enters its merge in the order of the log, and leaves
 * it. The newest of a merge; the next one after a delivery, which need not be
 * in it; NULL: none.
 */
extern void accord_merge_enter(AccordDesk *desk, AccordDelivery *delivery);
extern void accord_merge_leave(AccordDesk *desk, AccordDelivery *delivery);
extern AccordDelivery *accord_merge_newest(AccordDesk *desk, uint64 hash);
extern AccordDelivery *accord_merge_newer(AccordDesk *desk,
										  AccordDelivery *delivery);

/* TAKEN, but nothing was done with it: READY again, the first. */
extern void accord_delivery_put_back(AccordDesk *desk,
									 AccordDelivery *delivery);

/* TAKEN, and not in flight any more: READY again, the last. */
extern void accord_delivery_again(AccordDesk *desk, AccordDelivery *delivery);

/*
 * TAKEN, but its turn has not come: PARKED until then. It keeps its lane, and
 * the position waits for it.
 */
extern void accord_delivery_defer(AccordDesk *desk, AccordDelivery *delivery,
								  TimestampTz until);

/* What is retried is due now. */
extern void accord_connection_retry(AccordDesk *desk,
									AccordConnection *connection);

/* Limits have changed: whoever waits at one asks again. */
extern void accord_desk_release(AccordDesk *desk);

/* TAKEN, and to wait for others to go with: its request slot is free. */
extern void accord_delivery_uncount(AccordDesk *desk,
									AccordDelivery *delivery);
extern void accord_delivery_count(AccordDesk *desk, AccordDelivery *delivery);

/* A TAKEN delivery's request slot is free again; answered: by its channel. */
extern void accord_delivery_landed(AccordDesk *desk, AccordDelivery *delivery,
								   bool answered);

/* What was concluded about it is durable. */
extern void accord_delivery_settled(AccordDesk *desk,
									AccordDelivery *delivery);

/* Settled for good, or only its row remains: forgets it, lets the next of its
 * key pass. */
extern void accord_delivery_free(AccordDesk *desk, AccordDelivery *delivery);

/* The next PARKED delivery by due_at, or NULL. */
extern AccordDelivery *accord_desk_next_due(AccordDesk *desk);

/* The next READY delivery of a connection becomes TAKEN; NULL: none. */
extern AccordDelivery *accord_connection_take(AccordDesk *desk,
											  AccordConnection *connection);

#endif							/* ACCORD_DELIVERY_H */
