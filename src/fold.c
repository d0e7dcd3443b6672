/*
 * fold.c: the past, run again in memory.
 *
 * Runs in whoever asks what would have been: accord.what_if(),
 * accord.check_policy() and the tests. The changes of one row are merged, in
 * the order given or in random ones, under the policies there are or with
 * another one in the place of one of them. No table is read or written, and
 * nothing is locked.
 *
 * On failure of a change to be merged (a state that the policy does not know,
 * an error of a custom function) the statement raises.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "accord.h"
#include "compat.h"
#include "resolve.h"

PG_FUNCTION_INFO_V1(accord_fold);
PG_FUNCTION_INFO_V1(accord_fold_orders);

/* A row's changes, in the order in which they came. */
typedef struct History
{
	AccordManaged *managed;
	int			n;
	AccordRowChange *changes;
	Jsonb	   *baseline;		/* the row before the first; NULL: none */
} History;

/* The policies, with another one in the place of one of them if given. */
static AccordManaged *
imagine(FunctionCallInfo fcinfo)
{
	AccordManaged *managed = accord_policy_require(PG_GETARG_OID(0));

	return accord_policy_imagine(managed,
								 PG_ARGISNULL(1) ? NULL :
								 text_to_cstring(PG_GETARG_TEXT_PP(1)),
								 PG_ARGISNULL(2) ? NULL :
								 text_to_cstring(PG_GETARG_TEXT_PP(2)),
								 PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3),
								 PG_ARGISNULL(4) ? InvalidOid :
								 PG_GETARG_OID(4));
}

static Jsonb *
object_member(Jsonb *object, const char *name)
{
	Jsonb	   *value = accord_value_member(object, name);

	return accord_value_is_null(value) ? NULL : value;
}

static void
read_change(AccordManaged *managed, Jsonb *item, AccordRowChange *change)
{
	char	   *op = accord_value_text(accord_value_member(item, "op"));

	memset(change, 0, sizeof(*change));
	if (op == NULL || accord_merge_op(op) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a change to be run again has no op that is known"),
				 errhint("Give rows of accord.change_log.")));
	change->op = accord_merge_op(op);
	change->stamp =
		accord_register_stamp(accord_value_int(accord_value_member(item, "clock"),
											   0),
							  accord_value_text(accord_value_member(item, "source")),
							  accord_value_text(accord_value_member(item, "event_id")),
							  accord_value_text(accord_value_member(item, "revision")));
	change->changes = accord_resolve_normalize(managed,
											   object_member(item, "changes"));
	/* the application saw what was there */
	change->base =
		accord_resolve_normalize(managed,
								 object_member(item, change->stamp.source == NULL ?
											   "before" : "base"));
	change->is_override =
		accord_value_equal(accord_value_member(item, "is_override"),
						   DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
															  CStringGetDatum("true"))));
	change->seen = change->stamp.clock;
}

/* What the row held before its first change, as far as changes tell. */
static Jsonb *
find_baseline(AccordManaged *managed, Jsonb *items)
{
	Jsonb	   *first = object_member(accord_value_element(items, 0), "before");
	Jsonb	  **values = palloc0(managed->n_columns * sizeof(Jsonb *));
	bool	   *known = palloc0(managed->n_columns * sizeof(bool));
	AccordValueScan scan;
	AccordEntity entity;

	if (first == NULL)
		return NULL;
	accord_value_scan(&scan, items);
	while (accord_value_next(&scan))
	{
		AccordValueScan columns;

		accord_value_scan(&columns, object_member(scan.value, "before"));
		while (accord_value_next(&columns))
		{
			int			at = accord_policy_column(managed, columns.name);

			if (at >= 0 && !known[at])
				values[at] = columns.value;
			if (at >= 0)
				known[at] = true;
		}
	}
	entity.managed = managed;
	entity.values = values;
	return accord_register_row(&entity);
}

static void
read_history(AccordManaged *managed, Jsonb *items, History *history)
{
	AccordValueScan scan;

	history->managed = managed;
	history->n = 0;
	history->changes = palloc((accord_value_length(items) + 1) *
							  sizeof(AccordRowChange));
	accord_value_scan(&scan, items);
	while (accord_value_next(&scan))
		read_change(managed, scan.value, &history->changes[history->n++]);
	history->baseline = find_baseline(managed, items);
}

static AccordEntity *
begin(const History *history)
{
	AccordEntity *entity = accord_register_new(history->managed);

	if (history->baseline == NULL)
		return entity;
	accord_register_set_row(entity, history->baseline);
	entity->life.inserted = true;
	entity->life.insert = accord_register_stamp(ACCORD_CLOCK_NONE, NULL, NULL,
												NULL);
	return entity;
}

static void
build_conflict(AccordBuild *build, const AccordManaged *managed,
			   const AccordConflict *conflict)
{
	const AccordVerdict *v = &conflict->verdict;

	accord_build_array(build);
	accord_build_text(build, conflict->column < 0 ? NULL :
					  managed->columns[conflict->column].name);
	accord_build_text(build, v->rule);
	accord_build_text(build, v->winner_stamp.source);
	accord_build_value(build, v->winner);
	accord_build_text(build, v->loser_stamp.source);
	accord_build_text(build, v->loser_stamp.event);
	accord_build_value(build, v->loser);
	accord_build_end_array(build);
}

/* The row, or null when it is not in its table. */
static Jsonb *
outcome_of(const AccordEntity *entity)
{
	return accord_register_alive(entity) ? accord_register_row(entity) : NULL;
}

/*
 * accord.fold(relation, column, strategy, options, owner, changes): the row
 * and the conflicts that a row's changes come to.
 */
Datum
accord_fold(PG_FUNCTION_ARGS)
{
	History		history;
	AccordEntity *entity;
	AccordBuild build;

	read_history(imagine(fcinfo), PG_GETARG_JSONB_P(5), &history);
	entity = begin(&history);
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "conflicts");
	accord_build_array(&build);
	for (int i = 0; i < history.n; i++)
	{
		AccordRowResult result;

		accord_merge_row(entity, &history.changes[i], &result);
		for (int c = 0; c < result.n_conflicts; c++)
			build_conflict(&build, history.managed, &result.conflicts[c]);
	}
	accord_build_end_array(&build);
	accord_build_key(&build, "row");
	accord_build_value(&build, outcome_of(entity));
	accord_build_end_object(&build);
	PG_RETURN_POINTER(accord_build_done(&build));
}

/* ---- in random orders ---------------------------------------------------- */

/* Overrides have their place: what they saw stays before them. */
static void
shuffle(int *order, int n, const History *history, pg_prng_state *random)
{
	for (int i = 0; i < n; i++)
		order[i] = i;
	for (int i = n - 1; i > 0; i--)
	{
		int			j = (int) pg_prng_uint64_range(random, 0, i);
		int			swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
	/* a stable pass that puts what an override is later than before it */
	for (int i = 1; i < n; i++)
		for (int j = i; j > 0; j--)
		{
			const AccordRowChange *a = &history->changes[order[j - 1]];
			const AccordRowChange *b = &history->changes[order[j]];
			int			swap = order[j];

			if (!(a->is_override && b->stamp.clock < a->stamp.clock) &&
				!(b->is_override && a->stamp.clock > b->stamp.clock))
				break;
			order[j] = order[j - 1];
			order[j - 1] = swap;
		}
}

static Jsonb *
run(const History *history, const int *order, int n)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_accord fold",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	AccordEntity *entity = begin(history);
	Jsonb	   *outcome;

	for (int i = 0; i < n; i++)
	{
		AccordRowResult result;

		accord_merge_row(entity, &history->changes[order[i]], &result);
	}
	outcome = outcome_of(entity);
	MemoryContextSwitchTo(old);
	if (outcome != NULL)
		outcome = (Jsonb *) PG_DETOAST_DATUM_COPY(JsonbPGetDatum(outcome));
	MemoryContextDelete(scratch);
	return outcome;
}

static void
build_order(AccordBuild *build, const History *history, const int *order,
			int n)
{
	accord_build_array(build);
	for (int i = 0; i < n; i++)
		accord_build_int(build, order[i] + 1);
	accord_build_end_array(build);
}

/* Leaves out what the difference does not need. */
static int
shorten(const History *history, int *one, int *other, int n)
{
	for (int drop = 0; drop < n && n > 2;)
	{
		int		   *a = palloc(n * sizeof(int));
		int		   *b = palloc(n * sizeof(int));
		int			dropped = one[drop];
		int			na = 0;
		int			nb = 0;

		for (int i = 0; i < n; i++)
		{
			if (one[i] != dropped)
				a[na++] = one[i];
			if (other[i] != dropped)
				b[nb++] = other[i];
		}
		if (accord_value_equal(run(history, a, na), run(history, b, nb)))
		{
			drop++;
			continue;
		}
		n--;
		memcpy(one, a, n * sizeof(int));
		memcpy(other, b, n * sizeof(int));
		drop = 0;
	}
	return n;
}

static Jsonb *
counterexample(const History *history, int *one, int *other, int n)
{
	AccordBuild build;

	n = shorten(history, one, other, n);
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "one_order");
	build_order(&build, history, one, n);
	accord_build_key(&build, "one_row");
	accord_build_value(&build, run(history, one, n));
	accord_build_key(&build, "other_order");
	build_order(&build, history, other, n);
	accord_build_key(&build, "other_row");
	accord_build_value(&build, run(history, other, n));
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/*
 * accord.fold_orders(relation, column, strategy, options, owner, changes,
 * tries, seed): null when all orders come to the same, else two that do not.
 */
Datum
accord_fold_orders(PG_FUNCTION_ARGS)
{
	History		history;
	pg_prng_state random;
	int			tries = PG_GETARG_INT32(6);
	int		   *first;
	int		   *order;
	Jsonb	   *expected;

	read_history(imagine(fcinfo), PG_GETARG_JSONB_P(5), &history);
	pg_prng_seed(&random, (uint64) PG_GETARG_INT64(7));
	first = palloc((history.n + 1) * sizeof(int));
	order = palloc((history.n + 1) * sizeof(int));
	for (int i = 0; i < history.n; i++)
		first[i] = i;
	expected = run(&history, first, history.n);
	for (int t = 0; t < tries; t++)
	{
		CHECK_FOR_INTERRUPTS();

		/*
		 * the first time once more in the same order: a function may not be
		 * the same twice
		 */
		if (t == 0)
			memcpy(order, first, history.n * sizeof(int));
		else
			shuffle(order, history.n, &history, &random);
		if (!accord_value_equal(run(&history, order, history.n), expected))
			PG_RETURN_POINTER(counterexample(&history, first, order,
											 history.n));
	}
	PG_RETURN_NULL();
}
