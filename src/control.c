/*
 * control.c: redeliver() and discard(), as a dispatcher carries them out.
 *
 * Runs in dispatchers. What a person decides is an event of the log like any
 * other: it takes effect at its commit, once, in order, and after a crash; and
 * dispatchers stay the only writers of the backlog.
 *
 * Invariants: a decision's number (decided_by) is on the row it made, so that
 * reading it again changes nothing. A delivery that is under way cannot be
 * called back: it is only given up if it fails.
 *
 * On failure the transaction's error ends the dispatcher; the decision is read
 * again.
 */
#include "postgres.h"

#include "assign.h"
#include "control.h"
#include "json.h"
#include "recovery.h"
#include "routing.h"
#include "settle.h"

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
	delivery->last_version = row->version;
	return delivery;
}

/* The key of an event, when no backlog row tells it. */
static char *
read_key(int slot, int64 tx_id, int ord)
{
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(nowhere, 0);
	TupleTableSlot *event = accord_log_event(reader, slot, tx_id, ord);
	char	   *key = event ? accord_routing_text(event, ACCORD_EVENT_KEY) : NULL;

	accord_log_close(reader);
	return key;
}

/*
 * One delivery that a person decided about; row says where the event is. One
 * that is under way is only given up if it fails.
 */
static void
decide(AccordDesk *desk, AccordEndpoint *endpoint, AccordBacklogRow *row,
	   int64 seq, bool discard, TimestampTz now)
{
	AccordDelivery *delivery = accord_desk_find(desk, endpoint, row->seq,
												row->ord);
	bool		keep = true;

	if (delivery != NULL &&
		(delivery->phase == ACCORD_PHASE_TAKEN || delivery->settling ||
		 delivery->version == 0))
	{
		delivery->discard = discard;
		return;
	}
	if (!accord_backlog_find(endpoint->channel, endpoint->account, row->seq,
							 row->ord, row))
		row->key = read_key(row->event_slot, row->tx_id, row->ord);
	if (row->decided_by >= seq)
		return;					/* done before a restart */
	if (delivery == NULL)
	{
		delivery = recall_delivery(desk, endpoint, row);
		keep = !endpoint->overflow && !accord_endpoint_full(desk, endpoint);
	}
	accord_delivery_withdraw(desk, delivery);
	delivery->decided_by = seq;
	if (discard)
		accord_settle_discard(delivery, row->key);
	else
		accord_settle_replay(delivery, row->key, now, keep);
	if (!keep)
		accord_recovery_overflow(desk, endpoint);
}

/* payload: {"deliveries": [[seq, ord, slot, tx_id, channel, account], ...]} */
void
accord_control_apply(AccordDesk *desk, const AccordCommit *commit,
					 TupleTableSlot *row, const char *topic, TimestampTz now)
{
	bool		isnull;
	Datum		payload = slot_getattr(row, ACCORD_EVENT_PAYLOAD,
									   &isnull);
	bool		discard = strcmp(topic, "accord.discard") == 0;
	Jsonb	   *json = DatumGetJsonbP(payload);

	for (int i = 0;; i++)
	{
		AccordBacklogRow place;
		AccordEndpoint *endpoint;
		char	   *item[6];

		for (int j = 0; j < lengthof(item); j++)
		{
			JsonbValue *value = accord_json_path(json,
												 psprintf("deliveries.%d.%d",
														  i, j));

			if (value == NULL)
				return;
			item[j] = accord_json_text(value);
		}
		endpoint = accord_assign_endpoint(desk, item[4], item[5]);
		if (endpoint == NULL)
			continue;
		memset(&place, 0, sizeof(place));
		place.seq = strtoll(item[0], NULL, 10);
		place.ord = atoi(item[1]);
		place.event_slot = atoi(item[2]);
		place.tx_id = strtoll(item[3], NULL, 10);
		decide(desk, endpoint, &place, commit->seq, discard, now);
	}
}
