/*
 * replay_kind.c: of what kind an event is, for replays in state mode.
 *
 * Runs in dispatchers. A kind is a topic and what the route's coalesce template
 * comes to; of each kind a replay sends the latest alone (latest.c). Kinds are
 * known by hashes: two that collide are one kind, and the older of them is
 * passed over; that takes 96 equal bits.
 *
 * On failure only out-of-memory can raise; it ends the dispatcher.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "lane.h"
#include "replay_kind.h"
#include "request.h"
#include "routing.h"

AccordEvent *
accord_replay_look_event(AccordReplayLook *look)
{
	if (look->event == NULL)
	{
		look->event = accord_event_create(look->desk, look->row);
		look->event->refs = 1;
	}
	return look->event;
}

void
accord_replay_look_end(AccordReplayLook *look)
{
	if (look->event != NULL)
		accord_event_release(look->desk, look->event);
	look->event = NULL;
}

bool
accord_replay_find_kind(AccordReplayLook *look,
						AccordConnection *connection,
						const AccordRoute *route, AccordKind *kind)
{
	char	   *name = look->key;
	char	   *text;

	if (route == NULL || route->command)
		return false;
	if (route->coalesce != NULL && strcmp(route->coalesce, "{key}") != 0)
		name = accord_request_expand(route->coalesce, route,
									 connection->config,
									 accord_replay_look_event(look));
	if (name == NULL || name[0] == '\0')
		return false;
	text = psprintf("%s\n%s", look->topic, name);
	kind->hash = hash_bytes_extended((unsigned char *) text, strlen(text),
									 connection->id);
	kind->check = (uint32) hash_bytes_extended((unsigned char *) text,
											   strlen(text),
											   connection->id + 1);
	return true;
}

uint64
accord_replay_order(const AccordReplayJob *job, uint64 hash)
{
	hash = hash == 0 ? 0 : hash_combine64(hash, (uint64) job->base.id);
	return hash == 0 ? 1 : hash;
}

void
accord_replay_set_kind(const AccordReplayJob *job, AccordDelivery *delivery,
					   const AccordKind *kind)
{
	delivery->kind_hash = kind->hash;
	delivery->kind_check = kind->check;
	delivery->order_hash = accord_replay_order(job, kind->hash);
}

void
accord_replay_note_latest(AccordReplayJob *job, AccordKind kind, AccordPoint here,
						  bool only_known)
{
	MemoryContext old = MemoryContextSwitchTo(job->context);

	accord_latest_note(&job->latest, kind, here.seq, here.ord, only_known);
	MemoryContextSwitchTo(old);
}

void
accord_replay_overtake(AccordDesk *desk, const AccordReplayJob *job, const AccordKind *kind,
					   AccordPoint newer)
{
	AccordDelivery *delivery = accord_desk_replayed(desk,
													accord_replay_order(job, kind->hash));
	AccordPoint there;

	if (delivery == NULL)
		return;
	there.seq = delivery->seq;
	there.ord = delivery->ord;
	delivery->overtaken |= accord_point_compare(there, newer) < 0;
}

void
accord_replay_look_start(AccordReplayLook *look, AccordDesk *desk, TupleTableSlot *row)
{
	bool		isnull;

	memset(look, 0, sizeof(*look));
	look->desk = desk;
	look->row = row;
	slot_getallattrs(row);
	look->ord = DatumGetInt32(slot_getattr(row, ACCORD_EVENT_ORD, &isnull));
	look->topic = accord_routing_text(row, ACCORD_EVENT_TOPIC);
	look->key = accord_routing_text(row, ACCORD_EVENT_KEY);
}
