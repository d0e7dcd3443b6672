/*
 * lane.c: the deliveries of one key at one endpoint, in their order.
 *
 * Runs in dispatchers. No I/O, no clock.
 *
 * Invariants
 *   - At most one delivery holds a lane; it is READY, TAKEN, PARKED or HELD.
 *     The others of its key are WAITING, in the order they came.
 *   - Lanes are found by a hash of endpoint and key. Two keys that collide
 *     share a lane: that costs parallelism, never order.
 *   - What is replayed has a lane of its key within the replay besides, its
 *     "order". It keeps that until it is settled, and its key's lane only from
 *     its turn to the answer: live events never wait for one that is retried.
 *
 * On failure: only out-of-memory can raise here; it ends the dispatcher.
 */
#include "postgres.h"

#include "await.h"
#include "lane.h"
#include "round.h"

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

void
accord_lane_ready(AccordDesk *desk, AccordDelivery *delivery)
{
	delivery->phase = ACCORD_PHASE_READY;
	dlist_push_tail(&delivery->endpoint->ready, &delivery->queue_node);
	accord_connection_rotate(desk, delivery->endpoint->connection);
}

bool
accord_lane_join(AccordDesk *desk, AccordDelivery *delivery)
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

void
accord_lane_leave(AccordDesk *desk, AccordDelivery *delivery)
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
		accord_lane_ready(desk, next);
}

bool
accord_order_join(AccordDesk *desk, AccordDelivery *delivery)
{
	if (delivery->order == NULL && delivery->order_hash != 0)
		delivery->order = enter_lane(desk, delivery->order_hash);
	return delivery->order == NULL || hold_lane(delivery->order, delivery);
}

void
accord_order_leave(AccordDesk *desk, AccordDelivery *delivery)
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
	else if (accord_lane_join(desk, next))
		accord_lane_ready(desk, next);
}

void
accord_lane_unqueue(AccordDesk *desk, AccordDelivery *delivery)
{
	if (delivery->phase == ACCORD_PHASE_PARKED)
	{
		pairingheap_remove(desk->due, &delivery->due_node);
		accord_await_leave(delivery);
	}
	else if (delivery->phase == ACCORD_PHASE_READY ||
			 delivery->phase == ACCORD_PHASE_WAITING)
		dlist_delete(&delivery->queue_node);
}

void
accord_lane_forget(AccordDelivery *delivery)
{
	if (delivery->lane != NULL && delivery->lane->holder != delivery)
		delivery->lane = NULL;
	if (delivery->order != NULL && delivery->order->holder != delivery)
		delivery->order = NULL;
}

AccordDelivery *
accord_desk_replayed(AccordDesk *desk, uint64 order_hash)
{
	AccordLane *lane = hash_search(desk->lanes, &order_hash, HASH_FIND, NULL);

	return lane ? lane->holder : NULL;
}
