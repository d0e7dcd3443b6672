/*
 * ledger.c: what came to managed tables, and what lost: accord.change_log and
 * accord.conflict_log.
 *
 * Runs in the application's backends, inside their transactions. A row of
 * change_log is written for every change, so both are appended to directly
 * (append.c), and conflict_log is looked into without an executor (seek.c).
 *
 * Invariant: a decision is a row once, however often the change comes.
 *
 * On failure the statement raises and the transaction decides.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_collation.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "append.h"
#include "compat.h"
#include "counter.h"
#include "db.h"
#include "guc.h"
#include "ledger.h"
#include "seek.h"

/* Columns of accord.conflict_log by which a loser is known again. */
enum
{
	CONFLICT_LOSER_AT = 4,
	CONFLICT_COLUMN_NAME = 8,
	CONFLICT_LOSER_SOURCE = 13,
	CONFLICT_LOSER_EVENT = 14
};

typedef struct LogRow
{
	Datum		values[20];
	bool		nulls[20];
	int			n;
} LogRow;

static void
put(LogRow *row, Datum value, bool isnull)
{
	row->values[row->n] = value;
	row->nulls[row->n++] = isnull;
}

static void
put_text(LogRow *row, const char *text)
{
	put(row, text == NULL ? (Datum) 0 : CStringGetTextDatum(text),
		text == NULL);
}

static void
put_json(LogRow *row, Jsonb *json)
{
	put(row, json == NULL ? (Datum) 0 : JsonbPGetDatum(json), json == NULL);
}

static TimestampTz
clock_time(int64 clock)
{
	return clock == ACCORD_CLOCK_NONE ? DT_NOBEGIN : clock;
}

static void
put_clock(LogRow *row, int64 clock)
{
	put(row, TimestampTzGetDatum(clock_time(clock)), false);
}

static void
put_decimal(LogRow *row, const char *number)
{
	put(row, number == NULL ? (Datum) 0 :
		DirectFunctionCall3(numeric_in, CStringGetDatum(number),
							ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)),
		number == NULL);
}

static int
current_slot(void)
{
	return (int) (accord_db_sequence_last(accord_db_relid("conflict_slot")) %
				  ACCORD_CONFLICT_SLOTS);
}

void
accord_ledger_change(AccordManaged *managed, const char *key,
					 const AccordRowChange *change, Jsonb *before)
{
	LogRow		row = {.n = 0};
	int			slot = current_slot();

	put(&row, TimestampTzGetDatum(GetCurrentTimestamp()), false);
	put_clock(&row, change->stamp.clock);
	put(&row, Int32GetDatum(managed->id), false);
	put(&row, Int16GetDatum(slot), false);
	put_text(&row, key);
	put_text(&row, accord_merge_op_word(change->op));
	put_text(&row, change->stamp.source);
	put_text(&row, change->stamp.event[0] == '\0' ? NULL :
			 change->stamp.event);
	put_decimal(&row, change->stamp.revision);
	put_json(&row, change->changes);
	put_json(&row, change->base);
	put_json(&row, before);
	put(&row, BoolGetDatum(change->is_override), false);
	accord_append_row("change_log", slot, row.values, row.nulls);
}

/* A loser that is looked for; events and sources are never empty. */
typedef struct Loser
{
	const char *column;
	const AccordStamp *stamp;
} Loser;

/* Whether the row's column says this; NULL and "" are null. */
static bool
says(TupleTableSlot *row, int column, const char *string)
{
	bool		isnull;
	Datum		value = slot_getattr(row, column, &isnull);
	text	   *said;

	if (string == NULL || string[0] == '\0')
		return isnull;
	if (isnull)
		return false;
	said = DatumGetTextPP(value);
	return VARSIZE_ANY_EXHDR(said) == strlen(string) &&
		memcmp(VARDATA_ANY(said), string, strlen(string)) == 0;
}

/* AccordSeekCallback */
static bool
is_loser(TupleTableSlot *row, void *arg)
{
	const Loser *loser = arg;
	bool		isnull;
	Datum		at = slot_getattr(row, CONFLICT_LOSER_AT, &isnull);

	return !isnull && DatumGetTimestampTz(at) == clock_time(loser->stamp->clock) &&
		says(row, CONFLICT_COLUMN_NAME, loser->column) &&
		says(row, CONFLICT_LOSER_SOURCE, loser->stamp->source) &&
		says(row, CONFLICT_LOSER_EVENT, loser->stamp->event);
}

/*
 * The slots of the ring that were seen empty. Rows go into the current one,
 * or, by who is slow, into the one before: the others stay empty for as long
 * as the ring does not move.
 */
static struct
{
	Oid			log;			/* gone with the extension */
	int64		moves;
	bool		empty[ACCORD_CONFLICT_SLOTS];
}			seen;

static void
note_empty(int slot)
{
	int			behind = (int) ((seen.moves + ACCORD_CONFLICT_SLOTS - slot) %
								ACCORD_CONFLICT_SLOTS);

	seen.empty[slot] = behind > 1;
}

/* Forgets what was seen before the ring moved. */
static void
look_at_ring(void)
{
	Oid			log = accord_db_relid("conflict_log");
	int64		moves = accord_db_sequence_last(accord_db_relid("conflict_slot"));

	if (seen.log == log && seen.moves == moves)
		return;
	memset(&seen, 0, sizeof(seen));
	seen.log = log;
	seen.moves = moves;
}

/* In one slot of the ring, most of which are empty. */
static bool
is_known_in(int slot, ScanKey keys, Loser *loser)
{
	Relation	heap = table_open(accord_db_slot_relid("conflict_log", slot),
								  AccessShareLock);
	bool		known = false;

	if (RelationGetNumberOfBlocks(heap) > 0)
	{
		char		name[NAMEDATALEN];
		Relation	index;

		snprintf(name, sizeof(name), "conflict_log_%d_key", slot);
		index = index_open(accord_db_relid(name), AccessShareLock);
		known = accord_seek_any(heap, index, keys, 2, is_loser, loser);
		index_close(index, AccessShareLock);
	}
	else
		note_empty(slot);
	table_close(heap, AccessShareLock);
	return known;
}

/* Whether the loser is on record: the change came once more. */
static bool
is_known(AccordManaged *managed, const char *key, const char *column,
		 const AccordStamp *stamp)
{
	Loser		loser = {.column = column,.stamp = stamp};
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(managed->id));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(key));
	look_at_ring();
	for (int slot = 0; slot < ACCORD_CONFLICT_SLOTS; slot++)
		if (!seen.empty[slot] && is_known_in(slot, keys, &loser))
			return true;
	return false;
}

void
accord_ledger_conflict(AccordManaged *managed, const char *key,
					   const AccordConflict *conflict)
{
	const AccordVerdict *v = &conflict->verdict;
	const char *column = conflict->column < 0 ? NULL :
	managed->columns[conflict->column].name;
	LogRow		row = {.n = 0};
	int			slot = current_slot();

	if (is_known(managed, key, column, &v->loser_stamp))
		return;
	put(&row, Int64GetDatum(accord_db_sequence_next(accord_db_relid("conflict_seq"))),
		false);
	put(&row, TimestampTzGetDatum(GetCurrentTimestamp()), false);
	put_clock(&row, v->winner_stamp.clock);
	put_clock(&row, v->loser_stamp.clock);
	put(&row, Int32GetDatum(managed->id), false);
	put(&row, Int16GetDatum(slot), false);
	put_text(&row, key);
	put_text(&row, column);
	put_text(&row, v->rule);
	put(&row, BoolGetDatum(v->held), false);
	put_text(&row, v->winner_stamp.source);
	put_text(&row, v->winner_stamp.event == NULL ||
			 v->winner_stamp.event[0] == '\0' ? NULL : v->winner_stamp.event);
	put_text(&row, v->loser_stamp.source);
	put_text(&row, v->loser_stamp.event[0] == '\0' ? NULL :
			 v->loser_stamp.event);
	put_decimal(&row, v->loser_stamp.revision);
	put_json(&row, accord_value_is_null(v->winner) ? NULL : v->winner);
	put_json(&row, accord_value_is_null(v->loser) ? NULL : v->loser);
	put_text(&row, accord_reason == NULL || accord_reason[0] == '\0' ? NULL :
			 accord_reason);
	accord_append_row("conflict_log", slot, row.values, row.nulls);
	accord_counter_note(ACCORD_COUNTER_CONFLICTS, 1);
}
