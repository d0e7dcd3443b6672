/*
 * replay_release.h: exports of replay_release.c
 *
 * Layer 5: from a replay's page into the queues.
 */
#ifndef ACCORD_REPLAY_RELEASE_H
#define ACCORD_REPLAY_RELEASE_H

#include "replay_job.h"

/* Who has no room is slow when nothing was let go for so many microseconds. */
#define ACCORD_REPLAY_STUCK_AFTER 100000

/*
 * Lets go what may be sent now, of all streams in turn; at a channel once in
 * each turn of the loop. True: something is.
 */
extern bool accord_replay_release(AccordDesk *desk, AccordReplayJob *job,
								  uint64 turn, TimestampTz now);

#endif							/* ACCORD_REPLAY_RELEASE_H */
