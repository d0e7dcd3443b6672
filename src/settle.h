/*
 * settle.h: exports of settle.c and its parts, settle_*.c
 *
 * Layer 5: conclusions about deliveries, made durable many at a time.
 */
#ifndef ACCORD_SETTLE_H
#define ACCORD_SETTLE_H

#include "endpoint.h"
#include "judge.h"
#include "request.h"

extern void accord_settle_init(AccordDesk *desk);

/*
 * What the other side said, fit to be kept, "keep" bytes at most: a server that
 * echoes what it was sent echoes the credential as well. palloc'd.
 */
extern char *accord_settle_foreign_text(const AccordConnection *connection,
										const char *bytes, size_t len,
										size_t keep);

/* An answer (or none) came back for a TAKEN delivery. */
extern void accord_settle_response(AccordDelivery *delivery,
								   const AccordHttpResponse *response,
								   TimestampTz now);

/* The same, where more than its status says what it means. */
extern void accord_settle_judged(AccordDelivery *delivery,
								 const AccordHttpResponse *response,
								 const AccordJudgement *judgement,
								 TimestampTz now);

/*
 * What becomes of a delivery after such an attempt, by its policy; certain: it
 * is known that it was not done, so that a command may be repeated, too.
 */
extern AccordVerdict accord_settle_verdict(const AccordDelivery *delivery,
										   AccordOutcome outcome,
										   AccordSent sent, bool certain,
										   TimestampTz now);

/*
 * A TAKEN member of a batch that was refused, or could not be made (response
 * NULL), as a whole: again, with fewer than batch_max others. That costs no
 * attempt.
 */
extern void accord_settle_again(AccordDelivery *delivery,
								const AccordHttpResponse *response,
								int batch_max, const char *error,
								TimestampTz now);

/*
 * A TAKEN member of a batch that failed as a whole, perhaps because of one of
 * them: as accord_settle_judged(), but it is retried with fewer than batch_max
 * others. That costs no attempt.
 */
extern void accord_settle_divided(AccordDelivery *delivery,
								  const AccordHttpResponse *response,
								  const AccordJudgement *judgement,
								  int batch_max, TimestampTz now);

/* What is settled until this ends is retried at one time, as far as it may. */
extern void accord_settle_together(bool together);

/*
 * A TAKEN delivery is concluded without a transfer: INVALID, SKIPPED,
 * DISCARDED, LOST; or RETRY when what was wrong may pass.
 */
extern void accord_settle_without(AccordDelivery *delivery,
								  AccordOutcome outcome, const char *error,
								  TimestampTz now);

/*
 * A TAKEN delivery's request is to be durable before it is sent; it is handed
 * to the callback of accord_settle_commit() then. request may be NULL.
 */
extern void accord_settle_intent(AccordDelivery *delivery, Jsonb *request,
								 TimestampTz now);

/* A listed delivery that is not due yet: it is in the backlog from now on. */
extern void accord_settle_schedule(AccordDelivery *delivery,
								   TimestampTz due_at);

/*
 * A person decided about a delivery that is not under way: it is owed again
 * (keep: here; else only its row is, memory is full), or given up. key is its
 * event's.
 */
extern void accord_settle_replay(AccordDelivery *delivery, const char *key,
								 TimestampTz now, bool keep);
extern void accord_settle_discard(AccordDelivery *delivery, const char *key);

/* Whether anything waits to be settled. */
extern bool accord_settle_pending(void);

/* Whether the batch should be committed before anything is added. */
extern bool accord_settle_full(void);

/* Somebody waits for the batch: it is committed at the next occasion. */
extern void accord_settle_hurry(void);

/* Settling waits for this many milliseconds at most; -1: there
 * is nothing to settle. idle: nothing else is going on. */
extern long accord_settle_timeout(TimestampTz now, bool idle);

typedef void (*AccordSettleSend) (AccordDelivery *delivery);

/* Makes it all durable in one transaction, then lets deliveries go on. */
extern void accord_settle_commit(TimestampTz now, AccordSettleSend send);

#endif							/* ACCORD_SETTLE_H */
