/*
 * feed.c: an item of a feed is mapped and received, and the parts of a page
 * that are not JSON are read: its Link header, and iCalendars.
 *
 * Runs in clerks, and in any backend that calls accord.ical_events(). What
 * there is to know of feeds is in sql/53_feed.sql; of reconciliations, whose
 * functions are called here, in sql/63_reconcile.sql.
 *
 * Invariants: what comes of an item is done as the feed's owner, with nothing
 * of anybody's search_path, and in a clerk within accord.function_timeout.
 *
 * libical is loaded when the first iCalendar is read, by a library of its own
 * (src/ical): it brings tables of its own and perhaps ICU into the process,
 * which servers without such feeds shall not carry.
 *
 * On failure it raises; who calls it for an item catches that, and parks it.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/regproc.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "clerk.h"
#include "compat.h"
#include "config.h"
#include "guc.h"
#include "http.h"
#include "ical.h"
#include "json.h"
#include "keys.h"
#include "link.h"
#include "log.h"
#include "mapping.h"
#include "receive.h"
#include "source.h"

PG_FUNCTION_INFO_V1(accord_receive_item);
PG_FUNCTION_INFO_V1(accord_link_next);
PG_FUNCTION_INFO_V1(accord_ical_events);
PG_FUNCTION_INFO_V1(accord_call_as);

/* Arguments of accord.receive_item(). */
enum
{
	ITEM_FEED, ITEM_SOURCE, ITEM_OWNER, ITEM_MAPPING, ITEM_FUNCTION,
	ITEM_HEADERS, ITEM_ITEM, ITEM_EVENT_ID, ITEM_ACCOUNT, ITEM_DELETED
};

static char *
text_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

static Jsonb *
headers_argument(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(ITEM_HEADERS) ?
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"))) :
		PG_GETARG_JSONB_P(ITEM_HEADERS);
}

/* What the feed knows of a message, and the mapping does not say. */
static void
complete(FunctionCallInfo fcinfo, AccordMessage *message, bool by_paths, int i,
		 int n)
{
	char	   *id = text_argument(fcinfo, ITEM_EVENT_ID);
	char	   *account = text_argument(fcinfo, ITEM_ACCOUNT);

	if (message->event_id == NULL && id != NULL)
		message->event_id = cstring_to_text(n == 1 ? id :
											psprintf("%s/%d", id, i + 1));
	if (message->account == NULL && account != NULL && account[0] != '\0')
		message->account = cstring_to_text(account);
	if (by_paths && PG_GETARG_BOOL(ITEM_DELETED))
	{
		message->op = cstring_to_text("delete");
		if (OidIsValid(message->target))
			message->changes = NULL;
	}
}

/* Maps the item and receives the messages; returns how many. */
static int
receive_item(FunctionCallInfo fcinfo, const AccordMapping *mapping)
{
	AccordSource source;
	AccordMessage one;
	AccordMessage *messages = &one;
	AccordKeys *keys;
	int			n = 1;

	accord_source_get(text_argument(fcinfo, ITEM_SOURCE), &source);
	if (mapping->function != NULL)
		messages = accord_mapping_by_function(mapping, headers_argument(fcinfo),
											  PG_GETARG_JSONB_P(ITEM_ITEM),
											  &n);
	else
		accord_mapping_by_paths(mapping, headers_argument(fcinfo),
								PG_GETARG_JSONB_P(ITEM_ITEM), &one);
	keys = accord_keys_open(ACCORD_KEYS_INBOX);
	for (int i = 0; i < n; i++)
	{
		complete(fcinfo, &messages[i], mapping->function == NULL, i, n);
		(void) accord_receive_message(&source, keys, &messages[i]);
	}
	accord_keys_close(keys);
	return n;
}

static Oid
find_owner(const AccordMapping *mapping, const char *name)
{
	Oid			owner = name ? get_role_oid(name, true) : InvalidOid;

	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of feed \"%s\" does not exist",
						mapping->name),
				 errhint("UPDATE accord.feed SET owner to an existing "
						 "role.")));
	return owner;
}

/*
 * accord.receive_item(feed, source, owner, mapping, mapping_function, headers,
 * item, event_id, account, deleted)
 */
Datum
accord_receive_item(PG_FUNCTION_ARGS)
{
	AccordMapping mapping = {.kind = "feed"};
	int			level = NewGUCNestLevel();
	Oid			user;
	int			security;
	volatile int n = 0;

	accord_log_require_preload();
	mapping.name = text_argument(fcinfo, ITEM_FEED);
	mapping.paths = PG_ARGISNULL(ITEM_MAPPING) ? NULL :
		PG_GETARG_JSONB_P(ITEM_MAPPING);
	mapping.function = text_argument(fcinfo, ITEM_FUNCTION);
	mapping.owner = find_owner(&mapping, text_argument(fcinfo, ITEM_OWNER));
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(mapping.owner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
							 0, false);
	(void) set_config_option("row_security", "on", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (accord_clerk_is())
		enable_timeout_after(STATEMENT_TIMEOUT, accord_function_timeout);
	PG_TRY();
	{
		n = receive_item(fcinfo, &mapping);
	}
	PG_FINALLY();
	{
		if (accord_clerk_is())
			disable_timeout(STATEMENT_TIMEOUT, false);
	}
	PG_END_TRY();
	AtEOXact_GUC(true, level);
	SetUserIdAndSecContext(user, security);
	PG_RETURN_INT32(n);
}

/* accord.link_next(headers, url) */
Datum
accord_link_next(PG_FUNCTION_ARGS)
{
	const char *target;
	const char *fault;
	size_t		len;
	char	   *value;
	char	   *resolved;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	value = accord_json_member(PG_GETARG_JSONB_P(0), "link");
	if (value == NULL || !accord_link_find(value, "next", &target, &len))
		PG_RETURN_NULL();
	resolved = accord_http_resolve(text_to_cstring(PG_GETARG_TEXT_PP(1)),
								   target, len, &fault);
	if (resolved == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("cannot go on to the next page: %s", fault),
				 errhint("See the Link header that the channel answers "
						 "with.")));
	PG_RETURN_TEXT_P(cstring_to_text(resolved));
}

/* Adds an event to the result. */
static void
emit_event(char *json, void *arg)
{
	ReturnSetInfo *set = arg;
	Datum		value = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	bool		isnull = false;

	tuplestore_putvalues(set->setResult, set->setDesc, &value, &isnull);
}

/* accord.ical_events(calendar, after, before) */
Datum
accord_ical_events(PG_FUNCTION_ARGS)
{
	AccordIcalEvents events;
	AccordIcalBounds bounds = {DT_NOBEGIN, DT_NOEND, false};

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the calendar is null"),
				 errhint("Give the text of an iCalendar.")));
	bounds.expand = !PG_ARGISNULL(2);
	if (bounds.expand)
		bounds.before = PG_GETARG_TIMESTAMPTZ(2);
	if (!PG_ARGISNULL(1))
		bounds.after = PG_GETARG_TIMESTAMPTZ(1);
	events = (AccordIcalEvents) accord_ical_load();
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	events(text_to_cstring(PG_GETARG_TEXT_PP(0)), &bounds, emit_event,
		   fcinfo->resultinfo);
	return (Datum) 0;
}

/* Who owns a function can replace it, and would then act as that role. */
static void
check_callable(Oid function, Oid owner, const char *name)
{
	if (accord_function_executable(function, owner) &&
		accord_config_may_run(function, owner))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\" may not run function %s", name,
					format_procedure(function)),
			 errhint("GRANT EXECUTE on it; for a superuser it must be a "
					 "superuser's.")));
}

/* Runs the query, and adds its rows to the result. */
static void
run_query(const char *query, Datum argument, ReturnSetInfo *set)
{
	Oid			types[] = {JSONBOID};

	SPI_connect();
	if (SPI_execute_with_args(query, 1, types, &argument, NULL, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not run a function of a reconciliation");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i],
										  SPI_tuptable->tupdesc, 1, &isnull);

		tuplestore_putvalues(set->setResult, set->setDesc, &value, &isnull);
	}
	SPI_finish();
}

/* accord.call_as(owner, function, query, argument) */
Datum
accord_call_as(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *query = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Oid			owner = get_role_oid(name, false);
	int			level = NewGUCNestLevel();
	Oid			user;
	int			security;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	check_callable(PG_GETARG_OID(1), owner, name);
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(owner, security | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	(void) set_config_option("row_security", "on", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (accord_clerk_is())
		enable_timeout_after(STATEMENT_TIMEOUT, accord_function_timeout);
	PG_TRY();
	{
		run_query(query, PG_GETARG_DATUM(3),
				  (ReturnSetInfo *) fcinfo->resultinfo);
	}
	PG_FINALLY();
	{
		if (accord_clerk_is())
			disable_timeout(STATEMENT_TIMEOUT, false);
	}
	PG_END_TRY();
	AtEOXact_GUC(true, level);
	SetUserIdAndSecContext(user, security);
	return (Datum) 0;
}
