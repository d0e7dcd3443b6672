/*
 * probe.h: exports of probe.c
 *
 * Layer 5: one harmless call that says what is wrong with a channel.
 */
#ifndef ACCORD_PROBE_H
#define ACCORD_PROBE_H

#include "endpoint.h"

/* The dispatcher's part: takes what is asked about its channels. */
extern void accord_probe_turn(AccordDesk *desk);

#endif							/* ACCORD_PROBE_H */
