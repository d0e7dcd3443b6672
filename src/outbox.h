/*
 * outbox.h: exports of outbox.c
 *
 * Layer 5: what an event must be.
 */
#ifndef ACCORD_OUTBOX_H
#define ACCORD_OUTBOX_H

/*
 * Raises what is wrong with an event that is about to be appended: values and
 * nulls as in accord_log_append(), op given.
 */
extern void accord_outbox_check(const Datum *values, const bool *nulls);

/*
 * Raises when the relation is written to, is the outbox, and its triggers do
 * not fire in this session. Has every query looked at for that.
 */
extern void accord_outbox_refuse_replica(Oid relid);
extern void accord_outbox_init(void);

#endif							/* ACCORD_OUTBOX_H */
