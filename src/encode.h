/*
 * encode.h: exports of encode.c
 *
 * Layer 1: jsonb written as something else than JSON: as a form, as XML, as
 * the parts of a multipart body.
 */
#ifndef ACCORD_ENCODE_H
#define ACCORD_ENCODE_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* What a body is; the words of route.body. */
typedef enum AccordBodyKind
{
	ACCORD_BODY_JSON,
	ACCORD_BODY_CLOUDEVENTS,	/* structured mode; of a batch, batched mode */
	ACCORD_BODY_CLOUDEVENTS_BINARY,
	ACCORD_BODY_FORM,
	ACCORD_BODY_XML,
	ACCORD_BODY_MULTIPART,
	ACCORD_BODY_TEXT,
	ACCORD_BODY_BYTES,
	ACCORD_BODY_NONE
} AccordBodyKind;

/* Whether the word is one. */
extern bool accord_encode_kind(const char *word, AccordBodyKind *kind);

/* Its media type, when nobody gives another. */
extern const char *accord_encode_type(AccordBodyKind kind);

/* Whether an idempotency key can be put into it. */
extern bool accord_encode_holds_key(AccordBodyKind kind);

/* How the elements of an array are named in a form. */
typedef enum AccordFormArrays
{
	ACCORD_FORM_INDEX,			/* a[0]=x&a[1]=y */
	ACCORD_FORM_BRACKETS,		/* a[]=x&a[]=y */
	ACCORD_FORM_REPEAT			/* a=x&a=y */
} AccordFormArrays;

/* Whether the word is one; a word of route.form_arrays. */
extern bool accord_encode_arrays(const char *word, AccordFormArrays *arrays);

/*
 * Each of these appends to out, in UTF-8, and returns NULL, or a palloc'd
 * sentence fragment saying why there is no such form of the value.
 *
 * form: an object as application/x-www-form-urlencoded.
 * xml: a document; root is its element's name, NULL: the value is an object of
 *   one member, which is the element.
 * multipart: an object as parts of multipart/form-data, each after the
 *   delimiter that the boundary makes, and the closing one.
 */
extern char *accord_encode_form(StringInfo out, JsonbValue *value,
								AccordFormArrays arrays);
extern char *accord_encode_xml(StringInfo out, JsonbValue *value,
							   const char *root);
extern char *accord_encode_multipart(StringInfo out, JsonbValue *value,
									 const char *boundary);

/* A string of base64 as the bytes it stands for; raises when it is none. */
extern void accord_encode_bytes(StringInfo out, const char *base64);

/* Percent-encodes all but letters, digits and what is in "kept". */
extern void accord_encode_percent(StringInfo out, const char *text,
								  const char *kept);

/* Whether text (in the database's encoding) may be the name of an element. */
extern bool accord_encode_xml_name(const char *name);

#endif							/* ACCORD_ENCODE_H */
