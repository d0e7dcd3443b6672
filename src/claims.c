/*
 * claims.c: rows that claim a resource for a time; which of them stand.
 *
 * Runs in the application's backends, as triggers of tables that are managed
 * by accord.manage_claims(), and in that function (claims_manage.c). After a
 * statement that may have made a difference, the claims it touched are decided
 * again, and with them all that overlap them, directly or through others;
 * nothing beyond can be different. Decided greedily: in the order of their
 * ranking each is accepted that finds capacity left, at every moment of its
 * range, by those accepted before it. So the verdicts depend on which claims
 * there are, not on when they came (but for frozen ones, which keep what they
 * have).
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
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "accord.h"
#include "claims_private.h"
#include "config.h"
#include "counter.h"
#include "db.h"
#include "log.h"

#define MAX_ROUNDS 100			/* of triggers that move claims in turn */
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
order_ends(AccordClaimDecision *decision)
{
	End		   *ends = palloc((2 * decision->n + 1) * sizeof(End));
	int			n = 0;

	for (int i = 0; i < decision->n; i++)
	{
		AccordClaim *claim = &decision->claims[i];

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
has_room(const AccordClaim *claim, const int *taken)
{
	for (int i = claim->from; i < claim->to; i++)
		if (taken[i] >= claim->capacity)
			return false;
	return true;
}

/* The verdicts: pure, given the claims in their order. */
static void
judge(AccordClaimDecision *decision)
{
	int			n = order_ends(decision);
	int		   *taken = palloc0((n + 1) * sizeof(int));

	for (int i = 0; i < decision->n; i++)
	{
		AccordClaim *claim = &decision->claims[i];

		CHECK_FOR_INTERRUPTS();
		claim->verdict = claim->counts && has_room(claim, taken);
		for (int j = claim->from; claim->verdict && j < claim->to; j++)
			taken[j]++;
	}
	pfree(taken);
}

/* ---- writing ------------------------------------------------------------- */

/* Waits for whoever decides about the resource, and keeps it to the end. */
static void
lock_resource(const AccordClaims *claims, const AccordClaimResource *resource)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(claims->id),
	CStringGetTextDatum(resource->name)};
	AccordDbUser before = accord_db_become(accord_db_owner());

	accord_claims_run("INSERT INTO accord.claim_resource AS r (claims, resource) "
					  "VALUES ($1, $2) ON CONFLICT (claims, resource) DO UPDATE "
					  "SET decisions = r.decisions OPERATOR(pg_catalog.+) 1",
					  2, types, values);
	accord_db_be_again(before);
}

/* Sets the verdict of one claim. */
static void
mark_claim(const AccordClaims *claims, AccordClaimDecision *decision,
		   const AccordClaim *claim)
{
	Datum		values[ACCORD_CLAIM_PARTS + 1];

	memcpy(values, claim->key, claims->n_keys * sizeof(Datum));
	values[claims->n_keys] = BoolGetDatum(claim->verdict);
	decision->key_types[claims->n_keys] = BOOLOID;
	accord_claims_run(claims->mark, claims->n_keys + 1, decision->key_types,
					  values);
}

/*
 * Marks those whose stored verdict is another, displaced ones first. False:
 * a trigger of the table had claims decided meanwhile, and what is left to be
 * marked has to be seen anew.
 */
static bool
mark_claims(AccordClaims *claims, AccordClaimDecision *decision, int verdict)
{
	uint64		mine = ++decisions;

	for (int i = 0; i < decision->n && decisions == mine; i++)
	{
		AccordClaim *claim = &decision->claims[i];

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
mark_all(AccordClaims *claims, AccordClaimDecision *decision)
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
log_loser(const AccordClaims *claims)
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

		values[i] = accord_claims_copy(0, columns[i], &isnull);
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
tell_claim(const AccordClaims *claims, AccordClaimDecision *decision,
		   const AccordClaim *claim,
		   const char *verdict)
{
	Datum		values[ACCORD_EVENT_COLUMNS];
	bool		nulls[ACCORD_EVENT_COLUMNS];
	Datum		arguments[ACCORD_CLAIM_PARTS + 1];

	memcpy(arguments, claim->key, claims->n_keys * sizeof(Datum));
	arguments[claims->n_keys] = CStringGetTextDatum(verdict);
	decision->key_types[claims->n_keys] = TEXTOID;
	if (accord_claims_run(claims->tell, claims->n_keys + 1,
						  decision->key_types,
						  arguments) != 1)
		return;					/* a trigger of the table removed it */
	memset(nulls, true, sizeof(nulls));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(ACCORD_EVENT_TOPIC, CStringGetTextDatum(claims->topic));
	SET(ACCORD_EVENT_OP, CStringGetTextDatum("event"));
#undef SET
	values[ACCORD_EVENT_KEY - 1] =
		accord_claims_copy(0, 1, &nulls[ACCORD_EVENT_KEY - 1]);
	values[ACCORD_EVENT_PAYLOAD - 1] =
		accord_claims_copy(0, 2, &nulls[ACCORD_EVENT_PAYLOAD - 1]);
	values[ACCORD_EVENT_ACCOUNT - 1] =
		accord_claims_copy(0, 4, &nulls[ACCORD_EVENT_ACCOUNT - 1]);
	values[ACCORD_EVENT_CHANNELS - 1] =
		address(accord_claims_text(0, 3), &nulls[ACCORD_EVENT_CHANNELS - 1]);
	accord_log_append(values, nulls);
	if (!claim->verdict)
		log_loser(claims);
}

/* Of all, or of those that were marked before something came between. */
static void
tell_claims(const AccordClaims *claims, AccordClaimDecision *decision,
			bool all)
{
	for (int i = 0; i < decision->n; i++)
	{
		AccordClaim *claim = &decision->claims[i];

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
settle_resource(AccordClaims *claims, AccordClaimResource *resource)
{
	int			nest = NewGUCNestLevel();
	bool		first = true;
	int64		before = 0;

	/* the verdict is ours, and is news for every channel */
	(void) set_config_option("accord.source", "", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	lock_resource(claims, resource);
	for (int round = 0; round == 0 || first ||
		 claims->changed > before; round++)
	{
		AccordClaimDecision *decision;
		bool		undisturbed;

		if (round == MAX_ROUNDS)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("claims of \"%s\" on %s do not come to rest",
							get_rel_name(claims->relid), resource->name),
					 errhint("See which trigger of the table moves claims in "
							 "answer to their being accepted or displaced.")));
		before = claims->changed;
		accord_claims_widen(claims, resource);
		decision = accord_claims_read(claims, resource, first);
		judge(decision);
		undisturbed = mark_all(claims, decision);
		tell_claims(claims, decision, undisturbed);
		first &= !undisturbed;
	}
	AtEOXact_GUC(true, nest);
}

void
accord_claims_decide(AccordClaims *claims, const char *kind)
{
	char	   *changed = accord_claims_read_statements(claims, kind);
	AccordDbUser before = accord_db_become(claims->owner);
	int			n;
	AccordClaimResource *resources =
	accord_claims_read_resources(changed, &n);

	for (int i = 0; i < n; i++)
		settle_resource(claims, &resources[i]);
	accord_db_be_again(before);
}

Datum
accord_claims_settle(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	AccordClaims claims;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs != 1)
		elog(ERROR, "accord.claims_settle() was not called by its trigger");
	accord_claims_find_table(&claims, trigger->tg_relation,
							 atoi(trigger->tg_trigger->tgargs[0]));
	SPI_connect();
	if (SPI_register_trigger_data(trigger) != SPI_OK_TD_REGISTER)
		elog(ERROR, "could not register the changed rows");
	accord_claims_decide(&claims, TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ?
						 "insert" :
						 TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						 "update" :
						 TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ?
						 "delete" : "all");
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
