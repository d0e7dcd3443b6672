/*
 * merge.h: exports of merge.c, merge_value.c, merge_tree.c and reduce.c
 *
 * Layer 5: what a change makes of a column, and of a row. No clock is looked
 * at, and no table; any order and any repetition of the same changes give the
 * same result.
 */
#ifndef ACCORD_MERGE_H
#define ACCORD_MERGE_H

#include "register.h"

/* One column of a change. */
typedef struct AccordIncoming
{
	AccordStamp stamp;
	Jsonb	   *value;			/* in the column's form; NULL: null */
	Jsonb	   *raw;			/* as it was given: may be {"add": ...} */
	bool		has_base;
	Jsonb	   *base;			/* what its author saw in the column */
	bool		creates;		/* part of an insert */
	bool		is_local;		/* the application's own, made here */
	bool		is_override;	/* a person decided */
	const char *op;
} AccordIncoming;

/* What became of it. */
typedef struct AccordVerdict
{
	bool		took;			/* it has an effect, whole or in part */
	bool		conflict;		/* there is a loser its winner did not know */
	bool		held;			/* ... for a person to decide */
	const char *rule;			/* why */
	Jsonb	   *winner;
	AccordStamp winner_stamp;
	Jsonb	   *loser;
	AccordStamp loser_stamp;
	struct AccordVerdict *also; /* a change that is merged by parts may win
								 * with some and lose with others */
} AccordVerdict;

/*
 * Merges into a column: its register and its value. The policy is the
 * column's.
 */
extern void accord_merge_column(AccordManaged *managed, int column,
								AccordRegister *r, Jsonb **value,
								AccordIncoming *in, AccordVerdict *verdict);

/* The strategies that are not of one value against another. */
extern void accord_merge_bound(AccordManaged *managed, int column,
							   AccordRegister *r, Jsonb **value,
							   AccordIncoming *in, AccordVerdict *verdict);
extern void accord_merge_counter(AccordManaged *managed, int column,
								 AccordRegister *r, Jsonb **value,
								 AccordIncoming *in, AccordVerdict *verdict);
extern void accord_merge_state(AccordManaged *managed, int column,
							   AccordRegister *r, Jsonb **value,
							   AccordIncoming *in, AccordVerdict *verdict);
extern void accord_merge_set(AccordManaged *managed, int column,
							 AccordRegister *r, Jsonb **value,
							 AccordIncoming *in, AccordVerdict *verdict);
extern void accord_merge_json(AccordManaged *managed, int column,
							  AccordRegister *r, Jsonb **value,
							  AccordIncoming *in, AccordVerdict *verdict);
extern void accord_merge_custom(AccordManaged *managed, int column,
								AccordRegister *r, Jsonb **value,
								AccordIncoming *in, AccordVerdict *verdict);

extern void accord_merge_note(AccordVerdict *verdict, Jsonb *winner,
							  AccordStamp winner_stamp, Jsonb *loser,
							  AccordStamp loser_stamp);

/* For these: the change wins over, or loses to, what is there. */
extern void accord_merge_take(AccordRegister *r, Jsonb **value,
							  const AccordIncoming *in,
							  AccordVerdict *verdict);
extern void accord_merge_lose(AccordRegister *r, Jsonb *value,
							  const AccordIncoming *in,
							  AccordVerdict *verdict);

/*
 * The application's own change takes a register whose value was another
 * source's: what has to be kept of that is.
 */
extern void accord_merge_displace(AccordRegister *r, const AccordRegister *old,
								  Jsonb *old_value);

/* One change of a row. */
typedef enum AccordChangeOp
{
	ACCORD_CHANGE_INSERT,
	ACCORD_CHANGE_UPDATE,
	ACCORD_CHANGE_DELETE,
	ACCORD_CHANGE_UPSERT
} AccordChangeOp;

typedef struct AccordRowChange
{
	AccordChangeOp op;
	AccordStamp stamp;
	Jsonb	   *changes;		/* object of columns; NULL: a delete */
	Jsonb	   *base;			/* object of columns, or NULL */
	bool		is_local;
	bool		is_override;
	int64		seen;			/* of a delete: the latest change that it
								 * undoes */
} AccordRowChange;

/* A conflict: of a column, or of the row (column -1). */
typedef struct AccordConflict
{
	int			column;
	AccordVerdict verdict;
} AccordConflict;

typedef struct AccordRowResult
{
	bool	   *took;			/* by columns: it has an effect */
	bool	   *given;			/* by columns: the change gave a value */
	int			n_conflicts;
	AccordConflict *conflicts;
} AccordRowResult;

extern void accord_merge_row(AccordEntity *entity, AccordRowChange *change,
							 AccordRowResult *result);

/* -1: no such word */
extern int	accord_merge_op(const char *word);
extern const char *accord_merge_op_word(AccordChangeOp op);

#endif							/* ACCORD_MERGE_H */
