/*
 * policy.h: exports of policy.c and policy_check.c
 *
 * Layer 3: the managed tables: their columns, and by which rule each of them
 * is merged.
 */
#ifndef ACCORD_POLICY_H
#define ACCORD_POLICY_H

#include "access/skey.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "image.h"
#include "utils/jsonb.h"

typedef enum AccordStrategy
{
	ACCORD_LATEST,
	ACCORD_FIRST,
	ACCORD_PRIORITY,
	ACCORD_OWNER,
	ACCORD_MAX,
	ACCORD_MIN,
	ACCORD_COUNTER,
	ACCORD_SET,
	ACCORD_JSON,
	ACCORD_THREE_WAY,
	ACCORD_STATE,
	ACCORD_CUSTOM,
	ACCORD_PARK
} AccordStrategy;

/* What becomes of an application's own write that would lose. */
typedef enum AccordOnLocal
{
	ACCORD_LOCAL_RAISE,
	ACCORD_LOCAL_KEEP,			/* the winner stays */
	ACCORD_LOCAL_OVERRIDE		/* it wins, if accord.reason is given */
} AccordOnLocal;

/* States of a state machine, the lowest first. */
typedef struct AccordStates
{
	int			n;
	char	  **names;
	bool	   *direct;			/* [from * n + to], by one transition */
	bool	   *reachable;		/* ... by any path */
} AccordStates;

typedef struct AccordPolicy
{
	const char *column;			/* or "*" */
	int			version;
	AccordStrategy strategy;
	Jsonb	   *options;
	int			n_order;		/* priority, owner: sources, the highest first */
	char	  **order;
	AccordOnLocal on_local;
	bool		delete_wins;	/* of the row; else update-wins */
	bool		remove_wins;	/* of a set */
	int64		horizon_us;		/* history is kept for so long */
	AccordStates *states;
	Oid			function;		/* of a custom one */
	Oid			owner;			/* ... runs as */
} AccordPolicy;

typedef struct AccordColumn
{
	const char *name;
	int			index;			/* in a tuple's values */
	int			image_index;	/* in the image */
	Oid			type;
	int32		typmod;
	Oid			collation;
	Oid			element;		/* of an array; else InvalidOid */
	bool		is_jsonb;
	bool		is_key;
	bool		is_generated;	/* cannot be written */
	FmgrInfo	input;
	Oid			ioparam;
	AccordPolicy *policy;
} AccordColumn;

typedef struct AccordManaged
{
	Oid			relid;
	bool		stale;
	int			id;				/* accord.managed.id */
	Oid			owner;			/* of the table */
	const char *name;			/* qualified and quoted */
	int			natts;
	int			n_columns;		/* those that are not dropped */
	AccordColumn *columns;
	int			n_keys;
	int		   *keys;			/* places in columns, in the key's order */
	Oid			key_index;		/* by which rows are found; else InvalidOid */
	int		   *index_keys;		/* places in keys, in the index's order */
	ScanKey		index_scan;		/* all but the values */
	AccordImage *image;			/* of all columns */
	AccordPolicy *row;			/* of '*' */
	bool		can_lose;		/* the application's own writes can */
	MemoryContext context;
	SPIPlanPtr	find;			/* the row, locked */
	SPIPlanPtr	look;			/* ... not locked */
	SPIPlanPtr	remove;
	List	   *writes;			/* plans by columns; see resolve.c */
} AccordManaged;

/*
 * A managed table, as configured now; NULL when it is not managed. Stays as
 * it is until the end of the transaction, whatever changes meanwhile.
 */
extern AccordManaged *accord_policy_find(Oid relid);

/* The same; raises when it is not managed. */
extern AccordManaged *accord_policy_require(Oid relid);

/*
 * A copy in the current memory context in which a column (or '*') has
 * another policy, for what-if questions.
 */
extern AccordManaged *accord_policy_imagine(const AccordManaged *managed,
											const char *column,
											const char *strategy,
											Jsonb *options, Oid owner);

/* The place of a column; -1: there is none of this name. */
extern int	accord_policy_column(const AccordManaged *managed,
								 const char *name);

/* Its rank under the policy: higher wins. source NULL: the application. */
extern int	accord_policy_rank(const AccordPolicy *policy, const char *source);

extern const char *accord_policy_word(AccordStrategy strategy);

/* A value of a column made of jsonb; the session's settings do not matter. */
extern Datum accord_policy_datum(AccordColumn *column, Jsonb *value,
								 bool *isnull);

/*
 * The value as the column would give it back: rounded, padded, in the type's
 * own form. Raises when it is none of the column's type.
 */
extern Jsonb *accord_policy_normalize(AccordManaged *managed, int column,
									  Jsonb *value);

/*
 * Parses and checks; raises what is wrong. column NULL: '*'. In
 * policy_check.c.
 */
extern AccordPolicy *accord_policy_parse(const AccordColumn *column,
										 const char *strategy, Jsonb *options,
										 Oid owner);

#endif							/* ACCORD_POLICY_H */
