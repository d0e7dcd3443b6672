/*
 * keys.h: exports of keys.c
 *
 * Layer 4: a key is used once, and remembered with what it was used for.
 */
#ifndef ACCORD_KEYS_H
#define ACCORD_KEYS_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#define ACCORD_FINGERPRINT_LENGTH 32	/* SHA-256 */

/* Where keys are kept. */
typedef enum AccordKeyStore
{
	ACCORD_KEYS_INBOX,			/* accord.inbox: by source and event_id */
	ACCORD_KEYS_IDEMPOTENCY		/* accord.idempotency_key: by scope and key */
} AccordKeyStore;

/* What is kept of a key. */
typedef struct AccordKeyEntry
{
	uint8		fingerprint[ACCORD_FINGERPRINT_LENGTH]; /* of the content */
	TimestampTz at;				/* filled in by accord_keys_store() */
	int64		tx_id;			/* that wrote its events; 0: none did */
	bool		has_event;
	pg_uuid_t	event_id;		/* when has_event */
	Jsonb	   *result;			/* NULL: none is kept */
} AccordKeyEntry;

typedef enum AccordKeyState
{
	ACCORD_KEY_FREE,
	ACCORD_KEY_USED,
	ACCORD_KEY_BUSY				/* by another session; only when not to wait */
} AccordKeyState;

typedef struct AccordKeys AccordKeys;

/*
 * Opened and closed within one call of a function; errors close it. It lives
 * in the memory context of the opening.
 */
extern AccordKeys *accord_keys_open(AccordKeyStore store);
extern void accord_keys_close(AccordKeys *keys);

/*
 * What is known of a key (two texts), whatever the snapshot of the caller's
 * transaction: committed, or its own. Waits for a transaction that is using
 * it, unless told not to. Writes nothing. entry: of one that is used.
 */
extern AccordKeyState accord_keys_find(AccordKeys *keys, Datum scope,
									   Datum key, bool wait,
									   AccordKeyEntry *entry);

/*
 * The same, and one that is free is the caller's until accord_keys_store() or
 * accord_keys_release(): others who want it wait. Raises when the session is
 * at work on this key already.
 */
extern AccordKeyState accord_keys_claim(AccordKeys *keys, Datum scope,
										Datum key, bool wait,
										AccordKeyEntry *entry);

/* Keeps what became of a claimed key, with the current transaction. */
extern void accord_keys_store(AccordKeys *keys, Datum scope, Datum key,
							  AccordKeyEntry *entry);
extern void accord_keys_release(AccordKeys *keys, Datum scope, Datum key);

/* SHA-256. */
extern void accord_keys_fingerprint(const char *content, size_t len,
									uint8 *fingerprint);

#endif							/* ACCORD_KEYS_H */
