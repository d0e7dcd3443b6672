/*
 * register.c: what is kept of a managed row besides the row.
 *
 * Runs in the application's backends. Of each column only who gave its value,
 * and when, is kept here; the value is in the row. Of a row that is not in
 * its table, because it was deleted or because only updates of it have come
 * so far, the values are kept, too (accord.row_state.kept). So a tombstone is
 * a row like any other, and what comes late needs no special case.
 *
 * The stored form is an object: under a column's name an array of clock,
 * source, event, revision, hash of the base, epoch and what the strategy
 * keeps, without its trailing nulls; under "*" the same for all columns
 * without one of their own; under "" the row's life. A source of null is the
 * application itself.
 *
 * On failure, should the stored form be none, the statement raises.
 */
#include "postgres.h"

#include "guc.h"
#include "register.h"

AccordStamp
accord_register_stamp(int64 clock, const char *source, const char *event,
					  const char *revision)
{
	AccordStamp stamp;

	stamp.rank = 0;
	stamp.clock = clock;
	stamp.source = source;
	stamp.name = source != NULL ? source :
		accord_node_name != NULL ? accord_node_name : "";
	stamp.event = event != NULL ? event : "";
	stamp.revision = revision;
	return stamp;
}

AccordEntity *
accord_register_new(AccordManaged *managed)
{
	AccordEntity *entity = palloc0(sizeof(AccordEntity));

	entity->managed = managed;
	entity->registers = palloc0(managed->n_columns * sizeof(AccordRegister));
	entity->values = palloc0(managed->n_columns * sizeof(Jsonb *));
	entity->common.epoch = ACCORD_CLOCK_NONE;
	for (int i = 0; i < managed->n_columns; i++)
	{
		entity->registers[i].epoch = ACCORD_CLOCK_NONE;
		entity->registers[i].won =
			accord_register_stamp(ACCORD_CLOCK_NONE, NULL, NULL, NULL);
	}
	return entity;
}

/* ---- reading ------------------------------------------------------------- */

static AccordStamp
read_stamp(Jsonb *array, int at, bool with_revision)
{
	Jsonb	   *revision = with_revision ?
	accord_value_element(array, at + 3) : NULL;

	return accord_register_stamp(accord_value_int(accord_value_element(array, at),
												  ACCORD_CLOCK_NONE),
								 accord_value_text(accord_value_element(array, at + 1)),
								 accord_value_text(accord_value_element(array, at + 2)),
								 accord_value_text(revision));
}

void
accord_register_parse(AccordRegister *r, Jsonb *array)
{
	Jsonb	   *base = accord_value_element(array, 4);

	r->won = read_stamp(array, 0, true);
	r->known = r->won.clock != ACCORD_CLOCK_NONE;
	r->has_base = base != NULL;
	r->base = (uint32) accord_value_int(base, 0);
	r->epoch = accord_value_int(accord_value_element(array, 5),
								ACCORD_CLOCK_NONE);
	r->extra = accord_value_element(array, 6);
}

static void
read_life(AccordLife *life, Jsonb *array)
{
	life->insert = read_stamp(array, 0, false);
	life->inserted = true;
	if (accord_value_element(array, 0) == NULL)
		life->inserted = false;
	life->deleted = accord_value_element(array, 3) != NULL;
	life->remove = read_stamp(array, 3, false);
	life->seen = accord_value_int(accord_value_element(array, 6),
								  ACCORD_CLOCK_NONE);
}

void
accord_register_read(AccordEntity *entity, Jsonb *state)
{
	AccordValueScan scan;

	accord_value_scan(&scan, state);
	while (accord_value_next(&scan))
	{
		int			column;

		if (scan.name[0] == '\0')
			read_life(&entity->life, scan.value);
		else if (strcmp(scan.name, "*") == 0)
			accord_register_parse(&entity->common, scan.value);
		else if ((column = accord_policy_column(entity->managed,
												scan.name)) >= 0)
			accord_register_parse(&entity->registers[column], scan.value);
	}
	/* a column added since has what all have */
	for (int i = 0; i < entity->managed->n_columns; i++)
		if (!entity->registers[i].known && entity->common.known &&
			entity->registers[i].extra == NULL)
			entity->registers[i] = entity->common;
}

/* ---- writing ------------------------------------------------------------- */

static void
write_clock(AccordBuild *build, int64 clock)
{
	if (clock == ACCORD_CLOCK_NONE)
		accord_build_text(build, NULL);
	else
		accord_build_int(build, clock);
}

void
accord_register_build(AccordBuild *build, const AccordRegister *r)
{
	int			n = r->extra != NULL ? 7 :
	r->epoch != ACCORD_CLOCK_NONE ? 6 :
	r->has_base ? 5 :
	r->won.revision != NULL ? 4 :
	r->won.event[0] != '\0' ? 3 :
	r->won.source != NULL ? 2 : 1;

	accord_build_array(build);
	write_clock(build, r->won.clock);
	if (n > 1)
		accord_build_text(build, r->won.source);
	if (n > 2)
		accord_build_text(build, r->won.event[0] == '\0' ? NULL :
						  r->won.event);
	if (n > 3)
		accord_build_decimal(build, r->won.revision);
	if (n > 4)
	{
		if (r->has_base)
			accord_build_int(build, r->base);
		else
			accord_build_text(build, NULL);
	}
	if (n > 5)
		write_clock(build, r->epoch);
	if (n > 6)
		accord_build_value(build, r->extra);
	accord_build_end_array(build);
}

static void
write_life(AccordBuild *build, const AccordLife *life)
{
	accord_build_array(build);
	if (life->inserted)
		accord_build_int(build, life->insert.clock);
	else
		accord_build_text(build, NULL);
	accord_build_text(build, life->insert.source);
	accord_build_text(build, life->insert.event);
	if (life->deleted)
	{
		write_clock(build, life->remove.clock);
		accord_build_text(build, life->remove.source);
		accord_build_text(build, life->remove.event);
		write_clock(build, life->seen);
	}
	accord_build_end_array(build);
}

/* Whether a register says nothing that the common one does not. */
static bool
is_common(const AccordRegister *r, const AccordRegister *common)
{
	return common->known && r->known && r->extra == NULL &&
		r->epoch == common->epoch && !r->has_base &&
		r->won.revision == NULL && r->won.clock == common->won.clock &&
		accord_stamp_same_source(&r->won, &common->won) &&
		strcmp(r->won.event, common->won.event) == 0;
}

Jsonb	   *
accord_register_write(const AccordEntity *entity)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "");
	write_life(&build, &entity->life);
	if (entity->common.known)
	{
		accord_build_key(&build, "*");
		accord_register_build(&build, &entity->common);
	}
	for (int i = 0; i < entity->managed->n_columns; i++)
	{
		const AccordRegister *r = &entity->registers[i];

		if ((!r->known && r->extra == NULL && r->epoch == ACCORD_CLOCK_NONE) ||
			is_common(r, &entity->common))
			continue;
		accord_build_key(&build, entity->managed->columns[i].name);
		accord_register_build(&build, r);
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/* ---- the row ------------------------------------------------------------- */

void
accord_register_set_row(AccordEntity *entity, Jsonb *row)
{
	for (int i = 0; i < entity->managed->n_columns; i++)
	{
		Jsonb	   *value =
		accord_value_member(row, entity->managed->columns[i].name);

		entity->values[i] = accord_value_is_null(value) ? NULL : value;
	}
}

Jsonb	   *
accord_register_row(const AccordEntity *entity)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	for (int i = 0; i < entity->managed->n_columns; i++)
	{
		accord_build_key(&build, entity->managed->columns[i].name);
		accord_build_value(&build, entity->values[i]);
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

AccordStamp
accord_register_latest(const AccordEntity *entity)
{
	AccordStamp latest = entity->life.insert;

	if (!entity->life.inserted)
		latest = accord_register_stamp(ACCORD_CLOCK_NONE, NULL, NULL, NULL);
	for (int i = 0; i < entity->managed->n_columns; i++)
	{
		AccordStamp stamp = entity->registers[i].won;

		stamp.rank = 0;
		latest.rank = 0;
		if (entity->registers[i].known &&
			accord_stamp_compare(&stamp, &latest) > 0)
			latest = stamp;
	}
	return latest;
}

bool
accord_register_alive(const AccordEntity *entity)
{
	const AccordLife *life = &entity->life;

	if (!life->inserted)
		return false;
	if (!life->deleted)
		return true;
	if (entity->managed->row->delete_wins)
		return accord_stamp_compare(&life->insert, &life->remove) > 0;
	return accord_register_latest(entity).clock > life->seen;
}
