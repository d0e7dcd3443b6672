/*
 * show.h: exports of show.c
 *
 * Layer 5: a dispatcher shows how its endpoints are doing.
 */
#ifndef ACCORD_SHOW_H
#define ACCORD_SHOW_H

#include "endpoint.h"

/*
 * Shows what has changed, at most a few times a second, or at once when
 * nothing else is to be done. Returns in how many milliseconds there is more
 * to be shown; -1: nothing is.
 */
extern long accord_show(AccordDesk *desk, bool idle, TimestampTz now);

#endif							/* ACCORD_SHOW_H */
