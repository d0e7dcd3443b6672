/*
 * request_key.c: the idempotency key of a request.
 *
 * Runs in dispatchers, and in backends that only look at a request.
 *
 * Invariants: the same event has the same key at the same channel, every time
 * it is sent; another one has another. A key that the channel would not take
 * is replaced by a hash of it, in a
 * form that the channel takes (keyform.c): it is never cut. No key that is ours
 * depends on a sequence: those go back after a crash.
 *
 * On failure a variable that the event does not define is named.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

#include "accord.h"
#include "keyform.h"
#include "request_private.h"
#include "template.h"

/* Mixes an event's key into one that is made. */
static void
add_to_key(const AccordEvent *event, uint64 *high, uint64 *low)
{
	bool		isnull;
	Datum		id = accord_request_column(event, ACCORD_EVENT_EVENT_ID,
										   &isnull);
	const unsigned char *bytes = DatumGetUUIDP(id)->data;

	*high = hash_bytes_extended(bytes, UUID_LEN, *high);
	*low = hash_bytes_extended(bytes, UUID_LEN, *low);
	if (event->replay == NULL || !event->replay->rekey)
		return;
	*high = hash_bytes_extended(event->replay->salt, UUID_LEN, *high);
	*low = hash_bytes_extended(event->replay->salt, UUID_LEN, *low);
}

/* Of a batch: made of its events' own. */
static char *
batch_key(const AccordRequestScope *scope)
{
	uint64		high = 1;
	uint64		low = 2;

	for (int i = 0; i < scope->n_batch; i++)
		add_to_key(scope->batch[i], &high, &low);
	return accord_keyform_uuid(high, low);
}

/* Of one that is replayed under a new key: the same in all of this replay. */
static char *
replay_key(const AccordEvent *event)
{
	uint64		high = 3;
	uint64		low = 4;

	add_to_key(event, &high, &low);
	return accord_keyform_uuid(high, low);
}

char	   *
accord_request_key(AccordRequestScope *scope, char **missing)
{
	const AccordChannel *channel = scope->route->channel;
	char	   *key;

	if (scope->batch != NULL && scope->n_batch > 1)
		key = batch_key(scope);
	else if (scope->event->replay != NULL && scope->event->replay->rekey)
		key = replay_key(scope->event);
	else if (channel->idempotency_key == NULL)
		key = accord_request_event_id(scope->event);
	else
	{
		key = accord_template_expand(channel->idempotency_key, true,
									 accord_request_variable, scope, missing);
		if (*missing != NULL)
			return NULL;
	}
	if (!channel->key_checked ||
		accord_keyform_fits(key, channel->idempotency_max_length,
							channel->idempotency_pattern))
		return key;
	return accord_keyform_hash(pg_server_to_any(key, strlen(key), PG_UTF8),
							   channel->key_form,
							   channel->idempotency_max_length);
}
