/*
 * managed.h: exports of managed.c
 *
 * Layer 5: a message's change, merged into a managed table.
 */
#ifndef ACCORD_MANAGED_H
#define ACCORD_MANAGED_H

#include "target.h"

/* Whether the table has policies. */
extern bool accord_managed_is(Oid relid);

/*
 * Merges the change into the row named by key, an object of its key columns,
 * with accord.source set. Fills in everything but the key; before is
 * the whole row.
 */
extern void accord_managed_apply(const AccordMessage *message,
								 const AccordSource *source, Jsonb *key,
								 AccordApplied *applied);

#endif							/* ACCORD_MANAGED_H */
