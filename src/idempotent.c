/*
 * idempotent.c: accord.idempotent(): a repeated INSERT into a table is
 * discarded.
 *
 * Runs in the application's backends, as a BEFORE INSERT trigger for each row
 * that accord.idempotent() attaches, named so that it is the last of them. Its
 * arguments say everything: the scope of the table's keys, what to do with a
 * repetition, how many columns make the key, these, and the columns that a
 * repetition must have in common besides.
 *
 * A key is known by what its columns say, not by a row: it is used once, also
 * long after the row is gone (keys.c). A row with a null among its key columns
 * is not looked at, as by a unique index.
 *
 * A row that an update moves to another partition is inserted there, which is
 * no repetition: so the trigger of a partitioned table is fired by updates,
 * too, and notes a row that is about to leave its partition. The next insert
 * of that key, within the same level of triggers, is its other half: nothing
 * but triggers of the row comes between them.
 *
 * On failure the statement raises, and the transaction decides.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "keys.h"
#include "rowkey.h"

/* Arguments of the trigger, in order; the columns follow. */
typedef enum Argument
{
	ARGUMENT_SCOPE,
	ARGUMENT_ON_REPEAT,
	ARGUMENT_KEYS,				/* number of key columns */
	ARGUMENT_COLUMNS
} Argument;

PG_FUNCTION_INFO_V1(accord_idempotent);
PG_FUNCTION_INFO_V1(accord_not_idempotent);
PG_FUNCTION_INFO_V1(accord_idempotent_insert);

/* The bytes that the type sends, in hexadecimal. */
static char *
sent_text(Oid type, Datum value)
{
	Oid			send;
	bool		varlena;
	bytea	   *bytes;
	StringInfoData text;

	getTypeBinaryOutputInfo(type, &send, &varlena);
	bytes = OidSendFunctionCall(send, value);
	initStringInfo(&text);
	for (int i = 0; i < VARSIZE(bytes) - VARHDRSZ; i++)
		appendStringInfo(&text, "%02x", (unsigned char) VARDATA(bytes)[i]);
	return text.data;
}

/* Equal intervals are written alike: a month has 30 days, a day 24 hours. */
static char *
interval_text(Interval *interval)
{
	int64		days = interval->day + (int64) interval->month * DAYS_PER_MONTH;

	days += interval->time / USECS_PER_DAY;
	return psprintf(INT64_FORMAT "d" INT64_FORMAT, days,
					interval->time % USECS_PER_DAY);
}

static char *
float_text(float8 value)
{
	return psprintf("%.17g", value == 0 ? 0 : value);
}

/* Without the blanks that character(n) is filled up with. */
static char *
blank_padded_text(Datum value)
{
	char	   *string = TextDatumGetCString(value);
	size_t		len = strlen(string);

	while (len > 0 && string[len - 1] == ' ')
		len--;
	string[len] = '\0';
	return string;
}

/*
 * A value as text: the same in every session whatever its settings, and for
 * numbers and times the same for what is equal.
 */
static char *
stable_text(Oid type, Datum value)
{
	Oid			output;
	bool		varlena;
	char		category;
	bool		preferred;

	type = getBaseType(type);
	switch (type)
	{
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case TIMEOID:
			return psprintf(INT64_FORMAT, DatumGetInt64(value));
		case DATEOID:
			return psprintf("%d", DatumGetInt32(value));
		case INTERVALOID:
			return interval_text(DatumGetIntervalP(value));
		case FLOAT4OID:
			return float_text(DatumGetFloat4(value));
		case FLOAT8OID:
			return float_text(DatumGetFloat8(value));
		case NUMERICOID:
			return numeric_normalize(DatumGetNumeric(value));
		case BPCHAROID:
			return blank_padded_text(value);
		case BYTEAOID:
			return sent_text(type, value);
		default:
			break;
	}
	get_type_category_preferred(type, &category, &preferred);
	if (category == TYPCATEGORY_ARRAY || category == TYPCATEGORY_RANGE ||
		category == TYPCATEGORY_COMPOSITE || category == TYPCATEGORY_GEOMETRIC ||
		category == TYPCATEGORY_DATETIME)
		return sent_text(type, value);
	getTypeOutputInfo(type, &output, &varlena);
	return OidOutputFunctionCall(output, value);
}

/* A column's value as text; NULL: it is null. */
static char *
column_text(TriggerData *trigger, const char *name)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			column = SPI_fnumber(desc, name);
	Datum		value;
	bool		isnull;

	if (column <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of idempotent table \"%s\" does not exist",
						name, RelationGetRelationName(trigger->tg_relation)),
				 errhint("Call accord.idempotent() again with the columns that "
						 "the table has now.")));
	value = heap_getattr(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						 trigger->tg_newtuple : trigger->tg_trigtuple, column,
						 desc, &isnull);
	return isnull ? NULL :
		stable_text(TupleDescAttr(desc, column - 1)->atttypid, value);
}

/* What the row says in its key columns; NULL: one of them is null. */
static char *
row_key(TriggerData *trigger, int n)
{
	char	  **parts = palloc(n * sizeof(char *));

	for (int i = 0; i < n; i++)
	{
		parts[i] = column_text(trigger, trigger->tg_trigger->tgargs[ARGUMENT_COLUMNS + i]);
		if (parts[i] == NULL)
			return NULL;
	}
	return accord_rowkey_make(n, parts);
}

/* Of the columns that a repetition must have in common. */
static void
row_fingerprint(TriggerData *trigger, int first, uint8 *fingerprint)
{
	StringInfoData content;

	initStringInfo(&content);
	for (int i = first; i < trigger->tg_trigger->tgnargs; i++)
	{
		char	   *text = column_text(trigger, trigger->tg_trigger->tgargs[i]);

		if (text == NULL)
			appendStringInfoString(&content, "-;");
		else
			appendStringInfo(&content, "%zu:%s;", strlen(text), text);
	}
	accord_keys_fingerprint(content.data, content.len, fingerprint);
}

/* Discards the row, or raises. */
static void
judge_repetition(TriggerData *trigger, const char *key, bool same,
				 TimestampTz at)
{
	const char *table = RelationGetRelationName(trigger->tg_relation);

	if (!same)
		ereport(ERROR,
				(errcode(ACCORD_ERRCODE_OTHER_CONTENT),
				 errmsg("key \"%s\" was used for a row of table \"%s\" with "
						"other content", key, table),
				 errdetail("It was used at %s.", timestamptz_to_str(at)),
				 errhint("Use a new key for a new row.")));
	if (strcmp(trigger->tg_trigger->tgargs[ARGUMENT_ON_REPEAT], "raise") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("key \"%s\" was used for a row of table \"%s\" before",
						key, table),
				 errdetail("It was used at %s.", timestamptz_to_str(at)),
				 errhint("The row was inserted then, whether or not it is "
						 "still there.")));
}

/* ---- rows that move ------------------------------------------------------ */

/* The key of a row that the update under way takes to another partition. */
typedef struct Leaving
{
	LocalTransactionId transaction;
	SubTransactionId subtransaction;
	int			depth;			/* of triggers */
	uint8		key[ACCORD_FINGERPRINT_LENGTH];
} Leaving;

static Leaving leaving;

static void
describe_leaving(TriggerData *trigger, const char *key, Leaving *row)
{
	const char *scope = trigger->tg_trigger->tgargs[ARGUMENT_SCOPE];
	char	   *content = psprintf("%zu:%s%s", strlen(scope), scope, key);

	memset(row, 0, sizeof(Leaving));
	row->transaction = accord_my_lxid();
	row->subtransaction = GetCurrentSubTransactionId();
	row->depth = DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
	accord_keys_fingerprint(content, strlen(content), row->key);
}

/* Whether the row, as it is to be, is none of this partition's. */
static bool
leaves_partition(TriggerData *trigger)
{
	Relation	rel = trigger->tg_relation;
	EState	   *estate;
	TupleTableSlot *row;
	bool		leaves;

	if (!rel->rd_rel->relispartition)
		return false;
	estate = CreateExecutorState();
	row = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple);
	ExecStoreHeapTuple(trigger->tg_newtuple, row, false);
	GetPerTupleExprContext(estate)->ecxt_scantuple = row;
	leaves = !ExecCheck(ExecPrepareCheck(RelationGetPartitionQual(rel), estate),
						GetPerTupleExprContext(estate));
	ExecDropSingleTupleTableSlot(row);
	FreeExecutorState(estate);
	return leaves;
}

/* The key of the row to be written; NULL: one of its columns is null. */
static char *
written_key(TriggerData *trigger)
{
	return row_key(trigger, pg_strtoint32(trigger->tg_trigger->tgargs[ARGUMENT_KEYS]));
}

static void
note_leaving(TriggerData *trigger)
{
	char	   *key = written_key(trigger);

	leaving.transaction = InvalidLocalTransactionId;
	if (key != NULL && leaves_partition(trigger))
		describe_leaving(trigger, key, &leaving);
}

/* Whether the row that is inserted has just left another partition. */
static bool
has_moved(TriggerData *trigger, const char *key)
{
	Leaving		row;

	if (leaving.transaction == InvalidLocalTransactionId)
		return false;
	describe_leaving(trigger, key, &row);
	if (memcmp(&row, &leaving, sizeof(Leaving)) != 0)
		return false;
	leaving.transaction = InvalidLocalTransactionId;
	return true;
}

/*
 * A table that became a partition after it got its trigger does not hear of
 * what leaves other partitions: that must not be discarded.
 */
static void
refuse_in_partition(TriggerData *trigger, const char *key)
{
	Relation	rel = trigger->tg_relation;

	if (!rel->rd_rel->relispartition || trigger->tg_trigger->tgisclone)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("key \"%s\" was used for a row of table \"%s\" before, "
					"which is a partition now", key,
					RelationGetRelationName(rel)),
			 errhint("Call accord.idempotent() for the table that it is a "
					 "partition of, and accord.not_idempotent() for it.")));
}

/* The trigger: BEFORE INSERT, of a partitioned table also UPDATE, for each row. */
Datum
accord_idempotent_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	AccordKeys *keys;
	AccordKeyEntry ours = {0};
	AccordKeyEntry entry;
	AccordKeyState state;
	Datum		scope;
	char	   *key;
	int			n;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ||
		trigger->tg_trigger->tgnargs <= ARGUMENT_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("accord.idempotent_insert() was not called by a trigger "
						"of accord.idempotent()"),
				 errhint("Call accord.idempotent() for the table.")));
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		note_leaving(trigger);
		return PointerGetDatum(trigger->tg_newtuple);
	}
	n = pg_strtoint32(trigger->tg_trigger->tgargs[ARGUMENT_KEYS]);
	key = row_key(trigger, n);
	if (key == NULL || has_moved(trigger, key))
		return PointerGetDatum(trigger->tg_trigtuple);
	row_fingerprint(trigger, ARGUMENT_COLUMNS + n, ours.fingerprint);

	keys = accord_keys_open(ACCORD_KEYS_IDEMPOTENCY);
	scope = CStringGetTextDatum(trigger->tg_trigger->tgargs[ARGUMENT_SCOPE]);
	state = accord_keys_claim(keys, scope, CStringGetTextDatum(key), true,
							  &entry);
	if (state == ACCORD_KEY_FREE)
		accord_keys_store(keys, scope, CStringGetTextDatum(key), &ours);
	accord_keys_close(keys);
	if (state == ACCORD_KEY_FREE)
		return PointerGetDatum(trigger->tg_trigtuple);
	judge_repetition(trigger, key,
					 memcmp(entry.fingerprint, ours.fingerprint,
							ACCORD_FINGERPRINT_LENGTH) == 0, entry.at);
	refuse_in_partition(trigger, key);
	return PointerGetDatum(NULL);
}

/*
 * Attaching: whoever owns the table may; the scope's row is beyond their
 * privileges, so the rest is done as the owner of the extension.
 */
static Datum
call_as_owner(FunctionCallInfo fcinfo, const char *query, int n, Oid *types,
			  bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[5];
	char		nulls[5];
	Oid			relid;
	AccordDbUser before;
	Datum		result;

	relid = PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0);
	if (get_rel_name(relid) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid),
				 errhint("Give a table's name.")));
	if (!accord_relation_owned(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER,
					   get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
	for (int i = 0; i < n; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	before = accord_db_become(accord_db_owner());
	SPI_connect();
	if (SPI_execute_with_args(query, n, types, values, nulls, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not run %s", query);
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						   isnull);
	if (!*isnull && SPI_gettypeid(SPI_tuptable->tupdesc, 1) == TEXTOID)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		result = PointerGetDatum(DatumGetTextPCopy(result));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	accord_db_be_again(before);
	return result;
}

/* accord.idempotent(relation, columns, window, on_repeat, content) */
Datum
accord_idempotent(PG_FUNCTION_ARGS)
{
	Oid			types[] = {REGCLASSOID, TEXTARRAYOID, INTERVALOID, TEXTOID,
	TEXTARRAYOID};
	bool		isnull;
	Datum		scope = call_as_owner(fcinfo, "SELECT accord.attach_idempotent("
									  "$1, $2, $3, $4, $5)", 5, types, &isnull);

	PG_RETURN_DATUM(scope);
}

/* accord.not_idempotent(relation) */
Datum
accord_not_idempotent(PG_FUNCTION_ARGS)
{
	Oid			types[] = {REGCLASSOID};
	bool		isnull;

	PG_RETURN_DATUM(call_as_owner(fcinfo, "SELECT accord.detach_idempotent($1)",
								  1, types, &isnull));
}
