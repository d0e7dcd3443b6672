/*
 * await.h: exports of await.c
 *
 * Layer 5: deliveries that wait until a channel's id of something is known.
 */
#ifndef ACCORD_AWAIT_H
#define ACCORD_AWAIT_H

#include "endpoint.h"

/* What is waited for: the same for whoever waits and whoever brings it. */
extern uint64 accord_await_hash(const char *channel, const char *account,
								const char *kind, const char *key);

/* A PARKED delivery waits for that, besides its due time. */
extern void accord_await_enter(AccordDesk *desk, AccordDelivery *delivery,
							   uint64 hash);

/* It is PARKED no longer. */
extern void accord_await_leave(AccordDelivery *delivery);

/* It is known now: those who wait for it take their turn. */
extern void accord_await_release(AccordDesk *desk, uint64 hash);

/* Anything may be known now. */
extern void accord_await_release_all(AccordDesk *desk);

#endif							/* ACCORD_AWAIT_H */
