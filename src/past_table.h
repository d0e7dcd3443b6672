/*
 * past_table.h: exports of past_table.c
 *
 * Layer 5: a captured table whose past is asked for, and what the log's events
 * say of its rows.
 */
#ifndef ACCORD_PAST_TABLE_H
#define ACCORD_PAST_TABLE_H

#include "access/htup.h"
#include "fmgr.h"
#include "image.h"
#include "log.h"
#include "nodes/bitmapset.h"
#include "row.h"

/* How columns were called from an event on. */
typedef struct AccordPastShape
{
	int64		seq;
	int32		ord;
	char	  **names;			/* of each column; NULL: it was not there */
} AccordPastShape;

/* The table that is asked about. */
typedef struct AccordPastTable
{
	Oid			relid;
	Oid			rowtype;
	const char *name;			/* qualified and quoted */
	int			id;				/* accord.captured.id */
	int64		seq;			/* the point */
	char	   *condition;		/* of the rows that are captured, or NULL */
	TupleDesc	desc;
	int			n_keys;
	int		   *keys;			/* column numbers - 1 */
	AccordImage *image;			/* of the key's columns */
	Bitmapset  *hidden;			/* column numbers - 1 of what is not captured */
	AccordRowMaker *maker;
	AccordPastShape *shapes;	/* in their order; none: as they are now */
	int			n_shapes;
} AccordPastTable;

/* Ops by their first letters; a baseline is an insert that changed nothing. */
#define ACCORD_PAST_INSERT 'i'
#define ACCORD_PAST_EVENT 'e'
#define ACCORD_PAST_BASELINE 'b'

/*
 * Prepares the table and the point that the arguments name, and the snapshot
 * under which all is read, as the active one; SPI is connected.
 */
extern void accord_past_begin(FunctionCallInfo fcinfo, AccordPastTable *table,
							  int point);
extern void accord_past_end(void);

/* The key of a row; NULL when it has none. */
extern char *accord_past_key(AccordPastTable *table, const Datum *values,
							 const bool *nulls);

extern void accord_past_deform(AccordPastTable *table, HeapTupleHeader row,
							   Datum *values, bool *nulls);

/* What is not captured was not known at the point. */
extern void accord_past_hide(AccordPastTable *table, bool *nulls);

/* Of an event: its op's first letter; an insert's kind, by its before. */
extern char accord_past_letter(Datum op);
extern char accord_past_insert_kind(bool isnull, Datum before);
extern char accord_past_op(HeapTuple event, TupleDesc desc);

/* The row that an event found; NULL: it found none. */
extern HeapTuple accord_past_before(AccordPastTable *table, HeapTuple event,
									TupleDesc desc, char op, int64 seq,
									int32 ord);

extern int64 accord_past_int64(HeapTuple tuple, int column, TupleDesc desc);

#endif							/* ACCORD_PAST_TABLE_H */
