/*
 * batch.c: several deliveries in one request.
 *
 * Runs in dispatchers, for routes with a batch_size above 1. Deliveries whose
 * turn it is join the batch that forms for their connection, route and group;
 * it is sent when it is full, or when its time has come. A batch is one
 * request: its first member counts as in flight and has its tokens; the others
 * ride along. Each member has an outcome of its own.
 *
 * Invariants
 *   - Members are TAKEN, and of different keys: only the first of a key is ever
 *     taken. Until the batch is sent a newer event may supersede a member.
 *   - A batch that was refused as a whole is divided; a member that was refused
 *     with others goes next with half as many. So one poisoned event costs as
 *     many requests as the batch can be halved, and only itself. One on which
 *     the server fails (a 500) is found in the same way, but by retries: they
 *     come together, at the times of retries, and do not count as attempts.
 *
 * On failure only out-of-memory can raise. Nothing of a batch is stored but
 * its members' outcomes: after a restart they are read again, and form others.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "batch.h"
#include "delivery.h"
#include "flow.h"
#include "json.h"
#include "judge.h"
#include "request.h"
#include "round.h"
#include "settle.h"

#define SUSPECTED_AFTER 3		/* times that a batch has failed */
#define SUSPECTED_BESIDE_OTHERS 2	/* ... while others were delivered */
#define HTTP_UNAVAILABLE 503
#define TOKEN_LOOK_EVERY 100000 /* us */

typedef struct BatchEntry
{
	AccordBatchKey key;
	AccordBatch *batch;
} BatchEntry;

/*
 * Forming
 */

static AccordBatch *
create_batch(AccordDesk *desk, const AccordBatchKey *key,
			 AccordConnection *connection, TimestampTz due_at)
{
	AccordBatch *batch = MemoryContextAllocZero(desk->context,
												sizeof(AccordBatch));

	batch->key = *key;
	batch->connection = connection;
	dlist_init(&batch->members);
	batch->forming = true;
	batch->waiting = true;
	batch->due_at = due_at;
	pairingheap_add(desk->forming, &batch->due_node);
	return batch;
}

/* Takes no more, and is to be sent as soon as it may be. */
static void
close_batch(AccordDesk *desk, AccordBatch *batch)
{
	if (batch->forming)
		hash_search(desk->batches, &batch->key, HASH_REMOVE, NULL);
	batch->forming = false;
	if (batch->waiting)
		pairingheap_remove(desk->forming, &batch->due_node);
	batch->waiting = false;
	dlist_push_tail(&desk->batches_due, &batch->full_node);
}

static Size
payload_size(const AccordEvent *event)
{
	bool		isnull;
	Datum		payload = accord_request_column(event, ACCORD_EVENT_PAYLOAD,
												&isnull);

	return isnull ? 4 : VARSIZE_ANY_EXHDR(DatumGetPointer(payload));
}

static void
make_key(AccordBatchKey *key, const AccordDelivery *delivery,
		 const AccordRoute *route, const AccordAccount *account)
{
	char	   *group = route->batch_group == NULL ? pstrdup("") :
	accord_request_expand(route->batch_group, route, account,
						  delivery->event);

	memset(key, 0, sizeof(*key));
	key->connection = delivery->endpoint->connection->id;
	key->route = route->id;
	key->group = hash_bytes_extended((unsigned char *) group, strlen(group),
									 0);
	/* what is replayed goes by itself */
	if (delivery->replay != NULL)
		key->group = hash_combine64(key->group, delivery->replay->id);
	key->max = delivery->batch_max;
	pfree(group);
}

void
accord_batch_join(AccordDesk *desk, AccordDelivery *delivery,
				  const AccordRoute *route, const AccordAccount *account,
				  TimestampTz now)
{
	Size		size = payload_size(delivery->event);
	int			most = delivery->batch_max > 0 ?
	Min(delivery->batch_max, route->batch_size) : route->batch_size;
	AccordBatchKey key;
	BatchEntry *entry;
	bool		found;

	make_key(&key, delivery, route, account);
	entry = hash_search(desk->batches, &key, HASH_ENTER, &found);
	if (found && route->batch_bytes > 0 && entry->batch->n > 0 &&
		entry->batch->bytes + size > (Size) route->batch_bytes)
	{
		close_batch(desk, entry->batch);
		entry = hash_search(desk->batches, &key, HASH_ENTER, &found);
	}
	if (!found)
		entry->batch = create_batch(desk, &key,
									delivery->endpoint->connection, now +
									route->batch_wait_ms * 1000);
	accord_flow_return(delivery, now);
	accord_delivery_uncount(desk, delivery);
	delivery->batch = entry->batch;
	dlist_push_tail(&entry->batch->members, &delivery->batch_node);
	entry->batch->n++;
	entry->batch->bytes += size;
	if (entry->batch->n >= most)
		close_batch(desk, entry->batch);
}

void
accord_batch_remove(AccordDelivery *delivery)
{
	dlist_delete(&delivery->batch_node);
	delivery->batch->n--;
	delivery->batch = NULL;
}

void
accord_batch_free(AccordBatch *batch)
{
	Assert(dlist_is_empty(&batch->members));
	pfree(batch);
}

TimestampTz
accord_batch_due(AccordDesk *desk)
{
	if (pairingheap_is_empty(desk->forming))
		return 0;
	return pairingheap_container(AccordBatch, due_node,
								 pairingheap_first(desk->forming))->due_at;
}

void
accord_batch_defer(AccordDesk *desk, AccordBatch *batch, TimestampTz until)
{
	batch->waiting = true;
	batch->due_at = until;
	pairingheap_add(desk->forming, &batch->due_node);
}

/* Closes those whose time has come. */
static void
close_due(AccordDesk *desk, TimestampTz now)
{
	TimestampTz due;

	while ((due = accord_batch_due(desk)) != 0 && due <= now)
		close_batch(desk, pairingheap_container(AccordBatch, due_node,
												pairingheap_first(desk->forming)));
}

AccordBatch *
accord_batch_next(AccordDesk *desk, TimestampTz now)
{
	dlist_mutable_iter iter;

	close_due(desk, now);
	dlist_foreach_modify(iter, &desk->batches_due)
	{
		AccordBatch *batch = dlist_container(AccordBatch, full_node, iter.cur);
		AccordConnection *connection = batch->connection;
		AccordHub  *hub = connection->hub;
		TimestampTz ready = ACCORD_LIMIT_NOW;

		if (batch->n > 0)
		{
			/* what closes a gate opens it with a turn of the loop */
			if (connection->paused || connection->breaker.probing ||
				!accord_gate_open(&connection->gate) ||
				!accord_gate_open(&hub->gate))
				continue;
			ready = accord_flow_hub_ready(hub, now);
			if (ready == ACCORD_LIMIT_NOW)
				ready = accord_flow_connection_ready(connection, now);
		}
		dlist_delete(&batch->full_node);
		if (ready == ACCORD_LIMIT_NOW)
			return batch;
		/* a token that is on its way wakes connections, not batches */
		accord_batch_defer(desk, batch, ready == DT_NOEND ?
						   now + TOKEN_LOOK_EVERY : ready);
	}
	return NULL;
}

/*
 * Outcomes
 */

/* The first member, taken out; NULL: there is none left. */
static AccordDelivery *
pop_member(AccordBatch *batch)
{
	AccordDelivery *delivery;

	if (dlist_is_empty(&batch->members))
		return NULL;
	delivery = dlist_head_element(AccordDelivery, batch_node,
								  &batch->members);
	accord_batch_remove(delivery);
	return delivery;
}

void
accord_batch_skip(AccordBatch *batch, TimestampTz now)
{
	AccordDelivery *delivery;

	while ((delivery = pop_member(batch)) != NULL)
		accord_settle_without(delivery, ACCORD_OUTCOME_SKIPPED, NULL, now);
	accord_batch_free(batch);
}

void
accord_batch_fail(AccordDesk *desk, AccordBatch *batch, bool transient,
				  const char *error, TimestampTz now)
{
	AccordDelivery *delivery;
	int			n = batch->n;

	while ((delivery = pop_member(batch)) != NULL)
	{
		if (n > 1 && !transient)
			accord_settle_again(delivery, NULL, (n + 1) / 2, error, now);
		else
		{
			delivery->attempts++;
			accord_settle_without(delivery, transient ? ACCORD_OUTCOME_RETRY :
								  ACCORD_OUTCOME_INVALID, error, now);
		}
	}
	accord_batch_free(batch);
}

/*
 * A value within a result, as text; an empty path is the result itself. NULL:
 * there is none.
 */
static char *
value_at(JsonbValue *result, const char *path)
{
	JsonbValue *value = result;

	if (path == NULL || (path[0] != '\0' && result->type != jbvBinary))
		return NULL;
	if (path[0] != '\0')
		value = accord_json_path(JsonbValueToJsonb(result), path);
	return value ? accord_json_text(value) : NULL;
}

/*
 * The result of the i-th member, which results call by that name: an object's
 * member, the element that has it, or the element at its place. NULL: none.
 */
static JsonbValue *
find_result(JsonbValue *items, const AccordRoute *route, int i,
			const char *name)
{
	JsonbContainer *container;

	if (items == NULL || items->type != jbvBinary)
		return NULL;
	container = items->val.binary.data;
	if (JsonContainerIsObject(container))
		return getKeyJsonValueFromContainer(container, name, strlen(name),
											NULL);
	if (route->batch_item_id == NULL)
		return getIthJsonbValueFromContainer(container, i);
	for (uint32 at = 0; at < JsonContainerSize(container); at++)
	{
		JsonbValue *result = getIthJsonbValueFromContainer(container, at);
		char	   *id = value_at(result, route->batch_item_id);

		if (id != NULL && strcmp(id, name) == 0)
			return result;
	}
	return NULL;
}

/* What a result says about its item: by its route's paths, and by rules. */
static AccordJudgement
judge_result(JsonbValue *result, const AccordRoute *route,
			 const AccordHttpResponse *response)
{
	char	   *status = NULL;
	char	   *message = NULL;

	if (result == NULL)
		return accord_judge_item(route, response, NULL, 0, NULL);
	message = value_at(result, route->batch_item_error);
	status = value_at(result, route->batch_item_status);
	if (message != NULL && strcmp(message, "false") == 0)
		message = NULL;
	return accord_judge_item(route, response, JsonbValueToJsonb(result),
							 status ? atoi(status) : 0, message);
}

/* Each member by its own result. */
static void
respond_by_item(AccordDesk *desk, AccordBatch *batch,
				const AccordRoute *route, const AccordAccount *account,
				const AccordHttpResponse *response, TimestampTz now)
{
	Jsonb	   *answer = accord_judge_json(response);
	JsonbValue *items = answer ? accord_json_path(answer, route->batch_items) :
	NULL;
	AccordDelivery *delivery;

	for (int i = 0; (delivery = pop_member(batch)) != NULL; i++)
	{
		char	   *name = accord_request_expand(route->batch_id, route, account,
												 delivery->event);
		JsonbValue *result = find_result(items, route, i, name);
		AccordJudgement judgement = judge_result(result, route, response);

		accord_answer_settle(desk, delivery, route, account, response,
							 &judgement, result ? JsonbValueToJsonb(result) :
							 NULL, now);
	}
}

/*
 * Whether one member may be why all of them failed: the server has failed
 * again, and not for want of room. It is asked sooner where the server has
 * taken something since the first time.
 */
static bool
is_suspect(const AccordDelivery *delivery, const AccordHttpResponse *response,
		   const AccordJudgement *judgement, int n)
{
	const AccordConnection *connection = delivery->endpoint->connection;
	int			patience = delivery->attempted_at <=
	connection->last_delivered_at ? SUSPECTED_BESIDE_OTHERS : SUSPECTED_AFTER;

	return n > 1 && judgement->outcome == ACCORD_OUTCOME_RETRY &&
		response->result.status >= 500 &&
		response->result.status != HTTP_UNAVAILABLE &&
		delivery->attempts >= Min(patience, connection->policy.max_attempts);
}

void
accord_batch_respond(AccordDesk *desk, AccordBatch *batch,
					 const AccordRoute *route, const AccordAccount *account,
					 const AccordHttpResponse *response, TimestampTz now)
{
	AccordJudgement judgement = route == NULL ?
	accord_judge_plain(response) :
	accord_judge_answer(route->channel, route, response);
	bool		by_item = route != NULL && route->batch_items != NULL;
	AccordDelivery *delivery;
	int			n = batch->n;

	if (judgement.per_item && !by_item)
		judgement = accord_judge_plain(response);
	if (judgement.outcome == ACCORD_OUTCOME_DELIVERED && by_item)
		respond_by_item(desk, batch, route, account, response, now);
	accord_settle_together(true);
	while ((delivery = pop_member(batch)) != NULL)
	{
		if (judgement.outcome == ACCORD_OUTCOME_REJECTED && n > 1)
			accord_settle_again(delivery, response, (n + 1) / 2,
								psprintf("refused with a batch of %d", n), now);
		else if (is_suspect(delivery, response, &judgement, n))
			accord_settle_divided(delivery, response, &judgement, (n + 1) / 2,
								  now);
		else if (route == NULL)
			accord_settle_judged(delivery, response, &judgement, now);
		else
		{
			AccordJudgement own = judgement;

			accord_answer_settle(desk, delivery, route, account, response,
								 &own, NULL, now);
		}
	}
	accord_settle_together(false);
	accord_batch_free(batch);
}
