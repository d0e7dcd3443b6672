/*
 * coalesce.c: of several unsent events of one kind only the newest is sent.
 *
 * Runs in dispatchers, for routes in state mode. What is of one kind says the
 * route's coalesce template; the unsent deliveries of a kind stand in a list,
 * oldest first, from being owed to being sent, and again while they wait for a
 * retry. A newer one supersedes an older one that is
 *   - unsent: waiting its turn, at a limit, in its quiet period, or for a
 *     retry; never one in flight, whose effect is not known yet;
 *   - of the same route, or the newer one is a delete, after which nothing
 *     else matters;
 *   - of no use for longer than the newer one (expires_at); and
 *   - not followed by a command of its key: what a command relies on has been
 *     sent before it.
 * A delete that supersedes an insert nobody was told of is not sent either.
 *
 * Invariants: the newer one takes over what the older one had to wait for, so
 * that updates which keep coming neither hurry nor starve a delivery. What is
 * superseded has a row that names what superseded it, committed with its
 * batch; the newer one is in the log, so nothing is lost whatever happens.
 *
 * On failure only out-of-memory can raise. After a restart, what was superseded
 * is known by its row; the quiet period begins anew with the events that are
 * read again.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/timestamp.h"

#include "coalesce.h"
#include "delivery.h"
#include "request.h"
#include "settle.h"
#include "supersede.h"

static uint64
hash_kind(AccordConnection *connection, const char *kind)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) kind,
										   strlen(kind), connection->id + 1);

	return hash == 0 ? 1 : hash;
}

void
accord_coalesce_know(AccordDesk *desk, AccordDelivery *delivery,
					 const char *op, TimestampTz expires_at)
{
	/* an earlier dispatcher may have sent what was there when we started */
	delivery->is_insert = strcmp(op, "insert") == 0 &&
		delivery->seq > desk->started_seq;
	delivery->is_delete = strcmp(op, "delete") == 0;
	delivery->expires_at = expires_at;
	delivery->known = true;
}

void
accord_coalesce_identify(AccordDesk *desk, AccordDelivery *delivery,
						 const AccordRoute *route,
						 const AccordAccount *account)
{
	AccordConnection *connection = delivery->endpoint->connection;
	char	   *kind;

	if (!delivery->known)
		accord_coalesce_know(desk, delivery,
							 accord_request_text(delivery->event,
												 ACCORD_EVENT_OP),
							 accord_request_time(delivery->event,
												 ACCORD_EVENT_EXPIRES_AT));
	delivery->identified = true;
	delivery->merge_hash = 0;
	if (route->command || route->coalesce == NULL)
		return;
	kind = accord_request_expand(route->coalesce, route, account,
								 delivery->event);
	if (kind[0] == '\0')
		return;					/* it has none of what it is told apart by */
	delivery->merge_hash = hash_kind(connection, kind);
	if (delivery->key_hash == 0)
		delivery->key_hash = delivery->merge_hash;
}

static AccordPoint
point_of(const AccordDelivery *delivery)
{
	AccordPoint point = {delivery->seq, delivery->ord};

	return point;
}

bool
accord_coalesce_unsent(const AccordDelivery *delivery)
{
	return !delivery->settling &&
		(delivery->phase == ACCORD_PHASE_READY ||
		 delivery->phase == ACCORD_PHASE_WAITING ||
		 delivery->phase == ACCORD_PHASE_PARKED ||
		 (delivery->batch != NULL && !delivery->sent));
}

/* What counts of a delivery; what it still waits for, when it does. */
static AccordStanding
standing_of(const AccordDelivery *delivery)
{
	AccordStanding standing = {
		.route = delivery->route,
		.expires_at = delivery->expires_at,
		.first_at = delivery->first_at,
		.not_before = delivery->not_before,
		.limit_at = delivery->limit_at,
		.tried = delivery->attempts > 0,
		.is_insert = delivery->is_insert,
		.is_delete = delivery->is_delete,
		.is_undone = delivery->is_undone
	};

	return standing;
}

/* Whether the newer of two of one kind makes the older one superfluous. */
static bool
supersedes(const AccordDelivery *newer, const AccordDelivery *older)
{
	AccordStanding newer_one = standing_of(newer);
	AccordStanding older_one = standing_of(older);

	return accord_supersede_may(&newer_one, &older_one) &&
		(older->lane == NULL ||
		 accord_point_compare(older->lane->barrier, point_of(older)) <= 0);
}

const char *
accord_coalesce_reason(const AccordDelivery *newer)
{
	return psprintf("superseded by " INT64_FORMAT ".%d", newer->seq,
					newer->ord);
}

/* The older one is settled; what it waited for the newer one waits for. */
static void
supersede(AccordDesk *desk, AccordDelivery *older, AccordDelivery *newer,
		  TimestampTz now)
{
	AccordStanding heir = standing_of(newer);
	AccordStanding left = standing_of(older);

	desk->release |= older->limit_at != 0 && newer->limit_at == 0;
	/* what is over is no reason to wait any more, but a retry's time is */
	left.not_before = 0;
	if (older->phase == ACCORD_PHASE_PARKED &&
		older->due_at != older->limit_at &&
		older->due_at != older->expires_at)
		left.not_before = older->due_at;
	accord_supersede_inherit(&heir, &left);
	newer->not_before = heir.not_before;
	newer->limit_at = heir.limit_at;
	newer->first_at = heir.first_at;
	newer->is_insert = heir.is_insert;
	newer->is_undone = heir.is_undone;
	accord_merge_leave(desk, older);
	accord_delivery_claim(desk, older);
	accord_settle_without(older, ACCORD_OUTCOME_SUPERSEDED,
						  accord_coalesce_reason(newer), now);
}

bool
accord_coalesce_owe(AccordDesk *desk, AccordDelivery *delivery,
					const AccordRoute *route, TimestampTz now)
{
	AccordDelivery *older;

	delivery->first_at = delivery->owed_since;
	if (delivery->merge_hash == 0)
		return true;
	while (!accord_settle_full() &&
		   (older = accord_merge_newest(desk, delivery->merge_hash)) != NULL &&
		   accord_coalesce_unsent(older))
	{
		if (accord_point_compare(point_of(older), point_of(delivery)) > 0)
		{
			/* of another priority, it has overtaken this one */
			if (!supersedes(older, delivery))
				break;
			accord_delivery_list(desk, delivery, now);
			accord_settle_without(delivery, ACCORD_OUTCOME_SUPERSEDED,
								  accord_coalesce_reason(older), now);
			return false;
		}
		if (!supersedes(delivery, older))
			break;
		supersede(desk, older, delivery, now);
	}
	if (delivery->is_undone)
	{
		accord_delivery_list(desk, delivery, now);
		accord_settle_without(delivery, ACCORD_OUTCOME_SKIPPED,
							  "inserted and deleted before anything was sent",
							  now);
		return false;
	}
	if (route->quiet_ms > 0)
	{
		AccordStanding standing = standing_of(delivery);

		delivery->not_before =
			Max(delivery->not_before,
				accord_supersede_quiet(&standing, delivery->owed_since,
									   route->quiet_ms * 1000,
									   route->quiet_max_ms * 1000));
	}
	accord_merge_enter(desk, delivery);
	return true;
}

AccordDelivery *
accord_coalesce_send(AccordDesk *desk, AccordDelivery *delivery)
{
	AccordDelivery *newer;

	if (delivery->merge_hash == 0)
		return NULL;
	accord_merge_leave(desk, delivery);
	newer = accord_merge_newer(desk, delivery);
	if (newer == NULL || !accord_coalesce_unsent(newer) ||
		!supersedes(newer, delivery))
		return NULL;
	return newer;
}
