/*
 * control.h: exports of control.c
 *
 * Layer 5: redeliver() and discard(), as a dispatcher carries them out.
 */
#ifndef ACCORD_CONTROL_H
#define ACCORD_CONTROL_H

#include "endpoint.h"

#define ACCORD_TOPIC_REDELIVER "accord.redeliver"
#define ACCORD_TOPIC_DISCARD "accord.discard"
#define ACCORD_TOPIC_PAUSE "accord.pause"
#define ACCORD_TOPIC_RESUME "accord.resume"
#define ACCORD_TOPIC_CONFIRM "accord.confirm"

/*
 * The i-th delivery that a control event is about: its place, and the version
 * that was decided about (0: whatever it is). False: there are no more. The
 * channel is NULL when it cannot be read.
 */
extern bool accord_control_item(Jsonb *payload, int i,
								AccordBacklogRow *place);

/*
 * Applies a control event, a row of event_log with this topic, to the
 * deliveries of our endpoints. Their new rows are in the settling batch.
 * False: one of them is in that batch already; apply the event again when the
 * batch is committed. Nothing of it was applied.
 */
extern bool accord_control_apply(AccordDesk *desk, const AccordCommit *commit,
								 TupleTableSlot *row, const char *topic,
								 TimestampTz now);

#endif							/* ACCORD_CONTROL_H */
