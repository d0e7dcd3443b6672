/*
 * merge.c: what a change makes of a column, and of a row.
 *
 * Runs in the application's backends, on values in memory: no table, no
 * clock. merge_value.c, merge_tree.c and reduce.c have the strategies that do
 * more than choose one of two values.
 *
 * Invariants
 *   - What is kept is a function of the set of changes that have come, not of
 *     their order or number. For each strategy there is a join of which that
 *     follows; test/model has the same as formulas over sets, and compares.
 *   - A source that numbers its changes has, for each column, one candidate:
 *     its highest revision, at the latest time that it has given. Sources'
 *     candidates are compared by rank, clock and name. Both parts only grow,
 *     so a candidate that lost can come back only by a change of its own
 *     source; of a source with revisions it is kept for that ("alts").
 *   - A conflict is a winner and a loser of different sources, where the
 *     winner is not known to have seen the loser. What a source makes of its
 *     own earlier change is none.
 */
#include "postgres.h"

#include "merge.h"

static const char *const op_words[] = {
	[ACCORD_CHANGE_INSERT] = "insert",
	[ACCORD_CHANGE_UPDATE] = "update",
	[ACCORD_CHANGE_DELETE] = "delete",
	[ACCORD_CHANGE_UPSERT] = "upsert"
};

int
accord_merge_op(const char *word)
{
	for (int i = 0; i < lengthof(op_words); i++)
		if (strcmp(word, op_words[i]) == 0)
			return i;
	return -1;
}

const char *
accord_merge_op_word(AccordChangeOp op)
{
	return op_words[op];
}

/* ---- winning and losing -------------------------------------------------- */

void
accord_merge_note(AccordVerdict *verdict, Jsonb *winner,
				  AccordStamp winner_stamp, Jsonb *loser,
				  AccordStamp loser_stamp)
{
	verdict->conflict = true;
	verdict->winner = winner;
	verdict->winner_stamp = winner_stamp;
	verdict->loser = loser;
	verdict->loser_stamp = loser_stamp;
}

void
accord_merge_take(AccordRegister *r, Jsonb **value, const AccordIncoming *in,
				  AccordVerdict *verdict)
{
	bool		saw = in->has_base && accord_value_equal(in->base, *value);

	if (r->known && !saw && !accord_value_equal(in->value, *value) &&
		!accord_stamp_same_source(&r->won, &in->stamp))
		accord_merge_note(verdict, in->value, in->stamp, *value, r->won);
	r->known = true;
	r->won = in->stamp;
	r->has_base = in->has_base;
	r->base = in->has_base ? accord_value_hash(in->base) : 0;
	*value = in->value;
	verdict->took = true;
}

void
accord_merge_lose(AccordRegister *r, Jsonb *value, const AccordIncoming *in,
				  AccordVerdict *verdict)
{
	bool		saw = r->has_base && r->base == accord_value_hash(in->value);

	if (!saw && !accord_value_equal(in->value, value))
		accord_merge_note(verdict, value, r->won, in->value, in->stamp);
}

/* ---- one value against another: latest, first, priority, owner ----------- */

/* A source's candidate that does not win (now). */
typedef struct Candidate
{
	AccordStamp stamp;
	Jsonb	   *value;
} Candidate;

static Jsonb *
find_alt(const AccordRegister *r, const char *source)
{
	return accord_value_member(accord_value_member(r->extra, "alts"),
							   source == NULL ? "" : source);
}

static bool
read_alt(const AccordRegister *r, const AccordStamp *of, Candidate *alt)
{
	Jsonb	   *stored = find_alt(r, of->source);

	if (stored == NULL)
		return false;
	alt->stamp = accord_register_stamp(accord_value_int(accord_value_element(stored, 0),
														ACCORD_CLOCK_NONE),
									   of->source,
									   accord_value_text(accord_value_element(stored, 1)),
									   accord_value_text(accord_value_element(stored, 2)));
	alt->stamp.rank = of->rank;
	alt->value = accord_value_element(stored, 3);
	return true;
}

/* Stores a source's candidate, or (candidate NULL) drops it. */
static void
write_alt(AccordRegister *r, const char *source, const Candidate *candidate)
{
	const char *name = source == NULL ? "" : source;
	AccordBuild build;
	AccordValueScan scan;
	int			n = 0;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "alts");
	accord_build_object(&build);
	accord_value_scan(&scan, accord_value_member(r->extra, "alts"));
	while (accord_value_next(&scan))
	{
		if (strcmp(scan.name, name) == 0)
			continue;
		accord_build_key(&build, scan.name);
		accord_build_value(&build, scan.value);
		n++;
	}
	if (candidate != NULL)
	{
		accord_build_key(&build, name);
		accord_build_array(&build);
		accord_build_int(&build, candidate->stamp.clock);
		accord_build_text(&build, candidate->stamp.event);
		accord_build_decimal(&build, candidate->stamp.revision);
		accord_build_value(&build, candidate->value);
		accord_build_end_array(&build);
		n++;
	}
	accord_build_end_object(&build);
	accord_build_end_object(&build);
	r->extra = n == 0 ? NULL : accord_build_done(&build);
}

void
accord_merge_displace(AccordRegister *r, const AccordRegister *old,
					  Jsonb *old_value)
{
	Candidate	candidate = {old->won, old_value};

	r->epoch = old->epoch;
	r->extra = old->extra;
	if (old->won.revision != NULL &&
		!accord_stamp_same_source(&old->won, &r->won))
		write_alt(r, old->won.source, &candidate);
}

/* Positive: a wins. Under first the earlier one does. */
static int
compare(const AccordPolicy *policy, const AccordStamp *a, const AccordStamp *b)
{
	int			order = accord_stamp_compare(a, b);

	return policy->strategy == ACCORD_FIRST ? -order : order;
}

/*
 * Joins a source's candidate with a further change of that source: the value
 * of the higher revision, at the later time (under first: the lower one, at
 * the earlier time). Returns whether the value is the change's.
 */
static bool
join_own(const AccordPolicy *policy, AccordStamp *stamp, Jsonb **value,
		 const AccordIncoming *in)
{
	int			sign = policy->strategy == ACCORD_FIRST ? -1 : 1;
	int			order = sign * accord_stamp_compare_own(&in->stamp, stamp);
	int64		clock = sign > 0 ? Max(stamp->clock, in->stamp.clock) :
	Min(stamp->clock, in->stamp.clock);

	if (order > 0)
	{
		*stamp = in->stamp;
		*value = in->value;
	}
	stamp->clock = clock;
	return order > 0;
}

/* The change is of the source whose value stands. */
static void
merge_own(const AccordPolicy *policy, AccordRegister *r, Jsonb **value,
		  AccordIncoming *in, AccordVerdict *verdict)
{
	Jsonb	   *before = *value;
	AccordStamp stamp = r->won;
	bool		is_new = accord_stamp_compare_own(&in->stamp, &r->won) != 0;

	if (join_own(policy, &stamp, value, in))
	{
		verdict->took = true;
		r->has_base = in->has_base;
		r->base = in->has_base ? accord_value_hash(in->base) : 0;
	}
	/* who comes second loses under first, whoever was first */
	if (policy->strategy == ACCORD_FIRST && is_new &&
		!accord_value_equal(before, in->value))
		accord_merge_note(verdict, *value, stamp,
						  verdict->took ? before : in->value,
						  verdict->took ? r->won : in->stamp);
	r->won = stamp;
}

/* The change is of another source than the one whose value stands. */
static void
merge_other(const AccordPolicy *policy, AccordRegister *r, Jsonb **value,
			AccordIncoming *in, AccordVerdict *verdict)
{
	Candidate	challenger = {in->stamp, in->value};
	bool		had_alt = read_alt(r, &in->stamp, &challenger);
	bool		is_change = !had_alt ||
	join_own(policy, &challenger.stamp, &challenger.value, in);
	AccordIncoming joined = *in;
	Candidate	old = {r->won, *value};

	joined.stamp = challenger.stamp;
	joined.value = challenger.value;
	if (compare(policy, &challenger.stamp, &r->won) > 0)
	{
		if (!is_change)
			joined.has_base = false;
		accord_merge_take(r, value, &joined, verdict);
		if (had_alt)
			write_alt(r, in->stamp.source, NULL);
		if (old.stamp.revision != NULL)
			write_alt(r, old.stamp.source, &old);
		return;
	}
	if (is_change)
		accord_merge_lose(r, *value, in, verdict);
	if (challenger.stamp.revision != NULL)
		write_alt(r, in->stamp.source, &challenger);
}

static void
merge_choice(const AccordPolicy *policy, AccordRegister *r, Jsonb **value,
			 AccordIncoming *in, AccordVerdict *verdict)
{
	in->stamp.rank = accord_policy_rank(policy, in->stamp.source);
	r->won.rank = accord_policy_rank(policy, r->won.source);
	if (policy->strategy == ACCORD_FIRST && accord_value_is_null(in->value))
		return;					/* claims nothing */
	/* others than the owner have a say in a new row only */
	if (policy->strategy == ACCORD_OWNER && in->stamp.rank == 0 &&
		!in->creates)
	{
		accord_merge_lose(r, *value, in, verdict);
		return;
	}
	if (!r->known && (policy->strategy != ACCORD_FIRST ||
					  accord_value_is_null(*value)))
	{
		accord_merge_take(r, value, in, verdict);
		return;
	}
	if (r->known && accord_stamp_same_source(&in->stamp, &r->won))
		merge_own(policy, r, value, in, verdict);
	else
		merge_other(policy, r, value, in, verdict);
}

/* ---- park ---------------------------------------------------------------- */

/*
 * Whose change is the earliest holds the column, with the latest of its own;
 * what others say is held for a person. Every source's candidate is kept,
 * with the time of its first change.
 */
typedef struct Parked
{
	const char *source;			/* "": the application */
	int64		first;
	AccordStamp stamp;
	Jsonb	   *value;
} Parked;

static AccordStamp
parked_stamp(Jsonb *stored, const char *source)
{
	return accord_register_stamp(accord_value_int(accord_value_element(stored, 0),
												  ACCORD_CLOCK_NONE),
								 source[0] == '\0' ? NULL : source,
								 accord_value_text(accord_value_element(stored, 1)),
								 accord_value_text(accord_value_element(stored, 2)));
}

static int
read_parked(const AccordRegister *r, Jsonb *value, Parked **result)
{
	Jsonb	   *alts = accord_value_member(r->extra, "alts");
	AccordValueScan scan;
	int			n = 0;

	*result = palloc(((alts == NULL ? 0 : JsonContainerSize(&alts->root)) + 2) *
					 sizeof(Parked));
	accord_value_scan(&scan, alts);
	while (accord_value_next(&scan))
	{
		Parked	   *p = &(*result)[n++];

		p->source = scan.name;
		p->stamp = parked_stamp(scan.value, scan.name);
		p->value = accord_value_element(scan.value, 3);
		p->first = accord_value_int(accord_value_element(scan.value, 4),
									p->stamp.clock);
	}
	if (n == 0 && (r->known || !accord_value_is_null(value)))
	{
		Parked	   *p = &(*result)[n++];

		p->source = r->won.source == NULL ? "" : r->won.source;
		p->stamp = r->won;
		p->value = value;
		p->first = r->won.clock;
	}
	return n;
}

static void
write_parked(AccordRegister *r, const Parked *parked, int n)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "alts");
	accord_build_object(&build);
	for (int i = 0; i < n; i++)
	{
		accord_build_key(&build, parked[i].source);
		accord_build_array(&build);
		accord_build_int(&build, parked[i].stamp.clock);
		accord_build_text(&build, parked[i].stamp.event);
		accord_build_decimal(&build, parked[i].stamp.revision);
		accord_build_value(&build, parked[i].value);
		accord_build_int(&build, parked[i].first);
		accord_build_end_array(&build);
	}
	accord_build_end_object(&build);
	accord_build_end_object(&build);
	r->extra = accord_build_done(&build);
}

/* The one whose first change is the earliest. */
static Parked *
holder_of(Parked *parked, int n)
{
	Parked	   *holder = NULL;

	for (int i = 0; i < n; i++)
		if (holder == NULL || parked[i].first < holder->first ||
			(parked[i].first == holder->first &&
			 strcmp(parked[i].stamp.name, holder->stamp.name) < 0))
			holder = &parked[i];
	return holder;
}

/* Adds a change to its source's candidate; returns whether it is its latest. */
static bool
add_parked(Parked *parked, int *n, const AccordIncoming *in)
{
	const char *source = in->stamp.source == NULL ? "" : in->stamp.source;
	Parked	   *own = NULL;

	for (int i = 0; i < *n; i++)
		if (strcmp(parked[i].source, source) == 0)
			own = &parked[i];
	if (own == NULL)
	{
		own = &parked[(*n)++];
		own->source = source;
		own->first = in->stamp.clock;
		own->stamp = in->stamp;
		own->value = in->value;
		return true;
	}
	own->first = Min(own->first, in->stamp.clock);
	if (accord_stamp_compare_own(&in->stamp, &own->stamp) <= 0)
		return false;
	own->stamp = in->stamp;
	own->value = in->value;
	return true;
}

static void
merge_park(AccordRegister *r, Jsonb **value, AccordIncoming *in,
		   AccordVerdict *verdict)
{
	Parked	   *parked;
	int			n = read_parked(r, *value, &parked);
	const char *before = n == 0 ? NULL : holder_of(parked, n)->source;
	Jsonb	   *old = *value;
	AccordStamp old_stamp = r->won;
	bool		is_latest = add_parked(parked, &n, in);
	Parked	   *holder = holder_of(parked, n);
	bool		is_holder = accord_stamp_same_source(&holder->stamp,
													 &in->stamp);

	verdict->took = is_holder && is_latest;
	r->known = true;
	r->won = holder->stamp;
	r->has_base = false;
	*value = holder->value;
	write_parked(r, parked, n);
	if (before != NULL && strcmp(before, holder->source) != 0)
	{
		verdict->took = true;
		if (!accord_value_equal(old, *value))
			accord_merge_note(verdict, *value, r->won, old, old_stamp);
	}
	else if (!is_holder && is_latest)
		accord_merge_lose(r, *value, in, verdict);
	verdict->held = verdict->conflict;
}

/* ---- a column ------------------------------------------------------------ */

/*
 * A person's decision begins a new epoch: what was stamped before it is out,
 * what comes after competes with it as with any value of its source.
 */
static void
take_override(AccordRegister *r, Jsonb **value, AccordIncoming *in,
			  AccordVerdict *verdict)
{
	r->extra = NULL;
	r->epoch = in->stamp.clock;
	verdict->rule = "override";
	accord_merge_take(r, value, in, verdict);
}

/* Three-way: what the author left as it was is no change. */
static AccordStrategy
three_way(const AccordColumn *column)
{
	if (column->is_jsonb)
		return ACCORD_JSON;
	return OidIsValid(column->element) ? ACCORD_SET : ACCORD_LATEST;
}

void
accord_merge_column(AccordManaged *managed, int column, AccordRegister *r,
					Jsonb **value, AccordIncoming *in, AccordVerdict *verdict)
{
	AccordPolicy *policy = managed->columns[column].policy;
	AccordStrategy strategy = policy->strategy;

	memset(verdict, 0, sizeof(*verdict));
	verdict->rule = accord_policy_word(strategy);
	if (in->is_override)
	{
		take_override(r, value, in, verdict);
		return;
	}
	if (in->stamp.clock < r->epoch)
	{
		verdict->rule = "override";
		accord_merge_lose(r, *value, in, verdict);
		return;
	}
	if (strategy == ACCORD_THREE_WAY)
	{
		if (in->has_base && accord_value_equal(in->base, in->value))
			return;
		strategy = three_way(&managed->columns[column]);
	}
	switch (strategy)
	{
		case ACCORD_MAX:
		case ACCORD_MIN:
			accord_merge_bound(managed, column, r, value, in, verdict);
			break;
		case ACCORD_COUNTER:
			accord_merge_counter(managed, column, r, value, in, verdict);
			break;
		case ACCORD_SET:
			accord_merge_set(managed, column, r, value, in, verdict);
			break;
		case ACCORD_JSON:
			accord_merge_json(managed, column, r, value, in, verdict);
			break;
		case ACCORD_STATE:
			accord_merge_state(managed, column, r, value, in, verdict);
			break;
		case ACCORD_CUSTOM:
			accord_merge_custom(managed, column, r, value, in, verdict);
			break;
		case ACCORD_PARK:
			merge_park(r, value, in, verdict);
			break;
		default:
			merge_choice(policy, r, value, in, verdict);
	}
}

/* ---- a row --------------------------------------------------------------- */

/* The change of one column, taken out of the change of the row. */
static void
pick_column(AccordEntity *entity, const AccordRowChange *change, int column,
			Jsonb *value, AccordIncoming *in)
{
	const char *name = entity->managed->columns[column].name;

	memset(in, 0, sizeof(*in));
	in->stamp = change->stamp;
	in->raw = value;
	in->value = accord_value_is_null(value) ? NULL : value;
	in->base = accord_value_member(change->base, name);
	in->has_base = in->base != NULL;
	in->creates = change->op == ACCORD_CHANGE_INSERT ||
		change->op == ACCORD_CHANGE_UPSERT;
	in->is_local = change->is_local;
	in->is_override = change->is_override;
	in->op = accord_merge_op_word(change->op);
}

static void
merge_columns(AccordEntity *entity, const AccordRowChange *change,
			  AccordRowResult *result)
{
	AccordValueScan scan;

	accord_value_scan(&scan, change->changes);
	while (accord_value_next(&scan))
	{
		int			column = accord_policy_column(entity->managed, scan.name);
		AccordConflict *conflict = &result->conflicts[result->n_conflicts];
		AccordIncoming in;

		Assert(column >= 0);
		if (entity->managed->columns[column].is_key ||
			entity->managed->columns[column].is_generated)
			continue;
		pick_column(entity, change, column, scan.value, &in);
		accord_merge_column(entity->managed, column,
							&entity->registers[column],
							&entity->values[column], &in,
							&conflict->verdict);
		result->given[column] = true;
		result->took[column] = conflict->verdict.took;
		conflict->column = column;
		if (conflict->verdict.conflict)
			result->n_conflicts++;
		if (conflict->verdict.also != NULL)
		{
			conflict[1].column = column;
			conflict[1].verdict = *conflict->verdict.also;
			result->n_conflicts++;
		}
	}
}

/* Takes up that the row was inserted, or deleted. */
static void
merge_life(AccordLife *life, const AccordRowChange *change)
{
	if (change->op == ACCORD_CHANGE_INSERT ||
		change->op == ACCORD_CHANGE_UPSERT)
	{
		if (!life->inserted ||
			accord_stamp_compare(&change->stamp, &life->insert) > 0)
			life->insert = change->stamp;
		life->inserted = true;
	}
	if (change->op != ACCORD_CHANGE_DELETE)
		return;
	if (!life->deleted ||
		accord_stamp_compare(&change->stamp, &life->remove) > 0)
		life->remove = change->stamp;
	life->seen = life->deleted ? Max(life->seen, change->seen) : change->seen;
	life->deleted = true;
}

/* A conflict about whether the row lives; it is the only one then. */
static void
note_row_conflict(AccordRowResult *result, Jsonb *winner,
				  AccordStamp winner_stamp, Jsonb *loser,
				  AccordStamp loser_stamp)
{
	AccordConflict *conflict = &result->conflicts[result->n_conflicts++];

	memset(conflict, 0, sizeof(*conflict));
	conflict->column = -1;
	conflict->verdict.rule = "delete";
	accord_merge_note(&conflict->verdict, winner, winner_stamp, loser,
					  loser_stamp);
}

/*
 * What lost by the row's life: a change to a row that stays deleted; a delete
 * of a row that stays, or that comes back.
 */
static void
judge_life(AccordEntity *entity, const AccordRowChange *change,
		   bool was_alive, AccordStamp latest, Jsonb *row,
		   AccordRowResult *result)
{
	AccordLife *life = &entity->life;
	bool		alive = accord_register_alive(entity);
	bool		is_delete = change->op == ACCORD_CHANGE_DELETE;

	if (!life->inserted || !life->deleted || change->is_local)
		return;
	if (!alive)
		result->n_conflicts = 0;	/* columns of no row */
	if (is_delete && alive &&
		!accord_stamp_same_source(&latest, &change->stamp))
		note_row_conflict(result, accord_register_row(entity), latest, NULL,
						  change->stamp);
	else if (is_delete && !alive && was_alive &&
			 latest.clock > change->stamp.clock &&
			 !accord_stamp_same_source(&latest, &change->stamp))
		note_row_conflict(result, NULL, change->stamp, row, latest);
	else if (!is_delete && !alive &&
			 !accord_stamp_same_source(&life->remove, &change->stamp))
		note_row_conflict(result, NULL, life->remove, change->changes,
						  change->stamp);
	else if (!is_delete && alive && !was_alive &&
			 change->op == ACCORD_CHANGE_UPDATE &&
			 !accord_stamp_same_source(&life->remove, &change->stamp))
		note_row_conflict(result, change->changes, change->stamp, NULL,
						  life->remove);
}

void
accord_merge_row(AccordEntity *entity, AccordRowChange *change,
				 AccordRowResult *result)
{
	int			n = entity->managed->n_columns;
	bool		was_alive = accord_register_alive(entity);
	AccordStamp latest = accord_register_latest(entity);
	Jsonb	   *row = was_alive && change->op == ACCORD_CHANGE_DELETE ?
	accord_register_row(entity) : NULL;

	result->took = palloc0(n * sizeof(bool));
	result->given = palloc0(n * sizeof(bool));
	result->conflicts = palloc0((2 * n + 2) *
								sizeof(AccordConflict));
	result->n_conflicts = 0;
	if (change->op != ACCORD_CHANGE_DELETE)
		merge_columns(entity, change, result);
	merge_life(&entity->life, change);
	judge_life(entity, change, was_alive, latest, row, result);
}
