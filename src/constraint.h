/*
 * constraint.h: exports of constraint.c
 *
 * Layer 3: a table's own constraints, with a hint.
 */
#ifndef ACCORD_CONSTRAINT_H
#define ACCORD_CONSTRAINT_H

#include "access/htup.h"
#include "utils/relcache.h"

/*
 * Raises, with what to do, where the executor would say that a row violates a
 * NOT NULL or a CHECK; shows no column but the one at fault, and never a
 * secret's value.
 */
extern void accord_constraint_check(Relation rel, HeapTuple row);

#endif							/* ACCORD_CONSTRAINT_H */
