/*
 * restamp.h: exports of restamp.c
 *
 * Layer 5: the application's own writes of managed tables, where they always
 * win.
 */
#ifndef ACCORD_RESTAMP_H
#define ACCORD_RESTAMP_H

#include "register.h"

/* A row was inserted, at that time; values: all its columns. */
extern void accord_restamp_insert(AccordManaged *managed, const char *key,
								  int64 clock, Jsonb *values);

/* Columns were updated; before: what was in them. */
extern void accord_restamp_update(AccordManaged *managed, const char *key,
								  const AccordStamp *stamp, Jsonb *before);

#endif							/* ACCORD_RESTAMP_H */
