/*
 * endpoint.h: exports of endpoint.c
 *
 * Layer 5: what a dispatcher holds in memory: events, deliveries, lanes and
 * endpoints. No I/O and no clock.
 */
#ifndef ACCORD_ENDPOINT_H
#define ACCORD_ENDPOINT_H

#include "access/htup.h"
#include "backlog.h"
#include "config.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "log.h"
#include "utils/hsearch.h"

/* An event that deliveries wait for; freed with its last reference. */
typedef struct AccordEvent
{
	int			refs;
	Size		bytes;
	HeapTuple	tuple;			/* of event_log, nothing toasted */
} AccordEvent;

/*
 * Where a delivery is. Every transition is one function of endpoint.c.
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

typedef struct AccordDelivery
{
	struct AccordEndpoint *endpoint;
	struct AccordLane *lane;	/* its key's; NULL: unordered */
	AccordEvent *event;			/* NULL: to be read again */
	struct AccordRequest *request;	/* made, waits for its intent to be
									 * durable; owner: dispatch.c */
	dlist_node	owed_node;		/* in endpoint->owed, while owed */
	dlist_node	queue_node;		/* in endpoint->ready or lane->waiting */
	pairingheap_node due_node;	/* in the due heap, while PARKED */
	int64		seq;
	int64		tx_id;
	int64		route;
	int64		decided_by;
	TimestampTz owed_since;
	TimestampTz attempted_at;	/* first attempt; 0: none */
	TimestampTz due_at;
	TimestampTz started_at;		/* of the attempt in flight, or when it was
								 * queued */
	uint64		key_hash;		/* 0: no key */
	int			ord;
	int			attempts;
	int			version;		/* of its backlog row; 0: none */
	int16		slot;
	uint8		phase;			/* AccordPhase */
	uint8		state;			/* AccordState of its backlog row */
	bool		owed;			/* in endpoint->owed: only memory knows it */
	bool		command;
	bool		ambiguous_retry;	/* its route says so */
	bool		settling;		/* in the settling batch */
	bool		sent;			/* handed to http.c, no response yet */
	bool		answered;		/* counted in endpoint->unsettled */
	bool		excepted;		/* in desk->exceptions */
	bool		lost;			/* was in flight when a dispatcher ended */
	bool		discard;		/* a person asked to give it up */
} AccordDelivery;

/* The deliveries of one key at one endpoint: at most one holds it. */
typedef struct AccordLane
{
	uint64		hash;			/* hash key */
	AccordDelivery *holder;
	dlist_head	waiting;
} AccordLane;

/* One account's connection to one channel. */
typedef struct AccordEndpoint
{
	char	   *channel;
	char	   *account;		/* "": the channel itself */
	uint64		id;				/* seed of its lanes' hashes */
	bool		active;			/* in the dispatcher's active list */
	bool		rotating;		/* in the dispatcher's ready list */
	bool		paused;			/* channel or account disabled */
	bool		ordered;
	bool		lagging;		/* reads its own pages */
	bool		reading;		/* takes part in the page being read */
	bool		overflow;		/* more exceptions in backlog_log than here */
	bool		cursored;		/* a row of cursor_log is in force */
	int			in_flight;
	int			max_in_flight;
	int			unsettled;		/* answered, not committed yet: a crash would
								 * have them sent again */
	int			n_owed;
	int			n_exceptions;
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
	dlist_node	ready_node;
	TimestampTz logged_at;		/* trouble was last put into the server log */
	int			unlogged;		/* ... and not, since then */
	AccordRetryPolicy policy;	/* of its channel; command parts per delivery */
} AccordEndpoint;

/* All of a dispatcher's memory. */
typedef struct AccordDesk
{
	int			number;			/* this dispatcher */
	int			count;			/* of so many */
	MemoryContext context;
	HTAB	   *endpoints;
	HTAB	   *lanes;
	HTAB	   *exceptions;		/* deliveries with a backlog row */
	dlist_head	active;			/* endpoints that owe, lag or have a cursor */
	dlist_head	ready;			/* endpoints with something to send */
	pairingheap *due;			/* PARKED deliveries by due_at */
	Size		bytes;			/* of events held */
	int			n_exceptions;
	int			n_owed;			/* by memory alone, of all endpoints */
	bool		unrest;			/* not all of it is looked after: in flight,
								 * without a cursor, or with one too many */
	AccordPoint read;			/* the log has been routed up to here */
} AccordDesk;

/* At most so many deliveries of an endpoint are owed by memory alone, */
#define ACCORD_QUEUE_LIMIT 1024
/* so many of its exceptions are held, and so many of all endpoints. */
#define ACCORD_EXCEPTION_LIMIT 10000
#define ACCORD_EXCEPTION_TOTAL 200000
#define ACCORD_EXCEPTION_FEW 64

extern AccordDesk *accord_desk_create(int number, int count);

/* Whether this dispatcher owns that endpoint. */
extern bool accord_desk_owns(AccordDesk *desk, const char *channel,
							 const char *account);
extern AccordEndpoint *accord_desk_endpoint(AccordDesk *desk,
											const char *channel,
											const char *account, bool create);

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

/* All endpoints, one after the other; NULL: no more. */
extern void accord_desk_scan(AccordDesk *desk, HASH_SEQ_STATUS *scan);
extern AccordEndpoint *accord_desk_scan_next(HASH_SEQ_STATUS *scan);

/* The delivery with a backlog row, or the one owed by memory; or NULL. */
extern AccordDelivery *accord_desk_find(AccordDesk *desk,
										AccordEndpoint *endpoint,
										int64 seq, int ord);

extern AccordEvent *accord_event_create(AccordDesk *desk, TupleTableSlot *row);
extern void accord_event_release(AccordDesk *desk, AccordEvent *event);

/* Whether no more exceptions of this endpoint may be held in memory. */
extern bool accord_endpoint_full(AccordDesk *desk, AccordEndpoint *endpoint);

/*
 * Whether it is time for the next part of its exceptions: well before the last
 * of this one is settled, which may take for ever.
 */
extern bool accord_endpoint_short(AccordDesk *desk, AccordEndpoint *endpoint);

/* A new delivery, PHASE_NEW, known to nobody yet. */
extern AccordDelivery *accord_delivery_create(AccordDesk *desk,
											  AccordEndpoint *endpoint,
											  const char *key);

/* NEW: owed by memory alone, queued in the order of its key. */
extern void accord_delivery_owe(AccordDesk *desk, AccordDelivery *delivery,
								TimestampTz now);

/* NEW: owed, but in no queue: TAKEN, to be settled as it is. */
extern void accord_delivery_list(AccordDesk *desk, AccordDelivery *delivery,
								 TimestampTz now);

/*
 * NEW, made of the backlog's row: whoever looks for it finds it from now on.
 * version is its row's, 0 when there is none.
 */
extern void accord_delivery_recall(AccordDesk *desk, AccordDelivery *delivery,
								   int version);

/* TAKEN or NEW: now an exception with a backlog row of this state. */
extern void accord_delivery_except(AccordDesk *desk, AccordDelivery *delivery,
								   AccordState state);

/*
 * To PARKED, until due_at. One that is RETRYING holds its lane (behind another
 * that holds it, it is WAITING); a SCHEDULED one takes its turn when due.
 */
extern void accord_delivery_park(AccordDesk *desk, AccordDelivery *delivery,
								 TimestampTz due_at);

/* To HELD; holds its lane (behind another that does, it is WAITING). */
extern void accord_delivery_hold(AccordDesk *desk, AccordDelivery *delivery);

/* Out of any queue, NEW again but for its lane: something is decided. */
extern void accord_delivery_withdraw(AccordDesk *desk,
									 AccordDelivery *delivery);

/*
 * Forgets what waits at the end of an endpoint's queue and was never tried; it
 * will be read again, so nothing before what has passed already is forgotten.
 * Returns how many; *before is the point before them.
 */
extern int	accord_endpoint_evict(AccordDesk *desk, AccordEndpoint *endpoint,
								  AccordPoint *before);

/* What lies up to here was settled, or has a row: not to be read again. */
extern void accord_endpoint_pass(AccordEndpoint *endpoint, AccordPoint point);

/* Forgets the events of what waits; each is read again when it is its turn. */
extern void accord_endpoint_unload(AccordDesk *desk,
								   AccordEndpoint *endpoint);

/* PARKED, HELD or NEW: queued again; takes its turn in its lane. */
extern void accord_delivery_queue(AccordDesk *desk, AccordDelivery *delivery);

/* The endpoint's next READY one becomes TAKEN; NULL: none. */
extern AccordDelivery *accord_delivery_take(AccordDesk *desk,
											AccordEndpoint *endpoint);

/* TAKEN, but nothing was done with it: READY again, the first. */
extern void accord_delivery_put_back(AccordDesk *desk,
									 AccordDelivery *delivery);

/* A TAKEN delivery's request slot is free again; answered: by its channel. */
extern void accord_delivery_landed(AccordDesk *desk, AccordDelivery *delivery,
								   bool answered);

/* What was concluded about it is durable. */
extern void accord_delivery_settled(AccordDesk *desk,
									AccordDelivery *delivery);

/* Settled for good, or only its row remains: forgets it, lets the next of its
 * key pass. */
extern void accord_delivery_free(AccordDesk *desk, AccordDelivery *delivery);

/* The next PARKED delivery by due_at, or NULL. */
extern AccordDelivery *accord_desk_next_due(AccordDesk *desk);

/*
 * Whether it may send one more. Besides those in flight, what was answered and
 * is not committed yet counts: a crash repeats no more than twice
 * max_in_flight requests of an endpoint.
 */
extern bool accord_endpoint_open(const AccordEndpoint *endpoint);

/* Puts an endpoint into the round of those with something to send. */
extern void accord_endpoint_rotate(AccordDesk *desk, AccordEndpoint *endpoint);

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
