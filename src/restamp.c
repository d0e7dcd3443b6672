/*
 * restamp.c: the application's own writes of managed tables, where they always
 * win.
 *
 * Runs in the application's backends, within agree.c's triggers. Nothing is
 * merged: new registers take the place of those of the same name, as they are
 * stored, without their being read.
 *
 * Invariant: epochs and the candidates of other sources stay.
 *
 * On failure the statement raises and the transaction decides.
 */
#include "postgres.h"

#include "accord.h"
#include "clock.h"
#include "kept.h"
#include "merge.h"
#include "restamp.h"
#include "value.h"

/* The registers of an insert: one for all columns, and the row's life. */
static Jsonb *
insert_registers(int64 clock)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "");
	accord_build_array(&build);
	accord_build_int(&build, clock);
	accord_build_end_array(&build);
	accord_build_key(&build, "*");
	accord_build_array(&build);
	accord_build_int(&build, clock);
	accord_build_end_array(&build);
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/* The registers of the columns that an update changed. */
static Jsonb *
update_registers(Jsonb *before, const AccordStamp *stamp)
{
	AccordValueScan scan;
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_value_scan(&scan, before);
	while (accord_value_next(&scan))
	{
		AccordRegister r;

		memset(&r, 0, sizeof(r));
		r.won = *stamp;
		r.has_base = true;
		r.base = accord_value_hash(scan.value);
		r.epoch = ACCORD_CLOCK_NONE;
		accord_build_key(&build, scan.name);
		accord_register_build(&build, &r);
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

static Jsonb *
restamped_life(Jsonb *old, Jsonb *new)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_array(&build);
	accord_build_value(&build, accord_value_element(new, 0));
	accord_build_text(&build, NULL);
	accord_build_text(&build, NULL);
	for (int i = 3; i < accord_value_length(old); i++)
		accord_build_value(&build, accord_value_element(old, i));
	accord_build_end_array(&build);
	return accord_build_done(&build);
}

/* A register in the place of another one. */
static void
restamp_register(AccordBuild *build, Jsonb *old, Jsonb *new, Jsonb *value)
{
	AccordRegister was;
	AccordRegister now;

	if (accord_value_length(old) < 4)
	{
		accord_build_value(build, new);
		return;
	}
	accord_register_parse(&was, old);
	accord_register_parse(&now, new);
	accord_merge_displace(&now, &was, value);
	accord_register_build(build, &now);
}

/*
 * The registers that are kept, with others in the place of those of the same
 * name: epochs and other sources' candidates stay; "*" takes the place of all.
 */
static Jsonb *
restamped(Jsonb *state, Jsonb *registers, Jsonb *values)
{
	Jsonb	   *common = accord_value_member(registers, "*");
	AccordValueScan scan;
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_value_scan(&scan, state);
	while (accord_value_next(&scan))
	{
		Jsonb	   *new = accord_value_member(registers, scan.name);

		if (common != NULL && strcmp(scan.name, "*") == 0)
			continue;
		if (new != NULL && scan.name[0] == '\0')
		{
			accord_build_key(&build, scan.name);
			accord_build_value(&build, restamped_life(scan.value, new));
			continue;
		}
		if (new == NULL)
			new = scan.name[0] == '\0' ? NULL : common;
		if (new == common && common != NULL &&
			accord_value_length(scan.value) < 4)
			continue;
		accord_build_key(&build, scan.name);
		if (new == NULL)
			accord_build_value(&build, scan.value);
		else
			restamp_register(&build, scan.value, new,
							 accord_value_member(values, scan.name));
	}
	accord_value_scan(&scan, registers);
	while (accord_value_next(&scan))
	{
		if (strcmp(scan.name, "*") != 0 &&
			accord_value_member(state, scan.name) != NULL)
			continue;
		accord_build_key(&build, scan.name);
		accord_build_value(&build, scan.value);
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/* The registers of a row of which nothing is kept. */
static Jsonb *
first_registers(Jsonb *registers, int64 clock)
{
	AccordValueScan scan;
	AccordBuild build;

	if (accord_value_member(registers, "") != NULL)
		return registers;
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "");
	accord_build_array(&build);
	accord_build_int(&build, clock);
	accord_build_end_array(&build);
	accord_value_scan(&scan, registers);
	while (accord_value_next(&scan))
	{
		accord_build_key(&build, scan.name);
		accord_build_value(&build, scan.value);
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

/*
 * values: what was in the columns. clock: of the insert, when nothing is kept
 * yet.
 */
static void
restamp(AccordManaged *managed, const char *key, Jsonb *registers, int64 clock,
		Jsonb *values)
{
	AccordKept	kept;

	accord_kept_lock(managed, key, &kept);
	accord_kept_store(managed, key, &kept, kept.is_new ?
					  first_registers(registers, clock) :
					  restamped(kept.state, registers, values), NULL);
}

void
accord_restamp_insert(AccordManaged *managed, const char *key, int64 clock,
					  Jsonb *values)
{
	restamp(managed, key, insert_registers(clock), clock, values);
}

void
accord_restamp_update(AccordManaged *managed, const char *key,
					  const AccordStamp *stamp, Jsonb *before)
{
	restamp(managed, key, update_registers(before, stamp), ACCORD_CLOCK_NONE,
			before);
}
