/*
 * merge_value.c: columns whose values are ordered or added up by themselves:
 * max, min, counter, state.
 *
 * Runs in the application's backends, on values in memory.
 *
 * Invariants
 *   - max and min compare as the type does, text by bytes whatever the
 *     column's collation; values that the type calls equal but that are not
 *     written alike (1.0 and 1.00) are told apart by their text, so that the
 *     result does not depend on who came first. NULL is no value: it neither
 *     wins nor loses.
 *   - A counter counts each change once: it remembers those of the last while
 *     (option horizon) by their hash; what is older than that is refused.
 *   - Of two states the one that stands later wins; if a path leads from one
 *     to the other that is no conflict, but what was to be expected.
 *
 * On failure (a sum out of range, a state that is not known) it raises.
 */
#include "postgres.h"

#include "catalog/pg_collation_d.h"
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/typcache.h"

#include "merge.h"

/* ---- max, min ------------------------------------------------------------ */

/* By the column's type, then by the text. */
static int
compare_typed(AccordColumn *column, Jsonb *a, Jsonb *b)
{
	TypeCacheEntry *type = lookup_type_cache(column->type,
											 TYPECACHE_CMP_PROC_FINFO);
	bool		isnull;
	Datum		left = accord_policy_datum(column, a, &isnull);
	Datum		right = accord_policy_datum(column, b, &isnull);
	int			order = DatumGetInt32(FunctionCall2Coll(&type->cmp_proc_finfo,
														C_COLLATION_OID, left,
														right));

	return order != 0 ? order : strcmp(accord_value_text(a),
									   accord_value_text(b));
}

void
accord_merge_bound(AccordManaged *managed, int column, AccordRegister *r,
				   Jsonb **value, AccordIncoming *in, AccordVerdict *verdict)
{
	AccordColumn *c = &managed->columns[column];
	int			order;

	if (accord_value_is_null(in->value))
		return;
	if (accord_value_is_null(*value))
	{
		accord_merge_take(r, value, in, verdict);
		verdict->conflict = false;
		return;
	}
	order = compare_typed(c, in->value, *value);
	if (c->policy->strategy == ACCORD_MIN)
		order = -order;
	if (order > 0)
		accord_merge_take(r, value, in, verdict);
	else if (order < 0)
		accord_merge_lose(r, *value, in, verdict);
	else if (!r->known || accord_stamp_compare(&in->stamp, &r->won) > 0)
	{
		r->known = true;
		r->won = in->stamp;
	}
}

/* ---- counter ------------------------------------------------------------- */

/* A number's text that can be added; raises when it is none. */
static Datum
number_of(AccordColumn *column, Jsonb *value)
{
	char	   *text = accord_value_text(value);
	Datum		number;

	if (text == NULL)
		text = "0";
	number = DirectFunctionCall3(numeric_in, CStringGetDatum(text),
								 ObjectIdGetDatum(InvalidOid),
								 Int32GetDatum(-1));
	if (numeric_is_nan(DatumGetNumeric(number)) ||
		numeric_is_inf(DatumGetNumeric(number)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("counter \"%s\" cannot count %s", column->name, text),
				 errhint("Give a finite number.")));
	return number;
}

/*
 * What a change adds: {"add": n}; or its value less its base, where the base
 * is known; or its value.
 */
static Datum
delta_of(AccordColumn *column, const AccordIncoming *in)
{
	Jsonb	   *add = accord_value_member(in->raw, "add");

	if (accord_value_is_object(in->raw))
	{
		if (add == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("change of counter \"%s\" is an object without "
							"\"add\"", column->name),
					 errhint("Give {\"add\": 2}, or a number.")));
		return number_of(column, add);
	}
	if (!in->has_base)
		return number_of(column, in->value);
	return DirectFunctionCall2(numeric_sub, number_of(column, in->value),
							   number_of(column, in->base));
}

static char *
change_hash(const AccordStamp *stamp)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) stamp->event,
										   strlen(stamp->event), 0);

	hash = hash_combine64(hash,
						  hash_bytes_extended((const unsigned char *) stamp->name,
											  strlen(stamp->name), 1));
	hash = hash_combine64(hash,
						  hash_bytes_extended((const unsigned char *) &stamp->clock,
											  sizeof(stamp->clock), 2));
	return psprintf("%016llx", (unsigned long long) hash);
}

/* Remembers a change, and forgets those from before the horizon. */
static void
remember(AccordRegister *r, const AccordStamp *stamp, int64 horizon)
{
	int64		latest = Max(r->won.clock, stamp->clock);
	AccordValueScan scan;
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "counted");
	accord_build_object(&build);
	accord_value_scan(&scan, accord_value_member(r->extra, "counted"));
	while (accord_value_next(&scan))
	{
		if (accord_value_int(scan.value, 0) < latest - horizon)
			continue;
		accord_build_key(&build, scan.name);
		accord_build_value(&build, scan.value);
	}
	accord_build_key(&build, change_hash(stamp));
	accord_build_int(&build, stamp->clock);
	accord_build_end_object(&build);
	accord_build_end_object(&build);
	r->extra = accord_build_done(&build);
}

static void
add(AccordManaged *managed, int column, Jsonb **value, Datum delta)
{
	AccordColumn *c = &managed->columns[column];
	Datum		sum = DirectFunctionCall2(numeric_add, number_of(c, *value),
										  delta);
	JsonbValue	result;

	result.type = jbvNumeric;
	result.val.numeric = DatumGetNumeric(sum);
	*value = accord_policy_normalize(managed, column, accord_value_of(&result));
}

void
accord_merge_counter(AccordManaged *managed, int column, AccordRegister *r,
					 Jsonb **value, AccordIncoming *in, AccordVerdict *verdict)
{
	AccordColumn *c = &managed->columns[column];
	int64		horizon = c->policy->horizon_us;

	/* the application has added it already, once */
	if (in->is_local)
		*value = in->value;
	else
	{
		Jsonb	   *counted = accord_value_member(r->extra, "counted");

		if (accord_value_member(counted, change_hash(&in->stamp)) != NULL)
			return;
		if (r->known && in->stamp.clock < r->won.clock - horizon)
		{
			verdict->rule = "horizon";
			accord_merge_lose(r, *value, in, verdict);
			return;
		}
		add(managed, column, value, delta_of(c, in));
		remember(r, &in->stamp, horizon);
	}
	verdict->took = true;
	if (!r->known || accord_stamp_compare(&in->stamp, &r->won) > 0)
		r->won = in->stamp;
	r->known = true;
	r->has_base = false;
}

/* ---- state --------------------------------------------------------------- */

/* A state's place; -1: null. Raises when it is not known. */
static int
place_of(const AccordColumn *column, Jsonb *value)
{
	const AccordStates *states = column->policy->states;
	char	   *name = accord_value_text(value);

	if (name == NULL)
		return -1;
	for (int i = 0; i < states->n; i++)
		if (strcmp(states->names[i], name) == 0)
			return i;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" is not a state of column \"%s\"", name,
					column->name),
			 errhint("Give one of the states in its policy's transitions.")));
	return -1;
}

void
accord_merge_state(AccordManaged *managed, int column, AccordRegister *r,
				   Jsonb **value, AccordIncoming *in, AccordVerdict *verdict)
{
	const AccordColumn *c = &managed->columns[column];
	const AccordStates *states = c->policy->states;
	int			to = place_of(c, in->value);
	int			from = place_of(c, *value);
	bool		on_the_way;

	if (to < 0)
		return;
	if (from < 0)
	{
		accord_merge_take(r, value, in, verdict);
		verdict->conflict = false;
		return;
	}
	on_the_way = from == to || states->reachable[from * states->n + to] ||
		states->reachable[to * states->n + from];
	/* the application goes step by step */
	if (in->is_local && from != to && !states->direct[from * states->n + to])
		accord_merge_lose(r, *value, in, verdict);
	else if (to > from)
		accord_merge_take(r, value, in, verdict);
	else if (to < from)
		accord_merge_lose(r, *value, in, verdict);
	else if (!r->known || accord_stamp_compare(&in->stamp, &r->won) > 0)
	{
		r->known = true;
		r->won = in->stamp;
	}
	if (on_the_way && !in->is_local)
		verdict->conflict = false;
}
