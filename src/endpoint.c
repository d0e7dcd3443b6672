/*
 * endpoint.c: what a dispatcher holds in memory.
 *
 * Runs in dispatchers. Deliveries stand in the queue of their connection and
 * priority, those of one key behind each other in a lane; nothing here does I/O
 * or reads the clock, and each change of a delivery's phase is one function.
 *
 * Sending goes round: the dispatcher's ready list holds channels (hubs), a
 * hub's ready list its connections, each for as long as it has something READY
 * and its gate is open. Who may not send before some time sleeps, out of its
 * round, until its alarm.
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
 *   - What is replayed has a lane of its key within the replay besides, its
 *     "order". It keeps that until it is settled, and its key's lane only from
 *     its turn to the answer: live events never wait for one that is retried.
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

typedef struct HubEntry
{
	char		name[NAMEDATALEN];	/* hash key */
	AccordHub  *hub;
} HubEntry;

typedef struct ConnectionEntry
{
	char		name[2 * NAMEDATALEN + 192];	/* hash key: channel, \n,
												 * account */
	AccordConnection *connection;
} ConnectionEntry;

/* Of so many deliveries in a row, each priority's share when all have some. */
static const int priority_shares[ACCORD_PRIORITIES] = {16, 4, 1};

typedef struct ExceptionKey
{
	AccordConnection *connection;
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
	if (x->seq != y->seq)
		return x->seq < y->seq ? 1 : -1;
	return (y->ord > x->ord) - (y->ord < x->ord);
}

static int
compare_alarms(const pairingheap_node *a, const pairingheap_node *b,
			   void *arg)
{
	const AccordAlarm *x = pairingheap_const_container(AccordAlarm, node, a);
	const AccordAlarm *y = pairingheap_const_container(AccordAlarm, node, b);

	return (y->at > x->at) - (y->at < x->at);
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

static int
compare_batches(const pairingheap_node *a, const pairingheap_node *b,
				void *arg)
{
	const AccordBatch *x =
	pairingheap_const_container(AccordBatch, due_node, a);
	const AccordBatch *y =
	pairingheap_const_container(AccordBatch, due_node, b);

	return (y->due_at > x->due_at) - (y->due_at < x->due_at);
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
	desk->hubs = create_table(context, "pg_accord hubs",
							  sizeof(((HubEntry *) 0)->name),
							  sizeof(HubEntry), HASH_STRINGS);
	desk->connections = create_table(context, "pg_accord connections",
									 sizeof(((ConnectionEntry *) 0)->name),
									 sizeof(ConnectionEntry), HASH_STRINGS);
	desk->lanes = create_table(context, "pg_accord lanes", sizeof(uint64),
							   sizeof(AccordLane), HASH_BLOBS);
	desk->merges = create_table(context, "pg_accord merges", sizeof(uint64),
								sizeof(AccordMerge), HASH_BLOBS);
	desk->exceptions = create_table(context, "pg_accord exceptions",
									sizeof(ExceptionKey),
									sizeof(ExceptionEntry), HASH_BLOBS);
	dlist_init(&desk->active);
	dlist_init(&desk->ready);
	dlist_init(&desk->stale);
	dlist_init(&desk->replays);
	desk->due = pairingheap_allocate(compare_due, NULL);
	desk->alarms = pairingheap_allocate(compare_alarms, NULL);
	desk->batches = create_table(context, "pg_accord batches",
								 sizeof(AccordBatchKey),
								 sizeof(AccordBatchKey) +
								 sizeof(AccordBatch *), HASH_BLOBS);
	desk->forming = pairingheap_allocate(compare_batches, NULL);
	dlist_init(&desk->batches_due);
	MemoryContextSwitchTo(old);
	return desk;
}

/*
 * A fixed-size name for the hash table: long account names are replaced by
 * their hash, which for 128 bits is as good as the name.
 */
static void
connection_name(char *name, Size size, const char *channel, const char *account)
{
	const unsigned char *bytes = (const unsigned char *) account;
	Size		channel_len = strlen(channel);
	Size		account_len = strlen(account);

	if (channel_len + 1 + account_len < size)
	{
		memcpy(name, channel, channel_len);
		name[channel_len] = '\n';
		memcpy(name + channel_len + 1, account, account_len + 1);
	}
	else
		snprintf(name, size, "%s\n\n" UINT64_FORMAT "." UINT64_FORMAT, channel,
				 hash_bytes_extended(bytes, account_len, 1),
				 hash_bytes_extended(bytes, account_len, 2));
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

int
accord_channel_owner(const char *channel, int count)
{
	return count == 1 ? 0 :
		hash_bytes_extended((const unsigned char *) channel, strlen(channel),
							0) % count;
}

bool
accord_desk_owns(AccordDesk *desk, const char *channel)
{
	return accord_channel_owner(channel, desk->count) == desk->number;
}

static AccordHub *
enter_hub(AccordDesk *desk, const char *channel)
{
	HubEntry   *entry;
	AccordHub  *hub;
	bool		found;

	entry = hash_search(desk->hubs, channel, HASH_ENTER, &found);
	if (found && entry->hub != NULL)
		return entry->hub;
	entry->hub = NULL;			/* were the next one to raise */
	hub = MemoryContextAllocZero(desk->context, sizeof(AccordHub));
	hub->channel = MemoryContextStrdup(desk->context, channel);
	hub->gate.max_in_flight = 1;
	hub->alarm.hub = hub;
	dlist_init(&hub->ready);
	entry->hub = hub;
	return hub;
}

void
accord_connection_touch(AccordDesk *desk, AccordConnection *connection)
{
	if (connection->stale)
		return;
	connection->stale = true;
	dlist_push_tail(&desk->stale, &connection->stale_node);
}

AccordConnection *
accord_desk_connection(AccordDesk *desk, const char *channel,
					   const char *account, bool create)
{
	char		name[sizeof(((ConnectionEntry *) 0)->name)];
	ConnectionEntry *entry;
	AccordConnection *connection;
	bool		found;

	memset(name, 0, sizeof(name));
	connection_name(name, sizeof(name), channel, account);
	entry = hash_search(desk->connections, name,
						create ? HASH_ENTER : HASH_FIND, &found);
	if (entry == NULL)
		return NULL;
	if (found && entry->connection != NULL)
		return entry->connection;

	entry->connection = NULL;	/* were the next one to raise */
	connection = MemoryContextAllocZero(desk->context,
										sizeof(AccordConnection));
	connection->hub = enter_hub(desk, channel);
	connection->account = MemoryContextStrdup(desk->context, account);
	connection->id = accord_endpoint_hash(channel, account);
	connection->gate.max_in_flight = 1;
	connection->weight = 1;
	connection->ordered = true;
	connection->alarm.connection = connection;
	connection->last_outcome = -1;
	connection->board = ACCORD_BOARD_UNASKED;
	dlist_init(&connection->exceptions);
	accord_connection_touch(desk, connection);
	entry->connection = connection;
	return connection;
}

AccordEndpoint *
accord_connection_endpoint(AccordDesk *desk, AccordConnection *connection,
						   int priority)
{
	AccordEndpoint *endpoint;

	Assert(priority >= 0 && priority < ACCORD_QUEUES);
	if (connection->endpoints[priority] != NULL)
		return connection->endpoints[priority];
	endpoint = MemoryContextAllocZero(desk->context, sizeof(AccordEndpoint));
	endpoint->connection = connection;
	endpoint->channel = connection->hub->channel;
	endpoint->account = connection->account;
	endpoint->priority = priority;
	dlist_init(&endpoint->owed);
	dlist_init(&endpoint->ready);
	connection->endpoints[priority] = endpoint;
	return endpoint;
}

void
accord_desk_scan(AccordDesk *desk, HASH_SEQ_STATUS *scan)
{
	hash_seq_init(scan, desk->connections);
}

AccordConnection *
accord_desk_scan_next(HASH_SEQ_STATUS *scan)
{
	ConnectionEntry *entry = hash_seq_search(scan);

	return entry ? entry->connection : NULL;
}

AccordEvent *
accord_event_create(AccordDesk *desk, TupleTableSlot *row)
{
	MemoryContext old = MemoryContextSwitchTo(desk->context);
	AccordEvent *event = palloc(sizeof(AccordEvent));

	event->refs = 0;
	event->replay = NULL;
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
	if (key != NULL && endpoint->connection->ordered)
	{
		delivery->key_hash = hash_bytes_extended((const unsigned char *) key,
												 strlen(key),
												 endpoint->connection->id);
		if (delivery->key_hash == 0)
			delivery->key_hash = 1;
	}
	return delivery;
}

/*
 * Rounds
 */

bool
accord_gate_open(const AccordGate *gate)
{
	return gate->in_flight < gate->max_in_flight &&
		gate->in_flight + gate->unsettled < 2 * gate->max_in_flight;
}

bool
accord_connection_has_live(const AccordConnection *connection)
{
	for (int i = 0; i < ACCORD_PRIORITIES; i++)
		if (connection->endpoints[i] != NULL &&
			!dlist_is_empty(&connection->endpoints[i]->ready))
			return true;
	return false;
}

int
accord_replay_share(const AccordGate *gate)
{
	return Max(gate->max_in_flight / 2, 1);
}

static bool
has_ready_replay(const AccordConnection *connection)
{
	AccordEndpoint *endpoint = connection->endpoints[ACCORD_PRIORITY_REPLAY];

	return endpoint != NULL && !dlist_is_empty(&endpoint->ready) &&
		endpoint->n_taken < accord_replay_share(&connection->gate);
}

static bool
has_ready(const AccordConnection *connection)
{
	return accord_connection_has_live(connection) ||
		has_ready_replay(connection);
}

static void
rotate_hub(AccordDesk *desk, AccordHub *hub)
{
	if (!hub->rotating && hub->alarm.at == 0 &&
		!dlist_is_empty(&hub->ready) && accord_gate_open(&hub->gate))
	{
		dlist_push_tail(&desk->ready, &hub->ready_node);
		hub->rotating = true;
	}
}

/* Whether it has a place in its channel's round. */
static bool
may_send(const AccordConnection *connection)
{
	return !connection->paused && connection->alarm.at == 0 &&
		!connection->breaker.probing && has_ready(connection) &&
		accord_gate_open(&connection->gate);
}

void
accord_connection_rotate(AccordDesk *desk, AccordConnection *connection)
{
	if (!connection->rotating && may_send(connection))
	{
		dlist_push_tail(&connection->hub->ready, &connection->ready_node);
		connection->rotating = true;
	}
	rotate_hub(desk, connection->hub);
}

void
accord_connection_rest(AccordDesk *desk, AccordConnection *connection)
{
	if (!connection->rotating)
		return;
	dlist_delete(&connection->ready_node);
	connection->rotating = false;
}

AccordHub  *
accord_desk_turn(AccordDesk *desk)
{
	while (!dlist_is_empty(&desk->ready))
	{
		AccordHub  *hub = dlist_head_element(AccordHub, ready_node,
											 &desk->ready);

		if (!dlist_is_empty(&hub->ready) && accord_gate_open(&hub->gate))
			return hub;
		dlist_delete(&hub->ready_node);
		hub->rotating = false;
	}
	return NULL;
}

AccordConnection *
accord_hub_turn(AccordDesk *desk, AccordHub *hub)
{
	while (!dlist_is_empty(&hub->ready))
	{
		AccordConnection *connection = dlist_head_element(AccordConnection,
														  ready_node,
														  &hub->ready);

		if (may_send(connection))
			return connection;
		accord_connection_rest(desk, connection);
	}
	return NULL;
}

void
accord_connection_served(AccordDesk *desk, AccordConnection *connection)
{
	AccordHub  *hub = connection->hub;

	if (--connection->credit <= 0 || !may_send(connection))
	{
		connection->credit = connection->weight;
		accord_connection_rest(desk, connection);
		accord_connection_rotate(desk, connection);
	}
	if (hub->rotating)
	{
		dlist_delete(&hub->ready_node);
		dlist_push_tail(&desk->ready, &hub->ready_node);
	}
}

static void
set_alarm(AccordDesk *desk, AccordAlarm *alarm, TimestampTz at)
{
	if (alarm->at != 0)
		pairingheap_remove(desk->alarms, &alarm->node);
	alarm->at = at;
	if (at != 0)
		pairingheap_add(desk->alarms, &alarm->node);
}

void
accord_hub_sleep(AccordDesk *desk, AccordHub *hub, TimestampTz until)
{
	set_alarm(desk, &hub->alarm, until);
	if (until != 0 && hub->rotating)
	{
		dlist_delete(&hub->ready_node);
		hub->rotating = false;
	}
	rotate_hub(desk, hub);
}

void
accord_connection_sleep(AccordDesk *desk, AccordConnection *connection,
						TimestampTz until)
{
	set_alarm(desk, &connection->alarm, until);
	accord_connection_touch(desk, connection);
	if (until != 0)
		accord_connection_rest(desk, connection);
	accord_connection_rotate(desk, connection);
}

static AccordAlarm *
first_alarm(AccordDesk *desk)
{
	return pairingheap_is_empty(desk->alarms) ? NULL :
		pairingheap_container(AccordAlarm, node,
							  pairingheap_first(desk->alarms));
}

void
accord_desk_wake(AccordDesk *desk, TimestampTz now)
{
	AccordAlarm *alarm;

	while ((alarm = first_alarm(desk)) != NULL && alarm->at <= now)
	{
		if (alarm->hub != NULL)
			accord_hub_sleep(desk, alarm->hub, 0);
		else
			accord_connection_sleep(desk, alarm->connection, 0);
	}
}

TimestampTz
accord_desk_next_alarm(AccordDesk *desk)
{
	AccordAlarm *alarm = first_alarm(desk);

	return alarm ? alarm->at : 0;
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
	desk->n_active += active ? 1 : -1;
	endpoint->active = active;
}

static void
make_ready(AccordDesk *desk, AccordDelivery *delivery)
{
	delivery->phase = ACCORD_PHASE_READY;
	dlist_push_tail(&delivery->endpoint->ready, &delivery->queue_node);
	accord_connection_rotate(desk, delivery->endpoint->connection);
}

/* Finds or makes the lane of a key. */
static AccordLane *
enter_lane(AccordDesk *desk, uint64 hash)
{
	AccordLane *lane;
	bool		found;

	lane = hash_search(desk->lanes, &hash, HASH_ENTER, &found);
	if (!found)
	{
		lane->holder = NULL;
		lane->barrier.seq = 0;
		lane->barrier.ord = 0;
		dlist_init(&lane->waiting);
	}
	return lane;
}

/* False: another holds it, and the delivery is WAITING now. */
static bool
hold_lane(AccordLane *lane, AccordDelivery *delivery)
{
	if (lane->holder != NULL && lane->holder != delivery)
	{
		delivery->phase = ACCORD_PHASE_WAITING;
		dlist_push_tail(&lane->waiting, &delivery->queue_node);
		return false;
	}
	lane->holder = delivery;
	return true;
}

/* A lane's next holder after this one; NULL: nobody waits, it is forgotten. */
static AccordDelivery *
pass_on(AccordDesk *desk, AccordLane *lane, const AccordDelivery *delivery)
{
	if (lane->holder != NULL && lane->holder != delivery)
		return NULL;
	if (dlist_is_empty(&lane->waiting))
	{
		hash_search(desk->lanes, &lane->hash, HASH_REMOVE, NULL);
		return NULL;
	}
	if (lane->holder == NULL)
		return NULL;
	lane->holder = dlist_container(AccordDelivery, queue_node,
								   dlist_pop_head_node(&lane->waiting));
	return lane->holder;
}

static bool
is_held(const AccordDelivery *delivery)
{
	return delivery->version > 0 && delivery->state == ACCORD_STATE_HELD;
}

/* Gives a lane to the next of its key, or forgets it. */
static void
leave_lane(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordLane *lane = delivery->lane;
	AccordDelivery *next;

	delivery->lane = NULL;
	next = lane == NULL ? NULL : pass_on(desk, lane, delivery);
	if (next == NULL)
		return;
	if (is_held(next))
		next->phase = ACCORD_PHASE_HELD;
	else
		make_ready(desk, next);
}

/*
 * Joins the lane of a delivery's key. False: another holds it, and the
 * delivery is WAITING now.
 */
static bool
join_lane(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordLane *lane = delivery->lane;
	AccordPoint point = {delivery->seq, delivery->ord};

	if (lane == NULL && delivery->key_hash != 0)
		lane = delivery->lane = enter_lane(desk, delivery->key_hash);
	if (lane == NULL)
		return true;
	if (delivery->merge_hash == 0 && delivery->replay == NULL &&
		accord_point_compare(point, lane->barrier) > 0)
		lane->barrier = point;
	return hold_lane(lane, delivery);
}

/* The same for the lane that a replay has of its own. */
static bool
join_order(AccordDesk *desk, AccordDelivery *delivery)
{
	if (delivery->order == NULL && delivery->order_hash != 0)
		delivery->order = enter_lane(desk, delivery->order_hash);
	return delivery->order == NULL || hold_lane(delivery->order, delivery);
}

static void
leave_order(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordLane *lane = delivery->order;
	AccordDelivery *next;

	delivery->order = NULL;
	next = lane == NULL ? NULL : pass_on(desk, lane, delivery);
	if (next == NULL)
		return;
	if (is_held(next))
		next->phase = ACCORD_PHASE_HELD;
	else if (next->version > 0 && next->state == ACCORD_STATE_SCHEDULED)
	{
		next->phase = ACCORD_PHASE_PARKED;
		pairingheap_add(desk->due, &next->due_node);
	}
	else if (join_lane(desk, next))
		make_ready(desk, next);
}

AccordDelivery *
accord_desk_replayed(AccordDesk *desk, uint64 order_hash)
{
	AccordLane *lane = hash_search(desk->lanes, &order_hash, HASH_FIND, NULL);

	return lane ? lane->holder : NULL;
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
	if (join_order(desk, delivery) && join_lane(desk, delivery))
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
	desk->bytes += sizeof(AccordDelivery);
	accord_connection_touch(desk, endpoint->connection);
	desk->unrest = true;
	accord_endpoint_touch(desk, endpoint);
}

/* It is TAKEN from now on, and counts as in flight. */
static void
take(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordConnection *connection = delivery->endpoint->connection;

	delivery->phase = ACCORD_PHASE_TAKEN;
	delivery->counted = true;
	accord_connection_touch(desk, connection);
	delivery->endpoint->n_taken++;
	connection->hub->n_replaying +=
		delivery->endpoint->priority == ACCORD_PRIORITY_REPLAY;
	connection->gate.in_flight++;
	connection->hub->gate.in_flight++;
	desk->unrest = true;
}

/* ... and does not count any more. */
static void
untake(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordConnection *connection = delivery->endpoint->connection;

	Assert(delivery->counted);
	Assert(connection->gate.in_flight > 0);
	delivery->counted = false;
	accord_connection_touch(desk, connection);
	delivery->endpoint->n_taken--;
	connection->hub->n_replaying -=
		delivery->endpoint->priority == ACCORD_PRIORITY_REPLAY;
	connection->gate.in_flight--;
	connection->hub->gate.in_flight--;
}

void
accord_delivery_owe(AccordDesk *desk, AccordDelivery *delivery,
					TimestampTz now)
{
	list_owed(desk, delivery, now);
	accord_delivery_queue(desk, delivery);
}

void
accord_delivery_replay(AccordDesk *desk, AccordDelivery *delivery,
					   AccordReplay *replay, TimestampTz now)
{
	delivery->replay = replay;
	delivery->read_at = now;
	replay->n_deliveries++;
	if (delivery->excepted)
		dlist_push_tail(&replay->excepted, &delivery->replay_node);
	else
	{
		dlist_push_tail(&replay->owed, &delivery->replay_node);
		list_owed(desk, delivery, now);
	}
}

void
accord_delivery_take(AccordDesk *desk, AccordDelivery *delivery)
{
	Assert(delivery->phase == ACCORD_PHASE_NEW);
	take(desk, delivery);
}

void
accord_delivery_list(AccordDesk *desk, AccordDelivery *delivery,
					 TimestampTz now)
{
	list_owed(desk, delivery, now);
	take(desk, delivery);
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
	if (delivery->replay != NULL)
	{
		dlist_delete(&delivery->replay_node);
		dlist_push_tail(&delivery->replay->excepted, &delivery->replay_node);
		delivery->replay->changed = true;
	}
	dlist_delete(&delivery->owed_node);
	delivery->owed = false;
	delivery->endpoint->n_owed--;
	desk->n_owed--;
	desk->bytes -= sizeof(AccordDelivery);
	accord_connection_touch(desk, delivery->endpoint->connection);
	accord_endpoint_touch(desk, delivery->endpoint);
}

static void
exception_key(ExceptionKey *key, AccordConnection *connection, int64 seq,
			  int ord)
{
	memset(key, 0, sizeof(*key));
	key->connection = connection;
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
	exception_key(&key, delivery->endpoint->connection, delivery->seq,
				  delivery->ord);
	entry = hash_search(desk->exceptions, &key, HASH_ENTER, NULL);
	entry->delivery = delivery;
	delivery->excepted = true;
	dlist_push_tail(&delivery->endpoint->connection->exceptions,
					&delivery->except_node);
	delivery->endpoint->connection->n_state[delivery->state]++;
	accord_connection_touch(desk, delivery->endpoint->connection);
	delivery->endpoint->n_exceptions++;
	desk->n_exceptions++;
}

static void
leave_exception(AccordDesk *desk, AccordDelivery *delivery)
{
	ExceptionKey key;

	if (!delivery->excepted)
		return;
	exception_key(&key, delivery->endpoint->connection, delivery->seq,
				  delivery->ord);
	hash_search(desk->exceptions, &key, HASH_REMOVE, NULL);
	delivery->excepted = false;
	dlist_delete(&delivery->except_node);
	delivery->endpoint->connection->n_state[delivery->state]--;
	accord_connection_touch(desk, delivery->endpoint->connection);
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
	AccordConnection *connection = delivery->endpoint->connection;

	enter_exception(desk, delivery);
	delivery->version++;
	connection->n_state[delivery->state]--;
	connection->n_state[state]++;
	delivery->state = state;
	accord_connection_touch(desk, connection);
	unlist_owed(desk, delivery, false);
}

void
accord_delivery_park(AccordDesk *desk, AccordDelivery *delivery,
					 TimestampTz due_at)
{
	leave_queue(desk, delivery);
	delivery->due_at = due_at;
	if ((delivery->state == ACCORD_STATE_RETRYING ||
		 delivery->kind_hash != 0) && !join_order(desk, delivery))
		return;
	if (delivery->replay != NULL)
		leave_lane(desk, delivery);
	else if (delivery->state == ACCORD_STATE_RETRYING &&
			 !join_lane(desk, delivery))
		return;
	delivery->phase = ACCORD_PHASE_PARKED;
	pairingheap_add(desk->due, &delivery->due_node);
}

void
accord_delivery_hold(AccordDesk *desk, AccordDelivery *delivery)
{
	leave_queue(desk, delivery);
	if (!join_order(desk, delivery))
		return;
	if (delivery->replay != NULL)
	{
		leave_lane(desk, delivery);
		delivery->phase = ACCORD_PHASE_HELD;
	}
	else if (join_lane(desk, delivery))
		delivery->phase = ACCORD_PHASE_HELD;
}

/* Lanes that another holds may be gone when they are wanted again. */
static void
forget_lanes(AccordDelivery *delivery)
{
	if (delivery->lane != NULL && delivery->lane->holder != delivery)
		delivery->lane = NULL;
	if (delivery->order != NULL && delivery->order->holder != delivery)
		delivery->order = NULL;
}

void
accord_delivery_withdraw(AccordDesk *desk, AccordDelivery *delivery)
{
	accord_merge_leave(desk, delivery);
	leave_queue(desk, delivery);
	delivery->phase = ACCORD_PHASE_NEW;
	forget_lanes(delivery);
}

/* Whether nothing has begun with it. */
static bool
is_waiting(const AccordDelivery *delivery)
{
	return !delivery->settling &&
		(delivery->phase == ACCORD_PHASE_READY ||
		 delivery->phase == ACCORD_PHASE_WAITING ||
		 delivery->phase == ACCORD_PHASE_PARKED);
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

/* The queue whose turn it is, of those with something READY. */
static AccordEndpoint *
choose_priority(AccordConnection *connection)
{
	for (int round = 0; round < 2; round++)
	{
		for (int i = 0; i < ACCORD_PRIORITIES; i++)
		{
			AccordEndpoint *endpoint = connection->endpoints[i];

			if (endpoint != NULL && !dlist_is_empty(&endpoint->ready) &&
				connection->shares[i] > 0)
			{
				connection->shares[i]--;
				return endpoint;
			}
		}
		memcpy(connection->shares, priority_shares, sizeof(priority_shares));
	}
	return has_ready_replay(connection) ?
		connection->endpoints[ACCORD_PRIORITY_REPLAY] : NULL;
}

AccordDelivery *
accord_connection_take(AccordDesk *desk, AccordConnection *connection)
{
	AccordEndpoint *endpoint = choose_priority(connection);
	AccordDelivery *delivery;

	if (endpoint == NULL)
		return NULL;
	delivery = dlist_container(AccordDelivery, queue_node,
							   dlist_pop_head_node(&endpoint->ready));
	take(desk, delivery);
	return delivery;
}

void
accord_delivery_claim(AccordDesk *desk, AccordDelivery *delivery)
{
	leave_queue(desk, delivery);
	forget_lanes(delivery);
	if (delivery->batch != NULL)
	{
		dlist_delete(&delivery->batch_node);
		delivery->batch->n--;
		delivery->batch = NULL;
	}
	take(desk, delivery);
	if (delivery->owed)
	{
		delivery->leaving = true;
		delivery->endpoint->n_leaving++;
	}
}

/*
 * Merges
 */

void
accord_merge_enter(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordPoint point = {delivery->seq, delivery->ord};
	AccordMerge *merge;
	dlist_node *after;
	bool		found;

	if (delivery->merge_hash == 0 || delivery->merging)
		return;
	merge = hash_search(desk->merges, &delivery->merge_hash, HASH_ENTER,
						&found);
	if (!found)
		dlist_init(&merge->unsent);
	for (after = merge->unsent.head.prev; found &&
		 after != &merge->unsent.head; after = after->prev)
	{
		AccordDelivery *other = dlist_container(AccordDelivery, merge_node,
												after);
		AccordPoint there = {other->seq, other->ord};

		if (accord_point_compare(there, point) < 0)
			break;
	}
	if (!found || after == &merge->unsent.head)
		dlist_push_head(&merge->unsent, &delivery->merge_node);
	else
		dlist_insert_after(after, &delivery->merge_node);
	delivery->merging = true;
}

void
accord_merge_leave(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordMerge *merge;

	if (!delivery->merging)
		return;
	merge = hash_search(desk->merges, &delivery->merge_hash, HASH_FIND, NULL);
	dlist_delete(&delivery->merge_node);
	delivery->merging = false;
	if (dlist_is_empty(&merge->unsent))
		hash_search(desk->merges, &merge->hash, HASH_REMOVE, NULL);
}

AccordDelivery *
accord_merge_newest(AccordDesk *desk, uint64 hash)
{
	AccordMerge *merge = hash_search(desk->merges, &hash, HASH_FIND, NULL);

	return merge == NULL ? NULL :
		dlist_tail_element(AccordDelivery, merge_node, &merge->unsent);
}

AccordDelivery *
accord_merge_newer(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordMerge *merge = hash_search(desk->merges, &delivery->merge_hash,
									 HASH_FIND, NULL);
	AccordPoint point = {delivery->seq, delivery->ord};
	dlist_iter	iter;

	if (merge == NULL)
		return NULL;
	dlist_foreach(iter, &merge->unsent)
	{
		AccordDelivery *other = dlist_container(AccordDelivery, merge_node,
												iter.cur);
		AccordPoint there = {other->seq, other->ord};

		if (accord_point_compare(there, point) > 0)
			return other;
	}
	return NULL;
}

void
accord_delivery_put_back(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordEndpoint *endpoint = delivery->endpoint;

	Assert(delivery->phase == ACCORD_PHASE_TAKEN && !delivery->settling);
	untake(desk, delivery);
	delivery->phase = ACCORD_PHASE_READY;
	dlist_push_head(&endpoint->ready, &delivery->queue_node);
	accord_connection_rotate(desk, endpoint->connection);
}

void
accord_delivery_again(AccordDesk *desk, AccordDelivery *delivery)
{
	Assert(delivery->phase == ACCORD_PHASE_TAKEN && !delivery->counted);
	delivery->phase = ACCORD_PHASE_NEW;
	accord_delivery_queue(desk, delivery);
	accord_merge_enter(desk, delivery);
}

void
accord_delivery_defer(AccordDesk *desk, AccordDelivery *delivery,
					  TimestampTz until)
{
	Assert(delivery->phase == ACCORD_PHASE_TAKEN && !delivery->settling);
	untake(desk, delivery);
	if (delivery->replay != NULL)
		leave_lane(desk, delivery);
	delivery->due_at = until;
	delivery->phase = ACCORD_PHASE_PARKED;
	pairingheap_add(desk->due, &delivery->due_node);
	accord_connection_rotate(desk, delivery->endpoint->connection);
}

void
accord_delivery_uncount(AccordDesk *desk, AccordDelivery *delivery)
{
	Assert(delivery->phase == ACCORD_PHASE_TAKEN && !delivery->settling);
	untake(desk, delivery);
	accord_connection_rotate(desk, delivery->endpoint->connection);
}

void
accord_delivery_count(AccordDesk *desk, AccordDelivery *delivery)
{
	Assert(delivery->phase == ACCORD_PHASE_TAKEN && !delivery->counted);
	take(desk, delivery);
}

void
accord_connection_retry(AccordDesk *desk, AccordConnection *connection)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &connection->exceptions)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery,
												   except_node, iter.cur);

		if (delivery->state == ACCORD_STATE_RETRYING && !delivery->settling &&
			delivery->phase == ACCORD_PHASE_PARKED)
			accord_delivery_queue(desk, delivery);
	}
}

static void
release(AccordDesk *desk, AccordDelivery *delivery)
{
	if (delivery->limit_at == 0 || delivery->settling)
		return;
	if (delivery->phase == ACCORD_PHASE_PARKED &&
		(delivery->due_at == delivery->limit_at ||
		 delivery->due_at == delivery->expires_at))
		accord_delivery_queue(desk, delivery);
	delivery->limit_at = 0;
}

void
accord_desk_release(AccordDesk *desk)
{
	HASH_SEQ_STATUS scan;
	ExceptionEntry *entry;
	dlist_iter	active;
	dlist_iter	owed;

	hash_seq_init(&scan, desk->exceptions);
	while ((entry = hash_seq_search(&scan)) != NULL)
		release(desk, entry->delivery);
	dlist_foreach(active, &desk->active)
	{
		AccordEndpoint *endpoint = dlist_container(AccordEndpoint, active_node,
												   active.cur);

		dlist_foreach(owed, &endpoint->owed)
			release(desk, dlist_container(AccordDelivery, owed_node, owed.cur));
	}
}

void
accord_delivery_landed(AccordDesk *desk, AccordDelivery *delivery,
					   bool answered)
{
	AccordConnection *connection = delivery->endpoint->connection;

	Assert(delivery->phase == ACCORD_PHASE_TAKEN);
	Assert(!delivery->answered);
	if (delivery->counted)
		untake(desk, delivery);
	if (answered)
	{
		delivery->answered = true;
		connection->gate.unsettled++;
		connection->hub->gate.unsettled++;
	}
	accord_connection_rotate(desk, connection);
}

void
accord_delivery_settled(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordConnection *connection = delivery->endpoint->connection;

	if (!delivery->answered)
		return;
	Assert(connection->gate.unsettled > 0);
	delivery->answered = false;
	connection->gate.unsettled--;
	connection->hub->gate.unsettled--;
	accord_connection_rotate(desk, connection);
}

void
accord_delivery_free(AccordDesk *desk, AccordDelivery *delivery)
{
	if (delivery->leaving)
		delivery->endpoint->n_leaving--;
	accord_merge_leave(desk, delivery);
	leave_queue(desk, delivery);
	leave_lane(desk, delivery);
	leave_order(desk, delivery);
	unlist_owed(desk, delivery, false);
	leave_exception(desk, delivery);
	if (delivery->replay != NULL)
	{
		dlist_delete(&delivery->replay_node);
		delivery->replay->n_deliveries--;
		delivery->replay->changed = true;
	}
	if (delivery->event != NULL)
		accord_event_release(desk, delivery->event);
	pfree(delivery);
}

static AccordDelivery *
find_owed(AccordEndpoint *endpoint, int64 seq, int ord)
{
	bool		sorted = endpoint->priority != ACCORD_PRIORITY_REPLAY;
	AccordPoint point = {seq, ord};
	dlist_iter	iter;

	dlist_foreach(iter, &endpoint->owed)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery, owed_node,
												   iter.cur);
		AccordPoint there = {delivery->seq, delivery->ord};

		if (accord_point_compare(there, point) == 0)
			return delivery;
		if (sorted && accord_point_compare(there, point) > 0)
			break;
	}
	return NULL;
}

AccordDelivery *
accord_desk_find(AccordDesk *desk, AccordConnection *connection, int64 seq,
				 int ord)
{
	ExceptionKey key;
	ExceptionEntry *entry;
	AccordDelivery *delivery = NULL;

	exception_key(&key, connection, seq, ord);
	entry = hash_search(desk->exceptions, &key, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->delivery;
	for (int i = 0; i < ACCORD_QUEUES && delivery == NULL; i++)
		if (connection->endpoints[i] != NULL)
			delivery = find_owed(connection->endpoints[i], seq, ord);
	return delivery;
}

void
accord_endpoint_lag(AccordDesk *desk, AccordEndpoint *endpoint, AccordPoint from)
{
	if (endpoint->lagging)
		return;
	endpoint->lagging = true;
	accord_connection_touch(desk, endpoint->connection);
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

		/* a replay has a cursor of its own */
		if (endpoint->cursored || endpoint->priority == ACCORD_PRIORITY_REPLAY)
			continue;
		low = accord_endpoint_low(desk, endpoint);
		position = Min(position, low.ord == ACCORD_ORD_ALL ?
					   low.seq : low.seq - 1);
	}
	return position;
}
