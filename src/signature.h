/*
 * signature.h: exports of signature.c
 *
 * Layer 2: whether a webhook comes from whom it says it does.
 */
#ifndef ACCORD_SIGNATURE_H
#define ACCORD_SIGNATURE_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

/* A webhook as it arrived. */
typedef struct AccordWebhook
{
	Jsonb	   *headers;		/* object of strings; names in any case */
	const char *body;
	size_t		len;
} AccordWebhook;

/* The value of a header; NULL when there is none. palloc'd. */
extern char *accord_signature_header(Jsonb *headers, const char *name);

/*
 * Checks a webhook by a checked accord.source.verify: any of the secrets will
 * do. NULL: it is good. Otherwise what is wrong, which names no secret.
 */
extern const char *accord_signature_check(Jsonb *verify, char **secrets,
										  int n_secrets, int64 tolerance,
										  const AccordWebhook *webhook,
										  TimestampTz now);

/*
 * The id that the scheme gives each delivery, the same when it is repeated;
 * NULL when it gives none.
 */
extern char *accord_signature_delivery(Jsonb *verify, Jsonb *headers);

/* What the scheme says that the webhook is about; NULL: nothing. */
extern char *accord_signature_topic(Jsonb *verify, Jsonb *headers);

#endif							/* ACCORD_SIGNATURE_H */
