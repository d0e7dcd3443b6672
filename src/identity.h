/*
 * identity.h: exports of identity.c
 *
 * Layer 4: whether this database is the one its data was dispatched from.
 */
#ifndef ACCORD_IDENTITY_H
#define ACCORD_IDENTITY_H

/*
 * True when accord.identity knows this database and no other. False: this is a
 * copy, which must not talk to the world. A database with nothing of another's
 * to send is made its own. In a worker's transaction with a snapshot; looks
 * again only after a change.
 */
extern bool accord_identity_here(void);

/* Whether accord_identity_here() would look again. */
extern bool accord_identity_stale(void);

/*
 * Rows of the log are coming in from elsewhere, in this transaction: as soon
 * as they are visible, this is a copy. Cheap when said again.
 */
extern void accord_identity_mark_copy(void);

#endif							/* ACCORD_IDENTITY_H */
