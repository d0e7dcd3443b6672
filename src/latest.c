/*
 * latest.c: the newest of each kind, within bounded memory.
 *
 * Runs in dispatchers, for replays of the latest states. Pure: no I/O, no
 * clock. A log of any length and any number of kinds is dealt with in passes:
 * each is about the kinds whose hashes lie in a range, and the range is as
 * long as memory allows. A table with open addressing, from a pass's low hash
 * up; when it is full its upper half of hashes is left for a later pass.
 *
 * Invariants: of the kinds in [low, high] every one that was noted since the
 * beginning of the pass is there, with its newest place. high never rises.
 *
 * On failure only out-of-memory can raise.
 */
#include "postgres.h"

#include "latest.h"

#define SMALLEST 1024

void
accord_latest_init(AccordLatest *latest, uint64 low, uint64 high, uint32 max,
				   bool fixed)
{
	memset(latest, 0, sizeof(*latest));
	latest->low = low;
	latest->high = high;
	latest->fixed = fixed;
	latest->size = latest->limit = SMALLEST;
	/* three quarters full at most */
	while (latest->limit < PG_INT32_MAX / 64 &&
		   latest->limit / 4 * 3 < max)
		latest->limit *= 2;
	latest->entries = palloc0(latest->size * sizeof(AccordLatestEntry));
}

void
accord_latest_free(AccordLatest *latest)
{
	if (latest->entries != NULL)
		pfree(latest->entries);
	memset(latest, 0, sizeof(*latest));
}

/* Where a kind is, or would be. */
static AccordLatestEntry *
find_place(const AccordLatest *latest, AccordKind kind)
{
	uint32		i = (uint32) kind.hash & (latest->size - 1);

	while (latest->entries[i].seq != 0 &&
		   (latest->entries[i].hash != kind.hash ||
			latest->entries[i].check != kind.check))
		i = (i + 1) & (latest->size - 1);
	return &latest->entries[i];
}

/* Puts what is in range into a table of another size. */
static void
rebuild(AccordLatest *latest, uint32 size)
{
	AccordLatestEntry *old = latest->entries;
	uint32		n = latest->size;

	latest->entries = palloc0(size * sizeof(AccordLatestEntry));
	latest->size = size;
	latest->used = 0;
	for (uint32 i = 0; i < n; i++)
	{
		AccordKind	kind = {old[i].hash, old[i].check};

		if (old[i].seq == 0 || kind.hash > latest->high)
			continue;
		*find_place(latest, kind) = old[i];
		latest->used++;
	}
	pfree(old);
}

/* Makes room for one more. */
static void
make_room(AccordLatest *latest)
{
	while (latest->used >= latest->size / 4 * 3)
	{
		bool		can_halve = !latest->fixed && latest->high > latest->low;

		if (latest->size < latest->limit || !can_halve)
			rebuild(latest, latest->size * 2);
		else
		{
			latest->high = latest->low + (latest->high - latest->low) / 2;
			rebuild(latest, latest->size);
		}
	}
}

bool
accord_latest_covers(const AccordLatest *latest, AccordKind kind)
{
	return kind.hash >= latest->low && kind.hash <= latest->high;
}

void
accord_latest_note(AccordLatest *latest, AccordKind kind, int64 seq, int32 ord,
				   bool only_known)
{
	AccordLatestEntry *entry;

	if (!accord_latest_covers(latest, kind))
		return;
	entry = find_place(latest, kind);
	if (entry->seq == 0 && only_known)
		return;
	if (entry->seq == 0)
	{
		make_room(latest);
		if (!accord_latest_covers(latest, kind))
			return;
		entry = find_place(latest, kind);
		latest->used++;
	}
	else if (entry->seq > seq || (entry->seq == seq && entry->ord >= ord))
		return;
	entry->hash = kind.hash;
	entry->check = kind.check;
	entry->seq = seq;
	entry->ord = ord;
}

bool
accord_latest_is(const AccordLatest *latest, AccordKind kind, int64 seq,
				 int32 ord)
{
	const AccordLatestEntry *entry;

	if (!accord_latest_covers(latest, kind))
		return false;
	entry = find_place(latest, kind);
	return entry->seq == seq && entry->ord == ord;
}
