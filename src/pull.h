/*
 * pull.h: exports of pull.c
 *
 * Layer 5: what is fetched from channels: feeds, and what reconciliations read.
 */
#ifndef ACCORD_PULL_H
#define ACCORD_PULL_H

#include "endpoint.h"

#define ACCORD_TOPIC_PULL "accord.pull"

/* Asks, and has taken in what was answered. Outside any transaction. */
extern void accord_pull_turn(AccordDesk *desk, TimestampTz now);

/* When there is something to ask; 0: not known of anything. */
extern TimestampTz accord_pull_due(void);

/* The log says that one is to be looked at again: {"kind": , "id": }. */
extern void accord_pull_heed(Jsonb *payload);

#endif							/* ACCORD_PULL_H */
