/*
 * captured.h: exports of captured.c
 *
 * Layer 5: DDL of captured tables.
 */
#ifndef ACCORD_CAPTURED_H
#define ACCORD_CAPTURED_H

#include "nodes/nodes.h"

/* Whether a statement may rename or alter captured tables, or add partitions. */
extern bool accord_captured_concerns(Node *stmt);

/*
 * Brings up to date what is written of captured tables: before and after a
 * statement that concerns them, and after any that dropped one.
 */
extern void accord_captured_follow(bool concerned);

/* After a statement that may have made a trigger. */
extern void accord_captured_note_made(Node *stmt);

/* A trigger is about to be dropped. */
extern void accord_captured_note_drop(Oid trigger);

#endif							/* ACCORD_CAPTURED_H */
