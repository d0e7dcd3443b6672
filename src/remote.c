/*
 * remote.c: what channels call our things.
 *
 * Runs in dispatchers; the trigger, in whatever backend edits
 * accord.remote_id. An answer to a create holds the id by which updates and
 * deletes have to name the thing, its version, its entity tag. They are noted
 * when the answer is judged, and written in the transaction that settles the
 * delivery: so they are there if and only if the delivery is settled, and the
 * next event of the key, which waits for that commit, finds them.
 *
 * Invariants
 *   - Of one thing there is at most one note: a later one is merged into it.
 *   - A row is written only where something has changed. Each thing has its own
 *     few versions, found by index: a held snapshot slows down only those whose
 *     thing changes all the time.
 *   - A channel has one dispatcher, so what is noted here nobody else notes.
 *     What a person edits at the same time waits, or is waited for, by the row's
 *     lock.
 *
 * On failure the transaction's error ends the dispatcher; the delivery was not
 * settled then, and is sent again.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "await.h"
#include "compat.h"
#include "db.h"
#include "invalidation.h"
#include "json.h"
#include "remote.h"
#include "seek.h"
#include "shmem.h"

#define KEY_COLUMNS 4
#define COLUMNS 7				/* that are written */

/* Columns of accord.remote_id. */
typedef enum RemoteColumn
{
	REMOTE_CHANNEL = 1,
	REMOTE_ACCOUNT,
	REMOTE_KIND,
	REMOTE_KEY,
	REMOTE_ID,
	REMOTE_VERSION,
	REMOTE_ETAG
} RemoteColumn;

typedef struct RemoteNote
{
	uint64		hash;
	bool		forget;
	char	   *columns[COLUMNS];	/* by RemoteColumn - 1 */
} RemoteNote;

static const AccordRemoteScope *current = NULL;
static MemoryContext notes_context = NULL;
static RemoteNote *notes = NULL;
static int	n_notes = 0;
static int	max_notes = 0;
static bool writing = false;	/* it is us who change the table */
static bool edited = false;		/* somebody else has */
static Oid	table_oid = InvalidOid; /* once it was looked into */

PG_FUNCTION_INFO_V1(accord_remote_changed);

static char *
column_text(TupleTableSlot *row, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

void
accord_remote_find(const char *channel, const char *account,
				   AccordRemote *remote)
{
	const char *parts[KEY_COLUMNS] = {channel, account, remote->kind,
	remote->key};
	Relation	heap;
	Relation	index;
	TupleTableSlot *row;
	ScanKeyData keys[KEY_COLUMNS];

	remote->known = false;
	remote->id = remote->version = remote->etag = NULL;
	if (remote->key == NULL)
		return;
	table_oid = accord_db_relid("remote_id");
	heap = table_open(table_oid, AccessShareLock);
	index = index_open(accord_db_relid("remote_id_pkey"), AccessShareLock);
	row = table_slot_create(heap, NULL);
	for (int i = 0; i < KEY_COLUMNS; i++)
		ScanKeyInit(&keys[i], i + 1, BTEqualStrategyNumber, F_TEXTEQ,
					CStringGetTextDatum(parts[i]));
	if (accord_seek_row(heap, index, keys, KEY_COLUMNS, GetActiveSnapshot(),
						row))
	{
		remote->known = true;
		remote->id = column_text(row, REMOTE_ID);
		remote->version = column_text(row, REMOTE_VERSION);
		remote->etag = column_text(row, REMOTE_ETAG);
	}
	ExecDropSingleTupleTableSlot(row);
	index_close(index, AccessShareLock);
	table_close(heap, AccessShareLock);
}

/*
 * Names
 */

void
accord_remote_enter(const AccordRemoteScope *scope)
{
	current = scope;
}

bool
accord_remote_owns(const char *name)
{
	return strncmp(name, "remote.", 7) == 0 ||
		strncmp(name, "needs.", 6) == 0 ||
		strncmp(name, "answer", 6) == 0;
}

static JsonbValue *
make_string(char *string)
{
	JsonbValue *value;

	if (string == NULL)
		return NULL;
	value = palloc(sizeof(JsonbValue));
	value->type = jbvString;
	value->val.string.val = string;
	value->val.string.len = strlen(string);
	return value;
}

/* One of a thing's members; where it has no id, that is the key. */
static JsonbValue *
member_of(const AccordRemote *remote, const char *member)
{
	if (remote->kind == NULL || !remote->known)
		return NULL;
	if (strcmp(member, "id") == 0)
		return make_string(remote->id ? remote->id : pstrdup(remote->key));
	if (strcmp(member, "version") == 0)
		return make_string(remote->version);
	return strcmp(member, "etag") == 0 ? make_string(remote->etag) : NULL;
}

/* "room_type.id": of what is needed. */
static JsonbValue *
find_need(const char *name)
{
	const char *dot = strrchr(name, '.');

	for (int i = 0; dot != NULL && i < current->n_needs; i++)
	{
		const char *kind = current->needs[i].kind;

		if (strlen(kind) == (size_t) (dot - name) &&
			strncmp(kind, name, dot - name) == 0)
			return member_of(&current->needs[i], dot + 1);
	}
	return NULL;
}

bool
accord_remote_variable(const char *name, JsonbValue **value)
{
	*value = NULL;
	if (!accord_remote_owns(name))
		return false;
	if (current == NULL)
		return true;
	if (name[0] == 'r')
		*value = member_of(&current->own, name + 7);
	else if (name[0] == 'n')
		*value = find_need(name + 6);
	else if (current->answer != NULL && (name[6] == '\0' || name[6] == '.'))
		*value = accord_json_path(current->answer,
								  name[6] == '\0' ? "" : name + 7);
	return true;
}

/*
 * Notes
 */

static RemoteNote *
find_note(uint64 hash)
{
	for (int i = 0; i < n_notes; i++)
		if (notes[i].hash == hash)
			return &notes[i];
	return NULL;
}

static RemoteNote *
add_note(uint64 hash)
{
	if (notes_context == NULL)
		notes_context = AllocSetContextCreate(TopMemoryContext,
											  "pg_accord remote ids",
											  ALLOCSET_SMALL_SIZES);
	if (n_notes == max_notes)
	{
		max_notes = Max(16, 2 * max_notes);
		notes = notes == NULL ?
			MemoryContextAlloc(notes_context, max_notes * sizeof(RemoteNote)) :
			repalloc(notes, max_notes * sizeof(RemoteNote));
	}
	memset(&notes[n_notes], 0, sizeof(RemoteNote));
	notes[n_notes].hash = hash;
	return &notes[n_notes++];
}

static void
set_column(RemoteNote *note, RemoteColumn column, const char *value)
{
	char	  **place = &note->columns[column - 1];

	if (value == NULL)
		return;
	if (*place != NULL)
		pfree(*place);
	*place = MemoryContextStrdup(notes_context, value);
}

void
accord_remote_note(const AccordDelivery *delivery, const AccordRemote *remote,
				   bool forget)
{
	const AccordEndpoint *endpoint = delivery->endpoint;
	uint64		hash = accord_await_hash(endpoint->channel, endpoint->account,
										 remote->kind, remote->key);
	RemoteNote *note = find_note(hash);

	if (note == NULL)
		note = add_note(hash);
	if (note->forget != forget)
	{
		/* what was said before is of another life */
		for (int i = REMOTE_ID - 1; i < COLUMNS; i++)
			note->columns[i] = NULL;
	}
	note->forget = forget;
	set_column(note, REMOTE_CHANNEL, endpoint->channel);
	set_column(note, REMOTE_ACCOUNT, endpoint->account);
	set_column(note, REMOTE_KIND, remote->kind);
	set_column(note, REMOTE_KEY, remote->key);
	if (forget)
		return;
	set_column(note, REMOTE_ID, remote->id);
	set_column(note, REMOTE_VERSION, remote->version);
	set_column(note, REMOTE_ETAG, remote->etag);
}

/* One column of the notes that are to be forgotten, or not, as an array. */
static Datum
column_array(RemoteColumn column, bool forget)
{
	Datum	   *values = palloc(Max(n_notes, 1) * sizeof(Datum));
	bool	   *nulls = palloc(Max(n_notes, 1) * sizeof(bool));
	int			dims[1] = {0};
	int			lower[1] = {1};

	for (int i = 0; i < n_notes; i++)
	{
		char	   *value = notes[i].columns[column - 1];

		if (notes[i].forget != forget)
			continue;
		nulls[dims[0]] = value == NULL;
		values[dims[0]++] = value ? CStringGetTextDatum(value) : (Datum) 0;
	}
	return PointerGetDatum(construct_md_array(values, nulls, 1, dims, lower,
											  TEXTOID, -1, false,
											  TYPALIGN_INT));
}

/* Runs a statement over the notes' columns. */
static void
run(const char *statement, int n_columns, bool forget)
{
	Oid			types[COLUMNS];
	Datum		values[COLUMNS];
	bool		any = false;

	for (int i = 0; i < n_notes; i++)
		any |= notes[i].forget == forget;
	if (!any)
		return;
	for (int i = 0; i < n_columns; i++)
	{
		types[i] = TEXTARRAYOID;
		values[i] = column_array(i + 1, forget);
	}
	if (SPI_execute_with_args(statement, n_columns, types, values, NULL, false,
							  0) < 0)
		elog(ERROR, "could not write accord.remote_id");
}

/* Two different statements: of one thing either is true. */
void
accord_remote_write(void)
{
	static const char *const upsert =
	"INSERT INTO accord.remote_id AS r "
	"(channel, account, kind, key, id, version, etag) "
	"SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7) "
	"ON CONFLICT (channel, account, kind, key) DO UPDATE SET "
	"id = coalesce(excluded.id, r.id), "
	"version = coalesce(excluded.version, r.version), "
	"etag = coalesce(excluded.etag, r.etag), updated_at = excluded.updated_at "
	"WHERE (r.id, r.version, r.etag) IS DISTINCT FROM "
	"(coalesce(excluded.id, r.id), coalesce(excluded.version, r.version), "
	"coalesce(excluded.etag, r.etag))";
	static const char *const forget =
	"DELETE FROM accord.remote_id r "
	"USING unnest($1, $2, $3, $4) AS n (channel, account, kind, key) "
	"WHERE r.channel = n.channel AND r.account = n.account "
	"AND r.kind = n.kind AND r.key = n.key";

	if (n_notes == 0)
		return;
	writing = true;
	SPI_connect();
	/* by index, whatever the statistics say of a table that swings */
	set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION,
					  GUC_ACTION_LOCAL, true, 0, false);
	run(upsert, COLUMNS, false);
	run(forget, KEY_COLUMNS, true);
	SPI_finish();
	writing = false;
}

void
accord_remote_written(AccordDesk *desk)
{
	if (n_notes == 0)
		return;
	for (int i = 0; i < n_notes; i++)
		if (!notes[i].forget)
			accord_await_release(desk, notes[i].hash);
	n_notes = 0;
	max_notes = 0;
	notes = NULL;
	MemoryContextReset(notes_context);
}

/*
 * Edits by hand
 */

/* Relation cache callback. */
static void
notice_edit(Datum arg, Oid relid)
{
	edited |= !OidIsValid(relid) || relid == table_oid;
}

void
accord_remote_heed(AccordDesk *desk)
{
	static bool registered = false;

	if (!registered)
		accord_invalidation_heed(notice_edit, (Datum) 0);
	registered = true;
	if (edited)
		accord_await_release_all(desk);
	edited = false;
}

/* Trigger: dispatchers look again once this commits. */
Datum
accord_remote_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "accord.remote_changed() was not called by a trigger");
	if (writing)
		return PointerGetDatum(NULL);
	CacheInvalidateRelcache(trigger->tg_relation);
	if (accord_shmem_ready())
		accord_shmem_config_changed();
	return PointerGetDatum(NULL);
}
