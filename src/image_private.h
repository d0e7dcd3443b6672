/*
 * image_private.h: what image_type.c and image.c share
 *
 * Layer 1: how the columns of a table are written.
 */
#ifndef ACCORD_IMAGE_PRIVATE_H
#define ACCORD_IMAGE_PRIVATE_H

#include "fmgr.h"
#include "utils/jsonb.h"

/* How a value of a type is written. */
typedef enum ImageKind
{
	IMAGE_BOOL,
	IMAGE_INT2,
	IMAGE_INT4,
	IMAGE_INT8,
	IMAGE_FLOAT4,
	IMAGE_FLOAT8,
	IMAGE_NUMERIC,
	IMAGE_DATE_TIME,			/* date and timestamps, ISO 8601 */
	IMAGE_JSONB,
	IMAGE_JSON,
	IMAGE_TEXT,					/* a varlena that holds the text itself */
	IMAGE_OUTPUT,				/* the type's output function */
	IMAGE_ARRAY,				/* of any of the above */
	IMAGE_TO_JSONB				/* composites, casts to json, arrays of them:
								 * PostgreSQL's to_jsonb() */
} ImageKind;

/* Settings that an output function looks at. */
typedef enum ImageGuard
{
	GUARD_NONE,					/* none */
	GUARD_STYLE,				/* variables of the server, set and put back */
	GUARD_PATH					/* search_path, lc_monetary: set as settings */
} ImageGuard;

typedef struct ImageType
{
	ImageKind	kind;
	ImageGuard	guard;
	Oid			type;			/* domains are looked through */
	FmgrInfo	function;		/* of IMAGE_OUTPUT, IMAGE_TO_JSONB */
	struct ImageType *element;	/* of IMAGE_ARRAY */
	int16		len;
	bool		byval;
	char		align;
} ImageType;

typedef struct ImageColumn
{
	int			index;			/* in values and nulls */
	const char *name;
	int			name_len;
	ImageType	type;
} ImageColumn;

struct AccordImage
{
	ImageGuard	guard;			/* the strictest of its columns */
	int			n;
	ImageColumn *columns;		/* in the order of keys in a jsonb object */
	char	   *head;			/* of an object of all columns, up to the end
								 * of the names; values' entries are zero */
	int			head_len;
};

/*
 * Entry i of a container: every 32nd tells where in the data it ends, the
 * others how long they are.
 */
static inline JEntry
accord_image_entry(int i, uint32 kind, int len, int end)
{
	return i % JB_OFFSET_STRIDE == 0 ?
		kind | JENTRY_HAS_OFF | (JEntry) end : kind | (JEntry) len;
}

#endif							/* ACCORD_IMAGE_PRIVATE_H */
