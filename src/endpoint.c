/*
 * endpoint.c: what a dispatcher holds in memory.
 *
 * Runs in dispatchers. Deliveries stand in the queue of their endpoint, those
 * of one key behind each other in a lane; nothing here does I/O or reads the
 * clock, and each change of a delivery's phase is one function.
 *
 * Invariants
 *   - At most one delivery holds a lane; it is READY, TAKEN, PARKED or HELD.
 *     The others of its key are WAITING, in the order they came.
 *   - endpoint->owed lists, in (seq, ord) order, the deliveries that only
 *     memory knows; the persisted position never passes the first of them.
 *   - desk->exceptions finds every delivery in memory with a backlog row.
 *   - An endpoint's "passed" is at or after every delivery that was settled or
 *     got a row: what lies before it is never read from the log again.
 *   - Lanes are found by a hash of endpoint and key. Two keys that collide
 *     share a lane: that costs parallelism, never order.
 *
 * On failure: only out-of-memory can raise here; it ends the dispatcher.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/heaptoast.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "endpoint.h"

typedef struct EndpointEntry
{
	char		name[2 * NAMEDATALEN + 192];	/* hash key: channel, \n,
												 * account */
	AccordEndpoint *endpoint;
} EndpointEntry;

typedef struct ExceptionKey
{
	AccordEndpoint *endpoint;
	int64		seq;
	int64		ord;
} ExceptionKey;

typedef struct ExceptionEntry
{
	ExceptionKey key;
	AccordDelivery *delivery;
} ExceptionEntry;

static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const AccordDelivery *x =
	pairingheap_const_container(AccordDelivery, due_node, a);
	const AccordDelivery *y =
	pairingheap_const_container(AccordDelivery, due_node, b);

	if (x->due_at != y->due_at)
		return x->due_at < y->due_at ? 1 : -1;
	return 0;
}

static HTAB *
create_table(MemoryContext context, const char *name, Size key, Size entry,
			 int flags)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = key;
	ctl.entrysize = entry;
	ctl.hcxt = context;
	return hash_create(name, 256, &ctl, HASH_ELEM | HASH_CONTEXT | flags);
}

AccordDesk *
accord_desk_create(int number, int count)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "pg_accord desk",
												  ALLOCSET_DEFAULT_SIZES);
	AccordDesk *desk = MemoryContextAllocZero(context, sizeof(AccordDesk));
	MemoryContext old = MemoryContextSwitchTo(context);

	desk->number = number;
	desk->count = count;
	desk->context = context;
	desk->endpoints = create_table(context, "pg_accord endpoints",
								   sizeof(((EndpointEntry *) 0)->name),
								   sizeof(EndpointEntry), HASH_STRINGS);
	desk->lanes = create_table(context, "pg_accord lanes", sizeof(uint64),
							   sizeof(AccordLane), HASH_BLOBS);
	desk->exceptions = create_table(context, "pg_accord exceptions",
									sizeof(ExceptionKey),
									sizeof(ExceptionEntry), HASH_BLOBS);
	dlist_init(&desk->active);
	dlist_init(&desk->ready);
	desk->due = pairingheap_allocate(compare_due, NULL);
	MemoryContextSwitchTo(old);
	return desk;
}

/*
 * A fixed-size name for the hash table: long account names are replaced by
 * their hash, which for 128 bits is as good as the name.
 */
static void
endpoint_name(char *name, Size size, const char *channel, const char *account)
{
	const unsigned char *bytes = (const unsigned char *) account;
	int			len = snprintf(name, size, "%s\n%s", channel, account);

	if (len >= size)
		snprintf(name, size, "%s\n\n" UINT64_FORMAT "." UINT64_FORMAT, channel,
				 hash_bytes_extended(bytes, strlen(account), 1),
				 hash_bytes_extended(bytes, strlen(account), 2));
}

uint64
accord_endpoint_hash(const char *channel, const char *account)
{
	uint64		seed = hash_bytes_extended((const unsigned char *) channel,
										   strlen(channel), 0);

	return hash_bytes_extended((const unsigned char *) account,
							   strlen(account), seed);
}

AccordDeliveryKey
accord_delivery_key(const char *channel, const char *account, int64 seq,
					int ord)
{
	AccordDeliveryKey key = {accord_endpoint_hash(channel, account), seq, ord};

	return key;
}

bool
accord_desk_owns(AccordDesk *desk, const char *channel, const char *account)
{
	return desk->count == 1 ||
		accord_endpoint_hash(channel, account) % desk->count == desk->number;
}

AccordEndpoint *
accord_desk_endpoint(AccordDesk *desk, const char *channel,
					 const char *account, bool create)
{
	char		name[sizeof(((EndpointEntry *) 0)->name)];
	EndpointEntry *entry;
	AccordEndpoint *endpoint;
	bool		found;

	memset(name, 0, sizeof(name));
	endpoint_name(name, sizeof(name), channel, account);
	entry = hash_search(desk->endpoints, name,
						create ? HASH_ENTER : HASH_FIND, &found);
	if (entry == NULL)
		return NULL;
	if (found)
		return entry->endpoint;

	entry->endpoint = NULL;		/* were the next one to raise */
	endpoint = MemoryContextAllocZero(desk->context, sizeof(AccordEndpoint));
	endpoint->channel = MemoryContextStrdup(desk->context, channel);
	endpoint->account = MemoryContextStrdup(desk->context, account);
	endpoint->id = accord_endpoint_hash(channel, account);
	endpoint->max_in_flight = 1;
	endpoint->ordered = true;
	dlist_init(&endpoint->owed);
	dlist_init(&endpoint->ready);
	entry->endpoint = endpoint;
	return endpoint;
}

void
accord_desk_scan(AccordDesk *desk, HASH_SEQ_STATUS *scan)
{
	hash_seq_init(scan, desk->endpoints);
}

AccordEndpoint *
accord_desk_scan_next(HASH_SEQ_STATUS *scan)
{
	EndpointEntry *entry = hash_seq_search(scan);

	return entry ? entry->endpoint : NULL;
}

AccordEvent *
accord_event_create(AccordDesk *desk, TupleTableSlot *row)
{
	MemoryContext old = MemoryContextSwitchTo(desk->context);
	AccordEvent *event = palloc(sizeof(AccordEvent));

	event->refs = 0;
	event->tuple = ExecCopySlotHeapTuple(row);
	if (HeapTupleHasExternal(event->tuple))
	{
		HeapTuple	flat = toast_flatten_tuple(event->tuple,
											   row->tts_tupleDescriptor);

		heap_freetuple(event->tuple);
		event->tuple = flat;
	}
	event->bytes = sizeof(AccordEvent) + HEAPTUPLESIZE + event->tuple->t_len;
	desk->bytes += event->bytes;
	MemoryContextSwitchTo(old);
	return event;
}

void
accord_event_release(AccordDesk *desk, AccordEvent *event)
{
	Assert(event->refs > 0);
	if (--event->refs > 0)
		return;
	desk->bytes -= event->bytes;
	heap_freetuple(event->tuple);
	pfree(event);
}

bool
accord_endpoint_full(AccordDesk *desk, AccordEndpoint *endpoint)
{
	return endpoint->n_exceptions >= ACCORD_EXCEPTION_LIMIT ||
		(desk->n_exceptions >= ACCORD_EXCEPTION_TOTAL &&
		 endpoint->n_exceptions >= ACCORD_EXCEPTION_FEW);
}

bool
accord_endpoint_short(AccordDesk *desk, AccordEndpoint *endpoint)
{
	int			enough = ACCORD_EXCEPTION_LIMIT / 2;

	if (desk->n_exceptions >= ACCORD_EXCEPTION_TOTAL - ACCORD_EXCEPTION_LIMIT)
		enough = ACCORD_EXCEPTION_FEW / 2;
	return endpoint->overflow && endpoint->n_exceptions <= enough;
}

AccordDelivery *
accord_delivery_create(AccordDesk *desk, AccordEndpoint *endpoint,
					   const char *key)
{
	AccordDelivery *delivery = MemoryContextAllocZero(desk->context,
													  sizeof(AccordDelivery));

	delivery->endpoint = endpoint;
	delivery->phase = ACCORD_PHASE_NEW;
	if (key != NULL && endpoint->ordered)
	{
		delivery->key_hash = hash_bytes_extended((const unsigned char *) key,
												 strlen(key), endpoint->id);
		if (delivery->key_hash == 0)
			delivery->key_hash = 1;
	}
	return delivery;
}

bool
accord_endpoint_open(const AccordEndpoint *endpoint)
{
	return !endpoint->paused &&
		endpoint->in_flight < endpoint->max_in_flight &&
		endpoint->in_flight + endpoint->unsettled <
		2 * endpoint->max_in_flight;
}

void
accord_endpoint_rotate(AccordDesk *desk, AccordEndpoint *endpoint)
{
	if (!endpoint->rotating && !dlist_is_empty(&endpoint->ready) &&
		accord_endpoint_open(endpoint))
	{
		dlist_push_tail(&desk->ready, &endpoint->ready_node);
		endpoint->rotating = true;
	}
}

void
accord_endpoint_touch(AccordDesk *desk, AccordEndpoint *endpoint)
{
	bool		active = endpoint->n_owed > 0 || endpoint->lagging ||
	endpoint->cursored || endpoint->overflow;

	if (active == endpoint->active)
		return;
	if (active)
		dlist_push_tail(&desk->active, &endpoint->active_node);
	else
		dlist_delete(&endpoint->active_node);
	endpoint->active = active;
}

static void
make_ready(AccordDesk *desk, AccordDelivery *delivery)
{
	delivery->phase = ACCORD_PHASE_READY;
	dlist_push_tail(&delivery->endpoint->ready, &delivery->queue_node);
	accord_endpoint_rotate(desk, delivery->endpoint);
}

/* Finds or makes the lane of a delivery's key. */
static AccordLane *
enter_lane(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordLane *lane;
	bool		found;

	lane = hash_search(desk->lanes, &delivery->key_hash, HASH_ENTER, &found);
	if (!found)
	{
		lane->holder = NULL;
		dlist_init(&lane->waiting);
	}
	delivery->lane = lane;
	return lane;
}

/* Gives a lane to the next of its key, or forgets it. */
static void
leave_lane(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordLane *lane = delivery->lane;

	delivery->lane = NULL;
	if (lane == NULL)
		return;
	if (lane->holder != delivery)
	{
		if (lane->holder == NULL && dlist_is_empty(&lane->waiting))
			hash_search(desk->lanes, &lane->hash, HASH_REMOVE, NULL);
		return;
	}
	if (dlist_is_empty(&lane->waiting))
	{
		hash_search(desk->lanes, &lane->hash, HASH_REMOVE, NULL);
		return;
	}
	lane->holder = dlist_container(AccordDelivery, queue_node,
								   dlist_pop_head_node(&lane->waiting));
	if (lane->holder->version > 0 &&
		lane->holder->state == ACCORD_STATE_HELD)
		lane->holder->phase = ACCORD_PHASE_HELD;
	else
		make_ready(desk, lane->holder);
}

/*
 * Joins the lane of a delivery's key. False: another holds it, and the
 * delivery is WAITING now.
 */
static bool
join_lane(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordLane *lane = delivery->lane;

	if (lane == NULL && delivery->key_hash != 0)
		lane = enter_lane(desk, delivery);
	if (lane == NULL)
		return true;
	if (lane->holder != NULL && lane->holder != delivery)
	{
		delivery->phase = ACCORD_PHASE_WAITING;
		dlist_push_tail(&lane->waiting, &delivery->queue_node);
		return false;
	}
	lane->holder = delivery;
	return true;
}

/* Takes a delivery out of whatever queue its phase has it in. */
static void
leave_queue(AccordDesk *desk, AccordDelivery *delivery)
{
	if (delivery->phase == ACCORD_PHASE_PARKED)
		pairingheap_remove(desk->due, &delivery->due_node);
	else if (delivery->phase == ACCORD_PHASE_READY ||
			 delivery->phase == ACCORD_PHASE_WAITING)
		dlist_delete(&delivery->queue_node);
}

void
accord_delivery_queue(AccordDesk *desk, AccordDelivery *delivery)
{
	Assert(delivery->phase == ACCORD_PHASE_NEW ||
		   delivery->phase == ACCORD_PHASE_PARKED ||
		   delivery->phase == ACCORD_PHASE_HELD);
	leave_queue(desk, delivery);
	if (join_lane(desk, delivery))
		make_ready(desk, delivery);
}

static void
list_owed(AccordDesk *desk, AccordDelivery *delivery, TimestampTz now)
{
	AccordEndpoint *endpoint = delivery->endpoint;

	Assert(delivery->phase == ACCORD_PHASE_NEW);
	delivery->owed = true;
	delivery->started_at = now;
	dlist_push_tail(&endpoint->owed, &delivery->owed_node);
	endpoint->n_owed++;
	desk->n_owed++;
	desk->unrest = true;
	accord_endpoint_touch(desk, endpoint);
}

void
accord_delivery_owe(AccordDesk *desk, AccordDelivery *delivery,
					TimestampTz now)
{
	list_owed(desk, delivery, now);
	accord_delivery_queue(desk, delivery);
}

void
accord_delivery_list(AccordDesk *desk, AccordDelivery *delivery,
					 TimestampTz now)
{
	list_owed(desk, delivery, now);
	delivery->phase = ACCORD_PHASE_TAKEN;
	delivery->endpoint->in_flight++;
}

void
accord_endpoint_pass(AccordEndpoint *endpoint, AccordPoint point)
{
	if (accord_point_compare(point, endpoint->passed) > 0)
		endpoint->passed = point;
}

/* Takes a delivery off the list of those that only memory knows. */
static void
unlist_owed(AccordDesk *desk, AccordDelivery *delivery, bool evicted)
{
	AccordPoint point = {delivery->seq, delivery->ord};

	if (!delivery->owed)
		return;
	if (!evicted)
		accord_endpoint_pass(delivery->endpoint, point);
	dlist_delete(&delivery->owed_node);
	delivery->owed = false;
	delivery->endpoint->n_owed--;
	desk->n_owed--;
	accord_endpoint_touch(desk, delivery->endpoint);
}

static void
exception_key(ExceptionKey *key, AccordEndpoint *endpoint, int64 seq, int ord)
{
	memset(key, 0, sizeof(*key));
	key->endpoint = endpoint;
	key->seq = seq;
	key->ord = ord;
}

static void
enter_exception(AccordDesk *desk, AccordDelivery *delivery)
{
	ExceptionKey key;
	ExceptionEntry *entry;

	if (delivery->excepted)
		return;
	exception_key(&key, delivery->endpoint, delivery->seq, delivery->ord);
	entry = hash_search(desk->exceptions, &key, HASH_ENTER, NULL);
	entry->delivery = delivery;
	delivery->excepted = true;
	delivery->endpoint->n_exceptions++;
	desk->n_exceptions++;
}

static void
leave_exception(AccordDesk *desk, AccordDelivery *delivery)
{
	ExceptionKey key;

	if (!delivery->excepted)
		return;
	exception_key(&key, delivery->endpoint, delivery->seq, delivery->ord);
	hash_search(desk->exceptions, &key, HASH_REMOVE, NULL);
	delivery->excepted = false;
	delivery->endpoint->n_exceptions--;
	desk->n_exceptions--;
}

void
accord_delivery_recall(AccordDesk *desk, AccordDelivery *delivery,
					   int version)
{
	Assert(delivery->phase == ACCORD_PHASE_NEW);
	enter_exception(desk, delivery);
	delivery->version = version;
}

void
accord_delivery_except(AccordDesk *desk, AccordDelivery *delivery,
					   AccordState state)
{
	enter_exception(desk, delivery);
	delivery->version++;
	delivery->state = state;
	unlist_owed(desk, delivery, false);
}

void
accord_delivery_park(AccordDesk *desk, AccordDelivery *delivery,
					 TimestampTz due_at)
{
	leave_queue(desk, delivery);
	delivery->due_at = due_at;
	if (delivery->state == ACCORD_STATE_RETRYING &&
		!join_lane(desk, delivery))
		return;
	delivery->phase = ACCORD_PHASE_PARKED;
	pairingheap_add(desk->due, &delivery->due_node);
}

void
accord_delivery_hold(AccordDesk *desk, AccordDelivery *delivery)
{
	leave_queue(desk, delivery);
	if (join_lane(desk, delivery))
		delivery->phase = ACCORD_PHASE_HELD;
}

void
accord_delivery_withdraw(AccordDesk *desk, AccordDelivery *delivery)
{
	leave_queue(desk, delivery);
	delivery->phase = ACCORD_PHASE_NEW;
	/* a lane that others hold may be gone when it wants to join again */
	if (delivery->lane != NULL && delivery->lane->holder != delivery)
		delivery->lane = NULL;
}

/* Whether nothing has begun with it. */
static bool
is_waiting(const AccordDelivery *delivery)
{
	return !delivery->settling &&
		(delivery->phase == ACCORD_PHASE_READY ||
		 delivery->phase == ACCORD_PHASE_WAITING);
}

int
accord_endpoint_evict(AccordDesk *desk, AccordEndpoint *endpoint,
					  AccordPoint *before)
{
	int			n = 0;

	while (!dlist_is_empty(&endpoint->owed))
	{
		AccordDelivery *last = dlist_tail_element(AccordDelivery, owed_node,
												  &endpoint->owed);
		AccordPoint point = {last->seq, last->ord};

		if (!is_waiting(last) ||
			accord_point_compare(point, endpoint->passed) <= 0)
			break;
		before->seq = last->seq;
		before->ord = last->ord - 1;
		unlist_owed(desk, last, true);
		accord_delivery_free(desk, last);
		n++;
	}
	return n;
}

void
accord_endpoint_unload(AccordDesk *desk, AccordEndpoint *endpoint)
{
	dlist_iter	iter;

	dlist_foreach(iter, &endpoint->owed)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, owed_node,
												   iter.cur);

		if (!is_waiting(delivery) || delivery->event == NULL)
			continue;
		accord_event_release(desk, delivery->event);
		delivery->event = NULL;
	}
}

AccordDelivery *
accord_delivery_take(AccordDesk *desk, AccordEndpoint *endpoint)
{
	AccordDelivery *delivery;

	if (dlist_is_empty(&endpoint->ready))
		return NULL;
	delivery = dlist_container(AccordDelivery, queue_node,
							   dlist_pop_head_node(&endpoint->ready));
	delivery->phase = ACCORD_PHASE_TAKEN;
	endpoint->in_flight++;
	desk->unrest = true;
	return delivery;
}

void
accord_delivery_put_back(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordEndpoint *endpoint = delivery->endpoint;

	Assert(delivery->phase == ACCORD_PHASE_TAKEN && !delivery->settling);
	endpoint->in_flight--;
	delivery->phase = ACCORD_PHASE_READY;
	dlist_push_head(&endpoint->ready, &delivery->queue_node);
	accord_endpoint_rotate(desk, endpoint);
}

void
accord_delivery_landed(AccordDesk *desk, AccordDelivery *delivery,
					   bool answered)
{
	AccordEndpoint *endpoint = delivery->endpoint;

	Assert(delivery->phase == ACCORD_PHASE_TAKEN);
	Assert(endpoint->in_flight > 0);
	Assert(!delivery->answered);
	endpoint->in_flight--;
	if (answered)
	{
		delivery->answered = true;
		endpoint->unsettled++;
	}
	accord_endpoint_rotate(desk, endpoint);
}

void
accord_delivery_settled(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordEndpoint *endpoint = delivery->endpoint;

	if (!delivery->answered)
		return;
	Assert(endpoint->unsettled > 0);
	delivery->answered = false;
	endpoint->unsettled--;
	accord_endpoint_rotate(desk, endpoint);
}

void
accord_delivery_free(AccordDesk *desk, AccordDelivery *delivery)
{
	leave_queue(desk, delivery);
	leave_lane(desk, delivery);
	unlist_owed(desk, delivery, false);
	leave_exception(desk, delivery);
	if (delivery->event != NULL)
		accord_event_release(desk, delivery->event);
	pfree(delivery);
}

AccordDelivery *
accord_desk_find(AccordDesk *desk, AccordEndpoint *endpoint, int64 seq,
				 int ord)
{
	ExceptionKey key;
	ExceptionEntry *entry;
	dlist_iter	iter;

	exception_key(&key, endpoint, seq, ord);
	entry = hash_search(desk->exceptions, &key, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->delivery;
	dlist_foreach(iter, &endpoint->owed)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, owed_node,
												   iter.cur);

		if (delivery->seq == seq && delivery->ord == ord)
			return delivery;
	}
	return NULL;
}

void
accord_endpoint_lag(AccordDesk *desk, AccordEndpoint *endpoint, AccordPoint from)
{
	if (endpoint->lagging)
		return;
	endpoint->lagging = true;
	endpoint->cursor = from;
	desk->unrest = true;
	accord_endpoint_touch(desk, endpoint);
}

AccordDelivery *
accord_desk_next_due(AccordDesk *desk)
{
	if (pairingheap_is_empty(desk->due))
		return NULL;
	return pairingheap_container(AccordDelivery, due_node,
								 pairingheap_first(desk->due));
}

AccordPoint
accord_endpoint_low(AccordDesk *desk, AccordEndpoint *endpoint)
{
	if (!dlist_is_empty(&endpoint->owed))
	{
		AccordDelivery *first = dlist_head_element(AccordDelivery, owed_node,
												   &endpoint->owed);
		AccordPoint point = {first->seq, first->ord - 1};

		return point;
	}
	return endpoint->lagging ? endpoint->cursor : desk->read;
}

int64
accord_desk_position(AccordDesk *desk)
{
	int64		position = desk->read.ord == ACCORD_ORD_ALL ?
	desk->read.seq : desk->read.seq - 1;
	dlist_iter	iter;

	dlist_foreach(iter, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint,
												   active_node, iter.cur);
		AccordPoint low;

		if (endpoint->cursored)
			continue;
		low = accord_endpoint_low(desk, endpoint);
		position = Min(position, low.ord == ACCORD_ORD_ALL ?
					   low.seq : low.seq - 1);
	}
	return position;
}
