/*
 * keeper.h: exports of keeper.c
 *
 * Layer 5: housekeeping, in a process of its own.
 */
#ifndef ACCORD_KEEPER_H
#define ACCORD_KEEPER_H

/*
 * Starts a keeper for this dispatcher's database, unless the last one is
 * still at work. It ends by itself, or with this process. One that cannot be
 * started is logged; the next call tries again.
 */
extern void accord_keeper_start(void);

#endif							/* ACCORD_KEEPER_H */
