/*
 * capture.h: exports of capture.c
 *
 * Layer 5: rows of captured tables as events.
 */
#ifndef ACCORD_CAPTURE_H
#define ACCORD_CAPTURE_H

#include "access/tupdesc.h"
#include "executor/tuptable.h"

/* How the rows of one captured table become events. */
typedef struct AccordCapture AccordCapture;

/*
 * By the table's number; desc is that of the rows that are to be described,
 * which has the table's columns by name. NULL: there is no such number.
 */
extern AccordCapture *accord_capture_open(int id, TupleDesc desc,
										  const char *table);

/* The key of a row, palloc'd; may be NULL. */
extern char *accord_capture_key(const AccordCapture *capture,
								TupleTableSlot *row);

/* Appends an event that says that the row is there, for nobody to be sent. */
extern void accord_capture_baseline(const AccordCapture *capture,
									TupleTableSlot *row);

#endif							/* ACCORD_CAPTURE_H */
