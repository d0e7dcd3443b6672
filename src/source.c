/*
 * source.c: who may send us messages.
 *
 * Runs in the application's backends. A source is looked up with every message
 * and kept in memory until accord.source or accord.channel changes; what is
 * only needed for webhooks, secrets above all, is read when it is needed and
 * not kept.
 *
 * The tables are read as their owner: who may receive need not be allowed to
 * read them.
 *
 * On failure nothing is kept, and the error is the caller's.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "config.h"
#include "db.h"
#include "invalidation.h"
#include "secret.h"
#include "source.h"

#define DEFAULT_SKEW (5 * USECS_PER_MINUTE)

static HTAB *sources = NULL;	/* by name; NULL: to be made anew */
static MemoryContext sources_context = NULL;
static Oid	source_relid = InvalidOid;
static int64 generation = 0;	/* of the configuration they go with */

/* Relation cache callback. */
static void
forget_sources(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == source_relid)
		sources = NULL;
}

static void
create_cache(int64 of_generation)
{
	HASHCTL		ctl;

	if (sources_context == NULL)
	{
		sources_context = AllocSetContextCreate(TopMemoryContext,
												"pg_accord sources",
												ALLOCSET_SMALL_SIZES);
		accord_invalidation_heed(forget_sources, (Datum) 0);
	}
	MemoryContextReset(sources_context);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = sizeof(AccordSource);
	ctl.hcxt = sources_context;
	source_relid = accord_db_relid("source");
	sources = hash_create("pg_accord sources", 16, &ctl,
						  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	generation = of_generation;
}

/* Runs a query about one source as the tables' owner; true: it has a row. */
static bool
query_source(const char *query, const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	AccordDbUser before;

	before = accord_db_become(accord_db_owner());
	if (SPI_execute_with_args(query, 1, types, values, NULL, true, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not read accord.source");
	accord_db_be_again(before);
	return SPI_processed > 0;
}

static Datum
get_column(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

/* A column's interval, in microseconds. */
static int64
get_us(uint64 row, int column)
{
	bool		isnull;
	Interval   *interval = DatumGetIntervalP(get_column(row, column, &isnull));

	return interval->time + (interval->day + (int64) interval->month *
							 DAYS_PER_MONTH) * USECS_PER_DAY;
}

/* Fills in what the row says; false when there is none. */
static bool
load_source(AccordSource *source)
{
	bool		found;
	bool		isnull;

	/* the caller's snapshot may be from before the change we were told of */
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	found = query_source("SELECT s.enabled, s.skew, s.when_ahead "
						 "OPERATOR(pg_catalog.=) 'refuse' "
						 "FROM accord.source s "
						 "WHERE s.name OPERATOR(pg_catalog.=) $1",
						 source->name);
	if (found)
	{
		source->enabled = DatumGetBool(get_column(0, 1, &isnull));
		source->skew = get_us(0, 2);
		source->refuse_ahead = DatumGetBool(get_column(0, 3, &isnull));
	}
	SPI_finish();
	PopActiveSnapshot();
	return found;
}

static void
refuse_unknown(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("source \"%s\" does not exist", name),
			 errhint("INSERT INTO accord.source (name) first, or give the "
					 "name of a channel.")));
}

/* Looks it up in the tables, and keeps it. */
static void
find_source(AccordConfig *config, const char *name, AccordSource *source)
{
	memset(source, 0, sizeof(AccordSource));
	strlcpy(source->name, name, NAMEDATALEN);
	source->enabled = true;
	source->skew = DEFAULT_SKEW;
	if (!load_source(source) && accord_config_channel(config, name) == NULL)
		refuse_unknown(name);
	/* it may have been forgotten while we read */
	if (sources == NULL)
		create_cache(config->generation);
	*(AccordSource *) hash_search(sources, name, HASH_ENTER, NULL) = *source;
}

void
accord_source_get(const char *name, AccordSource *source)
{
	AccordConfig *config = accord_config_get();
	AccordSource *kept;

	if (strlen(name) >= NAMEDATALEN)
		refuse_unknown(name);
	if (sources == NULL || generation != config->generation)
		create_cache(config->generation);
	kept = hash_search(sources, name, HASH_FIND, NULL);
	if (kept != NULL)
		*source = *kept;
	else
		find_source(config, name, source);
	if (!source->enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source \"%s\" is disabled", name),
				 errhint("UPDATE accord.source SET enabled = true to receive "
						 "from it.")));
}

/* Copies a nullable jsonb column out of SPI. */
static Jsonb *
copy_json(int column, MemoryContext context)
{
	bool		isnull;
	Datum		value = get_column(0, column, &isnull);
	MemoryContext old;
	Jsonb	   *json;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(context);
	json = DatumGetJsonbPCopy(value);
	MemoryContextSwitchTo(old);
	return json;
}

static char *
copy_text(uint64 row, int column, MemoryContext context)
{
	bool		isnull;
	Datum		value = get_column(row, column, &isnull);

	return isnull ? NULL :
		MemoryContextStrdup(context, TextDatumGetCString(value));
}

/* Those that are stored and can be opened; of others the log tells. */
static void
load_secrets(const char *name, AccordWebhookSource *source,
			 MemoryContext context)
{
	const char *fault = NULL;
	AccordSecretKeys *keys = accord_secret_keys(false, &fault);

	query_source("SELECT s.name, s.value FROM accord.source o, "
				 "pg_catalog.jsonb_array_elements_text(o.verify "
				 "OPERATOR(pg_catalog.->) 'secrets') n "
				 "JOIN accord.secret s ON s.name OPERATOR(pg_catalog.=) n "
				 "WHERE o.name OPERATOR(pg_catalog.=) $1", name);
	source->secrets = MemoryContextAllocZero(context, sizeof(char *) *
											 (SPI_processed + 1));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *secret = copy_text(i, 1, CurrentMemoryContext);
		char	   *value = accord_secret_open(keys, secret,
											   copy_text(i, 2, CurrentMemoryContext),
											   &fault);

		if (value != NULL)
			source->secrets[source->n_secrets++] =
				MemoryContextStrdup(context, value);
		else
			ereport(LOG,
					(errmsg("secret \"%s\" of source \"%s\" cannot be opened: "
							"%s", secret, name, fault)));
	}
	if (keys != NULL)
		accord_secret_forget(keys);
}

AccordWebhookSource *
accord_source_webhook(const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	AccordWebhookSource *source = palloc0(sizeof(AccordWebhookSource));
	char	   *owner;
	bool		isnull;

	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	if (!query_source("SELECT s.verify, s.tolerance, s.mapping, "
					  "s.mapping_function, s.owner, s.polls "
					  "OPERATOR(pg_catalog.<>) '{}' FROM accord.source s "
					  "WHERE s.name OPERATOR(pg_catalog.=) $1", name))
		refuse_unknown(name);
	source->verify = copy_json(1, context);
	source->tolerance = get_us(0, 2);
	source->mapping = copy_json(3, context);
	source->mapping_function = copy_text(0, 4, context);
	owner = copy_text(0, 5, context);
	source->owner = get_role_oid(owner, true);
	source->polls = DatumGetBool(get_column(0, 6, &isnull));
	load_secrets(name, source, context);
	SPI_finish();
	PopActiveSnapshot();
	return source;
}

void
accord_source_poll(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	AccordDbUser before = accord_db_become(accord_db_owner());

	SPI_connect();
	if (SPI_execute_with_args("SELECT accord.poll_feed(f.name) "
							  "FROM accord.source s JOIN accord.feed f "
							  "ON f.name OPERATOR(pg_catalog.=) ANY (s.polls) "
							  "WHERE s.name OPERATOR(pg_catalog.=) $1", 1,
							  types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not have feeds polled");
	SPI_finish();
	accord_db_be_again(before);
}
