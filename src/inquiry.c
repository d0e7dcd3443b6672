/*
 * inquiry.c: questions that backends ask dispatchers, in shared memory.
 *
 * Runs in backends that ask (accord.probe()) and in dispatchers, which look
 * once a turn whether anybody asks: one read of a counter.
 *
 * Invariants: a slot is its asker's from the question on until the asker lets
 * it go; what a dispatcher writes after that is for a generation that is over
 * and goes nowhere. So neither waits for the other, and whoever dies leaves
 * nothing behind: an asker lets its slot go when it exits. One lock guards all
 * slots, held to copy a question or an answer; no other is taken under it.
 *
 * On failure of a dispatcher nobody answers; the asker's patience ends.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"

#include "inquiry.h"
#include "shmem.h"

#define SLOTS 16				/* questions at a time, in all databases */

typedef enum SlotState
{
	SLOT_FREE,					/* next: ASKED */
	SLOT_ASKED,					/* next: TAKEN, FREE */
	SLOT_TAKEN,					/* next: ANSWERED, FREE */
	SLOT_ANSWERED				/* next: FREE */
} SlotState;

typedef struct Slot
{
	SlotState	state;
	uint32		generation;		/* grows with every question */
	Oid			database;
	Latch	   *latch;			/* the asker's */
	AccordInquiry inquiry;
	AccordFinding finding;
} Slot;

typedef struct Shared
{
	pg_atomic_uint32 asked;		/* slots in state ASKED */
	Slot		slots[SLOTS];
} Shared;

static Shared *shared = NULL;
static LWLock *guard = NULL;

Size
accord_inquiry_size(void)
{
	return sizeof(Shared);
}

void
accord_inquiry_start(LWLock *lock)
{
	bool		found;

	guard = lock;
	shared = ShmemInitStruct("pg_accord inquiries", sizeof(Shared), &found);
	if (found)
		return;
	memset(shared, 0, sizeof(Shared));
	pg_atomic_init_u32(&shared->asked, 0);
}

bool
accord_inquiry_ask(const AccordInquiry *inquiry, AccordInquiryId *id)
{
	int			i;

	LWLockAcquire(guard, LW_EXCLUSIVE);
	for (i = 0; i < SLOTS && shared->slots[i].state != SLOT_FREE; i++)
		;
	if (i < SLOTS)
	{
		Slot	   *slot = &shared->slots[i];

		slot->state = SLOT_ASKED;
		slot->database = MyDatabaseId;
		slot->latch = MyLatch;
		slot->inquiry = *inquiry;
		id->slot = i;
		id->generation = ++slot->generation;
		pg_atomic_fetch_add_u32(&shared->asked, 1);
	}
	LWLockRelease(guard);
	if (i == SLOTS)
		return false;
	accord_shmem_wake_dispatchers();
	return true;
}

/* The slot, if it is still that inquiry's; under the lock. */
static Slot *
find_slot(AccordInquiryId id)
{
	Slot	   *slot = &shared->slots[id.slot];

	Assert(LWLockHeldByMe(guard));
	return slot->generation == id.generation && slot->state != SLOT_FREE ?
		slot : NULL;
}

bool
accord_inquiry_answered(AccordInquiryId id, AccordFinding *finding,
						bool *taken)
{
	Slot	   *slot;
	bool		answered;

	LWLockAcquire(guard, LW_EXCLUSIVE);
	slot = find_slot(id);
	answered = slot != NULL && slot->state == SLOT_ANSWERED;
	*taken = slot != NULL && slot->state != SLOT_ASKED;
	if (answered)
		*finding = slot->finding;
	LWLockRelease(guard);
	return answered;
}

void
accord_inquiry_forget(AccordInquiryId id)
{
	Slot	   *slot;

	LWLockAcquire(guard, LW_EXCLUSIVE);
	slot = find_slot(id);
	if (slot != NULL && slot->state == SLOT_ASKED)
		pg_atomic_fetch_sub_u32(&shared->asked, 1);
	if (slot != NULL)
		slot->state = SLOT_FREE;
	LWLockRelease(guard);
}

bool
accord_inquiry_next(bool (*owns) (const char *channel, void *arg), void *arg,
					AccordInquiry *inquiry, AccordInquiryId *id)
{
	bool		found = false;

	if (pg_atomic_read_u32(&shared->asked) == 0)
		return false;
	LWLockAcquire(guard, LW_EXCLUSIVE);
	for (int i = 0; i < SLOTS && !found; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->state != SLOT_ASKED || slot->database != MyDatabaseId ||
			!owns(slot->inquiry.channel, arg))
			continue;
		slot->state = SLOT_TAKEN;
		pg_atomic_fetch_sub_u32(&shared->asked, 1);
		*inquiry = slot->inquiry;
		id->slot = i;
		id->generation = slot->generation;
		found = true;
	}
	LWLockRelease(guard);
	return found;
}

void
accord_inquiry_answer(AccordInquiryId id, const AccordFinding *finding)
{
	Slot	   *slot;

	LWLockAcquire(guard, LW_EXCLUSIVE);
	slot = find_slot(id);
	if (slot != NULL && slot->state == SLOT_TAKEN)
	{
		slot->finding = *finding;
		slot->state = SLOT_ANSWERED;
		SetLatch(slot->latch);
	}
	LWLockRelease(guard);
}
