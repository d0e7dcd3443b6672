/*
 * idempotency.h: exports of idempotency.c
 *
 * Layer 4: an idempotency key is used once.
 */
#ifndef ACCORD_IDEMPOTENCY_H
#define ACCORD_IDEMPOTENCY_H

/*
 * Claims the idempotency_key of an event that is about to be appended (values
 * and nulls as in accord_log_append(), event_id filled in). True: it is new.
 * False: it was used for the same content. Raises when it was used for other
 * content. Waits for a concurrent transaction that is using it.
 */
extern bool accord_idempotency_claim(const Datum *values, const bool *nulls);

#endif							/* ACCORD_IDEMPOTENCY_H */
