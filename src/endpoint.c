/*
 * endpoint.c: what a dispatcher holds in memory: channels, connections, queues.
 *
 * Runs in dispatchers. The desk is all of it: a hub for each channel, of it a
 * connection for each account, of that a queue (endpoint) for each priority in
 * use. What stands in the queues is in owed.c, whose turn it is in round.c,
 * the order of a key in lane.c, the life of a delivery in delivery.c; none of
 * them does I/O or reads the clock.
 *
 * Invariants
 *   - endpoint->owed lists, in (seq, ord) order, the deliveries that only
 *     memory knows; the persisted position never passes the first of them.
 *   - desk->exceptions finds every delivery in memory with a backlog row.
 *   - An endpoint's "passed" is at or after every delivery that was settled or
 *     got a row: what lies before it is never read from the log again.
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
	uint64		id;				/* hash key */
	AccordConnection *first;	/* others of this hash follow it */
} ConnectionEntry;

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
									 sizeof(uint64), sizeof(ConnectionEntry),
									 HASH_BLOBS);
	desk->lanes = create_table(context, "pg_accord lanes", sizeof(uint64),
							   sizeof(AccordLane), HASH_BLOBS);
	desk->merges = create_table(context, "pg_accord merges", sizeof(uint64),
								sizeof(AccordMerge), HASH_BLOBS);
	desk->exceptions = create_table(context, "pg_accord exceptions",
									sizeof(AccordExceptionKey),
									sizeof(AccordException), HASH_BLOBS);
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

static AccordConnection *
create_connection(AccordDesk *desk, const char *channel, const char *account,
				  uint64 id)
{
	AccordConnection *connection =
	MemoryContextAllocZero(desk->context, sizeof(AccordConnection));

	connection->hub = enter_hub(desk, channel);
	connection->account = MemoryContextStrdup(desk->context, account);
	connection->id = id;
	connection->gate.max_in_flight = 1;
	connection->weight = 1;
	connection->ordered = true;
	connection->alarm.connection = connection;
	connection->last_outcome = -1;
	connection->board = ACCORD_BOARD_UNASKED;
	dlist_init(&connection->exceptions);
	accord_connection_touch(desk, connection);
	return connection;
}

AccordConnection *
accord_desk_connection(AccordDesk *desk, const char *channel,
					   const char *account, bool create)
{
	uint64		id = accord_endpoint_hash(channel, account);
	ConnectionEntry *entry;
	AccordConnection *connection;
	bool		found;

	entry = hash_search(desk->connections, &id,
						create ? HASH_ENTER : HASH_FIND, &found);
	if (entry == NULL)
		return NULL;
	if (!found)
		entry->first = NULL;	/* were the next one to raise */
	for (connection = entry->first; connection != NULL;
		 connection = connection->same_id)
		if (strcmp(connection->account, account) == 0 &&
			strcmp(connection->hub->channel, channel) == 0)
			return connection;
	if (!create)
		return NULL;
	connection = create_connection(desk, channel, account, id);
	connection->same_id = entry->first;
	entry->first = connection;
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
accord_desk_scan(AccordDesk *desk, AccordDeskScan *scan)
{
	hash_seq_init(&scan->entries, desk->connections);
	scan->next = NULL;
}

AccordConnection *
accord_desk_scan_next(AccordDeskScan *scan)
{
	AccordConnection *connection = scan->next;

	while (connection == NULL)
	{
		ConnectionEntry *entry = hash_seq_search(&scan->entries);

		if (entry == NULL)
			return NULL;
		connection = entry->first;
	}
	scan->next = connection->same_id;
	return connection;
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

void
accord_endpoint_pass(AccordEndpoint *endpoint, AccordPoint point)
{
	if (accord_point_compare(point, endpoint->passed) > 0)
		endpoint->passed = point;
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
