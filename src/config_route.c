/*
 * config_route.c: routes as the dispatcher needs them, and what else belongs
 * to a channel: limits, rules, pauses.
 *
 * Runs in dispatchers, and in backends that need the configuration, within a
 * read of it (config.c). Which functions of users may be named is told to
 * those that edit it as well.
 *
 * Invariant: a row whose channel is not there (its foreign key is being
 * cascaded) is passed over.
 *
 * On failure the error is the caller's; what was stored has been checked.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "accord.h"
#include "compat.h"
#include "config_private.h"
#include "db.h"
#include "json.h"
#include "template.h"

#define BURST_TIME 5000			/* us */

/* The bits of route.ops; 0: all. */
static unsigned
load_ops(int row)
{
	bool		isnull;
	Datum		value = accord_column(row, "ops", &isnull);
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
	return find_function(name,
						 get_array_type(get_rel_type_id(accord_db_relid("event_log"))),
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
	route->batch_size = accord_column_int(row, "batch_size");
	route->batch_bytes = accord_column_int(row, "batch_bytes");
	route->batch_wait_ms = accord_column_ms(row, "batch_wait");
	route->batch_group = accord_column_text(row, "batch_group");
	route->batch_items = accord_column_text(row, "batch_items");
	route->batch_id = accord_column_text(row, "batch_id");
	route->batch_item_id = accord_column_text(row, "batch_item_id");
	route->batch_item_status = accord_column_text(row, "batch_item_status");
	route->batch_item_error = accord_column_text(row, "batch_item_error");
	route->batch_function = accord_column_text(row, "batch_function");
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

	(void) accord_encode_kind(accord_column_text(row, "body"), &route->body);
	route->body_from = accord_column_text(row, "body_from");
	route->body_root = accord_column_text(row, "body_root");
	(void) accord_encode_arrays(accord_column_text(row, "form_arrays"),
								&route->form_arrays);
	route->content_type = accord_column_text(row, "content_type");
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
	char	   *when = accord_column_text(row, "remote_when");
	Jsonb	   *needs = accord_column_json(row, "needs");
	Jsonb	   *lookup = accord_column_json(row, "lookup");
	Jsonb	   *poll = accord_column_json(row, "poll");

	route->remote = accord_column_text(row, "remote");
	route->remote_key = accord_column_text(row, "remote_key");
	route->remote_when = strcmp(when, "known") == 0 ? ACCORD_REMOTE_KNOWN :
		strcmp(when, "unknown") == 0 ? ACCORD_REMOTE_UNKNOWN :
		ACCORD_REMOTE_ANY;
	route->remote_id = accord_config_mine("remote_id",
										  accord_column_text(row,
															 "remote_id"));
	route->remote_version = accord_config_mine("remote_version",
											   accord_column_text(row,
																  "remote_version"));
	route->remote_etag = accord_config_mine("remote_etag",
											accord_column_text(row,
															   "remote_etag"));
	if (needs != NULL)
		route->needs = accord_config_needs(needs, &route->n_needs);
	if (lookup != NULL)
		route->lookup = accord_config_lookup(lookup);
	if (poll != NULL)
		route->poll = accord_config_poll(poll);
}

void
accord_config_load_routes(AccordConfig *config)
{
	uint64		n =
	accord_column_query("SELECT t.* FROM accord.route t WHERE t.enabled "
						"ORDER BY t.channel, t.position, t.id",
						config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordRoute *route = palloc0(sizeof(AccordRoute));
		AccordChannel *channel =
		accord_config_channel(config, accord_column_text(i, "channel"));
		bool		isnull;

		if (channel == NULL)
			continue;
		route->channel = channel;
		channel->coalesces |= accord_column_text(i, "coalesce") != NULL &&
			strcmp(accord_column_text(i, "mode"), "state") == 0;
		route->id = DatumGetInt64(accord_column(i, "id", &isnull));
		route->topic = accord_column_text(i, "topic");
		route->ops = load_ops(i);
		route->method = accord_column_text(i, "method");
		route->path = accord_column_text(i, "path");
		route->headers = accord_column_json(i, "headers");
		load_body(route, i);
		route->command = strcmp(accord_column_text(i, "mode"), "command") == 0;
		route->ambiguous_retry =
			strcmp(accord_column_text(i, "ambiguous"), "retry") == 0;
		route->verify =
			strcmp(accord_column_text(i, "ambiguous"), "verify") == 0;
		route->hold_dead =
			strcmp(accord_column_text(i, "when_dead"), "hold") == 0;
		route->coalesce = accord_column_text(i, "coalesce");
		route->quiet_ms = accord_column_ms(i, "quiet");
		route->quiet_max_ms = accord_column_ms(i, "quiet_max");
		route->skip_unchanged = accord_column_bool(i, "skip_unchanged");
		load_batch(route, i);
		load_remote(route, i);
		channel->remembers |= route->remote != NULL || route->n_needs > 0 ||
			route->lookup != NULL || route->poll != NULL;
		route->body_function = accord_column_text(i, "body_function");
		route->owner = get_role_oid(accord_column_text(i, "owner"), true);
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
	int64		amount = accord_column_int(row, "amount");
	int64		period = accord_column_us(row, "period");
	int64		burst = accord_column_int(row, "burst");

	Assert(period > 0);
	if (burst == 0)
		burst = Max(1, amount * BURST_TIME / period);
	return accord_limit_rate(amount, period, burst);
}

void
accord_config_load_limits(AccordConfig *config)
{
	uint64		n = accord_column_query("SELECT t.* FROM accord.rate_limit t "
										"WHERE t.enabled ORDER BY t.channel, t.id",
										config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordLimit *limit = palloc0(sizeof(AccordLimit));
		AccordChannel *channel =
		accord_config_channel(config, accord_column_text(i, "channel"));

		if (channel == NULL)
			continue;
		limit->id = accord_column_int64(i, "id");
		limit->bucket = accord_column_text(i, "bucket");
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
			rule->headers[rule->n_headers++].pattern =
				accord_json_text(&value);
	}
}

static AccordRule *
load_rule(int row)
{
	AccordRule *rule = palloc0(sizeof(AccordRule));
	char	   *status = accord_column_text(row, "status");
	bool		isnull;

	rule->id = accord_column_int64(row, "id");
	rule->route = accord_column_int64(row, "route");
	rule->item = accord_column_bool(row, "item");
	accord_rule_transport(accord_column_text(row, "transport"),
						  &rule->transport);
	if (status != NULL)
		rule->n_ranges = accord_rule_status(status, rule->ranges);
	load_rule_headers(rule, accord_column_json(row, "headers"));
	rule->body = accord_column_path(row, "body");
	rule->error = accord_column_path(row, "error");
	rule->outcome = accord_rule_outcome(accord_column_text(row, "outcome"));
	(void) accord_column(row, "pause", &isnull);
	rule->pause_ms = isnull ? -1 : accord_column_ms(row, "pause");
	return rule;
}

void
accord_config_load_rules(AccordConfig *config)
{
	uint64		n =
	accord_column_query("SELECT t.* FROM accord.rule t WHERE t.enabled "
						"ORDER BY t.channel, t.position, t.id",
						config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordChannel *channel =
		accord_config_channel(config, accord_column_text(i, "channel"));

		if (channel == NULL)
			continue;
		channel->rules = channel->rules == NULL ?
			palloc(sizeof(AccordRule *)) :
			repalloc(channel->rules, (channel->n_rules + 1) *
					 sizeof(AccordRule *));
		channel->rules[channel->n_rules++] = load_rule(i);
	}
}

void
accord_config_load_pauses(AccordConfig *config)
{
	uint64		n = accord_column_query("SELECT t.* FROM accord.paused t",
										config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordPause *pause = palloc0(sizeof(AccordPause));
		char	   *name = accord_column_text(i, "account");
		AccordChannel *channel =
		accord_config_channel(config, accord_column_text(i, "channel"));
		AccordAccount *account;

		if (channel == NULL)
			continue;
		pause->reason = accord_column_text(i, "reason");
		pause->until = accord_column_int64(i, "until");
		if (name == NULL)
			channel->pause = pause;
		else if ((account = accord_config_account(config, channel,
												  name)) != NULL)
			account->pause = pause;
	}
}
