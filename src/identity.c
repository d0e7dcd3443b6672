/*
 * identity.c: whether this database is the one its data was dispatched from.
 *
 * Runs in dispatchers, and in backends that restore a dump. A clone, a
 * restored dump or a file copy holds the same events, positions and channels
 * as its original; were it to dispatch them, the real world would hear
 * everything twice. So the cluster's system identifier and timeline and the
 * database's OID are kept beside the data, from CREATE EXTENSION on; where a
 * row is found that is not ours, nothing is sent until accord.adopt() is
 * called. A new timeline is a promotion, or a recovery to a point in the past:
 * accord.on_promotion says whether that dispatches.
 *
 * Invariants
 *   - Restored rows of the log become visible together with a row of identity
 *     that is nobody's, whatever the order in which a restore brings the
 *     tables.
 *   - A database made from a template that has neither channels nor commits
 *     has nothing of another's to send: it becomes its own at the first look.
 *     A restore is never taken for one: its CREATE EXTENSION wrote our row.
 *
 * On failure the transaction's error ends the dispatcher, or the restore's
 * statement.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "guc.h"
#include "identity.h"
#include "invalidation.h"

static bool registered = false;
static bool stale = true;
static bool here = false;
static int	looked_with = -1;	/* accord.on_promotion at the last look */

PG_FUNCTION_INFO_V1(accord_take_identity);
PG_FUNCTION_INFO_V1(accord_silence);

static void
forget_identity(Datum arg, Oid relid)
{
	/* any relation: the look is cheap, and the OID may have changed */
	if (!OidIsValid(relid) || relid == DatumGetObjectId(arg))
		stale = true;
}

/* What is known of where the data is from; the higher counts. */
typedef enum Origin
{
	ORIGIN_UNKNOWN,				/* there is no row */
	ORIGIN_OURS,
	ORIGIN_PROMOTED,			/* ours, on another timeline */
	ORIGIN_OTHER,
	ORIGIN_RESTORED
} Origin;

/* Runs a statement about accord.identity, given what we are ($1 to $3). */
static void
run(const char *query, bool read_only, int expected)
{
	Oid			types[] = {INT8OID, OIDOID, INT4OID};
	Datum		values[3] = {0};

	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	if (!RecoveryInProgress())
		values[2] = Int32GetDatum((int32) GetWALInsertionTimeLine());
	if (SPI_execute_with_args(query, 3, types, values, NULL, read_only, 0) !=
		expected)
		elog(ERROR, "could not run \"%s\"", query);
}

/* The origin of the data, and whether a row is ours. */
static Origin
find_origin(bool *has_ours)
{
	Origin		origin = ORIGIN_UNKNOWN;

	*has_ours = false;
	run("SELECT CASE WHEN system_identifier = 0 THEN 4 "
		"WHEN system_identifier <> $1 OR database <> $2 THEN 3 "
		"WHEN timeline <> $3 AND $3 <> 0 THEN 2 ELSE 1 END "
		"FROM accord.identity", true, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i],
										  SPI_tuptable->tupdesc, 1, &isnull);
		Origin		found = (Origin) DatumGetInt32(value);

		*has_ours |= found == ORIGIN_OURS || found == ORIGIN_PROMOTED;
		origin = Max(origin, found);
	}
	return origin;
}

/* Whether there is nothing that another database could have sent. */
static bool
is_blank(void)
{
	run("SELECT 1 WHERE NOT EXISTS (SELECT FROM accord.channel) AND "
		"NOT EXISTS (SELECT FROM accord.commit_log)", true, SPI_OK_SELECT);
	return SPI_processed == 1;
}

/* From now on the data is ours, whosever it was. In a connection to SPI. */
static void
take(void)
{
	run("DELETE FROM accord.identity", false, SPI_OK_DELETE);
	run("INSERT INTO accord.identity (system_identifier, database, timeline) "
		"VALUES ($1, $2, $3)", false, SPI_OK_INSERT);
}

/* Why data of this origin is not dispatched here; NULL when it is. */
static const char *
reason_for_silence(Origin origin)
{
	switch (origin)
	{
		case ORIGIN_RESTORED:
			return "rows of its logs came from elsewhere, by a restore";
		case ORIGIN_OTHER:
			return "it was made in another cluster or database, as "
				"accord.identity says";
		case ORIGIN_PROMOTED:
			return accord_on_promotion == ACCORD_PROMOTION_SILENT ?
				"its cluster was promoted or recovered to a point in the "
				"past, and accord.on_promotion is silent" : NULL;
		case ORIGIN_UNKNOWN:
		case ORIGIN_OURS:
			break;
	}
	return NULL;
}

bool
accord_identity_stale(void)
{
	return stale || looked_with != accord_on_promotion;
}

bool
accord_identity_here(void)
{
	Origin		origin;
	bool		has_ours;
	const char *reason;

	if (!accord_identity_stale())
		return here;
	if (!registered)
	{
		accord_invalidation_heed(forget_identity,
								 ObjectIdGetDatum(accord_db_relid("identity")));
		registered = true;
	}
	stale = false;
	looked_with = accord_on_promotion;
	/* the caller's may be from before a change that it was told of */
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	origin = find_origin(&has_ours);
	if (origin == ORIGIN_UNKNOWN ||
		(origin == ORIGIN_OTHER && !has_ours && is_blank()))
	{
		take();
		origin = ORIGIN_OURS;
	}
	reason = reason_for_silence(origin);
	if (origin == ORIGIN_PROMOTED && reason == NULL)
		run("UPDATE accord.identity SET timeline = $3 WHERE "
			"system_identifier = $1 AND database = $2 AND timeline <> $3",
			false, SPI_OK_UPDATE);
	SPI_finish();
	PopActiveSnapshot();
	here = reason == NULL;
	if (!here)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("database \"%s\" is a copy: nothing is dispatched",
						get_database_name(MyDatabaseId)),
				 errdetail("What it holds is from elsewhere: %s.", reason),
				 errhint("If it is to take the original's place, run SELECT "
						 "accord.adopt().")));
	return here;
}

/* accord.take_identity(): the data is this database's own from now on. */
Datum
accord_take_identity(PG_FUNCTION_ARGS)
{
	SPI_connect();
	take();
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * accord.silence(): the state that all endpoints are in because nothing is
 * sent from this database, and why; nulls when something may be.
 */
Datum
accord_silence(PG_FUNCTION_ARGS)
{
	const char *state = NULL;
	const char *reason = NULL;
	bool		has_ours;
	TupleDesc	desc;
	Datum		values[2] = {0};
	bool		nulls[2];

	SPI_connect();
	reason = reason_for_silence(find_origin(&has_ours));
	SPI_finish();
	if (reason != NULL)
	{
		state = "copy";
		reason = psprintf("a copy of another database (%s); SELECT "
						  "accord.adopt() lets it dispatch", reason);
	}
	else if (RecoveryInProgress())
	{
		state = "standby";
		reason = "a standby dispatches nothing";
	}
	else if (!accord_dispatch)
	{
		state = "stopped";
		reason = "accord.dispatch is off";
	}
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.silence() must return a row");
	nulls[0] = nulls[1] = state == NULL;
	if (state != NULL)
	{
		values[0] = CStringGetTextDatum(state);
		values[1] = CStringGetTextDatum(reason);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

void
accord_identity_mark_copy(void)
{
	static TimestampTz marked_in = 0;	/* transaction, by its start */
	static SubTransactionId marked_by = InvalidSubTransactionId;
	AccordDbUser before;

	if (marked_in == GetCurrentTransactionStartTimestamp() &&
		marked_by == GetCurrentSubTransactionId())
		return;
	before = accord_db_become(accord_db_owner());
	SPI_connect();
	if (SPI_execute("INSERT INTO accord.identity (system_identifier, "
					"database) SELECT 0, 0 WHERE NOT EXISTS (SELECT FROM "
					"accord.identity WHERE system_identifier "
					"OPERATOR(pg_catalog.=) 0)", false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert into accord.identity");
	SPI_finish();
	accord_db_be_again(before);
	marked_in = GetCurrentTransactionStartTimestamp();
	marked_by = GetCurrentSubTransactionId();
}
