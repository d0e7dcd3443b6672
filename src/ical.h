/*
 * ical.h: what pg_accord_ical, a library of its own, gives.
 *
 * Layer 1: iCalendars (RFC 5545), read by libical. The library is loaded by
 * accord_ical_load() when the first one is read.
 */
#ifndef ACCORD_ICAL_H
#define ACCORD_ICAL_H

#include "datatype/timestamp.h"

/* What becomes of events that repeat. */
typedef struct AccordIcalBounds
{
	TimestampTz after;			/* those that end after this, */
	TimestampTz before;			/* ... and begin before, each by itself; */
	bool		expand;			/* ... false: as their rule */
} AccordIcalBounds;

/* An event, as a JSON object, palloc'd. */
typedef void (*AccordIcalEmit) (char *json, void *arg);

/*
 * Reads a calendar, and emits its events in the order of their keys; of
 * several of one key the latest by SEQUENCE. Raises when it is none, or ends
 * early.
 */
typedef void (*AccordIcalEvents) (const char *calendar,
								  const AccordIcalBounds *bounds,
								  AccordIcalEmit emit, void *arg);

/* AccordIcalEvents; raises when the library is not installed. */
extern void *accord_ical_load(void);

#endif							/* ACCORD_ICAL_H */
