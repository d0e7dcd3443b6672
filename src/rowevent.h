/*
 * rowevent.h: exports of rowevent.c
 *
 * Layer 5: events about rows of captured tables.
 */
#ifndef ACCORD_ROWEVENT_H
#define ACCORD_ROWEVENT_H

#include "access/tupdesc.h"
#include "executor/tuptable.h"
#include "utils/jsonb.h"

/* The topic of events that say what an update made of a row that left. */
#define ACCORD_TOPIC_LEFT "accord.left"

/* How the rows of one captured table become events. */
typedef struct AccordCapture AccordCapture;

typedef enum AccordRowOp
{
	ACCORD_ROW_INSERT,
	ACCORD_ROW_UPDATE,
	ACCORD_ROW_DELETE,
	ACCORD_ROW_TRUNCATE
} AccordRowOp;

#define ACCORD_ROW_OPS (ACCORD_ROW_TRUNCATE + 1)

/* A row as events tell of it; all palloc'd. */
typedef struct AccordRowImage
{
	Jsonb	   *object;
	char	   *key;			/* NULL: its only key column is null */
	char	   *account;		/* NULL: none */
	Oid			relid;			/* of the table it is stored in */
} AccordRowImage;

/*
 * By the table's number; desc is that of the rows that are to be described,
 * which has the table's columns by name. NULL: there is no such number.
 */
extern AccordCapture *accord_rowevent_open(int id, TupleDesc desc,
										   const char *table);
extern int	accord_rowevent_table(const AccordCapture *capture);
extern bool accord_rowevent_refuses_truncate(const AccordCapture *capture);

extern void accord_rowevent_image(const AccordCapture *capture,
								  TupleTableSlot *row, AccordRowImage *image);

/* before, when given, is what changed of a row that is not gone. */
extern void accord_rowevent_append(const AccordCapture *capture,
								   AccordRowOp op, const AccordRowImage *row,
								   Jsonb *before);

/* A row that was changed: no event, one, or two. */
extern void accord_rowevent_update(const AccordCapture *capture,
								   TupleTableSlot *old_row,
								   TupleTableSlot *new_row);

/* An update by which the row came to meet the table's condition: an insert. */
extern void accord_rowevent_enter(const AccordCapture *capture,
								  TupleTableSlot *old_row,
								  TupleTableSlot *new_row);

/*
 * An update by which the row ceased to meet it: a delete, and before it an
 * event for nobody, which says what became of the row.
 */
extern void accord_rowevent_leave(const AccordCapture *capture,
								  TupleTableSlot *old_row,
								  TupleTableSlot *new_row);

/* An update, of a row that had another layout before; capture: of the new. */
extern void accord_rowevent_move(const AccordCapture *capture,
								 const AccordRowImage *old_row,
								 TupleTableSlot *new_row);

/*
 * An event that says that the row is there: an insert that changed nothing,
 * addressed to nobody.
 */
extern void accord_rowevent_baseline(const AccordCapture *capture,
									 const AccordRowImage *row);

#endif							/* ACCORD_ROWEVENT_H */
