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

#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "accord.h"
#include "config_private.h"
#include "db.h"
#include "invalidation.h"
#include "shmem.h"

static AccordConfig *current = NULL;
static bool stale = true;
static bool pinned = false;
static bool registered = false;
static bool with_secrets = false;
static bool fresh_keys = false; /* the next read asks for them anew */
static int64 generations = 0;

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

/* Reads everything as the tables' owner, under the caller's snapshot. */
static void
load_config(AccordConfig *config)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext secrets;
	AccordDbUser before;
	AccordSecretKeys *keys;
	const char *fault = NULL;

	for (int i = 0; i < lengthof(tables); i++)
		config->relids[i] = accord_db_relid(tables[i]);
	before = accord_db_become(accord_db_owner());
	MemoryContextSwitchTo(config->context);
	keys = with_secrets ? accord_secret_keys(fresh_keys, &fault) : NULL;
	fresh_keys = false;
	SPI_connect();
	secrets = AllocSetContextCreate(config->context, "pg_accord secrets",
									ALLOCSET_DEFAULT_SIZES);
	if (with_secrets)
		accord_config_load_secrets(keys, fault, secrets);
	MemoryContextSwitchTo(config->context);
	accord_config_load_channels(config);
	accord_config_load_accounts(config);
	accord_config_load_routes(config);
	accord_config_load_limits(config);
	accord_config_load_rules(config);
	accord_config_load_pauses(config);
	for (int i = 0; i < config->n_channels; i++)
		config->channels[i]->judges = config->channels[i]->remembers ||
			config->channels[i]->n_rules > 0;
	SPI_finish();
	accord_config_forget_secrets();
	MemoryContextDelete(secrets);
	accord_secret_forget(keys);
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
		accord_invalidation_heed(forget_config, (Datum) 0);
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
	config->accounts = accord_config_create_accounts(context);
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
