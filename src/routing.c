/*
 * routing.c: which endpoints an event is owed to.
 *
 * Runs in dispatchers, and in backends that ask what is owed; both must come
 * to the same answer. Matching depends on topic and op alone, so its result is
 * cached until the configuration changes.
 *
 * On failure only out-of-memory can raise.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "accord.h"
#include "log.h"
#include "routing.h"

#define TOPIC_CACHE_LIMIT 10000

/* Which routes take events of a topic and op, one per channel. */
typedef struct TopicEntry
{
	char		name[ACCORD_MAX_TOPIC + 9]; /* hash key: op, topic */
	AccordRoute **routes;
	int			n_routes;
} TopicEntry;

static HTAB *topics = NULL;
static MemoryContext topics_context = NULL;
static int64 topics_generation = -1;

static void
create_topic_cache(AccordConfig *config)
{
	HASHCTL		ctl;

	if (topics_context == NULL)
		topics_context = AllocSetContextCreate(TopMemoryContext,
											   "pg_accord topics",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(topics_context);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(((TopicEntry *) 0)->name);
	ctl.entrysize = sizeof(TopicEntry);
	ctl.hcxt = topics_context;
	topics = hash_create("pg_accord topics", 256, &ctl,
						 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	topics_generation = config->generation;
}

/* The routes of a topic and op, from the cache. */
static TopicEntry *
topic_routes(AccordConfig *config, const char *topic, const char *op)
{
	char		name[sizeof(((TopicEntry *) 0)->name)];
	TopicEntry *entry;
	AccordRoute **routes;
	int			n = 0;

	if (topics_generation != config->generation ||
		hash_get_num_entries(topics) > TOPIC_CACHE_LIMIT)
		create_topic_cache(config);
	memset(name, 0, sizeof(name));
	snprintf(name, sizeof(name), "%.8s%s", op, topic);
	entry = hash_search(topics, name, HASH_FIND, NULL);
	if (entry != NULL)
		return entry;

	routes = MemoryContextAlloc(topics_context, (config->n_channels + 1) *
								sizeof(AccordRoute *));
	for (int i = 0; i < config->n_channels; i++)
	{
		AccordRoute *route = accord_config_match(config->channels[i], topic,
												 accord_config_op(op));

		if (route != NULL)
			routes[n++] = route;
	}
	entry = hash_search(topics, name, HASH_ENTER, NULL);
	entry->routes = routes;
	entry->n_routes = n;
	return entry;
}

char	   *
accord_routing_text(TupleTableSlot *row, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* Decisions are for dispatchers; what is told of a seal is for channels. */
static bool
is_control(const char *topic)
{
	return accord_config_topic_reserved(topic) &&
		strcmp(topic, ACCORD_TOPIC_SEAL) != 0;
}

char	   *
accord_routing_control(TupleTableSlot *row)
{
	char	   *topic = accord_routing_text(row, ACCORD_EVENT_TOPIC);

	return is_control(topic) ? topic : NULL;
}

/*
 * Visits one channel's endpoint: the account's; the channel's own when the
 * event names no account or the channel has none. A customer who is not
 * connected to this channel, and the channel the event came from, are passed
 * over.
 */
static void
visit_channel(AccordConfig *config, TupleTableSlot *row,
			  AccordChannel *channel, AccordRoute *route,
			  AccordRoutingVisit visit, void *arg)
{
	char	   *source = accord_routing_text(row, ACCORD_EVENT_SOURCE);
	char	   *account = accord_routing_text(row, ACCORD_EVENT_ACCOUNT);

	if (source != NULL && strcmp(source, channel->name) == 0)
		return;
	if (account == NULL || !channel->has_accounts)
		visit(channel, "", route, arg);
	else if (accord_config_account(config, channel, account) != NULL)
		visit(channel, account, route, arg);
}

/* Whether a channel was named before: it is told once. */
static bool
is_repeated(Datum *names, bool *nulls, int n)
{
	for (int i = 0; i < n; i++)
		if (!nulls[i] && strcmp(TextDatumGetCString(names[i]),
								TextDatumGetCString(names[n])) == 0)
			return true;
	return false;
}

/* An event with an explicit address: just these channels. */
static void
visit_addressed(AccordConfig *config, TupleTableSlot *row, Datum channels,
				const char *topic, const char *op, AccordRoutingVisit visit,
				void *arg)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(channels), TEXTOID, -1, false,
					  TYPALIGN_INT, &names, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		AccordChannel *channel;

		if (nulls[i] || is_repeated(names, nulls, i))
			continue;
		channel = accord_config_channel(config, TextDatumGetCString(names[i]));
		/* one that was removed since took what it was owed with it */
		if (channel != NULL)
			visit_channel(config, row, channel,
						  accord_config_match(channel, topic,
											  accord_config_op(op)),
						  visit, arg);
	}
}

bool
accord_routing_visit_baseline(AccordConfig *config, TupleTableSlot *row,
							  const char *channel, AccordRoutingVisit visit,
							  void *arg)
{
	char	   *topic = accord_routing_text(row, ACCORD_EVENT_TOPIC);
	char	   *op = accord_routing_text(row, ACCORD_EVENT_OP);
	AccordChannel *target = accord_config_channel(config, channel);
	AccordRoute *route;
	bool		uncaptured;
	bool		isnull;
	Datum		channels = slot_getattr(row, ACCORD_EVENT_CHANNELS, &isnull);

	(void) slot_getattr(row, ACCORD_EVENT_TABLE_ID, &uncaptured);
	if (uncaptured || isnull ||
		ArrayGetNItems(ARR_NDIM(DatumGetArrayTypeP(channels)),
					   ARR_DIMS(DatumGetArrayTypeP(channels))) > 0)
		return false;
	route = target == NULL ? NULL :
		accord_config_match(target, topic, accord_config_op(op));
	if (route != NULL)
		visit_channel(config, row, target, route, visit, arg);
	return true;
}

void
accord_routing_visit(AccordConfig *config, TupleTableSlot *row,
					 AccordRoutingVisit visit, void *arg)
{
	char	   *topic = accord_routing_text(row, ACCORD_EVENT_TOPIC);
	char	   *op = accord_routing_text(row, ACCORD_EVENT_OP);
	TopicEntry *entry;
	bool		isnull;
	Datum		channels;

	if (is_control(topic))
		return;
	channels = slot_getattr(row, ACCORD_EVENT_CHANNELS, &isnull);
	if (!isnull)
	{
		visit_addressed(config, row, channels, topic, op, visit, arg);
		return;
	}
	entry = topic_routes(config, topic, op);
	for (int i = 0; i < entry->n_routes; i++)
		visit_channel(config, row, entry->routes[i]->channel,
					  entry->routes[i], visit, arg);
}
