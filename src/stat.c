/*
 * stat.c: what was counted, for whoever asks.
 *
 * Runs in any backend, also on a standby and without preload, where nothing
 * was counted. Reads shared memory only: no log, no table.
 *
 * Invariants: the columns come in the order of AccordTally and AccordCounter.
 *
 * On failure the statement raises.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/timestamp.h"

#include "board.h"
#include "counter.h"
#include "endpoint.h"
#include "gauge.h"
#include "shmem.h"

/* Those of both functions, besides their counters: when it began. */
#define ENDPOINT_COLUMNS (ACCORD_TALLY_LATENCY + 2)
#define DATABASE_COLUMNS (ACCORD_COUNTERS + 1)

PG_FUNCTION_INFO_V1(accord_endpoint_counters);
PG_FUNCTION_INFO_V1(accord_database_counters);
PG_FUNCTION_INFO_V1(accord_latency_bounds);
PG_FUNCTION_INFO_V1(accord_stat_reset);

static Datum
form_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls, int columns)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != columns)
		elog(ERROR, "pg_accord's library and its SQL objects do not fit");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

static Datum
latency_array(const int64 *counted)
{
	Datum		elements[ACCORD_GAUGE_BOUNDS + 1];

	for (int i = 0; i < lengthof(elements); i++)
		elements[i] = Int64GetDatum(counted[i]);
	return PointerGetDatum(construct_array(elements, lengthof(elements),
										   INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * accord.endpoint_counters(channel, account): what was counted of an endpoint;
 * zeros when nothing was.
 */
Datum
accord_endpoint_counters(PG_FUNCTION_ARGS)
{
	char	   *channel = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *account = text_to_cstring(PG_GETARG_TEXT_PP(1));
	AccordBoardTallies counted;
	Datum		values[ENDPOINT_COLUMNS];
	bool		nulls[ENDPOINT_COLUMNS] = {0};

	if (!accord_board_counted(accord_endpoint_hash(channel, account),
							  &counted))
		memset(&counted, 0, sizeof(counted));
	for (int i = 0; i < ACCORD_TALLY_LATENCY; i++)
		values[i] = i == ACCORD_TALLY_ANSWER_TIME ?
			Float8GetDatum(counted.tallies[i] / 1000.0) :
			Int64GetDatum(counted.tallies[i]);
	values[ACCORD_TALLY_LATENCY] =
		latency_array(counted.tallies + ACCORD_TALLY_LATENCY);
	values[ACCORD_TALLY_LATENCY + 1] = TimestampTzGetDatum(counted.since);
	nulls[ACCORD_TALLY_LATENCY + 1] = counted.since == 0;
	PG_RETURN_DATUM(form_row(fcinfo, values, nulls, ENDPOINT_COLUMNS));
}

/* accord.database_counters(): what was counted in this database. */
Datum
accord_database_counters(PG_FUNCTION_ARGS)
{
	AccordCounted counted;
	Datum		values[DATABASE_COLUMNS];
	bool		nulls[DATABASE_COLUMNS] = {0};

	accord_counter_read(&counted);
	for (int i = 0; i < ACCORD_COUNTERS; i++)
		values[i] = Int64GetDatum(counted.n[i]);
	values[ACCORD_COUNTERS] = TimestampTzGetDatum(counted.since);
	nulls[ACCORD_COUNTERS] = counted.since == 0;
	PG_RETURN_DATUM(form_row(fcinfo, values, nulls, DATABASE_COLUMNS));
}

/* accord.latency_bounds(): up to how many milliseconds a class reaches. */
Datum
accord_latency_bounds(PG_FUNCTION_ARGS)
{
	Datum		bounds[ACCORD_GAUGE_BOUNDS + 1];

	for (int i = 0; i < ACCORD_GAUGE_BOUNDS; i++)
		bounds[i] = Float8GetDatum(accord_gauge_bound(i));
	bounds[ACCORD_GAUGE_BOUNDS] = Float8GetDatum(get_float8_infinity());
	PG_RETURN_ARRAYTYPE_P(construct_array(bounds, lengthof(bounds), FLOAT8OID,
										  sizeof(float8), FLOAT8PASSBYVAL,
										  TYPALIGN_DOUBLE));
}

/*
 * accord.stat_reset(channel, account): counts anew; one endpoint, or, without
 * a channel, everything of this database.
 */
Datum
accord_stat_reset(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) && !PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("account \"%s\" is given without its channel",
						text_to_cstring(PG_GETARG_TEXT_PP(1))),
				 errhint("Give the channel, too.")));
	if (!accord_shmem_ready())
		PG_RETURN_VOID();		/* not preloaded: nothing is counted */
	if (PG_ARGISNULL(0))
	{
		accord_counter_reset();
		accord_board_reset(0);
	}
	else
		accord_board_reset(accord_endpoint_hash(text_to_cstring(PG_GETARG_TEXT_PP(0)),
												PG_ARGISNULL(1) ? "" :
												text_to_cstring(PG_GETARG_TEXT_PP(1))));
	PG_RETURN_VOID();
}
