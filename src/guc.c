/*
 * guc.c: the settings, accord.*.
 *
 * Runs in every process that loads the library. Under
 * shared_preload_libraries all settings exist from the start; a session that
 * loads the library on its own (its server has not preloaded it) gets all but
 * those that can only be set at server start.
 *
 * What the workers read is set in the configuration file or by ALTER SYSTEM
 * and takes effect on reload; what describes the application's session is set
 * by the application, usually with SET LOCAL.
 *
 * On failure: a value out of range, or a list of networks that is none, is
 * refused by PostgreSQL as any bad setting is, and the old value stays.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "accord.h"
#include "guc.h"

#define MINUTES_PER_DAY (24 * 60)
#define MAX_MINUTES (100 * 366 * MINUTES_PER_DAY)
#define MS_PER_HOUR (60 * 60 * 1000)

char	   *accord_actor = NULL;
char	   *accord_reason = NULL;
char	   *accord_correlation_id = NULL;
char	   *accord_source = NULL;
char	   *accord_traceparent = NULL;
char	   *accord_tracestate = NULL;
bool		accord_override = false;
char	   *accord_node_name = NULL;

bool		accord_dispatch = true;
int			accord_dispatchers = 1;
int			accord_dispatch_after = ACCORD_AFTER_COMMIT;
int			accord_on_promotion = ACCORD_PROMOTION_DISPATCH;
int			accord_max_in_flight = 1000;
int			accord_dispatch_memory = 64 * 1024;
int			accord_restart_interval = 5000;
int			accord_function_timeout = 5000;
int			accord_settle_delay = 5;
int			accord_response_excerpt = 1024;
int			accord_log_retention = 30 * MINUTES_PER_DAY;
int			accord_attempt_retention = 30 * MINUTES_PER_DAY;
int			accord_log_max_size = 0;
int			accord_attempt_max_size = 0;
int			accord_consumer_max_lag = 90 * MINUTES_PER_DAY;
int			accord_idempotency_retention = 90 * MINUTES_PER_DAY;
char	   *accord_allowed_networks = NULL;
char	   *accord_allowed_proxies = NULL;
char	   *accord_ca_file = NULL;
char	   *accord_secret_key_file = NULL;
char	   *accord_secret_key_command = NULL;
int			accord_conflict_retention = 90 * MINUTES_PER_DAY;
int			accord_max_databases = 64;
int			accord_max_endpoints = 16384;

static const struct config_enum_entry dispatch_after_options[] = {
	{"commit", ACCORD_AFTER_COMMIT, false},
	{"standby", ACCORD_AFTER_STANDBY, false},
	{NULL, 0, false}
};
static const struct config_enum_entry promotion_options[] = {
	{"dispatch", ACCORD_PROMOTION_DISPATCH, false},
	{"silent", ACCORD_PROMOTION_SILENT, false},
	{NULL, 0, false}
};

static bool (*are_networks) (const char *list) = NULL;

static bool
check_networks(char **newval, void **extra, GucSource source)
{
	if (*newval == NULL || are_networks(*newval))
		return true;
	GUC_check_errdetail("\"%s\" is not a comma-separated list of networks in "
						"CIDR notation.", *newval);
	return false;
}

static bool
check_source(char **newval, void **extra, GucSource source)
{
	if (*newval == NULL || strlen(*newval) <= ACCORD_MAX_SOURCE)
		return true;
	GUC_check_errdetail("The name of a channel has at most %d bytes.",
						ACCORD_MAX_SOURCE);
	return false;
}

/* So many lower-case hexadecimal digits, not all of them zero. */
static bool
is_hex(const char *text, int length)
{
	return strspn(text, "0123456789abcdef") >= length &&
		strspn(text, "0") < length;
}

/*
 * version-trace-parent-flags, as W3C Trace Context has it; a later version may
 * have more to say.
 */
static bool
check_traceparent(char **newval, void **extra, GucSource source)
{
	const char *text = *newval;

	if (text == NULL || text[0] == '\0')
		return true;
	if (strlen(text) >= 55 && strspn(text, "0123456789abcdef") == 2 &&
		strncmp(text, "ff", 2) != 0 && text[2] == '-' &&
		is_hex(text + 3, 32) && text[35] == '-' && is_hex(text + 36, 16) &&
		text[52] == '-' && strspn(text + 53, "0123456789abcdef") == 2 &&
		(text[55] == '\0' || (text[55] == '-' && strncmp(text, "00", 2) != 0)) &&
		strlen(text) <= 512)
		return true;
	GUC_check_errdetail("A traceparent is a version, trace id, parent id and "
						"flags in lower-case hexadecimal digits, such as "
						"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.");
	return false;
}

static bool
check_tracestate(char **newval, void **extra, GucSource source)
{
	const char *text = *newval;

	if (text == NULL)
		return true;
	while (*text >= ' ' && *text <= '~')
		text++;
	if (*text == '\0' && text - *newval <= 512)
		return true;
	GUC_check_errdetail("A tracestate is at most 512 printable ASCII "
						"characters.");
	return false;
}

/* What an application says about its own session. */
static void
define_session_settings(void)
{
	DefineCustomStringVariable("accord.actor",
							   "Who makes the changes, as the application "
							   "knows them.",
							   "Recorded with every transaction that writes "
							   "events; the database role is recorded in any "
							   "case.",
							   &accord_actor, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("accord.correlation_id",
							   "What the changes are a part of.",
							   "Recorded with every transaction that writes "
							   "events.",
							   &accord_correlation_id, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("accord.override",
							 "Whether the session's own writes win over the "
							 "policies of managed tables.",
							 "Needs accord.reason, which is kept.",
							 &accord_override, false,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("accord.reason",
							   "Why the changes are made.",
							   "Recorded with every transaction that writes "
							   "events.",
							   &accord_reason, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("accord.source",
							   "The channel that the changes came from.",
							   "Events that name no source get this one, and "
							   "are not sent back there.",
							   &accord_source, "",
							   PGC_USERSET, 0, check_source, NULL, NULL);
	DefineCustomStringVariable("accord.traceparent",
							   "The trace that the changes are a part of.",
							   "Goes along with every event as a header, "
							   "unless it has one of its own.",
							   &accord_traceparent, "",
							   PGC_USERSET, 0, check_traceparent, NULL, NULL);
	DefineCustomStringVariable("accord.tracestate",
							   "What vendors say about the trace.",
							   "Goes along with accord.traceparent.",
							   &accord_tracestate, "",
							   PGC_USERSET, 0, check_tracestate, NULL, NULL);
}

/* Which workers there are. */
static void
define_worker_settings(void)
{
	DefineCustomBoolVariable("accord.dispatch",
							 "Whether events are sent to channels.",
							 "When off, no dispatcher runs; events are kept "
							 "and sent once it is on again.",
							 &accord_dispatch, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("accord.dispatch_after",
							 "Where an event must be before it is sent.",
							 "commit: on this server's disk; standby: on the "
							 "disk of its synchronous standbys, too.",
							 &accord_dispatch_after, ACCORD_AFTER_COMMIT,
							 dispatch_after_options,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.dispatchers",
							"How many dispatchers work in each database.",
							"Each takes one of max_worker_processes.",
							&accord_dispatchers, 1, 1, ACCORD_MAX_DISPATCHERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("accord.on_promotion",
							 "What a server does that was promoted, or "
							 "recovered to a point in the past.",
							 "dispatch: it goes on where the other stopped; "
							 "silent: it sends nothing until accord.adopt().",
							 &accord_on_promotion, ACCORD_PROMOTION_DISPATCH,
							 promotion_options,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.restart_interval",
							"How long a dispatcher that ended by itself "
							"waits, from its start, to be started again.",
							NULL,
							&accord_restart_interval, 5000, 100, MS_PER_HOUR,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	/* The size of shared memory is settled at server start. */
	if (!process_shared_preload_libraries_in_progress)
		return;
	DefineCustomIntVariable("accord.max_databases",
							"How many databases can have dispatchers.",
							NULL,
							&accord_max_databases, 64, 1, 10000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.max_endpoints",
							"How many endpoints, of all databases, "
							"accord.status can show live.",
							"Each takes half a kilobyte of shared memory.",
							&accord_max_endpoints, 16384, 16, 10000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
}

/* How a dispatcher works. */
static void
define_dispatch_settings(void)
{
	DefineCustomIntVariable("accord.dispatch_memory",
							"How much memory the events that one dispatcher "
							"holds may take.",
							"What is owed beyond it waits in the log.",
							&accord_dispatch_memory, 64 * 1024, 1024,
							MAX_KILOBYTES,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.function_timeout",
							"How long a route's body function may run.",
							NULL,
							&accord_function_timeout, 5000, 1, MS_PER_HOUR,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.max_in_flight",
							"How many requests one dispatcher may have in "
							"flight.",
							"The limit on open files lowers it where "
							"necessary.",
							&accord_max_in_flight, 1000, 1, 100000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.response_excerpt",
							"How much of an answer is kept in "
							"accord.attempt_log when it was not a success.",
							NULL,
							&accord_response_excerpt, 1024, 0, 65536,
							PGC_SIGHUP, GUC_UNIT_BYTE, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.settle_delay",
							"How long outcomes may wait for others to be "
							"committed with.",
							NULL,
							&accord_settle_delay, 5, 0, 1000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
}

/* Whom a dispatcher may talk to. */
static void
define_network_settings(void)
{
	DefineCustomStringVariable("accord.allowed_networks",
							   "Private networks that channels may be in.",
							   "A comma-separated list in CIDR notation. "
							   "Addresses that are not of the public network "
							   "are refused unless they are listed here.",
							   &accord_allowed_networks, "",
							   PGC_SIGHUP, 0, check_networks, NULL, NULL);
	DefineCustomStringVariable("accord.allowed_proxies",
							   "Proxies that channels may use, as URLs.",
							   "What a proxy may reach is the proxy's to "
							   "say, not accord.allowed_networks'.",
							   &accord_allowed_proxies, "",
							   PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("accord.ca_file",
							   "File of certificates to trust.",
							   "When empty, those that the system trusts.",
							   &accord_ca_file, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
}

/* What seals accord.secret. */
static void
define_secret_settings(void)
{
	DefineCustomStringVariable("accord.secret_key_command",
							   "Command that prints the keys that seal "
							   "accord.secret.",
							   "Asked once by every process that needs them; "
							   "not used when accord.secret_key_file is set.",
							   &accord_secret_key_command, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("accord.secret_key_file",
							   "File of the keys that seal accord.secret.",
							   "A line for each, 64 hexadecimal digits; the "
							   "first one seals, the others open what was "
							   "sealed before.",
							   &accord_secret_key_file, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
}

/* Under which name others know this database. */
static void
define_conflict_settings(void)
{
	DefineCustomIntVariable("accord.conflict_retention",
							"How long conflicts, and the changes of managed "
							"tables, are kept, at least.",
							NULL,
							&accord_conflict_retention, 90 * MINUTES_PER_DAY,
							0, MAX_MINUTES,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomStringVariable("accord.node_name",
							   "What this database is called as a source "
							   "elsewhere.",
							   "It breaks ties between changes made at the "
							   "same microsecond, and stands for the "
							   "application in orders of priority.",
							   &accord_node_name, "",
							   PGC_SIGHUP, 0, NULL, NULL, NULL);
}

/* What is kept for how long. */
static void
define_retention_settings(void)
{
	DefineCustomIntVariable("accord.attempt_max_size",
							"How large the log of attempts may grow.",
							"Beyond it the oldest go before their retention "
							"ends; 0: it may grow as it does.",
							&accord_attempt_max_size, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.attempt_retention",
							"How long attempts are kept, at least.",
							NULL,
							&accord_attempt_retention, 30 * MINUTES_PER_DAY,
							0, MAX_MINUTES,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.consumer_max_lag",
							"How long the log is kept for a consumer that "
							"lags.",
							"Beyond it a consumer loses its place; 0 keeps "
							"the log for as long as it lags.",
							&accord_consumer_max_lag, 90 * MINUTES_PER_DAY,
							0, MAX_MINUTES,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.idempotency_retention",
							"How long idempotency keys are kept, at least.",
							NULL,
							&accord_idempotency_retention,
							90 * MINUTES_PER_DAY, 1, MAX_MINUTES,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.log_max_size",
							"How large the log of events may grow.",
							"Beyond it the oldest go before their retention "
							"ends, unless they are still needed; 0: it may "
							"grow as it does.",
							&accord_log_max_size, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("accord.log_retention",
							"How long events are kept, at least.",
							"Events that are still owed to a channel are "
							"kept in any case.",
							&accord_log_retention, 30 * MINUTES_PER_DAY,
							0, MAX_MINUTES,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
}

void
accord_guc_init(bool (*networks_valid) (const char *list))
{
	are_networks = networks_valid;
	define_session_settings();
	define_worker_settings();
	define_dispatch_settings();
	define_network_settings();
	define_secret_settings();
	define_conflict_settings();
	define_retention_settings();
	MarkGUCPrefixReserved("accord");
}
