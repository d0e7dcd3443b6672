/*
 * invalidation.h: exports of invalidation.c
 *
 * Layer 1: what the relation cache says to those who remember something about
 * relations.
 */
#ifndef ACCORD_INVALIDATION_H
#define ACCORD_INVALIDATION_H

#include "utils/inval.h"

/*
 * From now on the function is called when a relation has changed: with its
 * OID, or with InvalidOid when any may have. It may be called at any time a
 * relation is opened or locked: all it may do is take a note. For good; once
 * per process is enough.
 */
extern void accord_invalidation_heed(RelcacheCallbackFunction function,
									 Datum argument);

#endif
