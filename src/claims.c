/*
 * claims.c: rows that claim a resource for a time; which of them stand.
 *
 * Runs in the application's backends, as triggers of tables that are managed
 * by accord.manage_claims(), and in that function itself. After a statement
 * that may have made a difference, the claims it touched are decided again,
 * and with them all that overlap them, directly or through others; nothing
 * beyond can be different. Decided greedily: in the order of their ranking
 * each is accepted that finds capacity left, at every moment of its range, by
 * those accepted before it. So the verdicts depend on which claims there are,
 * not on when they came (but for frozen ones, which keep what they have).
 *
 * Invariants
 *   - Only this file sets the column "accepted": the guard sees to it. A new
 *     claim, and one that is moved, is not accepted until it is decided.
 *   - Who is displaced is marked before who is accepted, so an exclusion
 *     constraint over accepted claims holds at every instant.
 *   - Decisions about one resource wait for each other at its row in
 *     accord.claim_resource, which each of them updates: under READ COMMITTED
 *     the second one then sees what the first one did, under the stricter
 *     levels it fails with a serialization failure.
 *   - What is displaced, turned down, or accepted after all is told by an
 *     event that has no source: its own channel hears of it, too.
 *
 * The statements are made by accord.claims_statements(). They are run as the
 * table's owner, as those of foreign keys are: row security must not hide a
 * claim. Resources are locked in the order of their names.
 *
 * On failure the statement raises, and nothing is decided.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rangetypes.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "accord.h"
#include "compat.h"
#include "config.h"
#include "counter.h"
#include "db.h"
#include "log.h"

#define MAX_ROUNDS 100			/* of triggers that move claims in turn */
#define MAX_PARTS INDEX_MAX_KEYS	/* columns of a resource, or of a key */

/* What is known of a table for one statement. */
typedef struct Claims
{
	int			id;
	Oid			relid;
	Oid			owner;			/* of the table */
	char	   *topic;
	char	   *reach;			/* statements: see claims_statements() */
	char	   *decide;
	char	   *mark;
	char	   *tell;
	int			n_keys;
	int64		changed;		/* verdicts so far */
} Claims;

/* A resource, and the time in which something may be different. */
typedef struct Resource
{
	int			n;				/* columns; their values, then the multirange */
	Oid			types[MAX_PARTS + 1];
	Datum		values[MAX_PARTS + 1];
	char	   *name;
} Resource;

/* A claim that is decided. */
typedef struct Claim
{
	Datum	   *key;
	RangeBound	lower;
	RangeBound	upper;
	int			from;			/* places of the bounds in their order */
	int			to;
	int			capacity;
	bool		counts;			/* meets the condition and is not empty */
	bool		accepted;		/* as stored */
	bool		was;			/* before the statement */
	bool		fresh;			/* inserted by it */
	bool		marked;
	bool		verdict;
} Claim;

typedef struct Decision
{
	int			n;
	Claim	   *claims;			/* in the order in which they are decided */
	Oid			key_types[MAX_PARTS + 1];
	TypeCacheEntry *range;
} Decision;

/* One end of a claim's range. */
typedef struct End
{
	RangeBound *bound;
	int		   *place;
} End;

static bool marking = false;	/* the guard lets our own UPDATE through */
static uint64 decisions = 0;	/* so far, to notice those made meanwhile */

PG_FUNCTION_INFO_V1(accord_claims_guard);
PG_FUNCTION_INFO_V1(accord_claims_settle);
PG_FUNCTION_INFO_V1(accord_manage_claims);
PG_FUNCTION_INFO_V1(accord_unmanage_claims);
PG_FUNCTION_INFO_V1(accord_settle_claims);

/* ---- the order of bounds, and the verdicts ------------------------------- */

/* Where bounds are equal a range begins before another one ends. */
static int
compare_ends(const void *a, const void *b, void *range)
{
	const End  *left = a;
	const End  *right = b;
	int			order = range_cmp_bounds(range, left->bound, right->bound);

	if (order == 0 && left->bound->lower != right->bound->lower)
		order = left->bound->lower ? -1 : 1;
	return order;
}

/* Gives each bound its place; what lies between two places is one stretch. */
static int
order_ends(Decision *decision)
{
	End		   *ends = palloc((2 * decision->n + 1) * sizeof(End));
	int			n = 0;

	for (int i = 0; i < decision->n; i++)
	{
		Claim	   *claim = &decision->claims[i];

		if (!claim->counts)
			continue;
		ends[n].bound = &claim->lower;
		ends[n++].place = &claim->from;
		ends[n].bound = &claim->upper;
		ends[n++].place = &claim->to;
	}
	qsort_arg(ends, n, sizeof(End), compare_ends, decision->range);
	for (int i = 0; i < n; i++)
		*ends[i].place = i;
	pfree(ends);
	return n;
}

/* Whether each stretch of the claim has capacity left. */
static bool
has_room(const Claim *claim, const int *taken)
{
	for (int i = claim->from; i < claim->to; i++)
		if (taken[i] >= claim->capacity)
			return false;
	return true;
}

/* The verdicts: pure, given the claims in their order. */
static void
judge(Decision *decision)
{
	int			n = order_ends(decision);
	int		   *taken = palloc0((n + 1) * sizeof(int));

	for (int i = 0; i < decision->n; i++)
	{
		Claim	   *claim = &decision->claims[i];

		CHECK_FOR_INTERRUPTS();
		claim->verdict = claim->counts && has_room(claim, taken);
		for (int j = claim->from; claim->verdict && j < claim->to; j++)
			taken[j]++;
	}
	pfree(taken);
}

/* ---- reading ------------------------------------------------------------- */

static Datum
result_value(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

static bool
result_bool(int row, int column)
{
	bool		isnull;
	Datum		value = result_value(row, column, &isnull);

	return !isnull && DatumGetBool(value);
}

static char *
result_text(int row, int column)
{
	bool		isnull;
	Datum		value = result_value(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* A value that outlives the result. */
static Datum
copy_value(int row, int column, bool *isnull)
{
	Form_pg_attribute attribute =
	TupleDescAttr(SPI_tuptable->tupdesc, column - 1);
	Datum		value = result_value(row, column, isnull);

	return *isnull ? (Datum) 0 :
		datumCopy(value, attribute->attbyval, attribute->attlen);
}

/* Runs one of the table's statements; what it reads is what is there now. */
static uint64
run(const char *statement, int n, Oid *types, Datum *values)
{
	int			code = SPI_execute_with_args(statement, n, types, values, NULL,
											 false, 0);

	if (code < 0)
		elog(ERROR, "could not run \"%s\": %s", statement,
			 SPI_result_code_string(code));
	return SPI_processed;
}

/* Reads how the table's claims are decided; returns the statement "changed". */
static char *
read_statements(Claims *claims, const char *kind)
{
	Oid			types[] = {INT4OID, REGCLASSOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(claims->id),
	ObjectIdGetDatum(claims->relid), CStringGetTextDatum(kind)};
	AccordDbUser before = accord_db_become(accord_db_owner());
	char	   *changed;
	bool		isnull;

	if (run("SELECT s.changed, s.reach, s.decide, s.mark, s.tell, c.topic, "
			"pg_catalog.cardinality(c.key_columns) FROM accord.claims c, "
			"accord.claims_statements($1, $2, $3) s "
			"WHERE c.id OPERATOR(pg_catalog.=) $1",
			3, types, values) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not known to accord.claims",
						get_rel_name(claims->relid)),
				 errhint("Call accord.manage_claims() for it again.")));
	changed = result_text(0, 1);
	claims->reach = result_text(0, 2);
	claims->decide = result_text(0, 3);
	claims->mark = result_text(0, 4);
	claims->tell = result_text(0, 5);
	claims->topic = result_text(0, 6);
	claims->n_keys = DatumGetInt32(result_value(0, 7, &isnull));
	accord_db_be_again(before);
	return changed;
}

/* The resources that a statement touched. */
static Resource *
read_resources(const char *changed, int *n)
{
	Resource   *resources;
	int			columns;
	bool		isnull;

	*n = (int) run(changed, 0, NULL, NULL);
	columns = SPI_tuptable->tupdesc->natts - 1;
	resources = palloc0((*n + 1) * sizeof(Resource));
	for (int i = 0; i < *n; i++)
	{
		resources[i].n = columns - 1;
		for (int j = 0; j < columns; j++)
		{
			resources[i].types[j] = SPI_gettypeid(SPI_tuptable->tupdesc,
												  j + 1);
			resources[i].values[j] = copy_value(i, j + 1, &isnull);
		}
		resources[i].name = result_text(i, columns + 1);
	}
	return resources;
}

/* Widens the time until nothing that overlaps it reaches beyond it. */
static void
widen(const Claims *claims, Resource *resource)
{
	bool		isnull;
	bool		same = false;

	while (!same)
	{
		run(claims->reach, resource->n + 1, resource->types,
			resource->values);
		same = result_bool(0, 2);
		resource->values[resource->n] = copy_value(0, 1, &isnull);
	}
}

/* Of whatever integer type; null: none. */
static int
read_capacity(int row, int column)
{
	bool		isnull;
	Datum		value = result_value(row, column, &isnull);

	if (isnull)
		return 0;
	switch (SPI_gettypeid(SPI_tuptable->tupdesc, column))
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT8OID:
			return (int) Max(0, Min(DatumGetInt64(value), PG_INT32_MAX));
		default:
			return DatumGetInt32(value);
	}
}

static void
read_claim(Claim *claim, int row, int n_keys, TypeCacheEntry *range,
		   bool first)
{
	bool		isnull;
	bool		empty;
	Datum		during = copy_value(row, n_keys + 1, &isnull);

	claim->key = palloc(n_keys * sizeof(Datum));
	for (int i = 0; i < n_keys; i++)
		claim->key[i] = copy_value(row, i + 1, &isnull);
	range_deserialize(range, DatumGetRangeTypeP(during), &claim->lower,
					  &claim->upper, &empty);
	claim->accepted = result_bool(row, n_keys + 2);
	claim->counts = result_bool(row, n_keys + 3);
	claim->capacity = read_capacity(row, n_keys + 4);
	claim->was = claim->accepted;
	if (first)
	{
		result_value(row, n_keys + 5, &isnull);
		if (!isnull)
			claim->was = result_bool(row, n_keys + 5);
		claim->fresh = result_bool(row, n_keys + 6);
	}
}

/* The claims in reach, in the order of their ranking. */
static Decision *
read_claims(const Claims *claims, Resource *resource, bool first)
{
	Decision   *decision = palloc0(sizeof(Decision));

	decision->n = (int) run(claims->decide, resource->n + 1, resource->types,
							resource->values);
	decision->claims = palloc0((decision->n + 1) * sizeof(Claim));
	for (int i = 0; i < claims->n_keys; i++)
		decision->key_types[i] = SPI_gettypeid(SPI_tuptable->tupdesc, i + 1);
	decision->range =
		lookup_type_cache(getBaseType(SPI_gettypeid(SPI_tuptable->tupdesc,
													claims->n_keys + 1)),
						  TYPECACHE_RANGE_INFO);
	for (int i = 0; i < decision->n; i++)
		read_claim(&decision->claims[i], i, claims->n_keys, decision->range,
				   first);
	return decision;
}

/* ---- writing ------------------------------------------------------------- */

/* Waits for whoever decides about the resource, and keeps it to the end. */
static void
lock_resource(const Claims *claims, const Resource *resource)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(claims->id),
	CStringGetTextDatum(resource->name)};
	AccordDbUser before = accord_db_become(accord_db_owner());

	run("INSERT INTO accord.claim_resource AS r (claims, resource) "
		"VALUES ($1, $2) ON CONFLICT (claims, resource) DO UPDATE "
		"SET decisions = r.decisions OPERATOR(pg_catalog.+) 1",
		2, types, values);
	accord_db_be_again(before);
}

/* Sets the verdict of one claim. */
static void
mark_claim(const Claims *claims, Decision *decision, const Claim *claim)
{
	Datum		values[MAX_PARTS + 1];

	memcpy(values, claim->key, claims->n_keys * sizeof(Datum));
	values[claims->n_keys] = BoolGetDatum(claim->verdict);
	decision->key_types[claims->n_keys] = BOOLOID;
	run(claims->mark, claims->n_keys + 1, decision->key_types, values);
}

/*
 * Marks those whose stored verdict is another, displaced ones first. False:
 * a trigger of the table had claims decided meanwhile, and what is left to be
 * marked has to be seen anew.
 */
static bool
mark_claims(Claims *claims, Decision *decision, int verdict)
{
	uint64		mine = ++decisions;

	for (int i = 0; i < decision->n && decisions == mine; i++)
	{
		Claim	   *claim = &decision->claims[i];

		if (claim->verdict != (verdict == 1) ||
			claim->verdict == claim->accepted)
			continue;
		marking = true;
		mark_claim(claims, decision, claim);
		claim->marked = true;
		claims->changed++;
	}
	return decisions == mine;
}

static bool
mark_all(Claims *claims, Decision *decision)
{
	bool		outer = marking;
	bool		undisturbed;

	PG_TRY();
	{
		undisturbed = mark_claims(claims, decision, 0) &&
			mark_claims(claims, decision, 1);
	}
	PG_FINALLY();
	{
		marking = outer;
	}
	PG_END_TRY();
	return undisturbed;
}

/* The channels that hear of it: its own, or whom the routes say. */
static Datum
address(const char *source, bool *isnull)
{
	Datum		name;

	*isnull = source == NULL ||
		accord_config_channel(accord_config_get(), source) == NULL;
	if (*isnull)
		return (Datum) 0;
	name = CStringGetTextDatum(source);
	return PointerGetDatum(construct_array(&name, 1, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/* Writes the claim that was just read down as the loser of a conflict. */
static void
log_loser(const Claims *claims)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, JSONBOID, JSONBOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1] = "     ";
	AccordDbUser before;

	values[0] = Int32GetDatum(claims->id);
	for (int i = 1; i < lengthof(types); i++)
	{
		/* its key, source, event and winners */
		static const int columns[] = {0, 1, 3, 2, 5};
		bool		isnull;

		values[i] = copy_value(0, columns[i], &isnull);
		nulls[i] = isnull ? 'n' : ' ';
	}
	before = accord_db_become(accord_db_owner());
	if (SPI_execute_with_args("SELECT accord.claims_log($1, $2, $3, "
							  "$4 OPERATOR(pg_catalog.->) 'claim', $5)",
							  lengthof(types), types, values, nulls, false,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not write to accord.conflict_log");
	accord_counter_note(ACCORD_COUNTER_CONFLICTS, 1);
	accord_db_be_again(before);
}

/* Appends the event that tells of one claim. */
static void
tell_claim(const Claims *claims, Decision *decision, const Claim *claim,
		   const char *verdict)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];
	Datum		arguments[MAX_PARTS + 1];

	memcpy(arguments, claim->key, claims->n_keys * sizeof(Datum));
	arguments[claims->n_keys] = CStringGetTextDatum(verdict);
	decision->key_types[claims->n_keys] = TEXTOID;
	if (run(claims->tell, claims->n_keys + 1, decision->key_types,
			arguments) != 1)
		return;					/* a trigger of the table removed it */
	memset(nulls, true, sizeof(nulls));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_TOPIC, CStringGetTextDatum(claims->topic));
	SET(ACCORD_EVENT_OP, CStringGetTextDatum("event"));
#undef SET
	values[ACCORD_EVENT_KEY - 1] =
		copy_value(0, 1, &nulls[ACCORD_EVENT_KEY - 1]);
	values[ACCORD_EVENT_PAYLOAD - 1] =
		copy_value(0, 2, &nulls[ACCORD_EVENT_PAYLOAD - 1]);
	values[ACCORD_EVENT_ACCOUNT - 1] =
		copy_value(0, 4, &nulls[ACCORD_EVENT_ACCOUNT - 1]);
	values[ACCORD_EVENT_CHANNELS - 1] =
		address(result_text(0, 3), &nulls[ACCORD_EVENT_CHANNELS - 1]);
	accord_log_append(values, nulls);
	if (!claim->verdict)
		log_loser(claims);
}

/* Of all, or of those that were marked before something came between. */
static void
tell_claims(const Claims *claims, Decision *decision, bool all)
{
	for (int i = 0; i < decision->n; i++)
	{
		Claim	   *claim = &decision->claims[i];

		if (!claim->counts)
			continue;			/* who withdrew it knows */
		if (!all && !claim->marked)
			continue;
		if (claim->fresh && !claim->verdict)
			tell_claim(claims, decision, claim, "rejected");
		else if (claim->was && !claim->verdict)
			tell_claim(claims, decision, claim, "displaced");
		else if (!claim->was && claim->verdict && !claim->fresh)
			tell_claim(claims, decision, claim, "accepted");
	}
}

/* ---- deciding ------------------------------------------------------------ */

/*
 * Decides about one resource, and again where the table's own triggers moved
 * claims meanwhile.
 */
static void
settle_resource(Claims *claims, Resource *resource)
{
	int			nest = NewGUCNestLevel();
	bool		first = true;
	int64		before = 0;

	/* the verdict is ours, and is news for every channel */
	(void) set_config_option("accord.source", "", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	lock_resource(claims, resource);
	for (int round = 0; round == 0 || first || claims->changed > before; round++)
	{
		Decision   *decision;
		bool		undisturbed;

		if (round == MAX_ROUNDS)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("claims of \"%s\" on %s do not come to rest",
							get_rel_name(claims->relid), resource->name),
					 errhint("See which trigger of the table moves claims in "
							 "answer to their being accepted or displaced.")));
		before = claims->changed;
		widen(claims, resource);
		decision = read_claims(claims, resource, first);
		judge(decision);
		undisturbed = mark_all(claims, decision);
		tell_claims(claims, decision, undisturbed);
		first &= !undisturbed;
	}
	AtEOXact_GUC(true, nest);
}

/* Everything that a statement of this kind touched. */
static void
settle(Claims *claims, const char *kind)
{
	char	   *changed = read_statements(claims, kind);
	AccordDbUser before = accord_db_become(claims->owner);
	int			n;
	Resource   *resources = read_resources(changed, &n);

	for (int i = 0; i < n; i++)
		settle_resource(claims, &resources[i]);
	accord_db_be_again(before);
}

/* A partition stands for the whole table. */
static void
find_table(Claims *claims, Relation rel, int id)
{
	memset(claims, 0, sizeof(*claims));
	claims->id = id;
	claims->relid = RelationGetRelid(rel);
	claims->owner = rel->rd_rel->relowner;
	if (rel->rd_rel->relispartition)
	{
		Relation	whole;

		claims->relid = llast_oid(get_partition_ancestors(claims->relid));
		whole = table_open(claims->relid, AccessShareLock);
		claims->owner = whole->rd_rel->relowner;
		table_close(whole, NoLock);
	}
}

Datum
accord_claims_settle(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Claims		claims;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs != 1)
		elog(ERROR, "accord.claims_settle() was not called by its trigger");
	find_table(&claims, trigger->tg_relation,
			   atoi(trigger->tg_trigger->tgargs[0]));
	SPI_connect();
	if (SPI_register_trigger_data(trigger) != SPI_OK_TD_REGISTER)
		elog(ERROR, "could not register the changed rows");
	settle(&claims, TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ? "insert" :
		   TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? "update" :
		   TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ? "delete" : "all");
	SPI_finish();
	return PointerGetDatum(NULL);
}

/* ---- the guard ----------------------------------------------------------- */

/* Whether a column differs between the two rows of an update. */
static bool
is_changed(TriggerData *trigger, const char *column)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			number = SPI_fnumber(desc, column);
	Form_pg_attribute attribute;
	bool		old_null;
	bool		new_null;
	Datum		old_value;
	Datum		new_value;

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\", by which claims are "
						"decided, does not exist", column,
						RelationGetRelationName(trigger->tg_relation)),
				 errhint("Call accord.manage_claims() again, with the columns "
						 "as they are called now.")));
	attribute = TupleDescAttr(desc, number - 1);
	old_value = heap_getattr(trigger->tg_trigtuple, number, desc, &old_null);
	new_value = heap_getattr(trigger->tg_newtuple, number, desc, &new_null);
	if (old_null || new_null)
		return old_null != new_null;
	return !datum_image_eq(old_value, new_value, attribute->attbyval,
						   attribute->attlen);
}

/* The row, not accepted (yet). */
static HeapTuple
leave_open(TriggerData *trigger, HeapTuple row, const char *column)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			number = SPI_fnumber(desc, column);
	Datum		value = BoolGetDatum(false);
	bool		isnull = false;

	if (number <= 0)
		return row;				/* the statement that settles it complains */
	return heap_modify_tuple_by_cols(row, desc, 1, &number, &value, &isnull);
}

/* Arguments: the id, the columns accepted and during, those of the resource. */
Datum
accord_claims_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	char	  **args;
	bool		moved = false;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs < 4)
		elog(ERROR, "accord.claims_guard() was not called by its trigger");
	args = trigger->tg_trigger->tgargs;
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		return PointerGetDatum(leave_open(trigger, trigger->tg_trigtuple,
										  args[1]));
	if (!marking && is_changed(trigger, args[1]))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\" of table \"%s\" is set by pg_accord "
						"alone", args[1],
						RelationGetRelationName(trigger->tg_relation)),
				 errhint("Change what claims are ranked by, or end it with "
						 "accord.unmanage_claims().")));
	/* while marking, too: a trigger of the table may move claims in answer */
	for (int i = 2; i < trigger->tg_trigger->tgnargs; i++)
		moved |= is_changed(trigger, args[i]);
	return PointerGetDatum(moved ?
						   leave_open(trigger, trigger->tg_newtuple, args[1]) :
						   trigger->tg_newtuple);
}

/* ---- managing ------------------------------------------------------------ */

/* The table, locked, for who owns it. */
static Relation
open_owned(FunctionCallInfo fcinfo, LOCKMODE lock)
{
	Relation	rel;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("no table of claims is given"),
				 errhint("Give its name, such as 'booking'.")));
	rel = table_open(PG_GETARG_OID(0), lock);
	if (!accord_relation_owned(RelationGetRelid(rel), GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER,
					   get_relkind_objtype(rel->rd_rel->relkind),
					   RelationGetRelationName(rel));
	return rel;
}

/* Runs a function of ours as the owner of the extension; one row comes back. */
static void
call_owner(const char *statement, int n, Oid *types, Datum *values,
		   const char *nulls)
{
	AccordDbUser before = accord_db_become(accord_db_owner());

	if (SPI_execute_with_args(statement, n, types, values, nulls, false,
							  0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not run \"%s\"", statement);
	accord_db_be_again(before);
}

/* Tries the statements, which hold the caller's expressions, on no rows. */
static void
try_statements(Claims *claims)
{
	char	   *changed = read_statements(claims, "all");
	AccordDbUser before = accord_db_become(claims->owner);
	Resource	none = {0};
	char		nulls[MAX_PARTS + 2];
	Oid			type;

	run(psprintf("SELECT * FROM (%s) t LIMIT 0", changed), 0, NULL, NULL);
	none.n = SPI_tuptable->tupdesc->natts - 2;
	for (int i = 0; i <= none.n; i++)
		none.types[i] = SPI_gettypeid(SPI_tuptable->tupdesc, i + 1);
	memset(nulls, 'n', sizeof(nulls) - 1);
	nulls[sizeof(nulls) - 1] = '\0';
	if (SPI_execute_with_args(claims->decide, none.n + 1, none.types,
							  none.values, nulls, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run \"%s\"", claims->decide);
	type = SPI_gettypeid(SPI_tuptable->tupdesc, claims->n_keys + 4);
	if (type != INT2OID && type != INT4OID && type != INT8OID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("capacity of claims of \"%s\" is of type %s, not an "
						"integer", get_rel_name(claims->relid),
						format_type_be(type)),
				 errhint("Give a number, or an SQL expression that comes to "
						 "one.")));
	accord_db_be_again(before);
}

/* accord.manage_claims(relation, resource, during, accepted, ...) */
Datum
accord_manage_claims(PG_FUNCTION_ARGS)
{
	Oid			types[] = {REGCLASSOID, TEXTARRAYOID, TEXTOID, TEXTOID,
	TEXTARRAYOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	Relation	rel = open_owned(fcinfo, ShareRowExclusiveLock);
	Claims		claims;
	bool		isnull;

	find_table(&claims, rel, 0);
	/* triggers cannot be dropped while we have it open */
	table_close(rel, NoLock);

	for (int i = 0; i < lengthof(types); i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		/* condition, frozen, the columns and the topic may be left out */
		if (PG_ARGISNULL(i) && (i <= 4 || i == 7))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("resource, during, accepted, ranking and capacity "
							"of claims cannot be null"),
					 errhint("Leave out what is to have its default.")));
	}
	nulls[lengthof(types)] = '\0';
	SPI_connect();
	call_owner("SELECT accord.claims_store($1, $2, $3, $4, $5, $6, $7, $8, "
			   "$9, $10, $11)", lengthof(types), types, values, nulls);
	claims.id = DatumGetInt32(result_value(0, 1, &isnull));
	try_statements(&claims);
	settle(&claims, "all");
	SPI_finish();
	PG_RETURN_INT64(claims.changed);
}

Datum
accord_unmanage_claims(PG_FUNCTION_ARGS)
{
	Relation	rel = open_owned(fcinfo, AccessExclusiveLock);
	Oid			types[] = {REGCLASSOID};
	Datum		values[] = {ObjectIdGetDatum(RelationGetRelid(rel))};
	bool		was;

	table_close(rel, NoLock);
	SPI_connect();
	call_owner("SELECT accord.claims_forget($1)", 1, types, values, NULL);
	was = result_bool(0, 1);
	SPI_finish();
	PG_RETURN_BOOL(was);
}

Datum
accord_settle_claims(PG_FUNCTION_ARGS)
{
	Relation	rel = open_owned(fcinfo, RowExclusiveLock);
	Oid			types[] = {REGCLASSOID};
	Datum		values[] = {ObjectIdGetDatum(RelationGetRelid(rel))};
	Claims		claims;
	bool		isnull;
	Datum		id;

	SPI_connect();
	call_owner("SELECT accord.claims_id($1)", 1, types, values, NULL);
	id = result_value(0, 1, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the rows of table \"%s\" are not managed as claims",
						RelationGetRelationName(rel)),
				 errhint("Call accord.manage_claims() first.")));
	find_table(&claims, rel, DatumGetInt32(id));
	settle(&claims, "all");
	SPI_finish();
	table_close(rel, NoLock);
	PG_RETURN_INT64(claims.changed);
}
