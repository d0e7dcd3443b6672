/*
 * prepared.h: exports of prepared.c
 *
 * Layer 4: the place in the commit order of transactions that are committed in
 * two phases.
 */
#ifndef ACCORD_PREPARED_H
#define ACCORD_PREPARED_H

/*
 * Around COMMIT PREPARED. before() draws the number of the transaction of that
 * name, if it has events, so that whoever has waited for it comes after it;
 * after() gives it its place, in the statement's own transaction. Nothing is
 * done without the extension.
 */
extern void accord_prepared_before(const char *gid);
extern void accord_prepared_after(void);

/*
 * Gives a place to those that were committed without one: their server
 * stopped, or their session failed, between the two. In a transaction. Returns
 * how many; -1: a session is just placing one, ask again when it has ended.
 */
extern int	accord_prepared_complete(void);

/* Whether there may be such, since this process last asked. */
extern bool accord_prepared_incomplete(void);

#endif							/* ACCORD_PREPARED_H */
