/*
 * value.h: exports of value.c
 *
 * Layer 1: jsonb values one by one: taken apart, compared, put together.
 */
#ifndef ACCORD_VALUE_H
#define ACCORD_VALUE_H

#include "compat.h"
#include "utils/jsonb.h"

/*
 * A value is a Jsonb of its own; NULL pointers and JSON null are the same
 * here, as both are SQL's NULL in a row.
 */
extern bool accord_value_is_null(Jsonb *value);
extern bool accord_value_is_object(Jsonb *value);
extern bool accord_value_is_array(Jsonb *value);
extern bool accord_value_equal(Jsonb *a, Jsonb *b);

/* By bytes, whatever the collation: equal values give equal numbers. */
extern uint32 accord_value_hash(Jsonb *value);

/* A total order that no collation takes part in: numbers as numbers. */
extern int	accord_value_compare(Jsonb *a, Jsonb *b);

/* A member of an object, an element of an array; NULL when there is none. */
extern Jsonb *accord_value_member(Jsonb *object, const char *name);
extern Jsonb *accord_value_element(Jsonb *array, int i);
extern int	accord_value_length(Jsonb *array);

/* What a scalar says, as text; a container's JSON; NULL when null. */
extern char *accord_value_text(Jsonb *value);

/* A whole number; the other value when it is none. */
extern int64 accord_value_int(Jsonb *value, int64 otherwise);

extern Jsonb *accord_value_of(JsonbValue *value);
extern Jsonb *accord_value_string(const char *text);

/* Goes through an object's members, or an array's elements (name NULL). */
typedef struct AccordValueScan
{
	JsonbIterator *iterator;
	bool		is_object;
	char	   *name;
	Jsonb	   *value;
} AccordValueScan;

extern void accord_value_scan(AccordValueScan *scan, Jsonb *container);
extern bool accord_value_next(AccordValueScan *scan);

/* Putting together. Within an object each value follows its key. */
typedef AccordJsonbState AccordBuild;

extern void accord_build_begin(AccordBuild *build);
extern void accord_build_object(AccordBuild *build);
extern void accord_build_array(AccordBuild *build);
extern void accord_build_end_object(AccordBuild *build);
extern void accord_build_end_array(AccordBuild *build);
extern void accord_build_key(AccordBuild *build, const char *name);
extern void accord_build_value(AccordBuild *build, Jsonb *value);
extern void accord_build_text(AccordBuild *build, const char *text);
extern void accord_build_int(AccordBuild *build, int64 number);
extern void accord_build_decimal(AccordBuild *build, const char *number);
extern Jsonb *accord_build_done(AccordBuild *build);

#endif							/* ACCORD_VALUE_H */
