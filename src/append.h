/*
 * append.h: exports of append.c
 *
 * Layer 1: rows appended to a log one at a time, as cheaply as can be.
 */
#ifndef ACCORD_APPEND_H
#define ACCORD_APPEND_H

/*
 * Appends a row to a ring's partition, and to its indexes: what
 * accord_db_insert() does for one row, but what is known of the table and of
 * its indexes is kept from one call to the next. The partition is locked
 * RowExclusive.
 */
extern void accord_append_row(const char *table, int slot, Datum *values,
							  bool *nulls);

#endif							/* ACCORD_APPEND_H */
