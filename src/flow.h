/*
 * flow.h: exports of flow.c
 *
 * Layer 5: who may send now: rate limits, what servers ask for, and circuit
 * breakers, applied to the endpoints of a dispatcher.
 */
#ifndef ACCORD_FLOW_H
#define ACCORD_FLOW_H

#include "endpoint.h"

extern void accord_flow_init(AccordDesk *desk);

/* Today's limits of a connection, and of its channel; account may be NULL. */
extern void accord_flow_configure(AccordConnection *connection,
								  const AccordChannel *channel,
								  const AccordAccount *account);

/* The configuration has changed: nobody has been promised anything. */
extern void accord_flow_release(AccordDesk *desk);

/*
 * When the channel, and when the connection, may send: ACCORD_LIMIT_NOW, or a
 * time. A breaker whose time has come becomes half-open.
 */
extern TimestampTz accord_flow_hub_ready(AccordHub *hub, TimestampTz now);
extern TimestampTz accord_flow_connection_ready(AccordConnection *connection,
												TimestampTz now);

/*
 * A request costs its channel and its connection a token each, of all limits
 * that are not by event. True: it is the breaker's probe.
 */
extern bool accord_flow_take_tokens(AccordConnection *connection,
									TimestampTz now);

/* A delivery is TAKEN: it costs its channel and its connection a token. */
extern void accord_flow_take(AccordDelivery *delivery, TimestampTz now);

/*
 * When its limits by event let it pass: ACCORD_LIMIT_NOW, or a time. Those who
 * wait for one bucket are given times in the order in which they ask. Then
 * accord_flow_take_event(), of the same delivery, takes the tokens.
 */
extern TimestampTz accord_flow_event_ready(AccordDelivery *delivery,
										   const AccordRoute *route,
										   const AccordAccount *account,
										   TimestampTz now);
extern void accord_flow_take_event(TimestampTz now);

/* No request was made after all: the tokens are given back. */
extern void accord_flow_return(AccordDelivery *delivery, TimestampTz now);

/*
 * An attempt ended so; response is NULL when no request was made. Limits and
 * breaker draw their conclusions. error is for people, NULL: none. dice is
 * uniform in [0, 1).
 */
extern void accord_flow_result(AccordDesk *desk, AccordDelivery *delivery,
							   AccordOutcome outcome,
							   const AccordHttpResponse *response,
							   const char *error, double dice,
							   TimestampTz now);

/*
 * The same of a request that took tokens, and was answered or failed on the
 * way; probe is what accord_flow_take_tokens() said.
 */
extern void accord_flow_conclude(AccordDesk *desk, AccordConnection *connection,
								 bool probe, TimestampTz started_at,
								 AccordOutcome outcome,
								 const AccordHttpResponse *response,
								 const char *error, double dice,
								 TimestampTz now);

/* The pause that a refusal asked for: no earlier than this is a retry due. */
extern TimestampTz accord_flow_pause(const AccordDelivery *delivery);

/* The fewest tokens of its and its channel's limits; -1: it has none. */
extern int64 accord_flow_tokens(const AccordConnection *connection,
								TimestampTz now);

/* A breaker as it was left by an earlier dispatcher: open until then. */
extern void accord_flow_restore(AccordConnection *connection,
								TimestampTz probe_at);

/*
 * A person lets a channel go on, or one account of it (NULL: all): breakers are
 * closed, and what servers asked for is forgotten.
 */
extern void accord_flow_resume(AccordDesk *desk, const char *channel,
							   const char *account);

/* Notes a change of an endpoint's state, to be written down. */
extern void accord_flow_note(const char *channel, const char *account,
							 const char *state, const char *reason,
							 TimestampTz until);

/* What was noted, and forgetting it once it is durable. */
extern int	accord_flow_noted(const AccordTransitionRow **rows);
extern void accord_flow_forget(void);

#endif							/* ACCORD_FLOW_H */
