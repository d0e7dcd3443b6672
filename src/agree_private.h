/*
 * agree_private.h: what agree.c and agree_row.c share
 *
 * Layer 5. Included by those only.
 */
#ifndef ACCORD_AGREE_PRIVATE_H
#define ACCORD_AGREE_PRIVATE_H

#include "access/htup.h"
#include "utils/rel.h"

#include "policy.h"

/* The table at hand, which may be a partition of the managed one. */
typedef struct AccordAgreeTable
{
	Relation	rel;
	AccordManaged *managed;
	const AttrNumber *columns;	/* where the managed one's are; see
								 * partition.h */
} AccordAgreeTable;

/* A row at hand, taken apart: its columns are those of the managed table. */
typedef struct AccordAgreeRow
{
	AccordManaged *managed;
	Datum	   *values;
	bool	   *nulls;
	char	   *key;
} AccordAgreeRow;

/*
 * agree_row.c
 */

/* Takes a row of the table apart; raises when it has no key. */
extern void accord_agree_row(const AccordAgreeTable *table, HeapTuple tuple,
							 AccordAgreeRow *row);

/* Its image, of these columns (by the image); NULL: all. */
extern Jsonb *accord_agree_image(const AccordAgreeRow *row,
								 const bool *wanted);

/* A column of an image; NULL when null. */
extern Jsonb *accord_agree_column(Jsonb *image, const AccordColumn *column);

/*
 * Which columns differ, by the image; the keys and generated ones aside. How
 * many do.
 */
extern int	accord_agree_changed(const AccordAgreeRow *old_row,
								 const AccordAgreeRow *new_row, bool *changed);

/* The tuple with some of the managed table's columns as the row has them. */
extern HeapTuple accord_agree_replace(const AccordAgreeTable *table,
									  HeapTuple tuple,
									  const AccordAgreeRow *row,
									  const bool *replaced);

#endif							/* ACCORD_AGREE_PRIVATE_H */
