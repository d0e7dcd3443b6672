/*
 * fingerprint.c: which requests a channel has accepted last.
 *
 * Runs in dispatchers, for routes with skip_unchanged. For each key (or what is
 * coalesced where there is none) the fingerprint of the last request that the
 * channel has accepted is kept in memory. It is forgotten when another is sent,
 * by whichever route, until that is answered; and with the dispatcher: skipping
 * saves requests, and none is wrong for having been sent once more.
 *
 * Invariants: deliveries of one key are sent one at a time (their lane sees to
 * it), so the last one accepted is what the channel has. What somebody else
 * changes there is not known here.
 *
 * On failure only out-of-memory can raise.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"

#include "fingerprint.h"

#define KEYS_AT_MOST 200000		/* then all are forgotten */

typedef struct KeyEntry
{
	uint64		key;			/* hash key */
	uint64		fingerprint;
} KeyEntry;

static HTAB *keys = NULL;

void
accord_fingerprint_init(AccordDesk *desk)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(KeyEntry);
	ctl.hcxt = desk->context;
	keys = hash_create("pg_accord fingerprints", 256, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static uint64
hash_part(uint64 hash, const char *bytes, size_t len)
{
	return hash_bytes_extended((const unsigned char *) bytes, len, hash);
}

/* The same without what is the idempotency key, which every event has anew. */
static uint64
hash_without(uint64 hash, const char *bytes, size_t len, const char *key)
{
	size_t		key_len = key == NULL ? 0 : strlen(key);
	const char *found;

	while (key_len > 0 &&
		   (found = memmem(bytes, len, key, key_len)) != NULL)
	{
		hash = hash_part(hash, bytes, found - bytes);
		len -= found + key_len - bytes;
		bytes = found + key_len;
	}
	return hash_part(hash, bytes, len);
}

/* Of what the channel is asked to do; not of how often it was asked. */
static uint64
fingerprint_of(const AccordRequest *request)
{
	const AccordHttpRequest *http = &request->http;
	uint64		hash = hash_part(1, http->method, strlen(http->method));

	hash = hash_without(hash, http->url, strlen(http->url), request->key);
	if (http->body != NULL)
		hash = hash_without(hash, request->plain ? request->plain : http->body,
							request->plain ? request->plain_len :
							http->body_len, request->key);
	return hash == 0 ? 1 : hash;
}

static void
forget_all(void)
{
	HASH_SEQ_STATUS scan;
	KeyEntry   *entry;

	hash_seq_init(&scan, keys);
	while ((entry = hash_seq_search(&scan)) != NULL)
		hash_search(keys, &entry->key, HASH_REMOVE, NULL);
}

bool
accord_fingerprint_same(AccordDelivery *delivery, const AccordRequest *request)
{
	KeyEntry   *entry;

	if (delivery->key_hash == 0)
		return false;
	delivery->fingerprint = fingerprint_of(request);
	entry = hash_search(keys, &delivery->key_hash, HASH_FIND, NULL);
	return entry != NULL && entry->fingerprint == delivery->fingerprint;
}

void
accord_fingerprint_forget(const AccordDelivery *delivery)
{
	if (delivery->key_hash != 0 && hash_get_num_entries(keys) > 0)
		hash_search(keys, &delivery->key_hash, HASH_REMOVE, NULL);
}

void
accord_fingerprint_accept(const AccordDelivery *delivery)
{
	KeyEntry   *entry;

	if (delivery->fingerprint == 0)
		return;
	if (hash_get_num_entries(keys) >= KEYS_AT_MOST)
		forget_all();
	entry = hash_search(keys, &delivery->key_hash, HASH_ENTER, NULL);
	entry->fingerprint = delivery->fingerprint;
}
