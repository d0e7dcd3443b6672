/*
 * mapping.h: exports of mapping.c
 *
 * Layer 5: what was sent to us, or fetched, becomes messages.
 */
#ifndef ACCORD_MAPPING_H
#define ACCORD_MAPPING_H

#include "message.h"

/* How something from outside becomes messages. */
typedef struct AccordMapping
{
	const char *kind;			/* "source" or "feed": for errors */
	const char *name;			/* ... which one */
	Jsonb	   *paths;			/* NULL: there are none */
	const char *function;		/* schema-qualified and quoted; NULL: none */
	Oid			owner;			/* whom the function runs as */
} AccordMapping;

/* One message, of the mapping's JSON paths and constants. */
extern void accord_mapping_by_paths(const AccordMapping *mapping,
									Jsonb *headers, Jsonb *body,
									AccordMessage *message);

/*
 * The messages that the mapping's function makes, as its owner, in a
 * security-restricted context; palloc'd. Raises what the function raises, and
 * when it does not exist or would run as a superuser though a mere user owns
 * it.
 */
extern AccordMessage *accord_mapping_by_function(const AccordMapping *mapping,
												 Jsonb *headers, Jsonb *body,
												 int *n);

#endif							/* ACCORD_MAPPING_H */
