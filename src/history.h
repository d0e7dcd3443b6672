/*
 * history.h: exports of history.c
 *
 * Layer 5: captured events of rows and transactions, as SQL reads them.
 */
#ifndef ACCORD_HISTORY_H
#define ACCORD_HISTORY_H

#include "access/skey.h"

/*
 * A key given in SQL as the log has it: text as it is, another value or a row
 * of values as accord.captured tables write them. palloc'd.
 */
extern char *accord_history_key(Datum value, Oid type);

/* The index of a partition of event_log by table and key. */
extern Oid	accord_history_index(int slot);

/* Keys of a scan of that index, by columns of event_log, for one row. */
extern void accord_history_keys(ScanKeyData *keys, int table_id, Datum key);

/* The operator that tells whether two values of a type are the same, as SQL. */
extern char *accord_history_equality(Oid type);

#endif							/* ACCORD_HISTORY_H */
