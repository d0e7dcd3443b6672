/*
 * ring.h: exports of ring.c
 *
 * Layer 4: the rings' housekeeping, as a worker calls it.
 */
#ifndef ACCORD_RING_H
#define ACCORD_RING_H

/*
 * Runs accord.turn_rings() in a transaction of its own. What goes wrong is
 * logged, not raised: it is tried again at the next turn.
 */
extern void accord_ring_turn(void);

#endif							/* ACCORD_RING_H */
