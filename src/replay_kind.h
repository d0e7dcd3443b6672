/*
 * replay_kind.h: exports of replay_kind.c
 *
 * Layer 5: an event as a replay looks at it, and of what kind it is.
 */
#ifndef ACCORD_REPLAY_KIND_H
#define ACCORD_REPLAY_KIND_H

#include "log.h"
#include "replay_job.h"

/* One event as it is looked at. */
typedef struct AccordReplayLook
{
	AccordDesk *desk;
	AccordReplayJob *job;
	const AccordCommit *commit;
	TupleTableSlot *row;
	AccordEvent *event;			/* NULL: nobody wanted it yet */
	int			ord;
	char	   *topic;
	char	   *key;
	bool		counted;		/* in this pass, or it will be in another */
	TimestampTz now;
} AccordReplayLook;

extern void accord_replay_look_start(AccordReplayLook *look, AccordDesk *desk,
									 TupleTableSlot *row);
extern void accord_replay_look_end(AccordReplayLook *look);

/* The event in memory, made when it is wanted. */
extern AccordEvent *accord_replay_look_event(AccordReplayLook *look);

/*
 * What an event is a state of, at a connection. False: of nothing; it is a
 * command, or has none of what it would be told apart by.
 */
extern bool accord_replay_find_kind(AccordReplayLook *look,
									AccordConnection *connection,
									const AccordRoute *route,
									AccordKind *kind);

extern void accord_replay_set_kind(const AccordReplayJob *job,
								   AccordDelivery *delivery,
								   const AccordKind *kind);

/* The lane of a kind, or of a key, within a replay. */
extern uint64 accord_replay_order(const AccordReplayJob *job, uint64 hash);

/*
 * There is something of a kind at a place; the table outlives the caller's
 * memory.
 */
extern void accord_replay_note_latest(AccordReplayJob *job, AccordKind kind,
									  AccordPoint here, bool only_known);

/* Something newer of a kind is known: what is under way is not the latest. */
extern void accord_replay_overtake(AccordDesk *desk,
								   const AccordReplayJob *job,
								   const AccordKind *kind, AccordPoint newer);

#endif							/* ACCORD_REPLAY_KIND_H */
