/*
 * reduce.c: columns that a function of the user's reduces: strategy custom.
 *
 * Runs in the application's backends. The function f(value, change) is run
 * over the changes in the order of their stamps. One that comes late takes
 * its place among them: what was applied after it is undone, and applied
 * again. So any function converges that gives the same result for the same
 * arguments; accord.check_policy() tells whether it does.
 *
 * Invariants
 *   - Kept are the changes within the horizon, and the value from before
 *     them. What is older than what was folded into that value is refused.
 *   - The function runs as whoever set the policy, in a security-restricted
 *     context, with EXECUTE checked at each call and a fixed search_path.
 *
 * On failure of the function the statement raises, with its error.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "json.h"
#include "merge.h"

#define MAX_HISTORY 10000

typedef struct Entry
{
	AccordStamp stamp;
	Jsonb	   *change;			/* as the function gets it */
} Entry;

typedef struct History
{
	Jsonb	   *base;			/* the value before the first entry */
	int64		floor;			/* what is not later was folded into it */
	int			n;
	Entry	   *items;			/* in order; room for one more */
} History;

static void
read_history(History *history, const AccordRegister *r, Jsonb *value)
{
	Jsonb	   *entries = accord_value_member(r->extra, "history");
	AccordValueScan scan;

	history->n = 0;
	history->items = palloc((accord_value_length(entries) + 1) *
							sizeof(Entry));
	history->base = r->extra == NULL ? value :
		accord_value_member(r->extra, "base");
	if (accord_value_is_null(history->base))
		history->base = NULL;
	history->floor = accord_value_int(accord_value_member(r->extra, "floor"),
									  ACCORD_CLOCK_NONE);
	accord_value_scan(&scan, entries);
	while (accord_value_next(&scan))
	{
		Entry	   *entry = &history->items[history->n++];

		entry->stamp =
			accord_register_stamp(accord_value_int(accord_value_element(scan.value, 0),
												   0),
								  accord_value_text(accord_value_element(scan.value, 1)),
								  accord_value_text(accord_value_element(scan.value, 2)),
								  NULL);
		entry->change = accord_value_element(scan.value, 3);
	}
}

static void
write_history(AccordRegister *r, const History *history)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "base");
	accord_build_value(&build, history->base);
	if (history->floor != ACCORD_CLOCK_NONE)
	{
		accord_build_key(&build, "floor");
		accord_build_int(&build, history->floor);
	}
	accord_build_key(&build, "history");
	accord_build_array(&build);
	for (int i = 0; i < history->n; i++)
	{
		const Entry *entry = &history->items[i];

		accord_build_array(&build);
		accord_build_int(&build, entry->stamp.clock);
		accord_build_text(&build, entry->stamp.source);
		accord_build_text(&build, entry->stamp.event);
		accord_build_value(&build, entry->change);
		accord_build_end_array(&build);
	}
	accord_build_end_array(&build);
	accord_build_end_object(&build);
	r->extra = accord_build_done(&build);
}

/* What the function is told of a change. */
static Jsonb *
describe(const AccordIncoming *in)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "value");
	accord_build_value(&build, in->raw != NULL ? in->raw : in->value);
	if (in->has_base)
	{
		accord_build_key(&build, "base");
		accord_build_value(&build, in->base);
	}
	accord_build_key(&build, "op");
	accord_build_text(&build, in->op);
	accord_build_key(&build, "source");
	accord_build_text(&build, in->stamp.source);
	accord_build_key(&build, "event_id");
	accord_build_text(&build, in->stamp.event);
	accord_build_key(&build, "clock");
	accord_build_int(&build, in->stamp.clock);
	accord_build_key(&build, "revision");
	accord_build_decimal(&build, in->stamp.revision);
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/* ---- the function -------------------------------------------------------- */

static void
require_function(const AccordColumn *column)
{
	const AccordPolicy *policy = column->policy;

	if (!OidIsValid(policy->function) ||
		get_func_rettype(policy->function) != JSONBOID)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function of the policy of column \"%s\" does not "
						"exist", column->name),
				 errhint("Create it again, or call accord.set_policy() for "
						 "the column.")));
	if (!OidIsValid(policy->owner) ||
		!accord_function_executable(policy->function, policy->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function of the policy of "
						"column \"%s\"", column->name),
				 errhint("Grant EXECUTE on it to the policy's owner, or have "
						 "another role call accord.set_policy().")));
}

static Jsonb *
call_function(Oid function, Jsonb *value, Jsonb *change)
{
	FmgrInfo	info;
	Datum		result;

	LOCAL_FCINFO(call, 2);

	fmgr_info(function, &info);
	InitFunctionCallInfoData(*call, &info, 2, InvalidOid, NULL, NULL);
	call->args[0].isnull = value == NULL;
	call->args[0].value = value == NULL ? (Datum) 0 : JsonbPGetDatum(value);
	call->args[1].isnull = false;
	call->args[1].value = JsonbPGetDatum(change);
	if (info.fn_strict && value == NULL)
		return NULL;
	result = FunctionCallInvoke(call);
	if (call->isnull || accord_value_is_null(DatumGetJsonbP(result)))
		return NULL;
	return DatumGetJsonbP(result);
}

/* The value that entries from..n make of a value. */
static Jsonb *
fold(AccordManaged *managed, int column, const History *history, int from,
	 Jsonb *value)
{
	const AccordPolicy *policy = managed->columns[column].policy;
	Oid			user;
	int			context;
	int			level;

	require_function(&managed->columns[column]);
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(policy->owner, context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	for (int i = from; i < history->n; i++)
	{
		value = call_function(policy->function, value,
							  history->items[i].change);
		value = accord_policy_normalize(managed, column, value);
	}
	AtEOXact_GUC(false, level);
	SetUserIdAndSecContext(user, context);
	return value;
}

/* ---- merging ------------------------------------------------------------- */

/* Puts the change in its place; -1: it is there already. */
static int
place_entry(History *history, const AccordIncoming *in)
{
	AccordStamp stamp = in->stamp;
	int			at = history->n;

	stamp.rank = 0;
	for (; at > 0; at--)
	{
		int			order = accord_stamp_compare(&stamp,
												 &history->items[at - 1].stamp);

		if (order == 0)
			return -1;
		if (order > 0)
			break;
	}
	memmove(&history->items[at + 1], &history->items[at],
			(history->n - at) * sizeof(Entry));
	history->items[at].stamp = stamp;
	history->items[at].change = describe(in);
	history->n++;
	return at;
}

/* Folds what is older than the horizon into the base. */
static void
shorten(AccordManaged *managed, int column, History *history)
{
	int64		horizon = managed->columns[column].policy->horizon_us;
	int64		latest = history->items[history->n - 1].stamp.clock;
	History		old = *history;
	int			n = 0;

	while (n < history->n - 1 &&
		   (history->items[n].stamp.clock < latest - horizon ||
			history->n - n > MAX_HISTORY))
		n++;
	if (n == 0)
		return;
	old.n = n;
	history->base = fold(managed, column, &old, 0, history->base);
	history->floor = history->items[n - 1].stamp.clock;
	history->items += n;
	history->n -= n;
}

void
accord_merge_custom(AccordManaged *managed, int column, AccordRegister *r,
					Jsonb **value, AccordIncoming *in, AccordVerdict *verdict)
{
	History		history;
	Jsonb	   *before = *value;
	int			at;

	read_history(&history, r, *value);
	if (history.floor != ACCORD_CLOCK_NONE &&
		in->stamp.clock <= history.floor)
	{
		verdict->rule = "horizon";
		accord_merge_lose(r, *value, in, verdict);
		return;
	}
	at = place_entry(&history, in);
	if (at < 0)
		return;
	*value = at == history.n - 1 ? fold(managed, column, &history, at, *value) :
		fold(managed, column, &history, 0, history.base);
	shorten(managed, column, &history);
	write_history(r, &history);
	r->won = history.items[history.n - 1].stamp;
	r->known = true;
	r->has_base = false;
	verdict->took = !accord_value_equal(before, *value);
}
