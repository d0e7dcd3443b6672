/*
 * store.h: exports of store.c
 *
 * Layer 5: managed rows, what is kept of them, and the logs of what came and
 * of what lost.
 */
#ifndef ACCORD_STORE_H
#define ACCORD_STORE_H

#include "merge.h"

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

/* What is kept of a row, locked; made empty when there is nothing. */
typedef struct AccordKept
{
	Jsonb	   *state;
	Jsonb	   *values;			/* of a row that is not in its table */
	bool		is_new;
} AccordKept;

extern void accord_store_lock(AccordManaged *managed, const char *key,
							  AccordKept *kept);
extern void accord_store_keep(AccordManaged *managed, const char *key,
							  Jsonb *state, Jsonb *values);

/*
 * In one statement, for the application's own writes where they always win:
 * puts registers in the place of those of the same name. old_values: of these
 * columns. clock: of the insert, when nothing is kept yet.
 */
extern void accord_store_stamp(AccordManaged *managed, const char *key,
							   Jsonb *registers, int64 clock,
							   Jsonb *old_values);

/* The logs. before: what the row had in the columns that the change gives. */
extern void accord_store_log_change(AccordManaged *managed, const char *key,
									const AccordRowChange *change,
									Jsonb *before);
extern void accord_store_log_conflict(AccordManaged *managed, const char *key,
									  const AccordConflict *conflict);

#endif							/* ACCORD_STORE_H */
