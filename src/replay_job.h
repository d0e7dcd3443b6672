/*
 * replay_job.h: exports of replay_job.c
 *
 * Layer 5: what a replay is about, and how far it had come.
 */
#ifndef ACCORD_REPLAY_JOB_H
#define ACCORD_REPLAY_JOB_H

#include "endpoint.h"
#include "latest.h"

/* What a replay has for one connection, and has not let go yet. */
typedef struct AccordReplayStream
{
	AccordConnection *connection;	/* hash key */
	AccordEndpoint *endpoint;
	dlist_head	pending;		/* NEW deliveries in the order of the log */
	int			n;				/* ... so many */
	dlist_node	node;			/* in job->streams, while something is pending */
	bool		listed;
	bool		stuck;			/* could not go when last asked: others are
								 * read past it */
} AccordReplayStream;

typedef struct AccordReplayJob
{
	AccordReplay base;			/* first: what the others know of it */
	MemoryContext context;		/* of all below, while it runs */
	AccordReplayState end;		/* CANCELLING: what it is to become */
	AccordHub  *hub;
	char	   *channel;
	char	   *account;		/* NULL: all of the channel */
	bool		state_mode;		/* only the latest of each kind */
	int64		first_seq;		/* of the selection */
	int64		last_seq;
	char	   *topic;			/* NULL: all; so are the next three */
	char	   *key;
	unsigned	ops;			/* bits of AccordOp; 0: all */
	unsigned char *events;		/* sorted UUIDs */
	int			n_events;
	int			table_id;		/* 0: all */
	bool		limited;
	AccordRate	rate;
	AccordBucket bucket;
	bool		begun;			/* has a place in the log */
	bool		walked_all;		/* of this pass */
	HTAB	   *streams_by_connection;
	dlist_head	streams;
	int			n_pending;
	int			n_stuck;		/* of them, in streams that are stuck */
	HTAB	   *settled;		/* before a restart, beyond its row; or NULL */
	AccordPoint settled_high;	/* the last of them */
	bool		turning;		/* state: the next pass waits for its row */
	bool		scanning;		/* state: looking for the latest, */
	AccordPoint scan;			/* ... up to here, */
	int64		scan_end;		/* ... to the end of this transaction */
	AccordLatest latest;
	TimestampTz released_at;	/* something was let go last */
	TimestampTz wake_at;		/* something can be let go then; 0: not known */
} AccordReplayJob;

/* A place in the log, for a job's "settled". */
typedef struct AccordReplayPlace
{
	int64		seq;
	int64		ord;
} AccordReplayPlace;

/*
 * Reads jobs that this dispatcher did not know: those of its channels; all, or
 * the one of that number (0: all). In a transaction. What it knows already it
 * looks at only for whether it was cancelled. found is called for each new one.
 */
typedef void (*AccordReplayFound) (AccordDesk *desk, AccordReplayJob *job,
								   void *arg);
extern void accord_replay_job_load(AccordDesk *desk, int64 id,
								   AccordReplayFound found, void *arg);

/* One that was read, ended or not; NULL: none is known. */
extern AccordReplayJob *accord_replay_job_find(int64 id);

/* Gives back what only a running job needs. */
extern void accord_replay_job_close(AccordReplayJob *job);

#endif							/* ACCORD_REPLAY_JOB_H */
