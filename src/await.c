/*
 * await.c: deliveries that wait until a channel's id of something is known.
 *
 * Runs in dispatchers. A route may need what other events make at the channel:
 * a rate plan its room type. A delivery whose parent has no id yet is PARKED
 * until it is given up, keeps its key's lane, and stands in the list of what it
 * waits for. When that id has been committed all of the list take their turn,
 * at once; each then looks for itself whether it has all that it needs.
 *
 * Invariants: a delivery is in a list if and only if it "awaits", and only
 * while it is PARKED: whatever takes it from there takes it off the list
 * (lane.c). Two ids whose 64-bit hashes collide wake each other's: that costs a
 * look.
 *
 * On failure only out-of-memory can raise. Nothing of this is stored: after a
 * restart each finds out at its turn that it has to wait.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"

#include "await.h"
#include "delivery.h"

typedef struct AwaitEntry
{
	uint64		hash;			/* hash key */
	dlist_head	waiting;
} AwaitEntry;

static HTAB *entries = NULL;

static uint64
hash_part(uint64 hash, const char *text)
{
	/* with its end, so that parts do not run into each other */
	return hash_bytes_extended((const unsigned char *) text, strlen(text) + 1,
							   hash);
}

uint64
accord_await_hash(const char *channel, const char *account, const char *kind,
				  const char *key)
{
	uint64		hash = hash_part(hash_part(hash_part(hash_part(1, channel),
													 account), kind), key);

	return hash == 0 ? 1 : hash;
}

void
accord_await_enter(AccordDesk *desk, AccordDelivery *delivery, uint64 hash)
{
	AwaitEntry *entry;
	bool		found;

	Assert(delivery->phase == ACCORD_PHASE_PARKED && delivery->awaits == 0);
	if (entries == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(AwaitEntry);
		ctl.hcxt = desk->context;
		entries = hash_create("pg_accord awaited", 64, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(entries, &hash, HASH_ENTER, &found);
	if (!found)
		dlist_init(&entry->waiting);
	dlist_push_tail(&entry->waiting, &delivery->await_node);
	delivery->awaits = hash;
	delivery->endpoint->connection->n_awaiting++;
	desk->unrest = true;
}

void
accord_await_leave(AccordDelivery *delivery)
{
	AwaitEntry *entry;

	if (delivery->awaits == 0)
		return;
	entry = hash_search(entries, &delivery->awaits, HASH_FIND, NULL);
	dlist_delete(&delivery->await_node);
	if (dlist_is_empty(&entry->waiting))
		hash_search(entries, &delivery->awaits, HASH_REMOVE, NULL);
	delivery->awaits = 0;
	delivery->endpoint->connection->n_awaiting--;
}

/* Lets all of a list go, which is gone with the last. */
static void
release(AccordDesk *desk, AwaitEntry *entry)
{
	int			n = 0;
	AccordDelivery **waiting;
	dlist_iter	iter;

	dlist_foreach(iter, &entry->waiting)
		n++;
	waiting = palloc(n * sizeof(AccordDelivery *));
	n = 0;
	dlist_foreach(iter, &entry->waiting)
		waiting[n++] = dlist_container(AccordDelivery, await_node, iter.cur);
	for (int i = 0; i < n; i++)
		if (!waiting[i]->settling)
			accord_delivery_queue(desk, waiting[i]);
	pfree(waiting);
}

void
accord_await_release(AccordDesk *desk, uint64 hash)
{
	AwaitEntry *entry = entries == NULL ? NULL :
	hash_search(entries, &hash, HASH_FIND, NULL);

	if (entry != NULL)
		release(desk, entry);
}

void
accord_await_release_all(AccordDesk *desk)
{
	HASH_SEQ_STATUS scan;
	AwaitEntry *entry;

	if (entries == NULL)
		return;
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
		release(desk, entry);
}
