/*
 * endpoint.h: exports of endpoint.c
 *
 * Layer 5: what a dispatcher holds in memory: events, deliveries, lanes and
 * endpoints; the types of all of it. No I/O and no clock.
 */
#ifndef ACCORD_ENDPOINT_H
#define ACCORD_ENDPOINT_H

#include "access/htup.h"
#include "backlog.h"
#include "breaker.h"
#include "config.h"
#include "gauge.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "limit.h"
#include "log.h"
#include "utils/hsearch.h"

struct AccordReplay;

/* An event that deliveries wait for; freed with its last reference. */
typedef struct AccordEvent
{
	int			refs;
	const struct AccordReplay *replay;	/* sent as a part of it; NULL: live */
	Size		bytes;
	HeapTuple	tuple;			/* of event_log, nothing toasted */
} AccordEvent;

/*
 * Where a delivery is. Every transition is one function of delivery.c;
 * of those in lanes, of lane.c.
 */
typedef enum AccordPhase
{
	ACCORD_PHASE_NEW,			/* next: WAITING, READY, PARKED, HELD */
	ACCORD_PHASE_WAITING,		/* behind another of its key; next: READY */
	ACCORD_PHASE_READY,			/* next: TAKEN */
	ACCORD_PHASE_TAKEN,			/* being made, in flight, or being settled;
								 * next: PARKED, HELD, READY, freed */
	ACCORD_PHASE_PARKED,		/* until due_at; next: WAITING, READY, freed */
	ACCORD_PHASE_HELD			/* until a person decides; next: READY, freed */
} AccordPhase;

struct AccordEndpoint;

/* Where a replay is; the words of replay_log.state. */
typedef enum AccordReplayState
{
	ACCORD_REPLAY_RUNNING,		/* next: CANCELLING, DONE, FAILED */
	ACCORD_REPLAY_CANCELLING,	/* what is under way ends; next: CANCELLED */
	ACCORD_REPLAY_DONE,
	ACCORD_REPLAY_CANCELLED,
	ACCORD_REPLAY_FAILED
} AccordReplayState;

/*
 * A replay, as its deliveries and its rows know it; replay.c knows the rest.
 * Its deliveries are listed from when they are read to when they are freed:
 * those that only memory knows in the order of the log.
 */
typedef struct AccordReplay
{
	int64		id;
	AccordReplayState state;
	bool		rekey;			/* its requests have keys of their own, */
	unsigned char salt[16];		/* ... made of the event's and this */
	dlist_node	node;			/* in desk->replays, while it is not ended */
	dlist_head	owed;			/* deliveries that only memory knows */
	dlist_head	excepted;		/* ... that have a row in the backlog */
	int			n_deliveries;	/* in both */
	AccordPoint read;			/* the log has been walked up to here */
	int64		first_seq;		/* from here on it needs the log */
	int64		walked;			/* events of the selection up to there */
	int64		delivered;
	int64		failed;			/* dead letters */
	int64		passed;			/* settled otherwise, or not owed at all */
	int64		skipped;		/* not owed, since its point was read */
	int64		pass_low;		/* state: keys' hashes of this pass over the
								 * log, */
	int64		pass_high;		/* ... from and to, as unsigned */
	int64		version;		/* of its last row */
	bool		changed;		/* since its last row */
	AccordPoint persisted;		/* the row's point */
	TimestampTz persisted_at;
	TimestampTz settled_since;	/* what was settled then is still needed; 0:
								 * nothing is */
	TimestampTz started_at;
	char	   *reason;			/* FAILED: why */
} AccordReplay;

typedef struct AccordDelivery
{
	struct AccordEndpoint *endpoint;
	struct AccordLane *lane;	/* its key's; NULL: unordered */
	AccordReplay *replay;		/* NULL: live */
	struct AccordLane *order;	/* of a replay: its key's within it, which it
								 * keeps while it is retried */
	dlist_node	replay_node;	/* in replay->owed or ->excepted */
	uint64		order_hash;		/* 0: none */
	uint64		kind_hash;		/* of a replay of states: of what it is one, */
	uint32		kind_check;		/* ... and more of it; hash 0: no such */
	int64		walked;			/* of its replay, before it was read */
	int64		skipped;		/* ... and of these not owed */
	TimestampTz read_at;		/* ... when it was */
	AccordEvent *event;			/* NULL: to be read again */
	struct AccordRequest *request;	/* made, waits for its intent to be
									 * durable; owner: dispatch.c */
	dlist_node	owed_node;		/* in endpoint->owed, while owed */
	dlist_node	except_node;	/* in connection->exceptions, while excepted */
	dlist_node	queue_node;		/* in endpoint->ready or lane->waiting */
	dlist_node	merge_node;		/* in its merge's list, while "merging" */
	struct AccordBatch *batch;	/* TAKEN: goes with others, or may; NULL: by
								 * itself */
	dlist_node	batch_node;		/* in batch->members */
	dlist_node	await_node;		/* among those who wait for an id */
	pairingheap_node due_node;	/* in the due heap, while PARKED */
	int64		seq;
	int64		tx_id;
	int64		route;
	int64		chosen;			/* by what the channel has: the route it was
								 * sent by; 0: its own */
	uint64		awaits;			/* hash of the id that it waits for; 0: none */
	int64		decided_by;
	TimestampTz owed_since;
	TimestampTz attempted_at;	/* first attempt; 0: none */
	TimestampTz due_at;
	TimestampTz not_before;		/* quiet period, or what one that it
								 * supersedes had to wait for; 0: no */
	TimestampTz limit_at;		/* its turn at a limit by event; 0: none */
	TimestampTz started_at;		/* of the attempt in flight, or when it was
								 * queued */
	TimestampTz expires_at;		/* 0: never, or not known */
	TimestampTz first_at;		/* when the oldest it stands for was owed */
	uint64		key_hash;		/* 0: no key */
	uint64		merge_hash;		/* of what it is coalesced by; 0: it is not */
	uint64		fingerprint;	/* of its request; 0: nobody asks */
	int			ord;
	int			attempts;
	int			version;		/* of its backlog row; 0: none */
	int			batch_max;		/* goes with fewer than this, as more were
								 * refused; 0: with as many as may be */
	int16		slot;
	uint8		phase;			/* AccordPhase */
	uint8		state;			/* AccordState of its backlog row */
	bool		owed;			/* in endpoint->owed: only memory knows it */
	bool		command;
	bool		keyless;		/* its request has no place for the key */
	bool		ambiguous_retry;	/* its route says so */
	bool		verify;			/* its route says so */
	bool		known_remote;	/* the channel's id was known when it was sent */
	char		confirmed;		/* while it was in flight: 'd' it was done,
								 * 'f' it failed; 0: nobody said */
	bool		hold_dead;		/* its route says so */
	bool		settling;		/* in the settling batch */
	bool		sent;			/* handed to http.c, no response yet */
	bool		answered;		/* counted in endpoint->unsettled */
	bool		excepted;		/* in desk->exceptions */
	bool		merging;		/* unsent, and so it can be superseded */
	bool		leaving;		/* superseded, not committed yet */
	bool		known;			/* expires_at and the next two are */
	bool		identified;		/* merge_hash is */
	bool		is_insert;		/* stands for an insert, perhaps an earlier
								 * one nobody was told of */
	bool		is_delete;
	bool		is_undone;		/* a delete of what nobody was told of */
	bool		rider;			/* of a batch, but not the one that counts as
								 * its request */
	bool		counted;		/* in its gates' in_flight */
	bool		ticketed;		/* tokens of its limits were taken for it */
	bool		probe;			/* of its connection's breaker */
	bool		lost;			/* was in flight when a dispatcher ended */
	bool		discard;		/* a person asked to give it up */
	bool		overtaken;		/* a replay of a state that is not the latest
								 * any more */
	bool		versioned;		/* its version is its row's; else of a replay,
								 * which may find rows of others */
	bool		was_dead;		/* its row is, until the next one */
} AccordDelivery;

/* Whether the channel is to be asked about it, rather than told. */
static inline bool
accord_delivery_asks(const AccordDelivery *delivery)
{
	return delivery->version > 0 &&
		(delivery->state == ACCORD_STATE_ACCEPTED ||
		 delivery->state == ACCORD_STATE_VERIFYING);
}

/* The deliveries of one key at one endpoint: at most one holds it. */
typedef struct AccordLane
{
	uint64		hash;			/* hash key */
	AccordDelivery *holder;
	AccordPoint barrier;		/* the last one that is not coalesced */
	dlist_head	waiting;
} AccordLane;

/* The unsent deliveries that are coalesced by the same, oldest first. */
typedef struct AccordMerge
{
	uint64		hash;			/* hash key */
	dlist_head	unsent;
} AccordMerge;

/* Deliveries that go in one request; the first counts as the request. */
typedef struct AccordBatchKey
{
	uint64		connection;		/* its id */
	int64		route;
	uint64		group;			/* hash of what batch_group came to */
	int64		max;			/* members' batch_max */
} AccordBatchKey;

typedef struct AccordBatch
{
	AccordBatchKey key;
	struct AccordConnection *connection;
	dlist_head	members;
	int			n;
	Size		bytes;
	bool		forming;		/* takes more */
	bool		waiting;		/* in desk->forming, until due_at */
	TimestampTz due_at;
	pairingheap_node due_node;	/* in desk->forming, while waiting */
	dlist_node	full_node;		/* in desk->batches_due, while not */
} AccordBatch;

/* Requests at a time: of a channel, and of each connection to it. */
typedef struct AccordGate
{
	int			in_flight;
	int			max_in_flight;
	int			unsettled;		/* answered, not committed yet: a crash would
								 * have them sent again */
} AccordGate;

/* Something that sleeps until a time; waking it puts it into its round. */
typedef struct AccordAlarm
{
	pairingheap_node node;
	TimestampTz at;				/* 0: not set */
	struct AccordHub *hub;		/* whose it is: a channel's */
	struct AccordConnection *connection;	/* ... or a connection's */
} AccordAlarm;

/* A rate limit, and whose bucket of it. */
typedef struct AccordMeter
{
	const AccordLimit *limit;	/* of the configuration in force */
	uint64		key;			/* hash of what its template came to */
} AccordMeter;

/* One channel: what all its connections share. */
typedef struct AccordHub
{
	char	   *channel;
	AccordChannel *config;		/* as of today; NULL: it was removed */
	AccordGate	gate;
	AccordAllowance allowance;	/* when the channel's scope is itself */
	AccordAlarm alarm;
	dlist_head	ready;			/* connections with something to send */
	dlist_node	ready_node;
	bool		rotating;		/* in the dispatcher's ready list */
	bool		shared_allowance;	/* throttle_scope = 'channel' */
	bool		heeds_hints;
	bool		coalesces;		/* one of its routes does */
	int			n_watching;		/* replays that want to know what is newer */
	int			n_replaying;	/* replayed deliveries TAKEN and counted */
	uint64		replay_turn;	/* when replays had their turn here, counted */
	AccordBreakerPolicy breaker_policy;
	AccordMeter *meters;		/* limits of the whole channel */
	int			n_meters;
} AccordHub;

/*
 * One account's connection to one channel: an endpoint as users see it. What
 * it is owed stands in a queue for each priority in use. With thousands of
 * them memory is slower than what is done with it: what each delivery needs
 * stands together, in front.
 */
typedef struct AccordConnection
{
	AccordHub  *hub;
	AccordAccount *config;		/* as of today; NULL: it has none */
	struct AccordToken *token;	/* that its requests need, or NULL */
	dlist_node	token_node;		/* in token->connections */
	char	   *account;		/* "": the channel itself */
	uint64		id;				/* seed of its lanes' hashes */
	struct AccordEndpoint *endpoints[ACCORD_QUEUES];	/* or NULL */

	AccordGate	gate;
	int			n_meters;
	AccordMeter *meters;		/* limits of each account */
	int			weight;			/* deliveries in a row, of its channel's round */
	int			credit;			/* ... that it has left */
	int			shares[ACCORD_PRIORITIES];	/* ... of its priorities */
	bool		rotating;		/* in its hub's ready list */
	bool		paused;			/* channel or account disabled, or paused */
	bool		ordered;
	bool		stale;			/* shows what is not true any more */
	dlist_node	ready_node;

	dlist_node	stale_node;		/* in desk->stale */
	AccordAlarm alarm;

	AccordAllowance allowance;
	AccordBreaker breaker;
	AccordRetryPolicy policy;	/* of its channel; command parts per delivery */

	TimestampTz last_delivered_at;
	TimestampTz last_attempt_at;
	TimestampTz last_error_at;
	int			last_outcome;	/* AccordOutcome; -1: none yet */
	int			board;			/* its place there, or one of the next */
	AccordGauge gauge;

	struct AccordConnection *same_id;	/* another of the same hash, or NULL */
	TimestampTz paused_until;	/* 0: until somebody resumes it */
	dlist_head	exceptions;
	int			n_state[ACCORD_STATE_DEAD + 1]; /* of them */
	int64		n_dead;
	int			n_awaiting;		/* wait for an id */
	TimestampTz logged_at;		/* trouble was last put into the server log */
	int			unlogged;		/* ... and not, since then */
	char		last_error[200];
} AccordConnection;

#define ACCORD_BOARD_UNASKED (-1)
#define ACCORD_BOARD_FULL (-2)

/* What a connection is owed in one priority. */
typedef struct AccordEndpoint
{
	AccordConnection *connection;
	char	   *channel;
	char	   *account;		/* "": the channel itself */
	int			priority;
	bool		active;			/* in the dispatcher's active list */
	bool		lagging;		/* reads its own pages */
	bool		reading;		/* takes part in the page being read */
	bool		overflow;		/* more exceptions in backlog_log than here */
	bool		cursored;		/* a row of cursor_log is in force */
	int			n_taken;		/* being made, in flight or being settled */
	int			n_owed;
	int			n_leaving;		/* of them superseded */
	int			n_exceptions;
	int64		behind;			/* lagging: owed beyond the cursor */
	int64		counted;		/* ... of the log up to there */
	TimestampTz behind_since;	/* when the oldest of these was committed */
	TimestampTz ahead_since;	/* reads ahead before it sends; 0: does not */
	AccordPoint cursor;			/* lagging: read up to here */
	AccordPoint passed;			/* highest that left "owed" and must not be
								 * read again */
	AccordPoint persisted;		/* cursored: the row's point */
	TimestampTz persisted_at;	/* ... and when it was written */
	AccordPoint loaded;			/* overflow: exceptions loaded up to here */
	int64		cursor_version; /* of its last row */
	dlist_head	owed;			/* in (seq, ord) order */
	dlist_head	ready;
	dlist_node	active_node;
} AccordEndpoint;

/* A delivery with a backlog row, in desk->exceptions. */
typedef struct AccordExceptionKey
{
	AccordConnection *connection;
	int64		seq;
	int64		ord;
} AccordExceptionKey;

typedef struct AccordException
{
	AccordExceptionKey key;		/* hash key */
	AccordDelivery *delivery;
} AccordException;

/* All of a dispatcher's memory. */
typedef struct AccordDesk
{
	int			number;			/* this dispatcher */
	int			count;			/* of so many */
	MemoryContext context;
	HTAB	   *hubs;
	HTAB	   *connections;	/* by id */
	HTAB	   *lanes;
	HTAB	   *merges;
	HTAB	   *exceptions;		/* AccordException */
	HTAB	   *batches;		/* those forming, by their key */
	pairingheap *forming;		/* ... by due_at */
	dlist_head	batches_due;	/* to be sent, as soon as it may be */
	dlist_head	active;			/* endpoints that owe, lag or have a cursor */
	dlist_head	ready;			/* hubs with something to send */
	dlist_head	stale;			/* connections to be shown anew */
	dlist_head	replays;		/* those that have not ended */
	pairingheap *due;			/* PARKED deliveries by due_at */
	pairingheap *alarms;		/* hubs and connections that sleep */
	Size		bytes;			/* of events and deliveries held */
	int			n_active;		/* in the active list */
	int			n_overflow;		/* endpoints with more exceptions than fit */
	int			n_exceptions;
	int			n_owed;			/* by memory alone, of all endpoints */
	bool		unrest;			/* not all of it is looked after: in flight,
								 * without a cursor, or with one too many */
	TimestampTz released_at;	/* who waits at limits last asked again */
	bool		release;		/* somebody who waited at one is gone */
	TimestampTz resume_at;		/* a pause ends by itself; 0: none does */
	AccordPoint read;			/* the log has been routed up to here */
	int64		started_seq;	/* the log ended here when we started */
} AccordDesk;

/* At most so many deliveries of an endpoint are owed by memory alone, */
#define ACCORD_QUEUE_LIMIT 16384
/* so many of its exceptions are held, and so many of all endpoints. */
#define ACCORD_EXCEPTION_LIMIT 10000
#define ACCORD_EXCEPTION_TOTAL 200000
#define ACCORD_EXCEPTION_FEW 64

extern AccordDesk *accord_desk_create(int number, int count);

/* Which of count dispatchers a channel, with all its accounts, belongs to. */
extern int	accord_channel_owner(const char *channel, int count);
extern bool accord_desk_owns(AccordDesk *desk, const char *channel);

/* Made when it is new; NULL: it is, and create is false. */
extern AccordConnection *accord_desk_connection(AccordDesk *desk,
												const char *channel,
												const char *account,
												bool create);

/* Its queue of that priority; made when it is new. */
extern AccordEndpoint *accord_connection_endpoint(AccordDesk *desk,
												  AccordConnection *connection,
												  int priority);

/* The same for every process and run. */
extern uint64 accord_endpoint_hash(const char *channel, const char *account);

/* A delivery, for hash tables: no padding, so that bytes can be compared. */
typedef struct AccordDeliveryKey
{
	uint64		endpoint;		/* its hash */
	int64		seq;
	int64		ord;
} AccordDeliveryKey;

extern AccordDeliveryKey accord_delivery_key(const char *channel,
											 const char *account, int64 seq,
											 int ord);

/* What is shown of a connection is not true any more. */
extern void accord_connection_touch(AccordDesk *desk,
									AccordConnection *connection);

/* All connections, one after the other; NULL: no more. */
typedef struct AccordDeskScan
{
	HASH_SEQ_STATUS entries;
	AccordConnection *next;		/* of the same entry */
} AccordDeskScan;

extern void accord_desk_scan(AccordDesk *desk, AccordDeskScan *scan);
extern AccordConnection *accord_desk_scan_next(AccordDeskScan *scan);

extern AccordEvent *accord_event_create(AccordDesk *desk, TupleTableSlot *row);
extern void accord_event_release(AccordDesk *desk, AccordEvent *event);

/* Whether no more exceptions of this endpoint may be held in memory. */
extern bool accord_endpoint_full(AccordDesk *desk, AccordEndpoint *endpoint);

/*
 * Whether it is time for the next part of its exceptions: well before the last
 * of this one is settled, which may take for ever.
 */
extern bool accord_endpoint_short(AccordDesk *desk, AccordEndpoint *endpoint);

/* What lies up to here was settled, or has a row: not to be read again. */
extern void accord_endpoint_pass(AccordEndpoint *endpoint, AccordPoint point);

/* Keeps it in the active list as long as there is a reason. */
extern void accord_endpoint_touch(AccordDesk *desk, AccordEndpoint *endpoint);

/* From now on it reads its own pages, from there on. */
extern void accord_endpoint_lag(AccordDesk *desk, AccordEndpoint *endpoint,
								AccordPoint from);

/* Everything up to here is settled or in the backlog, for this endpoint. */
extern AccordPoint accord_endpoint_low(AccordDesk *desk,
									   AccordEndpoint *endpoint);

/* ... and for all those without a cursor of their own: the position. */
extern int64 accord_desk_position(AccordDesk *desk);

#endif							/* ACCORD_ENDPOINT_H */
