/*
 * replay.h: exports of replay.c
 *
 * Layer 5: events of the log that are owed again, behind what is live.
 */
#ifndef ACCORD_REPLAY_H
#define ACCORD_REPLAY_H

#include "replay_read.h"

#define ACCORD_TOPIC_REPLAY "accord.replay"

/*
 * Takes up the replays of our channels that have not ended. In a transaction.
 * is_settled tells of a live delivery that was before we started.
 */
extern void accord_replay_start(AccordDesk *desk,
								AccordReplaySettled is_settled);

/* Somebody asked for a replay, or cancelled one. In a transaction. */
extern void accord_replay_heed(AccordDesk *desk, Jsonb *payload);

/*
 * A delivery with a row in the backlog, made from it and NEW otherwise, is one
 * of that replay's (0: of none). In a transaction.
 */
extern void accord_replay_recall(AccordDesk *desk, AccordDelivery *delivery,
								 int64 replay);

/*
 * A live event is owed to a connection that route takes it to: what is older of
 * its kind is no longer the latest. row is of event_log.
 */
extern void accord_replay_watch(AccordDesk *desk, AccordConnection *connection,
								AccordRoute *route, int64 seq, int ord,
								TupleTableSlot *row);

/*
 * Reads on, and lets go what may be sent behind what is live: true when there
 * is something now. Opens a transaction when it needs one.
 */
extern bool accord_replay_turn(AccordDesk *desk, TimestampTz now);

/* In how many milliseconds it is worth asking again; -1: something else will
 * come before. */
extern long accord_replay_timeout(AccordDesk *desk, TimestampTz now);

/* How many replays of a connection are running. */
extern int	accord_replay_count(AccordDesk *desk,
								const AccordConnection *connection);

#endif							/* ACCORD_REPLAY_H */
