/*
 * round.c: whose turn it is to send.
 *
 * Runs in dispatchers. Sending goes round: the dispatcher's ready list holds
 * channels (hubs), a hub's ready list its connections, each for as long as it
 * has something READY and its gate is open. Who may not send before some time
 * sleeps, out of its round, until its alarm. No I/O, no clock.
 *
 * Invariants
 *   - A connection with an alarm, a pause or a probe under way is in no round;
 *     nor is a hub with an alarm. Who is in one and may not send any more is
 *     taken out when its turn comes.
 *   - Whatever makes somebody able to send calls accord_connection_rotate().
 *
 * On failure: nothing here can raise.
 */
#include "postgres.h"

#include "round.h"

/* Of so many deliveries in a row, each priority's share when all have some. */
static const int priority_shares[ACCORD_PRIORITIES] = {16, 4, 1};

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

AccordEndpoint *
accord_connection_choose(AccordConnection *connection)
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
