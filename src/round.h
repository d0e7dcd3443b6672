/*
 * round.h: exports of round.c
 *
 * Layer 5: whose turn it is to send. No I/O and no clock.
 */
#ifndef ACCORD_ROUND_H
#define ACCORD_ROUND_H

#include "endpoint.h"

/*
 * Whether a gate lets one more through. Besides those in flight, what was
 * answered and is not committed yet counts: a crash repeats no more than twice
 * max_in_flight requests.
 */
extern bool accord_gate_open(const AccordGate *gate);

/*
 * Whether something live is READY at a connection: what is replayed goes
 * behind it.
 */
extern bool accord_connection_has_live(const AccordConnection *connection);

/*
 * How many of so many requests at a time replays may use: the others are kept
 * for what is live.
 */
extern int	accord_replay_share(const AccordGate *gate);

/* Whose turn it is: the next channel with something to send and room for it,
 * and its next connection. NULL: nobody's. */
extern AccordHub *accord_desk_turn(AccordDesk *desk);
extern AccordConnection *accord_hub_turn(AccordDesk *desk, AccordHub *hub);

/* It has had its turn: after as many as its weight, it is the others'. */
extern void accord_connection_served(AccordDesk *desk,
									 AccordConnection *connection);

/*
 * Puts a connection into its channel's round when it has something to send and
 * may; and the channel into the dispatcher's.
 */
extern void accord_connection_rotate(AccordDesk *desk,
									 AccordConnection *connection);

/* Takes it out again. */
extern void accord_connection_rest(AccordDesk *desk,
								   AccordConnection *connection);

/* Out of its round until a time; at 0 it is woken now. */
extern void accord_hub_sleep(AccordDesk *desk, AccordHub *hub,
							 TimestampTz until);
extern void accord_connection_sleep(AccordDesk *desk,
									AccordConnection *connection,
									TimestampTz until);

/* Wakes all whose time has come. */
extern void accord_desk_wake(AccordDesk *desk, TimestampTz now);

/* When the next alarm rings; 0: none is set. */
extern TimestampTz accord_desk_next_alarm(AccordDesk *desk);

/* The queue whose turn it is, of those with something READY; NULL: none. */
extern AccordEndpoint *accord_connection_choose(AccordConnection *connection);

#endif							/* ACCORD_ROUND_H */
