/*
 * store.h: exports of store.c
 *
 * Layer 5: managed rows, in their tables.
 */
#ifndef ACCORD_STORE_H
#define ACCORD_STORE_H

#include "policy.h"

/* A row by its key. */
typedef struct AccordRowKey
{
	Datum	   *values;			/* by the key's columns */
	char	   *text;			/* accord.row_key() of them */
} AccordRowKey;

/* Of an object of key columns; raises what is wrong with it. */
extern void accord_store_key(AccordManaged *managed, Jsonb *object,
							 AccordRowKey *key);

/* The object of a key's text, as accord.row_key() made it. */
extern Jsonb *accord_store_parse_key(AccordManaged *managed, const char *text);

/*
 * The row's image, locked to the end of the transaction; NULL: there is none.
 * Runs as the table's owner, as do the next three.
 */
extern Jsonb *accord_store_find(AccordManaged *managed,
								const AccordRowKey *key);

/* The same, not locked, under the active snapshot. */
extern Jsonb *accord_store_look(AccordManaged *managed,
								const AccordRowKey *key);

/*
 * Writes these columns (bool by the table's columns) of a row that is there;
 * or a new row of these columns and its key. Returns the row as it is then.
 */
extern Jsonb *accord_store_update(AccordManaged *managed,
								  const AccordRowKey *key,
								  const bool *columns, Jsonb **values);
extern Jsonb *accord_store_insert(AccordManaged *managed,
								  const AccordRowKey *key,
								  const bool *columns, Jsonb **values);
extern void accord_store_delete(AccordManaged *managed,
								const AccordRowKey *key);

/* Whether the row is being written by one of these. */
extern bool accord_store_writing(Oid relid, const char *key);

#endif							/* ACCORD_STORE_H */
