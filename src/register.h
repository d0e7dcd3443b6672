/*
 * register.h: exports of register.c
 *
 * Layer 5: what is kept of a managed row besides the row: a register for
 * every column, and one for whether it lives.
 */
#ifndef ACCORD_REGISTER_H
#define ACCORD_REGISTER_H

#include "policy.h"
#include "stamp.h"
#include "value.h"

typedef struct AccordRegister
{
	bool		known;			/* somebody has stamped the value */
	AccordStamp won;			/* who gave it */
	bool		has_base;		/* what the winner replaced is known */
	uint32		base;			/* ... by its hash */
	int64		epoch;			/* of the last override; changes stamped
								 * before it are out */
	Jsonb	   *extra;			/* the strategy's own; NULL: none */
} AccordRegister;

typedef struct AccordLife
{
	bool		inserted;		/* ever */
	AccordStamp insert;			/* the latest */
	bool		deleted;		/* ever */
	AccordStamp remove;			/* the latest */
	int64		seen;			/* the latest change that a delete has seen */
} AccordLife;

typedef struct AccordEntity
{
	AccordManaged *managed;
	AccordLife	life;
	AccordRegister common;		/* of columns without one of their own */
	AccordRegister *registers;	/* by the table's columns */
	Jsonb	  **values;			/* ... NULL: null */
} AccordEntity;

/* An entity of which nothing is known; in the current memory context. */
extern AccordEntity *accord_register_new(AccordManaged *managed);

/* Takes up what is stored: accord.row_state.state. NULL: nothing is. */
extern void accord_register_read(AccordEntity *entity, Jsonb *state);

extern Jsonb *accord_register_write(const AccordEntity *entity);

/* A single register's stored form. */
extern void accord_register_parse(AccordRegister *r, Jsonb *array);
extern void accord_register_build(AccordBuild *build, const AccordRegister *r);

/* The row's values from an object, and as one. */
extern void accord_register_set_row(AccordEntity *entity, Jsonb *row);
extern Jsonb *accord_register_row(const AccordEntity *entity);

/* Whether the row is to be in its table. */
extern bool accord_register_alive(const AccordEntity *entity);

/* The latest of the winning changes; clock is ACCORD_CLOCK_NONE: none. */
extern AccordStamp accord_register_latest(const AccordEntity *entity);

/* A stamp of a source and its rank under a policy. */
extern AccordStamp accord_register_stamp(int64 clock, const char *source,
										 const char *event,
										 const char *revision);

#endif							/* ACCORD_REGISTER_H */
