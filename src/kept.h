/*
 * kept.h: exports of kept.c
 *
 * Layer 5: what is kept of a managed row besides the row: accord.row_state.
 */
#ifndef ACCORD_KEPT_H
#define ACCORD_KEPT_H

#include "policy.h"
#include "storage/itemptr.h"

typedef struct AccordKept
{
	Jsonb	   *state;			/* NULL: nothing is kept */
	Jsonb	   *values;			/* of a row that is not in its table */
	bool		is_new;
	/* kept.c's own */
	ItemPointerData at;			/* where it is, unless it is new */
	uint64		writes;			/* ... if nothing was stored since */
	bool		is_claimed;		/* nobody else makes it, until it is stored */
} AccordKept;

/*
 * What is kept of a row, locked: nobody else locks it until the transaction
 * ends. To be stored in the same call.
 */
extern void accord_kept_lock(AccordManaged *managed, const char *key,
							 AccordKept *kept);

/*
 * The same for who cannot say when it will be stored, or whether: where
 * nothing is kept, that is stored.
 */
extern void accord_kept_hold(AccordManaged *managed, const char *key,
							 AccordKept *kept);

/* What is kept of it from now on. values NULL: the row is in its table. */
extern void accord_kept_store(AccordManaged *managed, const char *key,
							  AccordKept *kept, Jsonb *state, Jsonb *values);

#endif							/* ACCORD_KEPT_H */
