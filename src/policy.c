/*
 * policy.c: the managed tables, cached.
 *
 * Runs in the application's backends. What is known of a table (columns,
 * types, key, policies, plans) is made once per session, and again after the
 * relation cache said that the table, accord.managed or accord.policy
 * changed. Nothing is looked up for a row.
 *
 * Invariants
 *   - An entry that became stale is not freed while somebody may be using it:
 *     it goes with the transaction in which that was noticed.
 *   - Values become jsonb, and jsonb becomes values, under the server's
 *     default styles and UTC, whatever the session's settings.
 *
 * On failure the statement raises; an entry that was being made is stale.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/float.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "accord.h"
#include "db.h"
#include "guc.h"
#include "invalidation.h"
#include "policy.h"
#include "value.h"

typedef struct Entry
{
	Oid			relid;			/* hash key */
	AccordManaged *managed;		/* NULL: none is made */
	bool		is_absent;		/* known not to be managed */
} Entry;

static HTAB *entries = NULL;
static Oid	table_oids[2];		/* of managed and policy */
static uint64 n_changes = 0;	/* heard of, that concerned an entry */

static const char *const words[] = {
	[ACCORD_LATEST] = "latest",
	[ACCORD_FIRST] = "first",
	[ACCORD_PRIORITY] = "priority",
	[ACCORD_OWNER] = "owner",
	[ACCORD_MAX] = "max",
	[ACCORD_MIN] = "min",
	[ACCORD_COUNTER] = "counter",
	[ACCORD_SET] = "set",
	[ACCORD_JSON] = "json",
	[ACCORD_THREE_WAY] = "three-way",
	[ACCORD_STATE] = "state",
	[ACCORD_CUSTOM] = "custom",
	[ACCORD_PARK] = "park"
};

const char *
accord_policy_word(AccordStrategy strategy)
{
	return words[strategy];
}

/* ---- the cache ----------------------------------------------------------- */

static void
mark_stale(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	Entry	   *entry;
	bool		all = !OidIsValid(relid) || relid == table_oids[0] ||
	relid == table_oids[1];

	n_changes += all;
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!all && entry->relid != relid)
			continue;
		n_changes++;
		entry->is_absent = false;
		if (entry->managed != NULL)
			entry->managed->stale = true;
	}
}

/* A function or role changed: a custom policy may be affected. */
static void
mark_all_stale(Datum arg, int cache, uint32 hash)
{
	mark_stale((Datum) 0, InvalidOid);
}

static void
create_cache(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Entry);
	ctl.hcxt = TopMemoryContext;
	entries = hash_create("pg_accord managed tables", 64, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	accord_invalidation_heed(mark_stale, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, mark_all_stale, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, mark_all_stale, (Datum) 0);
}

/* Called when an entry's memory goes. */
static void
free_plans(void *arg)
{
	AccordManaged *managed = arg;
	ListCell   *lc;

	if (managed->find != NULL)
		SPI_freeplan(managed->find);
	if (managed->look != NULL)
		SPI_freeplan(managed->look);
	if (managed->remove != NULL)
		SPI_freeplan(managed->remove);
	foreach(lc, managed->writes)
	{
		/* the plan is the first member; see resolve.c */
		SPI_freeplan(*(SPIPlanPtr *) lfirst(lc));
	}
}

/* What is in use goes on being used, until the end of the transaction. */
static void
retire(Entry *entry)
{
	if (entry->managed == NULL)
		return;
	MemoryContextSetParent(entry->managed->context, TopTransactionContext);
	entry->managed = NULL;
}

static AccordManaged *
new_managed(Oid relid, MemoryContext context)
{
	AccordManaged *managed = MemoryContextAllocZero(context,
													sizeof(AccordManaged));
	MemoryContextCallback *callback =
	MemoryContextAllocZero(context, sizeof(MemoryContextCallback));

	managed->relid = relid;
	managed->context = context;
	callback->func = free_plans;
	callback->arg = managed;
	MemoryContextRegisterResetCallback(context, callback);
	return managed;
}

/* ---- making an entry ----------------------------------------------------- */

static void
describe_column(AccordColumn *column, Form_pg_attribute attribute, int index)
{
	Oid			input;

	column->name = pstrdup(NameStr(attribute->attname));
	column->index = index;
	column->type = getBaseType(attribute->atttypid);
	column->typmod = attribute->atttypmod;
	column->collation = attribute->attcollation;
	column->element = get_element_type(column->type);
	column->is_jsonb = column->type == JSONBOID || column->type == JSONOID;
	column->is_generated = attribute->attgenerated != '\0';
	/* the domain's own input function, which checks its constraints */
	getTypeInputInfo(attribute->atttypid, &input, &column->ioparam);
	fmgr_info_cxt(input, &column->input, CurrentMemoryContext);
}

static void
describe_columns(AccordManaged *managed, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	char	   *schema;

	managed->natts = desc->natts;
	managed->columns = palloc0(desc->natts * sizeof(AccordColumn));
	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped)
			describe_column(&managed->columns[managed->n_columns++],
							TupleDescAttr(desc, i), i);
	managed->image = accord_image_prepare(desc, NULL);
	for (int i = 0; i < accord_image_columns(managed->image); i++)
		for (int c = 0; c < managed->n_columns; c++)
			if (managed->columns[c].index ==
				accord_image_index(managed->image, i))
				managed->columns[c].image_index = i;
	managed->owner = rel->rd_rel->relowner;
	schema = get_namespace_name(RelationGetNamespace(rel));
	managed->name = pstrdup(quote_qualified_identifier(schema,
													   RelationGetRelationName(rel)));
}

int
accord_policy_column(const AccordManaged *managed, const char *name)
{
	for (int i = 0; i < managed->n_columns; i++)
		if (strcmp(managed->columns[i].name, name) == 0)
			return i;
	return -1;
}

/* Runs a query about the table, as its rows are now, with its OID as $1. */
static void
look_up(const char *query, Oid argument_type, Datum argument)
{
	SPIPlanPtr	plan = SPI_prepare(query, 1, &argument_type);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int			result;

	if (plan == NULL)
		elog(ERROR, "could not prepare a look at accord.managed");
	result = SPI_execute_snapshot(plan, &argument, NULL, snapshot,
								  InvalidSnapshot, true, false, 0);
	UnregisterSnapshot(snapshot);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not read accord.managed");
}

static Datum
field(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

static void
set_keys(AccordManaged *managed, ArrayType *names)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls,
					  &n);
	managed->keys = MemoryContextAlloc(managed->context, n * sizeof(int));
	managed->n_keys = n;
	for (int i = 0; i < n; i++)
	{
		char	   *name = TextDatumGetCString(values[i]);
		int			column = accord_policy_column(managed, name);

		if (column < 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of managed table %s does not "
							"exist", name, managed->name),
					 errhint("Call accord.unmanage() and accord.manage() for "
							 "the table as it is now.")));
		managed->keys[i] = column;
		managed->columns[column].is_key = true;
	}
}

/* false: the table is not managed */
static bool
read_managed(AccordManaged *managed)
{
	bool		isnull;

	look_up("SELECT id, key_columns FROM accord.managed WHERE relation "
			"OPERATOR(pg_catalog.=) $1::pg_catalog.regclass", OIDOID,
			ObjectIdGetDatum(managed->relid));
	if (SPI_processed == 0)
		return false;
	managed->id = DatumGetInt32(field(0, 1, &isnull));
	set_keys(managed, DatumGetArrayTypeP(field(0, 2, &isnull)));
	return true;
}

/* The operator by which an index's column is unique. */
static Oid
equality_of(Relation index, int i)
{
	Oid			type = index->rd_opcintype[i];

	return get_opfamily_member(index->rd_opfamily[i], type, type,
							   BTEqualStrategyNumber);
}

/* The place of an index's column in the table's key; -1: it is no part of it. */
static int
place_in_key(AccordManaged *managed, Relation index, int i)
{
	for (int k = 0; k < managed->n_keys; k++)
	{
		AccordColumn *column = &managed->columns[managed->keys[k]];

		if (column->index + 1 == index->rd_index->indkey.values[i])
			return column->collation == index->rd_indcollation[i] &&
				lookup_type_cache(column->type, TYPECACHE_EQ_OPR)->eq_opr ==
				equality_of(index, i) ? k : -1;
	}
	return -1;
}

/* Whether the index is over the key, by its columns' own equality. */
static bool
is_key_index(AccordManaged *managed, Relation index)
{
	if (!index->rd_index->indisunique || !index->rd_index->indimmediate ||
		!index->rd_index->indisvalid || index->rd_rel->relam != BTREE_AM_OID ||
		index->rd_index->indnkeyatts != managed->n_keys ||
		RelationGetIndexPredicate(index) != NIL ||
		RelationGetIndexExpressions(index) != NIL)
		return false;
	for (int i = 0; i < managed->n_keys; i++)
		if (place_in_key(managed, index, i) < 0)
			return false;
	return true;
}

static void
take_index(AccordManaged *managed, Relation index)
{
	managed->key_index = RelationGetRelid(index);
	managed->index_keys = palloc(managed->n_keys * sizeof(int));
	managed->index_scan = palloc(managed->n_keys * sizeof(ScanKeyData));
	for (int i = 0; i < managed->n_keys; i++)
	{
		managed->index_keys[i] = place_in_key(managed, index, i);
		ScanKeyEntryInitialize(&managed->index_scan[i], 0, i + 1,
							   BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i],
							   get_opcode(equality_of(index, i)), (Datum) 0);
	}
}

/*
 * Finds the index by which rows of the key can be found without a plan. Where
 * rows may be in other tables, in partitions or in children, there is none.
 */
static void
find_key_index(AccordManaged *managed)
{
	Relation	rel = table_open(managed->relid, AccessShareLock);
	List	   *indexes = RelationGetIndexList(rel);
	MemoryContext old = MemoryContextSwitchTo(managed->context);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index;

		if (rel->rd_rel->relkind != RELKIND_RELATION ||
			rel->rd_rel->relhassubclass || OidIsValid(managed->key_index))
			break;
		index = index_open(lfirst_oid(lc), AccessShareLock);
		if (is_key_index(managed, index))
			take_index(managed, index);
		index_close(index, AccessShareLock);
	}
	MemoryContextSwitchTo(old);
	list_free(indexes);
	table_close(rel, NoLock);
}

static AccordPolicy *
parse_in(MemoryContext context, const AccordColumn *column,
		 const char *strategy, Jsonb *options, Oid owner)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	AccordPolicy *policy = accord_policy_parse(column, strategy, options,
											   owner);

	MemoryContextSwitchTo(old);
	return policy;
}

/* Gives every column a policy: its own, or that of '*', or latest. */
static void
spread(AccordManaged *managed)
{
	managed->can_lose = false;
	for (int i = 0; i < managed->n_columns; i++)
	{
		AccordColumn *column = &managed->columns[i];

		if (column->policy == NULL)
			column->policy = managed->row;
		Assert(column->policy != NULL);
		if (column->policy->strategy != ACCORD_LATEST &&
			column->policy->strategy != ACCORD_THREE_WAY &&
			column->policy->strategy != ACCORD_COUNTER)
			managed->can_lose = true;
	}
}

static void
set_policy(AccordManaged *managed, const char *name, const char *strategy,
		   Jsonb *options, Oid owner, int version)
{
	int			at = accord_policy_column(managed, name);
	bool		is_row = strcmp(name, "*") == 0;
	AccordPolicy *policy;

	if (at < 0 && !is_row)
		return;					/* the column is gone */
	policy = parse_in(managed->context, is_row ? NULL : &managed->columns[at],
					  strategy, options, owner);
	policy->version = version;
	if (is_row)
		managed->row = policy;
	else
		managed->columns[at].policy = policy;
}

static void
read_policies(AccordManaged *managed)
{
	SPITupleTable *table;
	uint64		n;

	managed->row = parse_in(managed->context, NULL, "latest", NULL,
							managed->owner);
	look_up("SELECT DISTINCT ON (column_name) column_name, strategy, options, "
			"version, (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname "
			"OPERATOR(pg_catalog.=) p.owner) FROM accord.policy p "
			"WHERE managed OPERATOR(pg_catalog.=) $1 "
			"ORDER BY column_name, version DESC", INT4OID,
			Int32GetDatum(managed->id));
	table = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		bool		is_null;
		bool		is_dropped;
		Datum		name;
		Datum		strategy;

		SPI_tuptable = table;
		name = field(i, 1, &is_null);
		strategy = field(i, 2, &is_dropped);
		if (is_dropped)
			continue;
		set_policy(managed, TextDatumGetCString(name),
				   TextDatumGetCString(strategy),
				   DatumGetJsonbP(field(i, 3, &is_null)),
				   DatumGetObjectId(field(i, 5, &is_null)),
				   DatumGetInt32(field(i, 4, &is_null)));
	}
	spread(managed);
}

/* Reads everything as the tables' owner. */
static bool
read_tables(AccordManaged *managed)
{
	AccordDbUser before;
	bool		found;

	before = accord_db_become(accord_db_owner());
	SPI_connect();
	found = read_managed(managed);
	if (found)
		read_policies(managed);
	SPI_finish();
	accord_db_be_again(before);
	return found;
}

static AccordManaged *
make_managed(Oid relid)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord managed table",
												  ALLOCSET_SMALL_SIZES);
	AccordManaged *managed = new_managed(relid, context);
	Relation	rel = table_open(relid, AccessShareLock);
	MemoryContext old = MemoryContextSwitchTo(context);

	describe_columns(managed, rel);
	MemoryContextSwitchTo(old);
	table_close(rel, NoLock);
	if (!read_tables(managed))
	{
		MemoryContextDelete(context);
		return NULL;
	}
	find_key_index(managed);
	return managed;
}

/* The table's entry, made empty where there is none. */
static Entry *
find_entry(Oid relid)
{
	Entry	   *entry;
	bool		found;

	if (entries == NULL)
		create_cache();
	entry = hash_search(entries, &relid, HASH_ENTER, &found);
	if (!found)
	{
		entry->managed = NULL;
		entry->is_absent = false;
	}
	return entry;
}

AccordManaged *
accord_policy_find(Oid relid)
{
	Entry	   *entry = find_entry(relid);
	AccordManaged *managed;
	uint64		before;

	if (entry->managed != NULL && !entry->managed->stale)
		return entry->managed;
	if (entry->is_absent)
		return NULL;
	retire(entry);
	table_oids[0] = accord_db_relid("managed");
	table_oids[1] = accord_db_relid("policy");
	before = n_changes;
	managed = make_managed(relid);
	/* made: nothing raises any more, and none else can have been made */
	entry = find_entry(relid);
	/* who was told of a change while reading may have read what was before */
	entry->is_absent = managed == NULL && n_changes == before;
	if (managed == NULL)
		return NULL;
	managed->stale = n_changes != before;
	retire(entry);
	MemoryContextSetParent(managed->context, CacheMemoryContext);
	entry->managed = managed;
	return managed;
}

AccordManaged *
accord_policy_require(Oid relid)
{
	AccordManaged *managed = accord_policy_find(relid);

	if (managed == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not managed",
						get_rel_name(relid) ? get_rel_name(relid) : "(gone)"),
				 errhint("Call accord.manage() or accord.set_policy() for it "
						 "first.")));
	return managed;
}

AccordManaged *
accord_policy_imagine(const AccordManaged *managed, const char *column,
					  const char *strategy, Jsonb *options, Oid owner)
{
	AccordManaged *copy = palloc(sizeof(AccordManaged));
	AccordPolicy *before = managed->row;

	memcpy(copy, managed, sizeof(AccordManaged));
	copy->columns = palloc(managed->n_columns * sizeof(AccordColumn));
	memcpy(copy->columns, managed->columns,
		   managed->n_columns * sizeof(AccordColumn));
	copy->context = CurrentMemoryContext;
	copy->writes = NIL;
	if (strategy == NULL)
		return copy;
	if (strcmp(column, "*") != 0 && accord_policy_column(copy, column) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table %s does not exist", column,
						copy->name),
				 errhint("Give one of its columns, or '*'.")));
	set_policy(copy, column, strategy, options, owner, 0);
	for (int i = 0; i < copy->n_columns; i++)
		if (copy->columns[i].policy == before)
			copy->columns[i].policy = copy->row;
	spread(copy);
	return copy;
}

int
accord_policy_rank(const AccordPolicy *policy, const char *source)
{
	for (int i = 0; i < policy->n_order; i++)
	{
		const char *name = policy->order[i];

		if (source != NULL ? strcmp(name, source) == 0 :
			strcmp(name, "application") == 0 ||
			(accord_node_name[0] != '\0' &&
			 strcmp(name, accord_node_name) == 0))
			return policy->n_order - i;
	}
	return 0;
}

/* ---- values -------------------------------------------------------------- */

static void append_array(StringInfo text, Jsonb *value);

/* An element in an array's text form: always quoted, unless null. */
static void
append_element(StringInfo text, Jsonb *value)
{
	char	   *plain;

	if (accord_value_is_array(value))
	{
		append_array(text, value);
		return;
	}
	plain = accord_value_text(value);
	if (plain == NULL)
	{
		appendStringInfoString(text, "NULL");
		return;
	}
	appendStringInfoChar(text, '"');
	for (const char *p = plain; *p != '\0'; p++)
	{
		if (*p == '"' || *p == '\\')
			appendStringInfoChar(text, '\\');
		appendStringInfoChar(text, *p);
	}
	appendStringInfoChar(text, '"');
}

static void
append_array(StringInfo text, Jsonb *value)
{
	AccordValueScan scan;
	bool		first = true;

	check_stack_depth();
	appendStringInfoChar(text, '{');
	accord_value_scan(&scan, value);
	while (accord_value_next(&scan))
	{
		if (!first)
			appendStringInfoChar(text, ',');
		first = false;
		append_element(text, scan.value);
	}
	appendStringInfoChar(text, '}');
}

/* The text that the type's input function reads; NULL when null. */
static char *
input_text(AccordColumn *column, Jsonb *value)
{
	StringInfoData text;

	if (accord_value_is_null(value))
		return NULL;
	if (column->is_jsonb)
		return JsonbToCString(NULL, &value->root, VARSIZE(value));
	if (OidIsValid(column->element) && accord_value_is_array(value))
	{
		initStringInfo(&text);
		append_array(&text, value);
		return text.data;
	}
	return accord_value_text(value);
}

typedef struct Conversion
{
	AccordColumn *column;
	Jsonb	   *value;
	Datum		result;
	bool		isnull;
} Conversion;

static void
convert(void *arg)
{
	Conversion *c = arg;
	char	   *text = input_text(c->column, c->value);

	c->isnull = text == NULL;
	c->result = InputFunctionCall(&c->column->input, text, c->column->ioparam,
								  c->column->typmod);
}

Datum
accord_policy_datum(AccordColumn *column, Jsonb *value, bool *isnull)
{
	Conversion	conversion = {column, value, (Datum) 0, true};

	accord_image_in_style(convert, &conversion);
	*isnull = conversion.isnull;
	return conversion.result;
}

Jsonb	   *
accord_policy_normalize(AccordManaged *managed, int column, Jsonb *value)
{
	Datum	   *values = palloc(managed->natts * sizeof(Datum));
	bool	   *nulls = palloc(managed->natts * sizeof(bool));
	bool	   *wanted = palloc0(managed->n_columns * sizeof(bool));
	AccordColumn *c = &managed->columns[column];

	if (accord_value_is_null(value))
		return NULL;
	values[c->index] = accord_policy_datum(c, value, &nulls[c->index]);
	wanted[c->image_index] = true;
	value = accord_value_member(accord_image_build(managed->image, values,
												   nulls, wanted), c->name);
	return accord_value_is_null(value) ? NULL : value;
}
