/*
 * delivery.c: the life of a delivery.
 *
 * Runs in dispatchers. Deliveries stand in the queue of their connection and
 * priority, those of one key behind each other in a lane (lane.c), those that
 * are coalesced by the same besides in a merge. Each change of a delivery's
 * phase is one function here, but for those of who waits for a lane. No I/O,
 * no clock.
 *
 * Invariants
 *   - What is TAKEN counts in its gates from its turn until its answer.
 *   - A delivery of a merge is unsent: it leaves it before it is sent.
 *
 * On failure: only out-of-memory can raise here; it ends the dispatcher.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "delivery.h"
#include "lane.h"
#include "owed.h"
#include "round.h"

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
accord_delivery_queue(AccordDesk *desk, AccordDelivery *delivery)
{
	Assert(delivery->phase == ACCORD_PHASE_NEW ||
		   delivery->phase == ACCORD_PHASE_PARKED ||
		   delivery->phase == ACCORD_PHASE_HELD);
	accord_lane_unqueue(desk, delivery);
	if (accord_order_join(desk, delivery) && accord_lane_join(desk, delivery))
		accord_lane_ready(desk, delivery);
}

void
accord_delivery_owe(AccordDesk *desk, AccordDelivery *delivery,
					TimestampTz now)
{
	accord_owed_list(desk, delivery, now);
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
		accord_owed_list(desk, delivery, now);
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
	accord_owed_list(desk, delivery, now);
	take(desk, delivery);
}

void
accord_delivery_recall(AccordDesk *desk, AccordDelivery *delivery,
					   int version)
{
	Assert(delivery->phase == ACCORD_PHASE_NEW);
	accord_exception_enter(desk, delivery);
	delivery->version = version;
}

void
accord_delivery_except(AccordDesk *desk, AccordDelivery *delivery,
					   AccordState state)
{
	AccordConnection *connection = delivery->endpoint->connection;

	accord_exception_enter(desk, delivery);
	delivery->version++;
	connection->n_state[delivery->state]--;
	connection->n_state[state]++;
	delivery->state = state;
	accord_connection_touch(desk, connection);
	accord_owed_unlist(desk, delivery, false);
}

void
accord_delivery_park(AccordDesk *desk, AccordDelivery *delivery,
					 TimestampTz due_at)
{
	bool		begun = delivery->state == ACCORD_STATE_RETRYING ||
	accord_delivery_asks(delivery);

	accord_lane_unqueue(desk, delivery);
	delivery->due_at = due_at;
	if ((begun || delivery->kind_hash != 0) &&
		!accord_order_join(desk, delivery))
		return;
	if (delivery->replay != NULL)
		accord_lane_leave(desk, delivery);
	else if (begun && !accord_lane_join(desk, delivery))
		return;
	delivery->phase = ACCORD_PHASE_PARKED;
	pairingheap_add(desk->due, &delivery->due_node);
}

void
accord_delivery_hold(AccordDesk *desk, AccordDelivery *delivery)
{
	accord_lane_unqueue(desk, delivery);
	if (!accord_order_join(desk, delivery))
		return;
	if (delivery->replay != NULL)
	{
		accord_lane_leave(desk, delivery);
		delivery->phase = ACCORD_PHASE_HELD;
	}
	else if (accord_lane_join(desk, delivery))
		delivery->phase = ACCORD_PHASE_HELD;
}

void
accord_delivery_withdraw(AccordDesk *desk, AccordDelivery *delivery)
{
	accord_merge_leave(desk, delivery);
	accord_lane_unqueue(desk, delivery);
	delivery->phase = ACCORD_PHASE_NEW;
	accord_lane_forget(delivery);
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
		accord_owed_unlist(desk, last, true);
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
accord_connection_take(AccordDesk *desk, AccordConnection *connection)
{
	AccordEndpoint *endpoint = accord_connection_choose(connection);
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
	accord_lane_unqueue(desk, delivery);
	accord_lane_forget(delivery);
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
		accord_lane_leave(desk, delivery);
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

AccordDelivery *
accord_desk_next_due(AccordDesk *desk)
{
	if (pairingheap_is_empty(desk->due))
		return NULL;
	return pairingheap_container(AccordDelivery, due_node,
								 pairingheap_first(desk->due));
}

void
accord_connection_retry(AccordDesk *desk, AccordConnection *connection)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &connection->exceptions)
	{
		AccordDelivery *delivery = dlist_container(AccordDelivery,
												   except_node, iter.cur);

		if ((delivery->state == ACCORD_STATE_RETRYING ||
			 delivery->state == ACCORD_STATE_VERIFYING) &&
			!delivery->settling &&
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
	AccordException *entry;
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
	accord_lane_unqueue(desk, delivery);
	accord_lane_leave(desk, delivery);
	accord_order_leave(desk, delivery);
	accord_owed_unlist(desk, delivery, false);
	accord_exception_leave(desk, delivery);
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
