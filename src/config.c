/*
 * config.c: the configuration tables, read once and kept until they change.
 *
 * Runs in dispatchers, and in backends that need to know a channel by name.
 *
 * Invariants
 *   - What is kept was read under one snapshot, in one memory context, and is
 *     replaced as a whole: no pointer into it outlives accord_config_get().
 *   - Any change of one of these tables invalidates it in every process, at
 *     the commit of the change (relation cache invalidation, sent by the
 *     trigger config_changed).
 *   - The values of secrets are read by dispatchers alone.
 *
 * The tables are read as their owner: who may insert an event need not be
 * allowed to read them.
 *
 * On failure the old configuration stays, marked stale; the error is the
 * caller's.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "compat.h"
#include "config.h"
#include "db.h"
#include "json.h"
#include "secret.h"
#include "shmem.h"
#include "template.h"

#define BURST_TIME 5000			/* us */

typedef struct AccountKey
{
	AccordChannel *channel;
	uint64		name_hash[2];
} AccountKey;

typedef struct AccountEntry
{
	AccountKey	key;
	AccordAccount *account;
} AccountEntry;

static AccordConfig *current = NULL;
static bool stale = true;
static bool pinned = false;
static bool registered = false;
static bool with_secrets = false;
static bool fresh_keys = false; /* the next read asks for them anew */
static AccordSecretKeys *keys = NULL;	/* while a configuration is read */
static const char *keys_fault = NULL;	/* why there are none */
static int64 generations = 0;

/* Rows of accord.secret, sorted by name, while a configuration is read. */
typedef struct StoredSecret
{
	char	   *name;
	char	   *value;
	TimestampTz set_at;
} StoredSecret;

static StoredSecret *stored = NULL;
static int	n_stored = 0;

static const char *const tables[] = {
	"channel", "account", "route", "secret", "rate_limit", "paused", "rule"
};

static const char *const op_words[] = {
	[ACCORD_OP_INSERT] = "insert",
	[ACCORD_OP_UPDATE] = "update",
	[ACCORD_OP_DELETE] = "delete",
	[ACCORD_OP_TRUNCATE] = "truncate",
	[ACCORD_OP_EVENT] = "event"
};

PG_FUNCTION_INFO_V1(accord_config_changed);

int
accord_config_op(const char *word)
{
	for (int i = 0; i < lengthof(op_words); i++)
		if (strcmp(word, op_words[i]) == 0)
			return i;
	return -1;
}

/*
 * Relation cache callback. While the first one is being read nobody knows yet
 * whose change concerns it: any does.
 */
static void
forget_config(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || current == NULL)
		stale = true;
	for (int i = 0; !stale && current != NULL && i < lengthof(tables); i++)
		stale = current->relids[i] == relid;
}

/* System cache callback, for functions and roles. */
static void
forget_role_or_function(Datum arg, int cache, uint32 hash)
{
	stale = true;
}

bool
accord_config_stale(void)
{
	return stale;
}

void
accord_config_with_secrets(void)
{
	with_secrets = true;
	fresh_keys = true;
	stale = true;
}

/*
 * Loading
 */

/* A column of the row at hand. */
static Datum
column(int row, const char *name, bool *isnull)
{
	int			number = SPI_fnumber(SPI_tuptable->tupdesc, name);

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

static char *
column_text(int row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static bool
column_bool(int row, const char *name)
{
	bool		isnull;

	return DatumGetBool(column(row, name, &isnull));
}

/* 0 when null */
static int
column_int(int row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

/* An interval in microseconds, months being 30 days; 0 when null. */
static int64
column_us(int row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, &isnull);
	Interval   *interval = DatumGetIntervalP(value);

	if (isnull)
		return 0;
	return interval->time +
		((int64) interval->month * DAYS_PER_MONTH + interval->day) *
		USECS_PER_DAY;
}

static int64
column_ms(int row, const char *name)
{
	return column_us(row, name) / 1000;
}

/* 0 when null */
static int64
column_int64(int row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/* 0 when null */
static double
column_real(int row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, &isnull);

	return isnull ? 0 : DatumGetFloat4(value);
}

static Jsonb *
column_json(int row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, &isnull);

	return isnull ? NULL : DatumGetJsonbPCopy(value);
}

/* Runs a query; what is palloc'd next comes from "context". */
static uint64
run_query(const char *query, MemoryContext context)
{
	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the configuration: %s", query);
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

/* Secrets as they are stored, by name, for dispatchers only. */
static void
load_stored(MemoryContext context)
{
	n_stored = 0;
	if (!with_secrets)
		return;
	n_stored = (int) run_query("SELECT s.name, s.value, s.updated_at "
							   "FROM accord.secret s "
							   "ORDER BY s.name COLLATE pg_catalog.\"C\"",
							   context);
	stored = palloc(Max(n_stored, 1) * sizeof(StoredSecret));
	for (int i = 0; i < n_stored; i++)
	{
		stored[i].name = column_text(i, "name");
		stored[i].value = column_text(i, "value");
		stored[i].set_at = column_int64(i, "updated_at");
	}
}

static int
compare_stored(const void *name, const void *secret)
{
	return strcmp(name, ((const StoredSecret *) secret)->name);
}

/* Opens the secret an auth names; when it cannot, it says why. */
static void
open_secret(AccordAuthSecret *secret)
{
	StoredSecret *found = n_stored == 0 ? NULL :
	bsearch(secret->name, stored, n_stored, sizeof(StoredSecret),
			compare_stored);

	if (found == NULL)
		return;
	secret->set_at = found->set_at;
	secret->value = accord_secret_open(keys, secret->name, found->value,
									   &secret->fault);
	if (secret->value == NULL && keys_fault != NULL)
		secret->fault = psprintf("secret \"%s\" cannot be opened: %s",
								 secret->name, keys_fault);
}

static void
load_auth(int row, AccordAuth *auth)
{
	accord_auth_load(auth, column_json(row, "auth"), open_secret);
}

/* Where a channel takes an idempotency key, and of what form. */
static void
load_key(AccordChannel *channel, int row)
{
	channel->idempotency_header = column_text(row, "idempotency_header");
	channel->idempotency_query = column_text(row, "idempotency_query");
	channel->idempotency_path = column_text(row, "idempotency_path");
	channel->keyed = channel->idempotency_header != NULL ||
		channel->idempotency_query != NULL ||
		channel->idempotency_path != NULL;
	channel->idempotency_window_ms = column_ms(row, "idempotency_window");
	channel->idempotency_key = column_text(row, "idempotency_key");
	if (strcmp(channel->idempotency_key, "{event_id}") == 0)
		channel->idempotency_key = NULL;
	channel->idempotency_max_length =
		column_int(row, "idempotency_max_length");
	channel->idempotency_pattern = column_text(row, "idempotency_pattern");
	channel->key_checked = channel->idempotency_key != NULL ||
		channel->idempotency_max_length > 0 ||
		channel->idempotency_pattern != NULL;
	if (channel->key_checked)
		(void) accord_keyform_find(channel->idempotency_max_length,
								   channel->idempotency_pattern,
								   &channel->key_form);
}

/* The value of a secret that a member names; NULL: it names none. */
static const char *
link_secret(AccordLink *link, Jsonb *json, const char *member)
{
	AccordAuthSecret secret = {.name = accord_json_member(json, member)};

	if (secret.name == NULL)
		return NULL;
	open_secret(&secret);
	if (secret.value == NULL)
		link->fault = secret.fault ? secret.fault :
			psprintf("secret \"%s\" is not stored", secret.name);
	return secret.value;
}

static void
load_tls(int row, AccordLink *link)
{
	Jsonb	   *json = column_json(row, "tls");

	if (json == NULL)
		return;
	link->tls = palloc0(sizeof(AccordHttpTls));
	link->tls->certificate = link_secret(link, json, "certificate");
	link->tls->key = link_secret(link, json, "key");
	link->tls->ca = link_secret(link, json, "ca");
}

static void
load_proxy(int row, AccordLink *link)
{
	Jsonb	   *json = column_json(row, "proxy");

	if (json == NULL)
		return;
	link->proxy = palloc0(sizeof(AccordHttpProxy));
	link->proxy->url = accord_json_member(json, "url");
	link->proxy->user = accord_json_member(json, "user");
	link->proxy->secret = link_secret(link, json, "secret");
}

/* A token is fetched by the way its channel is reached. */
static void
link_token(AccordAuth *auth, const AccordLink *link)
{
	if (auth->token == NULL)
		return;
	auth->token->tls = link->tls;
	auth->token->proxy = link->proxy;
}

static AccordChannel *
load_channel(int row)
{
	AccordChannel *channel = palloc0(sizeof(AccordChannel));
	bool		isnull;

	channel->name = column_text(row, "name");
	channel->base_url = column_text(row, "base_url");
	channel->enabled = column_bool(row, "enabled");
	load_auth(row, &channel->auth);
	load_tls(row, &channel->link);
	load_proxy(row, &channel->link);
	link_token(&channel->auth, &channel->link);
	channel->headers = column_json(row, "headers");
	channel->ordered = strcmp(column_text(row, "ordering"), "key") == 0;
	channel->max_in_flight = column_int(row, "max_in_flight");
	channel->account_max_in_flight = column_int(row, "account_max_in_flight");
	if (channel->account_max_in_flight == 0)
		channel->account_max_in_flight = channel->max_in_flight;
	channel->throttle_channel =
		strcmp(column_text(row, "throttle_scope"), "channel") == 0;
	channel->heed_hints = column_bool(row, "heed_hints");
	channel->breaker.failures = column_int(row, "breaker_failures");
	channel->breaker.ratio = column_real(row, "breaker_ratio");
	channel->breaker.minimum = column_int(row, "breaker_minimum");
	channel->breaker.window_ms = column_ms(row, "breaker_window");
	channel->breaker.cooldown_ms = column_ms(row, "breaker_cooldown");
	channel->breaker.cap_ms = column_ms(row, "breaker_cap");
	channel->connect_timeout_ms = (int) column_ms(row, "connect_timeout");
	channel->timeout_ms = (int) column_ms(row, "timeout");
	channel->stall_timeout_s =
		(int) ((column_ms(row, "stall_timeout") + 999) / 1000);
	channel->retry_base_ms = column_ms(row, "retry_base");
	channel->retry_cap_ms = column_ms(row, "retry_cap");
	channel->max_attempts = column_int(row, "max_attempts");
	channel->max_age_ms = column_ms(row, "max_age");
	load_key(channel, row);
	channel->max_response = column_int(row, "max_response");
	(void) column(row, "compress_above", &isnull);
	channel->compress_above = isnull ? -1 : column_int(row, "compress_above");
	channel->probe_path = column_text(row, "probe_path");
	return channel;
}

static void
load_channels(AccordConfig *config)
{
	uint64		n = run_query("SELECT t.* FROM accord.channel t ORDER BY t.name",
							  config->context);

	config->channels = palloc(Max(n, 1) * sizeof(AccordChannel *));
	for (uint64 i = 0; i < n; i++)
		config->channels[config->n_channels++] = load_channel(i);
}

static void
account_key(AccountKey *key, AccordChannel *channel, const char *name)
{
	memset(key, 0, sizeof(*key));
	key->channel = channel;
	/* 128 bits: as good as the name */
	for (int i = 0; i < 2; i++)
		key->name_hash[i] = hash_bytes_extended((const unsigned char *) name,
												strlen(name), i + 1);
}

static void
load_accounts(AccordConfig *config)
{
	uint64		n = run_query("SELECT t.* FROM accord.account t "
							  "ORDER BY t.channel, t.name", config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordAccount *account = palloc0(sizeof(AccordAccount));
		AccordChannel *channel =
		accord_config_channel(config, column_text(i, "channel"));
		AccountKey	key;
		AccountEntry *entry;
		bool		isnull;

		if (channel == NULL)
			continue;			/* its foreign key is being cascaded */
		channel->has_accounts = true;
		account->name = column_text(i, "name");
		account->base_url = column_text(i, "base_url");
		account->enabled = column_bool(i, "enabled");
		account->max_in_flight = column_int(i, "max_in_flight");
		account->weight = column_int(i, "weight");
		(void) column(i, "auth", &isnull);
		account->has_auth = !isnull;
		load_auth(i, &account->auth);
		load_tls(i, &account->link);
		account->has_tls = account->link.tls != NULL;
		if (!account->has_tls)
			account->link.tls = channel->link.tls;
		account->link.proxy = channel->link.proxy;
		if (account->link.fault == NULL)
			account->link.fault = channel->link.fault;
		link_token(&account->auth, &account->link);
		account->vars = column_json(i, "vars");
		account_key(&key, channel, account->name);
		entry = hash_search(config->accounts, &key, HASH_ENTER, NULL);
		entry->account = account;
	}
}

/* The bits of route.ops; 0: all. */
static unsigned
load_ops(int row)
{
	bool		isnull;
	Datum		value = column(row, "ops", &isnull);
	Datum	   *words;
	int			n;
	unsigned	ops = 0;

	if (isnull)
		return 0;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
					  TYPALIGN_INT, &words, NULL, &n);
	for (int i = 0; i < n; i++)
		ops |= 1U << accord_config_op(TextDatumGetCString(words[i]));
	return ops;
}

static Oid
find_function(const char *name, Oid argument, Oid result)
{
	List	   *names = accord_qualified_name_list(name);
	Oid			function = LookupFuncName(names, 1, &argument, true);

	if (OidIsValid(function) &&
		(get_func_prokind(function) != PROKIND_FUNCTION ||
		 get_func_retset(function) ||
		 get_func_rettype(function) != result))
		return InvalidOid;
	return function;
}

Oid
accord_config_body_function(const char *name)
{
	return find_function(name, get_rel_type_id(accord_db_relid("event_log")),
						 get_rel_type_id(accord_db_relid("http_request")));
}

Oid
accord_config_batch_function(const char *name)
{
	return find_function(name, get_array_type(get_rel_type_id(accord_db_relid("event_log"))),
						 get_rel_type_id(accord_db_relid("http_request")));
}

Oid
accord_config_archive_function(const char *name)
{
	return find_function(name, get_rel_type_id(accord_db_relid("retirement")),
						 VOIDOID);
}

bool
accord_config_may_run(Oid function, Oid role)
{
	HeapTuple	tuple;
	Oid			owner;

	if (!superuser_arg(role))
		return true;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return false;
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return superuser_arg(owner);
}

static void
load_batch(AccordRoute *route, int row)
{
	route->batch_size = column_int(row, "batch_size");
	route->batch_bytes = column_int(row, "batch_bytes");
	route->batch_wait_ms = column_ms(row, "batch_wait");
	route->batch_group = column_text(row, "batch_group");
	route->batch_items = column_text(row, "batch_items");
	route->batch_id = column_text(row, "batch_id");
	route->batch_item_id = column_text(row, "batch_item_id");
	route->batch_item_status = column_text(row, "batch_item_status");
	route->batch_item_error = column_text(row, "batch_item_error");
	route->batch_function = column_text(row, "batch_function");
	if (route->batch_function != NULL)
		route->batch_function_oid =
			accord_config_batch_function(route->batch_function);
}

/* What a route's requests have as their body, and whether it holds the key. */
static void
load_body(AccordRoute *route, int row)
{
	AccordChannel *channel = route->channel;
	bool		bodiless = strcmp(route->method, "GET") == 0 ||
	strcmp(route->method, "HEAD") == 0 || strcmp(route->method, "DELETE") == 0;

	(void) accord_encode_kind(column_text(row, "body"), &route->body);
	route->body_from = column_text(row, "body_from");
	route->body_root = column_text(row, "body_root");
	(void) accord_encode_arrays(column_text(row, "form_arrays"),
								&route->form_arrays);
	route->content_type = column_text(row, "content_type");
	route->own_content_type = route->content_type != NULL;
	if (!route->own_content_type)
		route->content_type = accord_encode_type(route->body);
	route->keyed = channel->idempotency_header != NULL ||
		channel->idempotency_query != NULL ||
		(channel->idempotency_path != NULL && !bodiless &&
		 accord_encode_holds_key(route->body));
}

/* What the channel calls things, and how it is asked about them. */
static void
load_remote(AccordRoute *route, int row)
{
	char	   *when = column_text(row, "remote_when");
	Jsonb	   *needs = column_json(row, "needs");
	Jsonb	   *lookup = column_json(row, "lookup");
	Jsonb	   *poll = column_json(row, "poll");

	route->remote = column_text(row, "remote");
	route->remote_key = column_text(row, "remote_key");
	route->remote_when = strcmp(when, "known") == 0 ? ACCORD_REMOTE_KNOWN :
		strcmp(when, "unknown") == 0 ? ACCORD_REMOTE_UNKNOWN :
		ACCORD_REMOTE_ANY;
	route->remote_id = accord_config_mine("remote_id",
										  column_text(row, "remote_id"));
	route->remote_version = accord_config_mine("remote_version",
											   column_text(row,
														   "remote_version"));
	route->remote_etag = accord_config_mine("remote_etag",
											column_text(row, "remote_etag"));
	if (needs != NULL)
		route->needs = accord_config_needs(needs, &route->n_needs);
	if (lookup != NULL)
		route->lookup = accord_config_lookup(lookup);
	if (poll != NULL)
		route->poll = accord_config_poll(poll);
}

static void
load_routes(AccordConfig *config)
{
	uint64		n = run_query("SELECT t.* FROM accord.route t WHERE t.enabled "
							  "ORDER BY t.channel, t.position, t.id",
							  config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordRoute *route = palloc0(sizeof(AccordRoute));
		AccordChannel *channel =
		accord_config_channel(config, column_text(i, "channel"));
		bool		isnull;

		if (channel == NULL)
			continue;
		route->channel = channel;
		channel->coalesces |= column_text(i, "coalesce") != NULL &&
			strcmp(column_text(i, "mode"), "state") == 0;
		route->id = DatumGetInt64(column(i, "id", &isnull));
		route->topic = column_text(i, "topic");
		route->ops = load_ops(i);
		route->method = column_text(i, "method");
		route->path = column_text(i, "path");
		route->headers = column_json(i, "headers");
		load_body(route, i);
		route->command = strcmp(column_text(i, "mode"), "command") == 0;
		route->ambiguous_retry =
			strcmp(column_text(i, "ambiguous"), "retry") == 0;
		route->verify = strcmp(column_text(i, "ambiguous"), "verify") == 0;
		route->hold_dead =
			strcmp(column_text(i, "when_dead"), "hold") == 0;
		route->coalesce = column_text(i, "coalesce");
		route->quiet_ms = column_ms(i, "quiet");
		route->quiet_max_ms = column_ms(i, "quiet_max");
		route->skip_unchanged = column_bool(i, "skip_unchanged");
		load_batch(route, i);
		load_remote(route, i);
		channel->remembers |= route->remote != NULL || route->n_needs > 0 ||
			route->lookup != NULL || route->poll != NULL;
		route->body_function = column_text(i, "body_function");
		route->owner = get_role_oid(column_text(i, "owner"), true);
		if (route->body_function != NULL)
			route->body_function_oid =
				accord_config_body_function(route->body_function);

		/* grown by doubling; the count says when */
		if ((channel->n_routes & (channel->n_routes - 1)) == 0)
			channel->routes = channel->routes == NULL ?
				palloc(sizeof(AccordRoute *)) :
				repalloc(channel->routes, 2 * channel->n_routes *
						 sizeof(AccordRoute *));
		channel->routes[channel->n_routes++] = route;
	}
}

AccordLimitScope
accord_config_limit_scope(const char *bucket)
{
	AccordLimitScope scope = ACCORD_LIMIT_CHANNEL;
	char	   *name;

	while ((name = accord_template_next_variable(&bucket)) != NULL)
	{
		if (strcmp(name, "account") == 0 || strncmp(name, "vars.", 5) == 0)
			scope = Max(scope, ACCORD_LIMIT_ACCOUNT);
		else if (strcmp(name, "channel") != 0)
			scope = ACCORD_LIMIT_EVENT;
	}
	return scope;
}

/*
 * A timer's grain is a millisecond: where no burst is given, what a few of
 * them allow may go at once, or a fast limit would not be reached.
 */
static AccordRate
load_rate(int row)
{
	int64		amount = column_int(row, "amount");
	int64		period = column_us(row, "period");
	int64		burst = column_int(row, "burst");

	Assert(period > 0);
	if (burst == 0)
		burst = Max(1, amount * BURST_TIME / period);
	return accord_limit_rate(amount, period, burst);
}

static void
load_limits(AccordConfig *config)
{
	uint64		n = run_query("SELECT t.* FROM accord.rate_limit t "
							  "WHERE t.enabled ORDER BY t.channel, t.id",
							  config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordLimit *limit = palloc0(sizeof(AccordLimit));
		AccordChannel *channel =
		accord_config_channel(config, column_text(i, "channel"));

		if (channel == NULL)
			continue;
		limit->id = column_int64(i, "id");
		limit->bucket = column_text(i, "bucket");
		limit->scope = accord_config_limit_scope(limit->bucket);
		limit->rate = load_rate(i);
		channel->limits = channel->limits == NULL ?
			palloc(sizeof(AccordLimit *)) :
			repalloc(channel->limits, (channel->n_limits + 1) *
					 sizeof(AccordLimit *));
		channel->limits[channel->n_limits++] = limit;
	}
}

/* The conditions on headers: their names and patterns. */
static void
load_rule_headers(AccordRule *rule, Jsonb *headers)
{
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	rule->headers = palloc0(Max(JB_ROOT_COUNT(headers), 1) *
							sizeof(AccordRuleHeader));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			rule->headers[rule->n_headers].name = accord_json_text(&value);
		else if (token == WJB_VALUE)
			rule->headers[rule->n_headers++].pattern = accord_json_text(&value);
	}
}

/* A jsonpath, or NULL. */
static void *
column_path(int row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, &isnull);

	return isnull ? NULL : PG_DETOAST_DATUM_COPY(value);
}

static AccordRule *
load_rule(int row)
{
	AccordRule *rule = palloc0(sizeof(AccordRule));
	char	   *status = column_text(row, "status");
	bool		isnull;

	rule->id = column_int64(row, "id");
	rule->route = column_int64(row, "route");
	rule->item = column_bool(row, "item");
	accord_rule_transport(column_text(row, "transport"), &rule->transport);
	if (status != NULL)
		rule->n_ranges = accord_rule_status(status, rule->ranges);
	load_rule_headers(rule, column_json(row, "headers"));
	rule->body = column_path(row, "body");
	rule->error = column_path(row, "error");
	rule->outcome = accord_rule_outcome(column_text(row, "outcome"));
	(void) column(row, "pause", &isnull);
	rule->pause_ms = isnull ? -1 : column_ms(row, "pause");
	return rule;
}

static void
load_rules(AccordConfig *config)
{
	uint64		n = run_query("SELECT t.* FROM accord.rule t WHERE t.enabled "
							  "ORDER BY t.channel, t.position, t.id",
							  config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordChannel *channel =
		accord_config_channel(config, column_text(i, "channel"));

		if (channel == NULL)
			continue;
		channel->rules = channel->rules == NULL ?
			palloc(sizeof(AccordRule *)) :
			repalloc(channel->rules, (channel->n_rules + 1) *
					 sizeof(AccordRule *));
		channel->rules[channel->n_rules++] = load_rule(i);
	}
}

static void
load_pauses(AccordConfig *config)
{
	uint64		n = run_query("SELECT t.* FROM accord.paused t",
							  config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordPause *pause = palloc0(sizeof(AccordPause));
		char	   *name = column_text(i, "account");
		AccordChannel *channel =
		accord_config_channel(config, column_text(i, "channel"));
		AccordAccount *account;

		if (channel == NULL)
			continue;
		pause->reason = column_text(i, "reason");
		pause->until = column_int64(i, "until");
		if (name == NULL)
			channel->pause = pause;
		else if ((account = accord_config_account(config, channel,
												  name)) != NULL)
			account->pause = pause;
	}
}

static HTAB *
create_accounts(MemoryContext context)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AccountKey);
	ctl.entrysize = sizeof(AccountEntry);
	ctl.hcxt = context;
	return hash_create("pg_accord accounts", 256, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Reads everything as the tables' owner, under the caller's snapshot. */
static void
load_config(AccordConfig *config)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext secrets;
	AccordDbUser before;

	for (int i = 0; i < lengthof(tables); i++)
		config->relids[i] = accord_db_relid(tables[i]);
	before = accord_db_become(accord_db_owner());
	MemoryContextSwitchTo(config->context);
	keys_fault = NULL;
	keys = with_secrets ? accord_secret_keys(fresh_keys, &keys_fault) : NULL;
	fresh_keys = false;
	SPI_connect();
	secrets = AllocSetContextCreate(config->context, "pg_accord secrets",
									ALLOCSET_DEFAULT_SIZES);
	load_stored(secrets);
	MemoryContextSwitchTo(config->context);
	load_channels(config);
	load_accounts(config);
	load_routes(config);
	load_limits(config);
	load_rules(config);
	load_pauses(config);
	for (int i = 0; i < config->n_channels; i++)
		config->channels[i]->judges = config->channels[i]->remembers ||
			config->channels[i]->n_rules > 0;
	SPI_finish();
	n_stored = 0;
	MemoryContextDelete(secrets);
	accord_secret_forget(keys);
	keys = NULL;
	accord_db_be_again(before);
	MemoryContextSwitchTo(caller);
}

bool
accord_config_pin(bool pin)
{
	bool		before = pinned;

	pinned = pin;
	return before;
}

AccordConfig *
accord_config_get(void)
{
	MemoryContext context;
	AccordConfig *config;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(forget_config, (Datum) 0);
		/* a body function or a role may have come or gone */
		CacheRegisterSyscacheCallback(PROCOID, forget_role_or_function, 0);
		CacheRegisterSyscacheCallback(AUTHOID, forget_role_or_function, 0);
		registered = true;
	}
	if ((!stale || pinned) && current != NULL)
		return current;

	/*
	 * What is invalidated while we read makes it stale again. The caller's
	 * snapshot may be from before the change we were told of, and we would
	 * not be told again.
	 */
	stale = false;
	context = AllocSetContextCreate(CurrentMemoryContext, "pg_accord config",
									ALLOCSET_DEFAULT_SIZES);
	config = MemoryContextAllocZero(context, sizeof(AccordConfig));
	config->context = context;
	config->accounts = create_accounts(context);
	PG_TRY();
	{
		PushActiveSnapshot(GetLatestSnapshot());
		load_config(config);
		PopActiveSnapshot();
	}
	PG_CATCH();
	{
		stale = true;
		PG_RE_THROW();
	}
	PG_END_TRY();
	config->generation = ++generations;
	MemoryContextSetParent(context, TopMemoryContext);
	if (current != NULL)
		MemoryContextDelete(current->context);
	current = config;
	return current;
}

/*
 * Looking things up
 */

AccordChannel *
accord_config_channel(AccordConfig *config, const char *name)
{
	for (int i = 0; i < config->n_channels; i++)
		if (strcmp(config->channels[i]->name, name) == 0)
			return config->channels[i];
	return NULL;
}

AccordAccount *
accord_config_account(AccordConfig *config, AccordChannel *channel,
					  const char *name)
{
	AccountKey	key;
	AccountEntry *entry;

	account_key(&key, channel, name);
	entry = hash_search(config->accounts, &key, HASH_FIND, NULL);
	return entry ? entry->account : NULL;
}

AccordRoute *
accord_config_route(AccordChannel *channel, int64 id)
{
	for (int i = 0; i < channel->n_routes; i++)
		if (channel->routes[i]->id == id)
			return channel->routes[i];
	return NULL;
}

bool
accord_config_topic_match(const char *pattern, const char *topic)
{
	return accord_rule_glob(pattern, topic);
}

bool
accord_config_topic_reserved(const char *topic)
{
	return strncmp(topic, "accord.", 7) == 0;
}

/* Our own topics are sent to those who name them, not by a star. */
bool
accord_config_takes(const AccordRoute *route, const char *topic, AccordOp op)
{
	return (route->ops == 0 || (route->ops & (1U << op)) != 0) &&
		accord_config_topic_reserved(route->topic) ==
		accord_config_topic_reserved(topic) &&
		accord_config_topic_match(route->topic, topic);
}

AccordRoute *
accord_config_match(AccordChannel *channel, const char *topic, AccordOp op)
{
	for (int i = 0; i < channel->n_routes; i++)
	{
		AccordRoute *route = channel->routes[i];

		if (accord_config_takes(route, topic, op))
			return route;
	}
	return NULL;
}

/* Trigger: every process reads the configuration anew once this commits. */
Datum
accord_config_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "accord.config_changed() was not called by a trigger");
	CacheInvalidateRelcache(trigger->tg_relation);
	if (accord_shmem_ready())
		accord_shmem_config_changed();
	return PointerGetDatum(NULL);
}
