/*
 * replay_read.h: exports of replay_read.c
 *
 * Layer 5: from the log into a replay's page.
 */
#ifndef ACCORD_REPLAY_READ_H
#define ACCORD_REPLAY_READ_H

#include "replay_job.h"

/* Whether a live delivery was settled before we started. */
typedef bool (*AccordReplaySettled) (AccordEndpoint *endpoint, int64 seq,
									 int ord);
extern void accord_replay_read_init(AccordReplaySettled is_settled);

/* So many replays share the memory for what is read past. */
extern void accord_replay_read_share(int n);

/* Whether there is something to be read, and room for it. */
extern bool accord_replay_wants_page(AccordDesk *desk,
									 const AccordReplayJob *job);

/* Scans on, or walks on, for a slice. Opens a transaction. */
extern void accord_replay_read_on(AccordDesk *desk, AccordReplayJob *job);

/* What was settled before a restart is behind us, or of an earlier pass. */
extern void accord_replay_forget_settled(AccordReplayJob *job);

#endif							/* ACCORD_REPLAY_READ_H */
