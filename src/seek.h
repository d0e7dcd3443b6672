/*
 * seek.h: exports of seek.c
 *
 * Layer 1: rows found by an index, locked and written, without an executor.
 */
#ifndef ACCORD_SEEK_H
#define ACCORD_SEEK_H

#include "access/skey.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

/* The table's primary key, opened; our own tables have one. */
extern Relation accord_seek_primary_key(Relation heap);

/*
 * The first row that the index has for the keys under the snapshot; false:
 * there is none. The row is in the slot, which the caller made for the table.
 */
extern bool accord_seek_row(Relation heap, Relation index, ScanKey keys, int n,
							Snapshot snapshot, TupleTableSlot *row);

/*
 * As SELECT ... FOR UPDATE does: sees what was committed until now, and what
 * this transaction wrote; waits for whoever has the row, and takes what they
 * made of it if the keys are still its. Under REPEATABLE READ and above a row
 * that changed since the snapshot raises. Locked to the transaction's end.
 */
extern bool accord_seek_locked(Relation heap, Relation index, ScanKey keys,
							   int n, TupleTableSlot *row);

/*
 * Calls back for each row that was committed until now, or written by this
 * transaction, and for which the index has the keys, until that returns true;
 * returns whether it did.
 */
typedef bool (*AccordSeekCallback) (TupleTableSlot *row, void *arg);
extern bool accord_seek_any(Relation heap, Relation index, ScanKey keys, int n,
							AccordSeekCallback callback, void *arg);

/* A new row, where there is room in the table. */
extern void accord_seek_insert(Relation heap, const Datum *values,
							   const bool *nulls);

/* Another version of a row that this transaction has locked. */
extern void accord_seek_update(Relation heap, ItemPointer at,
							   const Datum *values, const bool *nulls);

#endif							/* ACCORD_SEEK_H */
