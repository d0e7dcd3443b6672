/*
 * status.c: what is still owed, and how endpoints are doing, for whoever asks.
 *
 * Runs in any backend. accord.owed() is exact and asks nobody: what dispatchers
 * have settled is in the logs, and how far they have come in positions and
 * cursors. What is owed is therefore the backlog, plus everything after those
 * points that was not settled, routed as a dispatcher would route it.
 * accord.endpoint_state() is quick: it reads what dispatchers show.
 *
 * Invariants: the safe number is computed before the snapshot; the snapshot is
 * this function's own. The cost of owed() grows with what is owed, not with the
 * log.
 *
 * On failure the statement raises.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "accord.h"
#include "backlog.h"
#include "board.h"
#include "config.h"
#include "control.h"
#include "db.h"
#include "endpoint.h"
#include "guc.h"
#include "log.h"
#include "routing.h"
#include "shmem.h"

#define OWED_COLUMNS 11
#define STATE_COLUMNS 26

typedef struct CursorKey
{
	uint64		endpoint;		/* its hash */
	int64		priority;
} CursorKey;

typedef struct CursorEntry
{
	CursorKey	key;
	AccordPoint point;
} CursorEntry;

/* Everything that owed() needs to know. */
typedef struct OwedScan
{
	ReturnSetInfo *result;
	AccordConfig *config;
	HTAB	   *settled;
	HTAB	   *cursors;
	int			dispatchers;
	int64		positions[ACCORD_MAX_DISPATCHERS];
	int64		lowest;
	AccordCommit commit;
	int			ord;
	int			priority;
} OwedScan;

PG_FUNCTION_INFO_V1(accord_owed);
PG_FUNCTION_INFO_V1(accord_unread);
PG_FUNCTION_INFO_V1(accord_endpoint_state);

static HTAB *
create_table(const char *name, Size key, Size entry)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = key;
	ctl.entrysize = entry;
	ctl.hcxt = CurrentMemoryContext;
	return hash_create(name, 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static CursorKey
cursor_key(uint64 endpoint, int priority)
{
	CursorKey	key = {endpoint, priority};

	return key;
}

static void
visit_cursor(const AccordCursorRow *row, void *arg)
{
	OwedScan   *scan = arg;
	CursorKey	key = cursor_key(accord_endpoint_hash(row->channel,
													  row->account),
								 row->priority);
	CursorEntry *entry;

	if (row->done)
		return;
	entry = hash_search(scan->cursors, &key, HASH_ENTER, NULL);
	entry->point = row->point;
	scan->lowest = Min(scan->lowest, row->point.seq - 1);
}

static void
visit_settled(const char *channel, const char *account, int64 seq, int ord,
			  void *arg)
{
	OwedScan   *scan = arg;
	AccordDeliveryKey key;

	key = accord_delivery_key(channel, account, seq, ord);
	hash_search(scan->settled, &key, HASH_ENTER, NULL);
}

static void
emit_row(OwedScan *scan, const AccordBacklogRow *row)
{
	Datum		values[OWED_COLUMNS];
	bool		nulls[OWED_COLUMNS] = {0};

	values[0] = Int64GetDatum(row->seq);
	values[1] = Int64GetDatum(row->tx_id);
	values[2] = Int32GetDatum(row->ord);
	values[3] = Int16GetDatum(row->event_slot);
	values[4] = TimestampTzGetDatum(row->owed_since);
	values[5] = CStringGetTextDatum(row->channel);
	values[6] = CStringGetTextDatum(row->account);
	values[7] = CStringGetTextDatum(row->version == 0 ? "queued" :
									accord_backlog_word(row->state));
	values[8] = Int32GetDatum(row->attempts);
	values[9] = TimestampTzGetDatum(row->due_at);
	nulls[9] = row->due_at == 0;
	nulls[10] = row->error == NULL;
	if (!nulls[10])
		values[10] = CStringGetTextDatum(row->error);
	tuplestore_putvalues(scan->result->setResult, scan->result->setDesc,
						 values, nulls);
}

static bool
visit_backlog(const AccordBacklogRow *row, void *arg)
{
	emit_row(arg, row);
	return true;
}

/* How far the dispatcher of an endpoint has come. */
static int64
endpoint_position(OwedScan *scan, const AccordBacklogRow *row)
{
	return scan->positions[accord_channel_owner(row->channel,
												scan->dispatchers)];
}

/* How far an endpoint's deliveries are known to be settled. */
static AccordPoint
endpoint_low(OwedScan *scan, const char *channel, uint64 endpoint)
{
	CursorKey	key = cursor_key(endpoint, scan->priority);
	CursorEntry *cursor = hash_search(scan->cursors, &key, HASH_FIND, NULL);
	AccordPoint low = {scan->positions[accord_channel_owner(channel,
															scan->dispatchers)],
	ACCORD_ORD_ALL};

	return cursor ? cursor->point : low;
}

static void
visit_target(AccordChannel *channel, const char *account, AccordRoute *route,
			 void *arg)
{
	OwedScan   *scan = arg;
	AccordPoint here = {scan->commit.seq, scan->ord};
	AccordDeliveryKey key;
	AccordBacklogRow row;

	key = accord_delivery_key(channel->name, account, here.seq, here.ord);
	if (accord_point_compare(here, endpoint_low(scan, channel->name,
												key.endpoint)) <= 0 ||
		hash_search(scan->settled, &key, HASH_FIND, NULL) != NULL)
		return;
	memset(&row, 0, sizeof(row));
	row.seq = here.seq;
	row.ord = here.ord;
	row.tx_id = scan->commit.tx_id;
	row.event_slot = scan->commit.slot;
	row.owed_since = scan->commit.committed_at;
	row.channel = channel->name;
	row.account = account;
	emit_row(scan, &row);
}

static void
read_positions(OwedScan *scan)
{
	scan->dispatchers =
		Max(1, (int) accord_db_sequence_last(accord_db_relid("dispatcher_count")));
	for (int i = 0; i < scan->dispatchers; i++)
	{
		scan->positions[i] = accord_backlog_position(i);
		scan->lowest = i == 0 ? scan->positions[0] :
			Min(scan->lowest, scan->positions[i]);
	}
}

/*
 * What somebody asked to be sent again is owed from the commit of that
 * decision, also before its dispatcher has taken note.
 */
static void
visit_decision(OwedScan *scan, TupleTableSlot *event)
{
	char	   *topic = accord_routing_control(event);
	AccordBacklogRow place;
	bool		isnull;
	Datum		payload;

	if (topic == NULL || strcmp(topic, ACCORD_TOPIC_REDELIVER) != 0)
		return;
	payload = slot_getattr(event, ACCORD_EVENT_PAYLOAD, &isnull);
	for (int i = 0; !isnull && accord_control_item(DatumGetJsonbP(payload), i,
												   &place); i++)
	{
		AccordBacklogRow known = place;

		if (place.channel == NULL ||
			scan->commit.seq <= endpoint_position(scan, &place))
			continue;
		if (accord_backlog_find(place.channel, place.account, place.seq,
								place.ord, &known) &&
			(known.decided_by >= scan->commit.seq ||
			 known.state < ACCORD_STATE_DEAD ||
			 (place.version > 0 && place.version != known.version)))
			continue;			/* it took note, shows it, or will not */
		place.version = 1;
		place.state = ACCORD_STATE_REPLAYED;
		place.owed_since = scan->commit.committed_at;
		emit_row(scan, &place);
	}
}

/* Everything in the log that no position, cursor or row accounts for. */
static void
scan_log(OwedScan *scan, int64 safe)
{
	AccordPoint from = {scan->lowest, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(from, safe);
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord owed",
												  ALLOCSET_DEFAULT_SIZES);

	while (accord_log_next_commit(reader, &scan->commit))
	{
		TupleTableSlot *row;

		CHECK_FOR_INTERRUPTS();
		while ((row = accord_log_next_event(reader)) != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(scratch);
			bool		isnull;

			scan->ord = DatumGetInt32(slot_getattr(row, ACCORD_EVENT_ORD,
												   &isnull));
			scan->priority = DatumGetInt16(slot_getattr(row,
														ACCORD_EVENT_PRIORITY,
														&isnull));
			accord_routing_visit(scan->config, row, visit_target, scan);
			visit_decision(scan, row);
			MemoryContextSwitchTo(old);
			MemoryContextReset(scratch);
		}
	}
	accord_log_close(reader);
	MemoryContextDelete(scratch);
}

/*
 * accord.owed(). Positions are read before everything else: what is settled
 * afterwards is found in the logs, so a delivery may be shown as owed that has
 * just been settled, never the other way round.
 */
Datum
accord_owed(PG_FUNCTION_ARGS)
{
	AccordPoint nowhere = {0, 0};
	OwedScan	scan;
	int64		safe;
	int			nest_level = NewGUCNestLevel();

	InitMaterializedSRF(fcinfo, 0);
	memset(&scan, 0, sizeof(scan));
	scan.result = (ReturnSetInfo *) fcinfo->resultinfo;
	scan.settled = create_table("accord settled", sizeof(AccordDeliveryKey),
								sizeof(AccordDeliveryKey));
	scan.cursors = create_table("accord cursors", sizeof(CursorKey),
								sizeof(CursorEntry));
	read_positions(&scan);
	safe = accord_log_safe_seq();
	PushActiveSnapshot(GetLatestSnapshot());
	scan.config = accord_config_get();
	accord_backlog_cursors(visit_cursor, &scan);
	accord_backlog_settled(scan.lowest, visit_settled, &scan);
	accord_backlog_load(NULL, NULL, nowhere, visit_backlog, &scan);
	scan_log(&scan, safe);
	PopActiveSnapshot();
	/* how the logs are read is not how the rest of the transaction is */
	AtEOXact_GUC(false, nest_level);
	PG_RETURN_NULL();
}

static void
visit_unread(AccordChannel *channel, const char *account, AccordRoute *route,
			 void *arg)
{
	OwedScan   *scan = arg;
	AccordPoint here = {scan->commit.seq, scan->ord};
	Datum		values[2];
	bool		nulls[2] = {0};

	if (accord_point_compare(here,
							 endpoint_low(scan, channel->name,
										  accord_endpoint_hash(channel->name,
															   account))) <= 0)
		return;
	values[0] = CStringGetTextDatum(channel->name);
	values[1] = CStringGetTextDatum(account);
	tuplestore_putvalues(scan->result->setResult, scan->result->setDesc,
						 values, nulls);
}

/*
 * accord.unread(seq, ord): the endpoints of one event that no position or
 * cursor has passed it for; whether it is settled there, the caller looks.
 */
Datum
accord_unread(PG_FUNCTION_ARGS)
{
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};
	OwedScan	scan;
	AccordLogReader *reader;
	TupleTableSlot *event;
	bool		isnull;
	int			nest_level = NewGUCNestLevel();

	InitMaterializedSRF(fcinfo, 0);
	memset(&scan, 0, sizeof(scan));
	scan.result = (ReturnSetInfo *) fcinfo->resultinfo;
	scan.cursors = create_table("accord cursors", sizeof(CursorKey),
								sizeof(CursorEntry));
	scan.ord = PG_GETARG_INT32(1);
	read_positions(&scan);
	PushActiveSnapshot(GetLatestSnapshot());
	scan.config = accord_config_get();
	accord_backlog_cursors(visit_cursor, &scan);
	reader = accord_log_open(nowhere, 0);
	if (accord_log_commit(reader, PG_GETARG_INT64(0), &scan.commit) &&
		(event = accord_log_event(reader, scan.commit.slot,
								  scan.commit.tx_id, scan.ord)) != NULL)
	{
		scan.priority = DatumGetInt16(slot_getattr(event,
												   ACCORD_EVENT_PRIORITY,
												   &isnull));
		if (accord_routing_control(event) == NULL)
			accord_routing_visit(scan.config, event, visit_unread, &scan);
	}
	accord_log_close(reader);
	PopActiveSnapshot();
	AtEOXact_GUC(false, nest_level);
	PG_RETURN_NULL();
}

/* Whether a dispatcher works in this database. */
static bool
is_dispatched(void)
{
	AccordDatabase *table = accord_shmem_ready() ? accord_shmem_table() : NULL;

	for (int i = 0; table != NULL && i < accord_max_databases; i++)
		for (int j = 0; table[i].database == MyDatabaseId &&
			 j < ACCORD_MAX_DISPATCHERS; j++)
			if (pg_atomic_read_u32(&table[i].places[j].state) ==
				ACCORD_PLACE_RUNNING)
				return true;
	return false;
}

/* Fills in the columns of a row, one after the other. */
typedef struct StateBuilder
{
	Datum		values[STATE_COLUMNS];
	bool		nulls[STATE_COLUMNS];
	int			n;
} StateBuilder;

static void
add_value(StateBuilder *builder, Datum value, bool isnull)
{
	builder->values[builder->n] = value;
	builder->nulls[builder->n++] = isnull;
}

static void
add_time(StateBuilder *builder, TimestampTz time)
{
	add_value(builder, TimestampTzGetDatum(time), time == 0);
}

/* A rate as of when it was shown has decayed since. */
static void
add_rate(StateBuilder *builder, double rate, int span, TimestampTz then)
{
	AccordGauge gauge = {.at = then};

	gauge.delivered[span] = rate;
	rate = accord_gauge_delivered(&gauge, span, GetCurrentTimestamp());
	add_value(builder, Float4GetDatum((float4) rate), false);
}

/*
 * accord.endpoint_state(channel, account): what its dispatcher shows of an
 * endpoint; null when nobody dispatches here.
 */
Datum
accord_endpoint_state(PG_FUNCTION_ARGS)
{
	char	   *channel = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *account = text_to_cstring(PG_GETARG_TEXT_PP(1));
	AccordBoardRow row;
	StateBuilder builder = {.n = 0};
	TupleDesc	desc;

	if (!accord_board_read(accord_endpoint_hash(channel, account), &row))
	{
		if (!is_dispatched())
			PG_RETURN_NULL();
		memset(&row, 0, sizeof(row));
		row.tokens = row.last_outcome = -1;
		row.p50_ms = row.p99_ms = -1;
	}
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.endpoint_state() must return a row");
	add_value(&builder, CStringGetTextDatum(row.lagging ? "lagging" :
											"direct"), false);
	add_value(&builder, CStringGetTextDatum(accord_breaker_word(row.breaker)),
			  false);
	add_time(&builder, row.probe_at);
	add_time(&builder, row.throttled_until);
	add_value(&builder, Int64GetDatum(row.owed), false);
	add_time(&builder, row.owed > 0 ? row.oldest_owed : 0);
	add_value(&builder, Int64GetDatum(row.queued), false);
	add_value(&builder, Int64GetDatum(row.scheduled), false);
	add_value(&builder, Int64GetDatum(row.sending), false);
	add_value(&builder, Int64GetDatum(row.retrying), false);
	add_value(&builder, Int64GetDatum(row.held), false);
	add_value(&builder, Int64GetDatum(row.dead), false);
	add_value(&builder, Int32GetDatum(row.in_flight), false);
	add_value(&builder, Int64GetDatum(row.tokens), row.tokens < 0);
	add_rate(&builder, row.delivered[0], 0, row.written_at);
	add_rate(&builder, row.delivered[1], 1, row.written_at);
	add_rate(&builder, row.failed[0], 0, row.written_at);
	add_rate(&builder, row.failed[1], 1, row.written_at);
	add_value(&builder, Float4GetDatum((float4) row.p50_ms), row.p50_ms < 0);
	add_value(&builder, Float4GetDatum((float4) row.p99_ms), row.p99_ms < 0);
	add_time(&builder, row.last_delivered_at);
	add_time(&builder, row.last_attempt_at);
	add_value(&builder, row.last_outcome < 0 ? (Datum) 0 :
			  CStringGetTextDatum(accord_retry_word(row.last_outcome)),
			  row.last_outcome < 0);
	add_value(&builder, CStringGetTextDatum(row.last_error),
			  row.last_error[0] == '\0');
	add_time(&builder, row.last_error_at);
	add_value(&builder, Int32GetDatum(row.replaying), false);
	Assert(builder.n == STATE_COLUMNS);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  builder.values, builder.nulls)));
}
