/*
 * policy_check.c: a policy's options, parsed, and refused when they are
 * wrong.
 *
 * Runs in the application's backends: when accord.set_policy() is called, and
 * when a session reads the policies of a table. What the first accepts the
 * second accepts, but for what may go away meanwhile, a function.
 *
 * On failure it raises, naming the option and what would do.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "accord.h"
#include "compat.h"
#include "policy.h"
#include "value.h"

#define DEFAULT_HORIZON_US (30 * USECS_PER_DAY)
#define MAX_STATES 100

PG_FUNCTION_INFO_V1(accord_policy_check);

/* Options, and the strategies that take them; NULL: all do. */
static const struct
{
	const char *name;
	const char *strategies;
	const char *type;
}			known_options[] =

{
	{"delete", NULL, "string"},
	{"function", " custom ", "string"},
	{"horizon", NULL, "string"},
	{"on_local", NULL, "string"},
	{"order", " priority ", "array"},
	{"owner", " owner ", "string"},
	{"rank", " state ", "array"},
	{"transitions", " state ", "object"},
	{"wins", " set ", "string"}
};

static void
refuse_option(const char *name, const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" of a policy %s", name, what),
			 errhint("%s", hint)));
}

static bool
takes(const char *strategies, const char *strategy)
{
	return strategies == NULL ||
		strstr(strategies, psprintf(" %s ", strategy)) != NULL;
}

static const char *
type_of(Jsonb *value)
{
	return accord_value_is_object(value) ? "object" :
		accord_value_is_array(value) ? "array" : "string";
}

static void
check_option(const char *name, Jsonb *value, const char *strategy)
{
	for (int i = 0; i < lengthof(known_options); i++)
	{
		if (strcmp(known_options[i].name, name) != 0)
			continue;
		if (!takes(known_options[i].strategies, strategy))
			refuse_option(name,
						  psprintf("is not for strategy \"%s\"", strategy),
						  "Leave it out, or choose the strategy it is for.");
		if (accord_value_is_null(value) ||
			strcmp(type_of(value), known_options[i].type) != 0)
			refuse_option(name, psprintf("is not of type %s",
										 known_options[i].type),
						  "See the options in the documentation.");
		return;
	}
	refuse_option(name, "is not known",
				  "Options are delete, function, horizon, on_local, order, "
				  "owner, rank, transitions and wins.");
}

static void
check_options(Jsonb *options, const char *strategy)
{
	AccordValueScan scan;

	if (options != NULL && !accord_value_is_object(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options of a policy are not an object"),
				 errhint("Give a JSON object such as {\"on_local\": "
						 "\"keep\"}.")));
	accord_value_scan(&scan, options);
	while (accord_value_next(&scan))
		check_option(scan.name, scan.value, strategy);
}

/* Which of the words an option is; the first when it is not given. */
static int
choose(Jsonb *options, const char *name, const char *const *choices)
{
	char	   *word = accord_value_text(accord_value_member(options, name));
	StringInfoData hint;

	if (word == NULL)
		return 0;
	initStringInfo(&hint);
	for (int i = 0; choices[i] != NULL; i++)
	{
		if (strcmp(choices[i], word) == 0)
			return i;
		appendStringInfo(&hint, "%s%s", i == 0 ? "Use one of: " : ", ",
						 choices[i]);
	}
	refuse_option(name, psprintf("is \"%s\"", word), hint.data);
	return 0;
}

static int64
horizon_of(Jsonb *options)
{
	char	   *text = accord_value_text(accord_value_member(options,
															 "horizon"));
	Interval   *interval;
	int64		us;

	if (text == NULL)
		return DEFAULT_HORIZON_US;
	interval = DatumGetIntervalP(DirectFunctionCall3(interval_in,
													 CStringGetDatum(text),
													 ObjectIdGetDatum(InvalidOid),
													 Int32GetDatum(-1)));
	us = interval->time +
		((int64) interval->month * DAYS_PER_MONTH + interval->day) *
		USECS_PER_DAY;
	if (us <= 0 || interval->month > 12000 || interval->day > 365000)
		refuse_option("horizon", "is not a positive interval",
					  "Give how long history is kept, such as '30 days'.");
	return us;
}

/* ---- sources ------------------------------------------------------------- */

static void
set_order(AccordPolicy *policy, Jsonb *list)
{
	AccordValueScan scan;

	if (accord_value_length(list) == 0)
		refuse_option("order", "names no source",
					  "List the sources, the one that wins first; "
					  "\"application\" is the application itself.");
	policy->order = palloc(accord_value_length(list) * sizeof(char *));
	accord_value_scan(&scan, list);
	while (accord_value_next(&scan))
	{
		char	   *name = accord_value_text(scan.value);

		if (name == NULL || name[0] == '\0')
			refuse_option("order", "holds something that is not a name",
						  "Give names of sources.");
		for (int i = 0; i < policy->n_order; i++)
			if (strcmp(policy->order[i], name) == 0)
				refuse_option("order", psprintf("names \"%s\" twice", name),
							  "Name each source once.");
		policy->order[policy->n_order++] = name;
	}
}

static void
set_owner(AccordPolicy *policy, Jsonb *options)
{
	char	   *name = accord_value_text(accord_value_member(options, "owner"));

	if (name == NULL || name[0] == '\0')
		refuse_option("owner", "is missing",
					  "Name the source that owns the column; \"application\" "
					  "is the application itself.");
	policy->order = palloc(sizeof(char *));
	policy->order[0] = name;
	policy->n_order = 1;
}

/* ---- states -------------------------------------------------------------- */

static int
find_state(const AccordStates *states, const char *name)
{
	for (int i = 0; i < states->n; i++)
		if (strcmp(states->names[i], name) == 0)
			return i;
	return -1;
}

static void
add_state(AccordStates *states, char *name)
{
	if (name == NULL || name[0] == '\0')
		refuse_option("transitions", "holds a state without a name",
					  "Give states as strings.");
	if (find_state(states, name) >= 0)
		return;
	if (states->n == MAX_STATES)
		refuse_option("transitions", psprintf("has more than %d states",
											  MAX_STATES),
					  "Use fewer states.");
	states->names[states->n++] = name;
}

/* Every state that is named anywhere; those of rank first, in that order. */
static void
collect_states(AccordStates *states, Jsonb *transitions, Jsonb *rank)
{
	AccordValueScan scan;

	accord_value_scan(&scan, rank);
	while (accord_value_next(&scan))
	{
		char	   *name = accord_value_text(scan.value);

		if (name != NULL && find_state(states, name) >= 0)
			refuse_option("rank", psprintf("names \"%s\" twice", name),
						  "Name each state once, the lowest first.");
		add_state(states, name);
	}
	accord_value_scan(&scan, transitions);
	while (accord_value_next(&scan))
	{
		AccordValueScan to;

		add_state(states, scan.name);
		if (!accord_value_is_array(scan.value))
			refuse_option("transitions",
						  psprintf("has no array for \"%s\"", scan.name),
						  "Give for each state the states it may become.");
		accord_value_scan(&to, scan.value);
		while (accord_value_next(&to))
			add_state(states, accord_value_text(to.value));
	}
}

/* [from * n + to]: by a single transition, or by any path. */
static bool *
collect_transitions(const AccordStates *states, Jsonb *transitions, bool paths)
{
	bool	   *reachable = palloc0(states->n * states->n * sizeof(bool));
	AccordValueScan scan;

	accord_value_scan(&scan, transitions);
	while (accord_value_next(&scan))
	{
		int			from = find_state(states, scan.name);
		AccordValueScan to;

		accord_value_scan(&to, scan.value);
		while (accord_value_next(&to))
			reachable[from * states->n +
					  find_state(states, accord_value_text(to.value))] = true;
	}
	for (int k = 0; paths && k < states->n; k++)
		for (int i = 0; i < states->n; i++)
			for (int j = 0; j < states->n; j++)
				if (reachable[i * states->n + k] &&
					reachable[k * states->n + j])
					reachable[i * states->n + j] = true;
	return reachable;
}

/* How many steps lead to a state at most; the graph has no cycle. */
static int
depth_of(const AccordStates *states, const bool *reachable, int state)
{
	int			depth = 0;

	for (int i = 0; i < states->n; i++)
		if (reachable[i * states->n + state])
			depth++;
	return depth;
}

/*
 * Puts the states in an order in which each stands after all that lead to
 * it: by how many states lead to them, then by name. So whichever of two
 * states wins, no transition leads from it to the other.
 */
static void
order_states(AccordStates *states, Jsonb *transitions)
{
	bool	   *reachable = collect_transitions(states, transitions, true);
	int		   *depth = palloc(states->n * sizeof(int));

	for (int i = 0; i < states->n; i++)
		depth[i] = depth_of(states, reachable, i);
	for (int i = 1; i < states->n; i++)
	{
		char	   *name = states->names[i];
		int			its = depth[i];
		int			at = i;

		for (; at > 0 && (depth[at - 1] > its ||
						  (depth[at - 1] == its &&
						   strcmp(states->names[at - 1], name) > 0)); at--)
		{
			states->names[at] = states->names[at - 1];
			depth[at] = depth[at - 1];
		}
		states->names[at] = name;
		depth[at] = its;
	}
}

static void
set_states(AccordPolicy *policy, Jsonb *options)
{
	Jsonb	   *transitions = accord_value_member(options, "transitions");
	Jsonb	   *rank = accord_value_member(options, "rank");
	AccordStates *states = palloc0(sizeof(AccordStates));

	if (transitions == NULL)
		refuse_option("transitions", "is missing",
					  "Give an object that has for each state an array of "
					  "the states it may become.");
	states->names = palloc(MAX_STATES * sizeof(char *));
	collect_states(states, transitions, rank);
	states->reachable = collect_transitions(states, transitions, true);
	for (int i = 0; i < states->n; i++)
		if (states->reachable[i * states->n + i])
			refuse_option("transitions",
						  psprintf("leads from \"%s\" back to itself",
								   states->names[i]),
						  "A state machine that converges has no way back; "
						  "use \"latest\" for states that come again.");
	if (rank == NULL)
		order_states(states, transitions);
	states->reachable = collect_transitions(states, transitions, true);
	states->direct = collect_transitions(states, transitions, false);
	for (int i = 0; i < states->n; i++)
		for (int j = 0; j < i; j++)
			if (states->reachable[i * states->n + j])
				refuse_option("rank",
							  psprintf("puts \"%s\" before \"%s\", which "
									   "leads to it", states->names[j],
									   states->names[i]),
							  "Put every state after those it comes from.");
	policy->states = states;
}

/* ---- column types -------------------------------------------------------- */

static bool
is_exact_number(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID ||
		type == NUMERICOID;
}

static bool
has_order(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_CMP_PROC);

	return OidIsValid(entry->cmp_proc);
}

/* Raises when the strategy is not for columns of this type. */
static void
check_type(const AccordColumn *column, AccordStrategy strategy)
{
	const char *needs = NULL;
	Oid			type = column->type;

	switch (strategy)
	{
		case ACCORD_MAX:
		case ACCORD_MIN:
			if (OidIsValid(column->element) || column->is_jsonb ||
				type_is_rowtype(type) || !has_order(type))
				needs = "a scalar type that has an order";
			break;
		case ACCORD_COUNTER:
			if (!is_exact_number(type))
				needs = "an exact number (sums of floats depend on the order)";
			break;
		case ACCORD_SET:
			if (!OidIsValid(column->element) && type != JSONBOID)
				needs = "an array or jsonb";
			break;
		case ACCORD_JSON:
			if (type != JSONBOID)
				needs = "jsonb";
			break;
		case ACCORD_STATE:
			if (type != TEXTOID && type != VARCHAROID && !type_is_enum(type))
				needs = "text or an enum";
			break;
		default:
			break;
	}
	if (needs != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("strategy \"%s\" is not for column \"%s\" of type %s",
						accord_policy_word(strategy), column->name,
						format_type_be(type)),
				 errhint("It needs %s.", needs)));
}

static bool
is_for_rows(AccordStrategy strategy)
{
	return strategy == ACCORD_LATEST || strategy == ACCORD_FIRST ||
		strategy == ACCORD_PRIORITY || strategy == ACCORD_OWNER ||
		strategy == ACCORD_THREE_WAY || strategy == ACCORD_PARK;
}

/* ---- all of it ----------------------------------------------------------- */

static AccordStrategy
find_strategy(const char *word)
{
	StringInfoData hint;

	initStringInfo(&hint);
	for (int i = ACCORD_LATEST; i <= ACCORD_PARK; i++)
	{
		if (strcmp(accord_policy_word(i), word) == 0)
			return i;
		appendStringInfo(&hint, "%s%s", i == 0 ? "Strategies are " : ", ",
						 accord_policy_word(i));
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("strategy \"%s\" is not known", word),
			 errhint("%s.", hint.data)));
	return ACCORD_LATEST;
}

/* The function f(jsonb, jsonb) of that name; InvalidOid: there is none. */
static Oid
find_function(const char *name)
{
	static Oid	types[] = {JSONBOID, JSONBOID};

	return LookupFuncName(accord_qualified_name_list(name), 2, types, true);
}

static void
set_details(AccordPolicy *policy, Jsonb *options)
{
	static const char *const locals[] = {"raise", "keep", "override", NULL};
	static const char *const deletes[] = {"update-wins", "delete-wins", NULL};
	static const char *const sets[] = {"add", "remove", NULL};
	char	   *function;

	policy->on_local = choose(options, "on_local", locals);
	policy->delete_wins = choose(options, "delete", deletes) == 1;
	policy->remove_wins = choose(options, "wins", sets) == 1;
	policy->horizon_us = horizon_of(options);
	if (policy->strategy == ACCORD_PRIORITY)
		set_order(policy, accord_value_member(options, "order"));
	if (policy->strategy == ACCORD_OWNER)
		set_owner(policy, options);
	if (policy->strategy == ACCORD_STATE)
		set_states(policy, options);
	if (policy->strategy != ACCORD_CUSTOM)
		return;
	function = accord_value_text(accord_value_member(options, "function"));
	if (function == NULL)
		refuse_option("function", "is missing",
					  "Name a function f(value jsonb, change jsonb) RETURNS "
					  "jsonb, with its schema.");
	policy->function = find_function(function);
}

AccordPolicy *
accord_policy_parse(const AccordColumn *column, const char *strategy,
					Jsonb *options, Oid owner)
{
	AccordPolicy *policy = palloc0(sizeof(AccordPolicy));

	policy->column = column == NULL ? "*" : column->name;
	policy->strategy = find_strategy(strategy);
	policy->options = options == NULL ? NULL :
		DatumGetJsonbP(PointerGetDatum(PG_DETOAST_DATUM_COPY(PointerGetDatum(options))));
	policy->owner = owner;
	check_options(policy->options, strategy);
	if (column == NULL && !is_for_rows(policy->strategy))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("strategy \"%s\" is not for whole rows", strategy),
				 errhint("Set it for single columns.")));
	if (column != NULL && accord_value_member(options, "delete") != NULL)
		refuse_option("delete", "is not for a column",
					  "Set it with the policy of '*'.");
	if (column != NULL)
		check_type(column, policy->strategy);
	set_details(policy, policy->options);
	return policy;
}

/* What can be wrong only when a policy is set. */
static void
check_function(const AccordPolicy *policy)
{
	if (policy->strategy != ACCORD_CUSTOM)
		return;
	if (!OidIsValid(policy->function) ||
		get_func_rettype(policy->function) != JSONBOID)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s(jsonb, jsonb) returning jsonb does not "
						"exist",
						accord_value_text(accord_value_member(policy->options,
															  "function"))),
				 errhint("Create f(value jsonb, change jsonb) RETURNS jsonb, "
						 "and name it with its schema.")));
	if (!accord_function_executable(policy->function, policy->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s",
						get_func_name(policy->function)),
				 errhint("Grant EXECUTE on it to whoever sets the policy.")));
}

/* accord.policy_check(relation, column_name, strategy, options, owner) */
Datum
accord_policy_check(PG_FUNCTION_ARGS)
{
	AccordManaged *managed = accord_policy_require(PG_GETARG_OID(0));
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	int			at = accord_policy_column(managed, name);
	bool		is_row = strcmp(name, "*") == 0;
	AccordColumn *column = is_row || at < 0 ? NULL : &managed->columns[at];

	if (column == NULL && !is_row)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table %s does not exist", name,
						managed->name),
				 errhint("Give one of its columns, or '*'.")));
	if (column != NULL && (column->is_key || column->is_generated))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("column \"%s\" of table %s %s", name, managed->name,
						column->is_key ? "is part of the key" :
						"is generated"),
				 errhint("Policies are for the other columns.")));
	check_function(accord_policy_parse(column,
									   text_to_cstring(PG_GETARG_TEXT_PP(2)),
									   PG_GETARG_JSONB_P(3),
									   PG_GETARG_OID(4)));
	PG_RETURN_VOID();
}
