/*
 * config_check_private.h: what config_check.c and its parts share
 *
 * Layer 3. Included by those only.
 */
#ifndef ACCORD_CONFIG_CHECK_PRIVATE_H
#define ACCORD_CONFIG_CHECK_PRIVATE_H

#include "commands/trigger.h"
#include "utils/jsonb.h"

/* The row being checked, and what is changed in it on the way. */
typedef struct AccordRowCheck
{
	TriggerData *trigger;
	Relation	rel;
	TupleDesc	desc;
	HeapTuple	old;			/* NULL: an INSERT */
	HeapTuple	row;
	const char *table;
} AccordRowCheck;

/*
 * config_check_column.c
 */

/* A column of the row, or of the one before. */
extern Datum accord_check_column(AccordRowCheck *check, HeapTuple row,
								 const char *name, bool *isnull);

/* A column of the row; NULL when null. The text is palloc'd. */
extern char *accord_check_text(AccordRowCheck *check, const char *name);
extern Jsonb *accord_check_json(AccordRowCheck *check, const char *name);

/* The row will have this value in a column. */
extern void accord_check_set(AccordRowCheck *check, const char *name,
							 Datum value);

/* Whether a text has another value than before; true for an INSERT. */
extern bool accord_check_changed(AccordRowCheck *check, const char *name);

/* Whether events have what a template calls so; and what to say if not. */
extern bool accord_check_variable(const char *name);

#define ACCORD_VARIABLES_HINT \
	"Use key, topic, op, account, channel, event_id, source, payload.NAME, " \
	"before.NAME, headers.NAME or vars.NAME (of the account)."

/* These raise, naming the column of the relation. */

/* Unless it is a template of what events have. */
extern void accord_check_template(const char *relation, const char *column,
								  const char *template);

/* Unless it is a template of what may follow a base_url. */
extern void accord_check_path(const char *relation, const char *column,
							  const char *path);

/* If the header is made by us, or would change the meaning of the rest. */
extern void accord_check_reserved(const char *relation, const char *column,
								  const char *name, bool credential);

/*
 * config_check_route.c: raises unless the row of accord.route can be used;
 * completes it
 */
extern void accord_check_route(AccordRowCheck *check);

#endif							/* ACCORD_CONFIG_CHECK_PRIVATE_H */
