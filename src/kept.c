/*
 * kept.c: what is kept of a managed row besides the row: accord.row_state.
 *
 * Runs in the application's backends, inside their transactions; one row is
 * locked, and stored, for each change of a managed row, so it is read and
 * written without an executor (seek.c).
 *
 * Invariants
 *   - Whoever stores what is kept of a row has locked it before, and what they
 *     store is made of what they read then.
 *   - A row of which nothing is kept has nothing to be locked. So who is to
 *     store the first of it holds a lock on its key that SQL cannot take, from
 *     before they look again until it is stored: from there on the stored row
 *     itself, uncommitted, makes the others wait. A session holds one such
 *     lock for each level of nested work.
 *
 * On failure the (sub)transaction aborts, and the locks go with it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "kept.h"
#include "seek.h"
#include "value.h"

/* The table while it is read or written. */
typedef struct Place
{
	Relation	heap;
	Relation	index;
	TupleTableSlot *row;
	ScanKeyData keys[2];
	Datum		key;
	LOCKTAG		tag;
} Place;

/* Columns of accord.row_state. */
enum
{
	KEPT_MANAGED,
	KEPT_KEY,
	KEPT_STATE,
	KEPT_VALUES,
	KEPT_COLUMNS
};

static uint64 n_writes = 0;		/* by this session */

static void
open_place(AccordManaged *managed, const char *key, Place *place)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) key,
										   strlen(key), managed->id);

	place->heap = table_open(accord_db_relid("row_state"), RowExclusiveLock);
	place->index = accord_seek_primary_key(place->heap);
	place->row = table_slot_create(place->heap, NULL);
	place->key = CStringGetTextDatum(key);
	ScanKeyInit(&place->keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(managed->id));
	ScanKeyInit(&place->keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				place->key);
	SET_LOCKTAG_OBJECT(place->tag, MyDatabaseId, RelationGetRelid(place->heap),
					   (uint32) (hash >> 32), (uint16) hash);
}

static void
close_place(Place *place)
{
	ExecDropSingleTupleTableSlot(place->row);
	index_close(place->index, NoLock);
	table_close(place->heap, NoLock);
}

static Jsonb *
column_of(Place *place, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(place->row, column + 1, &isnull);

	return isnull ? NULL : DatumGetJsonbPCopy(value);
}

/*
 * Whether it may be made, the key being claimed. If not, whoever is making it
 * was waited for.
 */
static bool
is_free(AccordManaged *managed, Place *place)
{
	SnapshotData dirty;

	InitDirtySnapshot(dirty);
	if (!accord_seek_row(place->heap, place->index, place->keys, 2, &dirty,
						 place->row))
		return true;
	ExecClearTuple(place->row);
	LockRelease(&place->tag, ExclusiveLock, false);
	if (TransactionIdIsValid(dirty.xmin))
		XactLockTableWait(dirty.xmin, NULL, NULL, XLTW_None);
	else if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not lock what is kept of a row of %s",
						managed->name),
				 errhint("Retry the transaction.")));
	return false;
}

void
accord_kept_lock(AccordManaged *managed, const char *key, AccordKept *kept)
{
	Place		place;

	PreventCommandIfReadOnly("UPDATE");
	memset(kept, 0, sizeof(*kept));
	open_place(managed, key, &place);
	while (!kept->is_new)
	{
		if (accord_seek_locked(place.heap, place.index, place.keys, 2,
							   place.row))
		{
			kept->at = place.row->tts_tid;
			kept->state = column_of(&place, KEPT_STATE);
			kept->values = column_of(&place, KEPT_VALUES);
			break;
		}
		(void) LockAcquire(&place.tag, ExclusiveLock, false, false);
		kept->is_new = kept->is_claimed = is_free(managed, &place);
	}
	kept->writes = n_writes;
	close_place(&place);
}

void
accord_kept_hold(AccordManaged *managed, const char *key, AccordKept *kept)
{
	AccordBuild build;

	accord_kept_lock(managed, key, kept);
	if (!kept->is_new)
		return;
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_end_object(&build);
	accord_kept_store(managed, key, kept, accord_build_done(&build), NULL);
}

/* What a trigger did on the way may have stored it: then it is looked for. */
static bool
is_stored(Place *place, AccordKept *kept)
{
	if (kept->writes == n_writes)
		return !kept->is_new;
	if (!accord_seek_locked(place->heap, place->index, place->keys, 2,
							place->row))
		return false;
	kept->at = place->row->tts_tid;
	return true;
}

void
accord_kept_store(AccordManaged *managed, const char *key, AccordKept *kept,
				  Jsonb *state, Jsonb *values)
{
	Place		place;
	Datum		row[KEPT_COLUMNS];
	bool		nulls[KEPT_COLUMNS] = {false};

	open_place(managed, key, &place);
	row[KEPT_MANAGED] = Int32GetDatum(managed->id);
	row[KEPT_KEY] = place.key;
	row[KEPT_STATE] = JsonbPGetDatum(state);
	row[KEPT_VALUES] = JsonbPGetDatum(values);
	nulls[KEPT_VALUES] = values == NULL;
	if (is_stored(&place, kept))
		accord_seek_update(place.heap, &kept->at, row, nulls);
	else
		accord_seek_insert(place.heap, row, nulls);
	n_writes++;
	if (kept->is_claimed)
		LockRelease(&place.tag, ExclusiveLock, false);
	kept->is_claimed = false;
	close_place(&place);
}
