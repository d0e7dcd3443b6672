/*
 * ledger.h: exports of ledger.c
 *
 * Layer 5: the logs of what came to managed tables, and of what lost.
 */
#ifndef ACCORD_LEDGER_H
#define ACCORD_LEDGER_H

#include "merge.h"

/* before: what the row had in the columns that the change gives. */
extern void accord_ledger_change(AccordManaged *managed, const char *key,
								 const AccordRowChange *change, Jsonb *before);

/* Unless its loser is on record already. */
extern void accord_ledger_conflict(AccordManaged *managed, const char *key,
								   const AccordConflict *conflict);

#endif							/* ACCORD_LEDGER_H */
