/*
 * owed.c: what is owed by memory alone, and what has a row in the backlog.
 *
 * Runs in dispatchers. A delivery is first in endpoint->owed, which holds the
 * persisted position back; with its first row it moves to desk->exceptions,
 * where it is found by connection and event. endpoint.c says what holds of
 * both. No I/O, no clock.
 *
 * On failure: only out-of-memory can raise here; it ends the dispatcher.
 */
#include "postgres.h"

#include "owed.h"

void
accord_owed_list(AccordDesk *desk, AccordDelivery *delivery, TimestampTz now)
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

void
accord_owed_unlist(AccordDesk *desk, AccordDelivery *delivery, bool evicted)
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
exception_key(AccordExceptionKey *key, AccordConnection *connection, int64 seq,
			  int ord)
{
	memset(key, 0, sizeof(*key));
	key->connection = connection;
	key->seq = seq;
	key->ord = ord;
}

void
accord_exception_enter(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordExceptionKey key;
	AccordException *entry;

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

void
accord_exception_leave(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordExceptionKey key;

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
	AccordExceptionKey key;
	AccordException *entry;
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
