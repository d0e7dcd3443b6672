/*
 * keys.c: a key is used once, and remembered with what it was used for.
 *
 * Runs in the application's backends, inside their transactions: for events
 * with an idempotency key, messages received, tables with accord.idempotent(),
 * and accord.once().
 *
 * A store is a ring of partitions: new keys go into the current slot, and a
 * slot that is past retention is truncated as a whole (sql/66_key_ring.sql),
 * so nothing is left behind for VACUUM, whatever snapshots are held. No index
 * spans the slots; that a key is used once is seen to by a lock:
 *
 *   - Whoever wants a key looks for it, committed or not, in all slots. Where
 *     another transaction is using it, they wait for that one to end.
 *   - When it is free they lock it, look again if any key of its hash was
 *     stored since they began to look, do their work, append the row to
 *     whatever slot is current then, count it (shmem.c), and let go of the
 *     lock: from there on the row itself, uncommitted, makes the others wait.
 *
 * So between looking and the row's being there the lock is held, and a session
 * holds no more than one such lock for each level of nested work, however many
 * keys its transaction uses. The lock is one that SQL cannot take.
 *
 * Rows are looked at with a dirty snapshot: under REPEATABLE READ and
 * SERIALIZABLE as well a key is found that was used after the transaction's
 * snapshot. Nothing is written, and no transaction number drawn, for a key
 * that is used.
 *
 * On failure the (sub)transaction aborts: its row was never there and its lock
 * is released; whoever waits goes on and may use the key.
 */
#include "postgres.h"

#include <openssl/evp.h>

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "common/sha2.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "append.h"
#include "compat.h"
#include "counter.h"
#include "db.h"
#include "keys.h"
#include "seek.h"
#include "shmem.h"

/* Columns of accord.inbox and accord.idempotency_key, which are the same. */
typedef enum KeyColumn
{
	KEY_SCOPE = 1,				/* inbox: source */
	KEY_KEY,					/* inbox: event_id */
	KEY_SLOT,
	KEY_AT,						/* received_at, created_at */
	KEY_FINGERPRINT,
	KEY_TX_ID,
	KEY_EVENT_ID,				/* inbox: event */
	KEY_RESULT,
	KEY_COLUMNS = KEY_RESULT
} KeyColumn;

/* One partition, opened when it is first looked into. */
typedef struct KeySlot
{
	bool		opened;
	Relation	heap;			/* NULL: it is empty */
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *row;
} KeySlot;

struct AccordKeys
{
	AccordKeyStore store;
	MemoryContext context;		/* what was current at opening */
	SnapshotData dirty;
	bool		looked;			/* what is empty is as old as that */
	KeySlot		slots[ACCORD_KEY_SLOTS];
};

static const struct
{
	const char *table;
	const char *sequence;		/* how often the ring has moved on */
}			stores[] = {

	[ACCORD_KEYS_INBOX] = {"inbox", "inbox_slot"},
	[ACCORD_KEYS_IDEMPOTENCY] = {"idempotency_key", "key_slot"}
};

void
accord_keys_fingerprint(const char *content, size_t len, uint8 *fingerprint)
{
	static EVP_MD_CTX *context = NULL;	/* knows its algorithm */
	const		EVP_MD *algorithm = NULL;

	StaticAssertStmt(ACCORD_FINGERPRINT_LENGTH == PG_SHA256_DIGEST_LENGTH,
					 "a fingerprint is a SHA-256");
	if (context == NULL)
	{
		context = EVP_MD_CTX_new();
		algorithm = EVP_sha256();
	}
	if (context == NULL ||
		EVP_DigestInit_ex(context, algorithm, NULL) != 1 ||
		EVP_DigestUpdate(context, content, len) != 1 ||
		EVP_DigestFinal_ex(context, fingerprint, NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute a SHA-256 fingerprint"),
				 errhint("Check the server's cryptographic library.")));
}

AccordKeys *
accord_keys_open(AccordKeyStore store)
{
	AccordKeys *keys = palloc0(sizeof(AccordKeys));

	keys->store = store;
	keys->context = CurrentMemoryContext;
	InitDirtySnapshot(keys->dirty);
	return keys;
}

static void
close_slot(KeySlot *slot)
{
	if (slot->heap != NULL)
	{
		ExecDropSingleTupleTableSlot(slot->row);
		index_endscan(slot->scan);
		index_close(slot->index, AccessShareLock);
		table_close(slot->heap, AccessShareLock);
	}
	slot->heap = NULL;
	slot->opened = false;
}

void
accord_keys_close(AccordKeys *keys)
{
	for (int i = 0; i < ACCORD_KEY_SLOTS; i++)
		close_slot(&keys->slots[i]);
	pfree(keys);
}

/* Opens a partition and a scan of its primary key; an empty one is closed. */
static KeySlot *
open_slot(AccordKeys *keys, int number)
{
	KeySlot    *slot = &keys->slots[number];
	MemoryContext old;

	if (slot->opened)
		return slot;
	old = MemoryContextSwitchTo(keys->context);
	slot->opened = true;
	slot->heap = table_open(accord_db_slot_relid(stores[keys->store].table,
												 number), AccessShareLock);
	if (RelationGetNumberOfBlocks(slot->heap) == 0)
	{
		table_close(slot->heap, AccessShareLock);
		slot->heap = NULL;
		MemoryContextSwitchTo(old);
		return slot;
	}
	slot->index = accord_seek_primary_key(slot->heap);
	slot->scan = accord_index_beginscan(slot->heap, slot->index, &keys->dirty,
										2);
	slot->row = table_slot_create(slot->heap, NULL);
	MemoryContextSwitchTo(old);
	return slot;
}

/*
 * Whether the key is in the slot: then it is the scan's row. A row of a
 * transaction that is under way has dirty.xmin set.
 */
static bool
look_into(AccordKeys *keys, int number, Datum scope, Datum key)
{
	KeySlot    *slot = open_slot(keys, number);
	ScanKeyData keydata[2];

	if (slot->heap == NULL)
		return false;
	/* the key first: what most comparisons are decided by */
	ScanKeyInit(&keydata[0], 1, BTEqualStrategyNumber, F_TEXTEQ, key);
	ScanKeyInit(&keydata[1], 2, BTEqualStrategyNumber, F_TEXTEQ, scope);
	index_rescan(slot->scan, keydata, 2, NULL, 0);
	return index_getnext_slot(slot->scan, ForwardScanDirection, slot->row);
}

/* The number of the slot that new keys go into. */
static int
current_slot(AccordKeys *keys)
{
	return accord_db_sequence_last(accord_db_relid(stores[keys->store].sequence)) %
		ACCORD_KEY_SLOTS;
}

static void
read_entry(TupleTableSlot *row, AccordKeyEntry *entry)
{
	bool		isnull;
	bytea	   *fingerprint;
	Datum		value;

	slot_getallattrs(row);
	memset(entry, 0, sizeof(AccordKeyEntry));
	fingerprint = DatumGetByteaPP(row->tts_values[KEY_FINGERPRINT - 1]);
	memcpy(entry->fingerprint, VARDATA_ANY(fingerprint),
		   Min(VARSIZE_ANY_EXHDR(fingerprint), ACCORD_FINGERPRINT_LENGTH));
	entry->at = DatumGetTimestampTz(row->tts_values[KEY_AT - 1]);
	value = slot_getattr(row, KEY_TX_ID, &isnull);
	if (!isnull)
		entry->tx_id = DatumGetInt64(value);
	value = slot_getattr(row, KEY_EVENT_ID, &isnull);
	entry->has_event = !isnull;
	if (!isnull)
		memcpy(&entry->event_id, DatumGetUUIDP(value), sizeof(pg_uuid_t));
	value = slot_getattr(row, KEY_RESULT, &isnull);
	if (!isnull)
		entry->result = DatumGetJsonbPCopy(value);
}

/* Lets go of the row, and of its page, that a scan stands at. */
static void
leave_row(AccordKeys *keys, int number)
{
	ExecClearTuple(keys->slots[number].row);
	index_rescan(keys->slots[number].scan, NULL, 2, NULL, 0);
}

/*
 * Looks into all slots once, the current one first: it is where most
 * repetitions find what they repeat. busy_with: whom to wait for.
 */
static AccordKeyState
look(AccordKeys *keys, Datum scope, Datum key, AccordKeyEntry *entry,
	 TransactionId *busy_with)
{
	int			current = current_slot(keys);

	keys->looked = true;
	for (int i = 0; i < ACCORD_KEY_SLOTS; i++)
	{
		int			number = (current + ACCORD_KEY_SLOTS - i) % ACCORD_KEY_SLOTS;

		if (!look_into(keys, number, scope, key))
			continue;
		*busy_with = keys->dirty.xmin;
		if (!TransactionIdIsValid(*busy_with))
			read_entry(keys->slots[number].row, entry);
		leave_row(keys, number);
		return TransactionIdIsValid(*busy_with) ? ACCORD_KEY_BUSY :
			ACCORD_KEY_USED;
	}
	return ACCORD_KEY_FREE;
}

/* What was empty, and so not opened, may have been filled meanwhile. */
static void
forget_empty(AccordKeys *keys)
{
	for (int i = 0; i < ACCORD_KEY_SLOTS; i++)
		if (keys->slots[i].heap == NULL)
			keys->slots[i].opened = false;
}

AccordKeyState
accord_keys_find(AccordKeys *keys, Datum scope, Datum key, bool wait,
				 AccordKeyEntry *entry)
{
	TransactionId busy_with;

	for (;;)
	{
		AccordKeyState state = look(keys, scope, key, entry, &busy_with);

		if (state != ACCORD_KEY_BUSY || !wait)
			return state;
		forget_empty(keys);
		XactLockTableWait(busy_with, NULL, NULL, XLTW_None);
	}
}

static uint64
hash_key(Datum scope, Datum key)
{
	text	   *part = DatumGetTextPP(scope);
	uint64		hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(part),
										   VARSIZE_ANY_EXHDR(part), 0);

	part = DatumGetTextPP(key);
	return hash_bytes_extended((unsigned char *) VARDATA_ANY(part),
							   VARSIZE_ANY_EXHDR(part), hash);
}

/* An object of the store's table: what no SQL statement locks. */
static void
set_lock_tag(AccordKeys *keys, uint64 hash, LOCKTAG *tag)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId,
					   accord_db_relid(stores[keys->store].table),
					   (uint32) (hash >> 32), (uint16) hash);
}

static void
release_lock(AccordKeys *keys, uint64 hash)
{
	LOCKTAG		tag;

	set_lock_tag(keys, hash, &tag);
	LockRelease(&tag, ExclusiveLock, false);
}

void
accord_keys_release(AccordKeys *keys, Datum scope, Datum key)
{
	release_lock(keys, hash_key(scope, key));
}

/* A key that was used before is counted: nothing is done under it again. */
static AccordKeyState
count_used(AccordKeys *keys, AccordKeyState state)
{
	if (state == ACCORD_KEY_USED)
		accord_counter_note(keys->store == ACCORD_KEYS_INBOX ?
							ACCORD_COUNTER_DUPLICATES :
							ACCORD_COUNTER_REPEATED, 1);
	return state;
}

AccordKeyState
accord_keys_claim(AccordKeys *keys, Datum scope, Datum key, bool wait,
				  AccordKeyEntry *entry)
{
	uint64		hash = hash_key(scope, key);
	uint32		stored = accord_shmem_keys_stored(hash);
	bool		first = !keys->looked;
	AccordKeyState state = accord_keys_find(keys, scope, key, wait, entry);
	LOCKTAG		tag;

	if (state != ACCORD_KEY_FREE)
		return count_used(keys, state);
	PreventCommandIfReadOnly("INSERT");
	PreventCommandDuringRecovery("INSERT");
	set_lock_tag(keys, hash, &tag);
	switch (LockAcquire(&tag, ExclusiveLock, false, !wait))
	{
		case LOCKACQUIRE_NOT_AVAIL:
			return ACCORD_KEY_BUSY;
		case LOCKACQUIRE_ALREADY_HELD:
		case LOCKACQUIRE_ALREADY_CLEAR:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("key \"%s\" of \"%s\" is in use by the work that is "
							"done under it", TextDatumGetCString(key),
							TextDatumGetCString(scope)),
					 errhint("Use another key for what is done on the way.")));
		case LOCKACQUIRE_OK:
			break;
	}
	/* where slots were found empty, and are not looked into any more, again */
	if (first && accord_shmem_ready() &&
		accord_shmem_keys_stored(hash) == stored)
		return ACCORD_KEY_FREE;
	forget_empty(keys);
	state = accord_keys_find(keys, scope, key, wait, entry);
	if (state != ACCORD_KEY_FREE)
		LockRelease(&tag, ExclusiveLock, false);
	return count_used(keys, state);
}

void
accord_keys_store(AccordKeys *keys, Datum scope, Datum key,
				  AccordKeyEntry *entry)
{
	int			slot = current_slot(keys);
	uint64		hash = hash_key(scope, key);
	bytea	   *fingerprint = palloc(VARHDRSZ + ACCORD_FINGERPRINT_LENGTH);
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS] = {0};

	entry->at = GetCurrentTimestamp();
	SET_VARSIZE(fingerprint, VARHDRSZ + ACCORD_FINGERPRINT_LENGTH);
	memcpy(VARDATA(fingerprint), entry->fingerprint, ACCORD_FINGERPRINT_LENGTH);
	values[KEY_SCOPE - 1] = scope;
	values[KEY_KEY - 1] = key;
	values[KEY_SLOT - 1] = Int16GetDatum(slot);
	values[KEY_AT - 1] = TimestampTzGetDatum(entry->at);
	values[KEY_FINGERPRINT - 1] = PointerGetDatum(fingerprint);
	values[KEY_TX_ID - 1] = Int64GetDatum(entry->tx_id);
	nulls[KEY_TX_ID - 1] = entry->tx_id == 0;
	values[KEY_EVENT_ID - 1] = UUIDPGetDatum(&entry->event_id);
	nulls[KEY_EVENT_ID - 1] = !entry->has_event;
	values[KEY_RESULT - 1] = JsonbPGetDatum(entry->result);
	nulls[KEY_RESULT - 1] = entry->result == NULL;
	accord_append_row(stores[keys->store].table, slot, values, nulls);
	if (keys->store == ACCORD_KEYS_INBOX)
		accord_counter_note(ACCORD_COUNTER_RECEIVED, 1);
	pfree(fingerprint);
	accord_shmem_key_stored(hash);
	release_lock(keys, hash);
}
