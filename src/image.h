/*
 * image.h: exports of image.c
 *
 * Layer 1: a row, or some of its columns, as a jsonb object.
 */
#ifndef ACCORD_IMAGE_H
#define ACCORD_IMAGE_H

#include "access/tupdesc.h"
#include "nodes/bitmapset.h"
#include "utils/jsonb.h"

/* How the rows of one table are written; lives in the context it is made in. */
typedef struct AccordImage AccordImage;

/*
 * Prepares for the columns (numbers, 1 is the first) of a table; NULL: all
 * that there are. All look-ups in the catalogues are done here.
 */
extern AccordImage *accord_image_prepare(TupleDesc desc,
										 const Bitmapset *columns);

/* The number of columns, and where in values and nulls the i-th one is. */
extern int	accord_image_columns(const AccordImage *image);
extern int	accord_image_index(const AccordImage *image, int i);

/*
 * The object that to_jsonb() would make of these columns in a session whose
 * time zone is UTC and whose other settings are the server's defaults:
 * whatever the session's are. values and nulls are those of the whole row;
 * wanted, when given, tells for each of the image's columns whether it is
 * written.
 */
extern Jsonb *accord_image_build(AccordImage *image, const Datum *values,
								 const bool *nulls, const bool *wanted);

/*
 * For each of the image's columns whether the two rows differ in it, into
 * changed; returns how many do. Values are the same when their bytes are.
 */
extern int	accord_image_compare(const AccordImage *image,
								 const Datum *old_values,
								 const bool *old_nulls,
								 const Datum *new_values,
								 const bool *new_nulls, bool *changed);

/*
 * A member of an object as text, as ->> gives it; NULL when it is null. The
 * result is palloc'd.
 */
extern char *accord_image_text(Jsonb *object, const char *column);

/* The same for the i-th of the image's columns, given the row as well. */
extern char *accord_image_column_text(const AccordImage *image, int i,
									  Jsonb *object, const Datum *values,
									  const bool *nulls);

/* Does something with the server's variables as they are by default. */
extern void accord_image_in_style(void (*work) (void *arg), void *arg);

#endif							/* ACCORD_IMAGE_H */
