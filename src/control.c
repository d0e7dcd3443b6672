/*
 * control.c: redeliver(), discard(), confirm() and pauses, as a dispatcher sees
 * them.
 *
 * Runs in dispatchers. What a person decides is an event of the log like any
 * other: it takes effect at its commit, once, in order, and after a crash; and
 * dispatchers stay the only writers of the backlog.
 *
 * Invariants: a decision's number (decided_by) is on the row it made, so that
 * reading it again changes nothing. A delivery that is under way cannot be
 * called back: it is only given up if it fails. One that waits in memory is
 * cancelled there; one that its endpoint has yet to read has a row from then
 * on, and is passed over when it is read. One that is being settled is decided
 * about when it is settled. A decision about a delivery that there is
 * not, or that cannot be read, is passed over.
 *
 * On failure the transaction's error ends the dispatcher; the decision is read
 * again.
 */
#include "postgres.h"

#include "assign.h"
#include "coalesce.h"
#include "control.h"
#include "delivery.h"
#include "flow.h"
#include "json.h"
#include "owed.h"
#include "pull.h"
#include "recovery.h"
#include "replay.h"
#include "routing.h"
#include "settle.h"

#define MAX_CHANNEL 63			/* bytes, by the CHECKs of the tables */
#define MAX_ACCOUNT 1020

/* A delivery that is in no queue any more, made anew to be decided about. */
static AccordDelivery *
recall_delivery(AccordDesk *desk, AccordEndpoint *endpoint,
				const AccordBacklogRow *row)
{
	AccordDelivery *delivery = accord_delivery_create(desk, endpoint,
													  row->key);

	delivery->seq = row->seq;
	delivery->ord = row->ord;
	delivery->slot = row->event_slot;
	delivery->tx_id = row->tx_id;
	delivery->route = row->route;
	delivery->owed_since = row->owed_since;
	delivery->attempted_at = row->attempted_at;
	delivery->attempts = row->attempts;
	accord_delivery_recall(desk, delivery, row->version);
	accord_replay_recall(desk, delivery, row->replay);
	return delivery;
}

/* Whether the event is in the log, at that place; tells key and priority. */
static bool
find_event(AccordBacklogRow *row)
{
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(nowhere, 0);
	AccordCommit commit;
	TupleTableSlot *event = NULL;

	if (accord_log_commit(reader, row->seq, &commit) &&
		commit.tx_id == row->tx_id && commit.slot == row->event_slot)
		event = accord_log_event(reader, row->event_slot, row->tx_id,
								 row->ord);
	if (event != NULL)
	{
		bool		isnull;

		row->key = accord_routing_text(event, ACCORD_EVENT_KEY);
		row->priority = DatumGetInt16(slot_getattr(event,
												   ACCORD_EVENT_PRIORITY,
												   &isnull));
	}
	accord_log_close(reader);
	return event != NULL;
}

/*
 * Whether an endpoint has yet to read an event: it lags, and has not come
 * there.
 */
static bool
is_unread(const AccordEndpoint *endpoint, int64 seq, int ord)
{
	AccordPoint point = {seq, ord};

	return endpoint->lagging &&
		accord_point_compare(point, endpoint->cursor) > 0 &&
		!accord_recovery_settled((AccordEndpoint *) endpoint, seq, ord);
}

/* Given up while it waits in memory alone. */
static void
cancel(AccordDesk *desk, AccordDelivery *delivery, TimestampTz now)
{
	desk->release |= delivery->limit_at != 0;
	accord_merge_leave(desk, delivery);
	accord_delivery_claim(desk, delivery);
	accord_settle_without(delivery, ACCORD_OUTCOME_DISCARDED, NULL, now);
}

/*
 * One delivery that a person decided about; row says where the event is, and
 * which version of its backlog row was decided about (0: whatever it is).
 */
static void
decide(AccordDesk *desk, AccordConnection *connection, AccordBacklogRow *row,
	   int64 seq, bool discard, TimestampTz now)
{
	AccordDelivery *delivery = accord_desk_find(desk, connection, row->seq,
												row->ord);
	AccordEndpoint *endpoint;
	int			version = row->version;
	bool		keep = true;
	bool		known;

	if (delivery != NULL &&
		(delivery->settling ||	/* named twice */
		 (version > 0 && delivery->version != version)))
		return;
	if (delivery != NULL &&
		(delivery->phase == ACCORD_PHASE_TAKEN || !delivery->excepted))
	{
		if (discard && !delivery->excepted && accord_coalesce_unsent(delivery))
			cancel(desk, delivery, now);
		else
			delivery->discard = discard;
		return;
	}
	known = accord_backlog_find(connection->hub->channel,
								connection->account, row->seq, row->ord, row);
	if (!known && !find_event(row))
		return;
	endpoint = accord_connection_endpoint(desk, connection, row->priority);
	if (row->decided_by >= seq)
		return;					/* done before a restart */
	if (version > 0 && (!known || row->version != version))
		return;					/* it is something else by now */
	if (delivery == NULL && discard && !known &&
		is_unread(endpoint, row->seq, row->ord))
	{
		accord_recovery_remember(desk, endpoint, row->seq, row->ord);
		endpoint->behind = Max(endpoint->behind - 1, 0);
	}
	else if (delivery == NULL && discard &&
			 (!known || row->state >= ACCORD_STATE_DELIVERED))
		return;					/* closed: there is nothing to give up */
	if (delivery == NULL)
	{
		keep = !endpoint->overflow && !accord_endpoint_full(desk, endpoint);
		delivery = recall_delivery(desk, endpoint, row);
	}
	if (known && row->state == ACCORD_STATE_DEAD)
		connection->n_dead--;
	accord_delivery_withdraw(desk, delivery);
	delivery->decided_by = seq;
	if (discard)
		accord_settle_discard(delivery, row->key);
	else
		accord_settle_replay(delivery, row->key, now, keep);
	if (!keep)
		accord_recovery_overflow(desk, endpoint);
}

/*
 * Somebody says what became of a delivery that its channel has accepted; failed
 * says how, NULL: it was done. One whose answer is on its way is told then. What
 * the channel has not accepted is not concerned.
 */
static void
confirm(AccordDesk *desk, AccordConnection *connection, AccordBacklogRow *row,
		const char *failed, TimestampTz now)
{
	AccordDelivery *delivery = accord_desk_find(desk, connection, row->seq,
												row->ord);

	if (delivery != NULL && delivery->phase == ACCORD_PHASE_TAKEN)
	{
		delivery->confirmed = failed ? 'f' : 'd';
		return;
	}
	if (delivery != NULL && (delivery->version == 0 ||
							 delivery->state != ACCORD_STATE_ACCEPTED))
		return;
	if (delivery != NULL)
		accord_delivery_claim(desk, delivery);
	else
	{
		if (!accord_backlog_find(connection->hub->channel, connection->account,
								 row->seq, row->ord, row) ||
			row->state != ACCORD_STATE_ACCEPTED)
			return;
		delivery = recall_delivery(desk, accord_connection_endpoint(desk,
																	connection,
																	row->priority),
								   row);
		accord_delivery_take(desk, delivery);
	}
	accord_settle_without(delivery, failed ? ACCORD_OUTCOME_REJECTED :
						  ACCORD_OUTCOME_DELIVERED, failed ? failed :
						  "it was confirmed", now);
}

/*
 * A delivery is [seq, ord, slot, tx_id, channel, account, and the version that
 * was selected, unless it is any].
 */
bool
accord_control_item(Jsonb *payload, int i, AccordBacklogRow *place)
{
	JsonbValue *item = accord_json_path(payload,
										psprintf("deliveries.%d", i));
	char	   *part[7];

	memset(place, 0, sizeof(*place));
	if (item == NULL)
		return false;
	if (item->type != jbvBinary ||
		!JsonContainerIsArray(item->val.binary.data))
		return true;
	for (int j = 0; j < lengthof(part); j++)
	{
		JsonbValue *value =
		getIthJsonbValueFromContainer(item->val.binary.data, j);

		part[j] = value ? accord_json_text(value) : NULL;
		if (j < 6 && part[j] == NULL)
			return true;
	}
	if (strlen(part[4]) > MAX_CHANNEL || strlen(part[5]) > MAX_ACCOUNT)
		return true;
	place->seq = strtoll(part[0], NULL, 10);
	place->ord = atoi(part[1]);
	place->event_slot = atoi(part[2]);
	place->tx_id = strtoll(part[3], NULL, 10);
	place->channel = part[4];
	place->account = part[5];
	place->version = part[6] ? atoi(part[6]) : 0;
	return true;
}

/* Somebody paused or resumed an endpoint: written down by who owns it. */
static void
note_pause(AccordDesk *desk, Jsonb *payload, bool resumed)
{
	char	   *channel = accord_json_member(payload, "channel");
	char	   *account = accord_json_member(payload, "account");
	char	   *until = accord_json_member(payload, "until_us");

	if (channel == NULL || !accord_desk_owns(desk, channel))
		return;
	if (resumed)
		accord_flow_resume(desk, channel, account);
	accord_flow_note(channel, account ? account : "",
					 resumed ? "resumed" : "paused",
					 accord_json_member(payload, "reason"),
					 until ? strtoll(until, NULL, 10) : 0);
}

bool
accord_control_apply(AccordDesk *desk, const AccordCommit *commit,
					 TupleTableSlot *row, const char *topic, TimestampTz now)
{
	bool		isnull;
	Datum		payload = slot_getattr(row, ACCORD_EVENT_PAYLOAD, &isnull);
	bool		discard = strcmp(topic, ACCORD_TOPIC_DISCARD) == 0;

	if (!isnull && (strcmp(topic, ACCORD_TOPIC_PAUSE) == 0 ||
					strcmp(topic, ACCORD_TOPIC_RESUME) == 0))
		note_pause(desk, DatumGetJsonbP(payload),
				   strcmp(topic, ACCORD_TOPIC_RESUME) == 0);
	if (!isnull && strcmp(topic, ACCORD_TOPIC_REPLAY) == 0)
		accord_replay_heed(desk, DatumGetJsonbP(payload));
	if (!isnull && strcmp(topic, ACCORD_TOPIC_PULL) == 0)
		accord_pull_heed(DatumGetJsonbP(payload));

	/* all of it or nothing: first whether any is being settled just now */
	for (int pass = 0; pass < 2 && !isnull; pass++)
	{
		AccordBacklogRow place;

		for (int i = 0; accord_control_item(DatumGetJsonbP(payload), i,
											&place); i++)
		{
			AccordConnection *connection = place.channel == NULL ? NULL :
			accord_assign_connection(desk, place.channel, place.account);
			AccordDelivery *delivery;

			if (connection == NULL)
				continue;
			if (pass == 1 && strcmp(topic, ACCORD_TOPIC_CONFIRM) == 0)
			{
				confirm(desk, connection, &place,
						accord_json_member(DatumGetJsonbP(payload), "failed"),
						now);
				continue;
			}
			if (pass == 1)
			{
				decide(desk, connection, &place, commit->seq, discard, now);
				continue;
			}
			delivery = accord_desk_find(desk, connection, place.seq,
										place.ord);
			if (delivery != NULL && delivery->settling)
			{
				accord_settle_hurry();
				return false;
			}
		}
	}
	return true;
}
