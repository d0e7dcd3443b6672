/*
 * row.h: exports of row.c
 *
 * Layer 1: rows of a table made from their images in the log.
 */
#ifndef ACCORD_ROW_H
#define ACCORD_ROW_H

#include "access/htup.h"
#include "utils/jsonb.h"

/* How images become rows of one type; lives in the context of its making. */
typedef struct AccordRowMaker AccordRowMaker;

extern AccordRowMaker *accord_row_prepare(Oid rowtype);

/* Whether the type's columns are still those it was made for. */
extern bool accord_row_prepared(AccordRowMaker *maker, Oid rowtype);

/*
 * A column's value is taken from "over", else from "under"; either may be
 * NULL. A column that neither has is null. names, when given, tells for each
 * column how it is called there; NULL: it was not there. Raises, and names the
 * column, when a value is none of the column's type (any more). The tuple is
 * allocated in the current context, and so is what is used on the way.
 */
extern HeapTuple accord_row_make(AccordRowMaker *maker, char **names,
								 Jsonb *over, Jsonb *under);

#endif							/* ACCORD_ROW_H */
