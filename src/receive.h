/*
 * receive.h: exports of receive.c
 *
 * Layer 5: what comes back from channels.
 */
#ifndef ACCORD_RECEIVE_H
#define ACCORD_RECEIVE_H

#include "keys.h"
#include "message.h"
#include "source.h"

/*
 * Receives one message: into the log, or into its target, once. keys is the
 * inbox, open. Returns what accord.receive() returns.
 */
extern Jsonb *accord_receive_message(const AccordSource *source,
									 AccordKeys *keys, AccordMessage *message);

#endif							/* ACCORD_RECEIVE_H */
