/*
 * flow.c: who may send now.
 *
 * Runs in dispatchers. The pure parts are limit.c and breaker.c; here they are
 * given their buckets, and answers are turned into what they need to know. A
 * channel, with all its accounts, belongs to one dispatcher, so nothing here
 * is shared.
 *
 * Invariants
 *   - A token is taken for every request and given back when none was made, so
 *     what the channel sees is bounded by the limits, retries included.
 *   - A bucket is known by its limit and by what the limit's template came to;
 *     it outlives changes of the configuration, and is forgotten when full.
 *   - Changes of state (breaker, throttling, pauses) are noted here and written
 *     down with the next batch that is settled.
 *
 * On failure only out-of-memory can raise. A dispatcher that starts has full
 * buckets; open breakers it finds in endpoint_log.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "flow.h"
#include "json.h"
#include "request.h"
#include "round.h"
#include "tally.h"
#include "template.h"
#include "token.h"

#define MAX_EVENT_LIMITS 16		/* of one channel that are looked at */
#define SWEEP_AT 4096			/* buckets before full ones are forgotten */

typedef struct BucketKey
{
	int64		limit;
	uint64		key;
} BucketKey;

typedef struct BucketEntry
{
	BucketKey	key;
	AccordBucket bucket;
	TimestampTz queued_until;	/* times up to here are promised to deliveries
								 * that wait */
} BucketEntry;

static HTAB *buckets = NULL;
static long sweep_at = SWEEP_AT;
static MemoryContext flow_context = NULL;

/* The buckets found by the last accord_flow_event_ready(). */
static BucketEntry *found[MAX_EVENT_LIMITS];
static const AccordLimit *found_limits[MAX_EVENT_LIMITS];
static int	n_found = 0;

static MemoryContext notes_context = NULL;
static AccordTransitionRow *notes = NULL;
static int	n_notes = 0;
static int	max_notes = 0;

void
accord_flow_init(AccordDesk *desk)
{
	HASHCTL		ctl;

	flow_context = desk->context;
	notes_context = AllocSetContextCreate(desk->context, "pg_accord notes",
										  ALLOCSET_SMALL_SIZES);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(BucketKey);
	ctl.entrysize = sizeof(BucketEntry);
	ctl.hcxt = desk->context;
	buckets = hash_create("pg_accord buckets", 256, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Buckets
 */

/* Forgets buckets that are full: a new one is the same. */
static void
sweep_buckets(TimestampTz now)
{
	HASH_SEQ_STATUS scan;
	BucketEntry *entry;

	hash_seq_init(&scan, buckets);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->bucket.full_at_ns <= now * 1000 &&
			entry->queued_until <= now)
			hash_search(buckets, &entry->key, HASH_REMOVE, NULL);
	sweep_at = Max(SWEEP_AT, 2 * hash_get_num_entries(buckets));
}

static BucketEntry *
find_bucket(const AccordLimit *limit, uint64 key)
{
	BucketKey	name = {limit->id, key};
	BucketEntry *entry;
	bool		known;

	entry = hash_search(buckets, &name, HASH_ENTER, &known);
	if (!known)
	{
		memset(&entry->bucket, 0, sizeof(entry->bucket));
		entry->queued_until = 0;
	}
	return entry;
}

static uint64
hash_text(const char *text)
{
	return hash_bytes_extended((const unsigned char *) text, strlen(text), 0);
}

/* Looks up what a limit of each account is told apart by. */
typedef struct AccountVariables
{
	const AccordConnection *connection;
	const AccordAccount *account;
} AccountVariables;

static JsonbValue *
find_account_variable(const char *name, void *arg)
{
	AccountVariables *variables = arg;
	const char *text = NULL;
	JsonbValue *value;

	if (strncmp(name, "vars.", 5) == 0)
		return variables->account == NULL ? NULL :
			accord_json_path(variables->account->vars, name + 5);
	if (strcmp(name, "account") == 0)
		text = variables->connection->account;
	else if (strcmp(name, "channel") == 0)
		text = variables->connection->hub->channel;
	if (text == NULL)
		return NULL;
	value = palloc(sizeof(JsonbValue));
	value->type = jbvString;
	value->val.string.val = pstrdup(text);
	value->val.string.len = strlen(text);
	return value;
}

/*
 * Whether a limit is looked at for every event. Where a channel has no
 * accounts, one by account is: its events may name some all the same.
 */
static bool
is_by_event(const AccordLimit *limit, const AccordConnection *connection)
{
	return limit->scope == ACCORD_LIMIT_EVENT ||
		(limit->scope == ACCORD_LIMIT_ACCOUNT &&
		 connection->account[0] == '\0');
}

/* The meters of all limits of a scope; palloc'd in the desk. */
static AccordMeter *
make_meters(const AccordChannel *channel, AccordLimitScope scope,
			AccountVariables *variables, AccordMeter *old, int *n)
{
	AccordMeter *meters;

	if (old != NULL)
		pfree(old);
	*n = 0;
	if (channel->n_limits == 0)
		return NULL;
	meters = MemoryContextAlloc(flow_context, channel->n_limits *
								sizeof(AccordMeter));
	for (int i = 0; i < channel->n_limits; i++)
	{
		const AccordLimit *limit = channel->limits[i];
		char	   *text;

		if (limit->scope != scope || is_by_event(limit, variables->connection))
			continue;
		text = accord_template_expand(limit->bucket, true,
									  find_account_variable, variables, NULL);
		meters[*n].limit = limit;
		meters[(*n)++].key = hash_text(text);
		pfree(text);
	}
	return meters;
}

void
accord_flow_configure(AccordConnection *connection,
					  const AccordChannel *channel,
					  const AccordAccount *account)
{
	AccountVariables variables = {connection, account};
	AccordHub  *hub = connection->hub;

	hub->gate.max_in_flight = channel->max_in_flight;
	hub->shared_allowance = channel->throttle_channel;
	hub->heeds_hints = channel->heed_hints;
	hub->coalesces = channel->coalesces;
	hub->breaker_policy = channel->breaker;
	hub->meters = make_meters(channel, ACCORD_LIMIT_CHANNEL, &variables,
							  hub->meters, &hub->n_meters);
	connection->gate.max_in_flight = account == NULL ?
		channel->max_in_flight : account->max_in_flight > 0 ?
		account->max_in_flight : channel->account_max_in_flight;
	connection->weight = account != NULL ? account->weight : 1;
	if (channel->breaker.failures == 0 && channel->breaker.ratio == 0 &&
		accord_breaker_reset(&connection->breaker))
		accord_flow_note(hub->channel, connection->account,
						 accord_breaker_word(connection->breaker.state), NULL,
						 0);
	connection->meters = make_meters(channel, ACCORD_LIMIT_ACCOUNT, &variables,
									 connection->meters,
									 &connection->n_meters);
}

void
accord_flow_release(AccordDesk *desk)
{
	HASH_SEQ_STATUS scan;
	BucketEntry *entry;

	hash_seq_init(&scan, buckets);
	while ((entry = hash_seq_search(&scan)) != NULL)
		entry->queued_until = 0;
	accord_desk_release(desk);
}

/*
 * Being ready
 */

static TimestampTz
meters_ready(const AccordMeter *meters, int n, TimestampTz now)
{
	TimestampTz ready = ACCORD_LIMIT_NOW;

	for (int i = 0; i < n; i++)
	{
		BucketEntry *entry = find_bucket(meters[i].limit, meters[i].key);

		ready = Max(ready, accord_limit_ready(&meters[i].limit->rate,
											  &entry->bucket, now));
	}
	return ready;
}

/* Takes a token of each, or gives it back. */
static void
meters_take(const AccordMeter *meters, int n, bool back, TimestampTz now)
{
	for (int i = 0; i < n; i++)
	{
		BucketEntry *entry = find_bucket(meters[i].limit, meters[i].key);

		if (back)
			accord_limit_return(&meters[i].limit->rate, &entry->bucket);
		else
			accord_limit_take(&meters[i].limit->rate, &entry->bucket, now);
	}
}

/* What the server has allowed: the channel, or each account of it. */
static AccordAllowance *
allowance_of(AccordConnection *connection)
{
	return connection->hub->shared_allowance ? &connection->hub->allowance :
		&connection->allowance;
}

TimestampTz
accord_flow_hub_ready(AccordHub *hub, TimestampTz now)
{
	TimestampTz ready = meters_ready(hub->meters, hub->n_meters, now);

	if (hub->shared_allowance)
		ready = Max(ready, accord_limit_allowed(&hub->allowance, now));
	return ready;
}

TimestampTz
accord_flow_connection_ready(AccordConnection *connection, TimestampTz now)
{
	TimestampTz ready = ACCORD_LIMIT_NOW;

	if (accord_breaker_tick(&connection->breaker, now))
		accord_flow_note(connection->hub->channel, connection->account,
						 accord_breaker_word(connection->breaker.state), NULL,
						 0);
	if (connection->breaker.state == ACCORD_BREAKER_OPEN)
		return connection->breaker.probe_at;
	ready = meters_ready(connection->meters, connection->n_meters, now);
	if (connection->token != NULL)
		ready = Max(ready, accord_token_ready(connection->token, now));
	if (!connection->hub->shared_allowance)
		ready = Max(ready, accord_limit_allowed(&connection->allowance, now));
	return ready;
}

bool
accord_flow_take_tokens(AccordConnection *connection, TimestampTz now)
{
	AccordHub  *hub = connection->hub;

	meters_take(hub->meters, hub->n_meters, false, now);
	meters_take(connection->meters, connection->n_meters, false, now);
	accord_limit_spend(allowance_of(connection), now);
	return accord_breaker_sent(&connection->breaker);
}

void
accord_flow_take(AccordDelivery *delivery, TimestampTz now)
{
	Assert(!delivery->ticketed);
	delivery->probe = accord_flow_take_tokens(delivery->endpoint->connection,
											  now);
	delivery->ticketed = true;
}

void
accord_flow_return(AccordDelivery *delivery, TimestampTz now)
{
	AccordConnection *connection = delivery->endpoint->connection;
	AccordHub  *hub = connection->hub;

	if (!delivery->ticketed)
		return;
	delivery->ticketed = false;
	meters_take(hub->meters, hub->n_meters, true, now);
	meters_take(connection->meters, connection->n_meters, true, now);
	if (delivery->probe)
		accord_breaker_result(&connection->breaker, &hub->breaker_policy,
							  ACCORD_BREAKER_NEUTRAL, true, 0, now);
	delivery->probe = false;
}

/*
 * The time promised to a delivery that finds a bucket empty, or others in
 * front of it. One that comes back at its time takes what is there.
 */
static TimestampTz
bucket_turn(BucketEntry *entry, const AccordRate *rate, bool again,
			TimestampTz now)
{
	TimestampTz ready = accord_limit_ready(rate, &entry->bucket, now);
	TimestampTz interval = (rate->interval_ns + 999) / 1000;

	if (again)
		return ready;
	if (entry->queued_until <= now && ready == ACCORD_LIMIT_NOW)
		return ACCORD_LIMIT_NOW;
	ready = Max(ready, entry->queued_until);
	entry->queued_until = ready + interval;
	return ready;
}

static TimestampTz
replay_turn(BucketEntry *entry, const AccordRate *rate, TimestampTz now)
{
	TimestampTz ready = accord_limit_ready(rate, &entry->bucket, now);

	return entry->queued_until > now ? Max(ready, entry->queued_until) : ready;
}

TimestampTz
accord_flow_event_ready(AccordDelivery *delivery, const AccordRoute *route,
						const AccordAccount *account, TimestampTz now)
{
	const AccordChannel *channel = route->channel;
	AccordConnection *connection = delivery->endpoint->connection;
	TimestampTz ready = ACCORD_LIMIT_NOW;

	n_found = 0;
	if (channel->n_limits == 0)
		return ready;
	if (hash_get_num_entries(buckets) > sweep_at)
		sweep_buckets(now);
	for (int i = 0; i < channel->n_limits && n_found < MAX_EVENT_LIMITS; i++)
	{
		const AccordLimit *limit = channel->limits[i];
		TimestampTz turn;
		char	   *text;

		if (!is_by_event(limit, connection))
			continue;
		text = accord_request_expand(limit->bucket, route, account,
									 delivery->event);
		found_limits[n_found] = limit;
		found[n_found] = find_bucket(limit, hash_text(text));
		/* what is replayed goes when nobody live has been promised a time */
		if (delivery->replay != NULL)
			turn = replay_turn(found[n_found], &limit->rate, now);
		else
			turn = bucket_turn(found[n_found], &limit->rate,
							   delivery->limit_at != 0, now);
		ready = Max(ready, turn);
		n_found++;
		pfree(text);
	}
	return ready;
}

void
accord_flow_take_event(TimestampTz now)
{
	for (int i = 0; i < n_found; i++)
		accord_limit_take(&found_limits[i]->rate, &found[i]->bucket, now);
	n_found = 0;
}

int64
accord_flow_tokens(const AccordConnection *connection, TimestampTz now)
{
	const AccordHub *hub = connection->hub;
	int64		tokens = -1;

	for (int i = 0; i < hub->n_meters + connection->n_meters; i++)
	{
		const AccordMeter *meter = i < hub->n_meters ? &hub->meters[i] :
		&connection->meters[i - hub->n_meters];
		int64		left = accord_limit_tokens(&meter->limit->rate,
											   &find_bucket(meter->limit, meter->key)->bucket, now);

		tokens = tokens < 0 ? left : Min(tokens, left);
	}
	return tokens;
}

/*
 * Results
 */

/* What an attempt says about the endpoint, whatever it says of the event. */
static AccordBreakerResult
judge_endpoint(AccordOutcome outcome, const AccordHttpResponse *response)
{
	if (response == NULL)
		return ACCORD_BREAKER_NEUTRAL;
	switch (outcome)
	{
		case ACCORD_OUTCOME_DELIVERED:
		case ACCORD_OUTCOME_ACCEPTED:
		case ACCORD_OUTCOME_CONFLICT:
		case ACCORD_OUTCOME_REJECTED:
			return ACCORD_BREAKER_SUCCESS;
		case ACCORD_OUTCOME_RETRY:
			/* it answers, though not as we like: 409, 423 and the like */
			return response->result.status < 500 &&
				response->result.status != 408 ? ACCORD_BREAKER_SUCCESS :
				ACCORD_BREAKER_FAILURE;
		case ACCORD_OUTCOME_UNAUTHORIZED:
		case ACCORD_OUTCOME_UNREACHABLE:
		case ACCORD_OUTCOME_TIMEOUT:
		case ACCORD_OUTCOME_STALLED:
		case ACCORD_OUTCOME_CUT_OFF:
			return ACCORD_BREAKER_FAILURE;
		default:
			return ACCORD_BREAKER_NEUTRAL;
	}
}

static void
note_breaker(AccordConnection *connection, const char *error)
{
	const AccordBreaker *breaker = &connection->breaker;
	bool		open = breaker->state == ACCORD_BREAKER_OPEN;
	const char *account = connection->account;

	accord_flow_note(connection->hub->channel, account,
					 accord_breaker_word(breaker->state), open ? error : NULL,
					 open ? breaker->probe_at : 0);
	if (open && breaker->trips > 1)
		return;					/* another probe failed */
	if (open)
		accord_tally(connection, ACCORD_TALLY_OPENINGS);
	ereport(LOG,
			(errmsg("channel \"%s\"%s%s%s: circuit breaker %s",
					connection->hub->channel, account[0] ? ", account \"" : "",
					account, account[0] ? "\"" : "",
					open ? "opened" : "closed"),
			 open && error ? errdetail("%s", error) : 0,
			 open ? errhint("What it is owed waits; the next probe is at %s.",
							timestamptz_to_str(breaker->probe_at)) : 0));
}

static void
result_of_breaker(AccordDesk *desk, AccordConnection *connection, bool probe,
				  AccordBreakerResult result, const char *error, double dice,
				  TimestampTz now)
{
	if (!accord_breaker_result(&connection->breaker,
							   &connection->hub->breaker_policy, result, probe,
							   dice, now))
		return;
	note_breaker(connection, error);
	accord_connection_sleep(desk, connection,
							connection->breaker.state == ACCORD_BREAKER_OPEN ?
							connection->breaker.probe_at : 0);
}

static void
result_of_limits(AccordConnection *connection, TimestampTz started_at,
				 AccordOutcome outcome, const AccordHttpResponse *response,
				 double dice, TimestampTz now)
{
	AccordHub  *hub = connection->hub;
	AccordAllowance *allowance = allowance_of(connection);
	const AccordHint *hint = &response->hint;
	bool		shared = hub->shared_allowance;
	bool		was_paused = allowance->not_before > now;

	if (hub->heeds_hints)
		accord_limit_heed(allowance, hint, shared ? hub->gate.in_flight :
						  connection->gate.in_flight, now);
	if (outcome != ACCORD_OUTCOME_RETRY_AFTER)
	{
		if (response->result.status > 0)
			accord_limit_passed(allowance);
		return;
	}
	accord_limit_refused(allowance, response->result.retry_after_ms,
						 hub->heeds_hints ? hint->reset_ms : -1,
						 connection->policy.base_ms, connection->policy.cap_ms,
						 dice, started_at, now);
	if (was_paused || allowance->not_before <= now)
		return;
	accord_tally(connection, ACCORD_TALLY_THROTTLES);
	accord_flow_note(hub->channel, shared ? "" : connection->account,
					 "throttled",
					 psprintf("HTTP status %d", response->result.status),
					 allowance->not_before);
}

void
accord_flow_conclude(AccordDesk *desk, AccordConnection *connection, bool probe,
					 TimestampTz started_at, AccordOutcome outcome,
					 const AccordHttpResponse *response, const char *error,
					 double dice, TimestampTz now)
{
	result_of_limits(connection, started_at, outcome, response, dice, now);
	result_of_breaker(desk, connection, probe,
					  judge_endpoint(outcome, response), error, dice, now);
	accord_connection_rotate(desk, connection);
}

void
accord_flow_result(AccordDesk *desk, AccordDelivery *delivery,
				   AccordOutcome outcome, const AccordHttpResponse *response,
				   const char *error, double dice, TimestampTz now)
{
	AccordConnection *connection = delivery->endpoint->connection;
	bool		probe = delivery->probe;

	if (response == NULL)
	{
		accord_flow_return(delivery, now);
		accord_connection_rotate(desk, connection);
		return;
	}
	delivery->ticketed = false;
	delivery->probe = false;
	accord_flow_conclude(desk, connection, probe, delivery->started_at,
						 outcome, response, error, dice, now);
}

TimestampTz
accord_flow_pause(const AccordDelivery *delivery)
{
	return allowance_of(delivery->endpoint->connection)->not_before;
}

void
accord_flow_restore(AccordConnection *connection, TimestampTz probe_at)
{
	connection->breaker.state = ACCORD_BREAKER_OPEN;
	connection->breaker.trips = 1;
	connection->breaker.probe_at = probe_at;
}

void
accord_flow_resume(AccordDesk *desk, const char *channel, const char *account)
{
	AccordDeskScan scan;
	AccordConnection *connection;

	accord_desk_scan(desk, &scan);
	while ((connection = accord_desk_scan_next(&scan)) != NULL)
	{
		AccordHub  *hub = connection->hub;

		if (strcmp(hub->channel, channel) != 0 ||
			(account != NULL && strcmp(connection->account, account) != 0))
			continue;
		memset(&connection->allowance, 0, sizeof(AccordAllowance));
		memset(&hub->allowance, 0, sizeof(AccordAllowance));
		if (accord_breaker_reset(&connection->breaker))
			note_breaker(connection, NULL);
		if (connection->token != NULL)
			accord_token_resume(connection->token);
		accord_connection_retry(desk, connection);
		accord_hub_sleep(desk, hub, 0);
		accord_connection_sleep(desk, connection, 0);
	}
}

/*
 * Notes
 */

void
accord_flow_note(const char *channel, const char *account, const char *state,
				 const char *reason, TimestampTz until)
{
	MemoryContext old = MemoryContextSwitchTo(notes_context);
	AccordTransitionRow *row;

	if (n_notes == max_notes)
	{
		max_notes = Max(16, 2 * max_notes);
		notes = notes == NULL ?
			palloc(max_notes * sizeof(AccordTransitionRow)) :
			repalloc(notes, max_notes * sizeof(AccordTransitionRow));
	}
	row = &notes[n_notes++];
	row->channel = pstrdup(channel);
	row->account = pstrdup(account);
	row->state = state;
	row->reason = reason ? pstrdup(reason) : NULL;
	row->until = until;
	MemoryContextSwitchTo(old);
}

int
accord_flow_noted(const AccordTransitionRow **rows)
{
	*rows = notes;
	return n_notes;
}

void
accord_flow_forget(void)
{
	MemoryContextReset(notes_context);
	notes = NULL;
	n_notes = 0;
	max_notes = 0;
}
