/*
 * sign.h: exports of sign.c
 *
 * Layer 1, pure: what a request is signed with. The clock and the nonce are
 * arguments.
 */
#ifndef ACCORD_SIGN_H
#define ACCORD_SIGN_H

#include "datatype/timestamp.h"

#include "mac.h"

/* Secrets that may be live at once. */
#define ACCORD_SIGN_SECRETS 4

/* Header lines that a signature may add. */
#define ACCORD_SIGN_LINES 8

/* How the bytes of a secret are written. */
typedef enum AccordSignKey
{
	ACCORD_SIGN_KEY_TEXT,
	ACCORD_SIGN_KEY_HEX,
	ACCORD_SIGN_KEY_BASE64
} AccordSignKey;

/* How {timestamp} is written. */
typedef enum AccordSignTime
{
	ACCORD_SIGN_TIME_SECONDS,	/* since 1970 */
	ACCORD_SIGN_TIME_MS,
	ACCORD_SIGN_TIME_ISO		/* 2026-12-01T09:02:11Z */
} AccordSignTime;

/* A request as it is about to leave. */
typedef struct AccordSignRequest
{
	const char *method;
	const char *url;
	const char **headers;		/* "Name: value" */
	int			n_headers;
	const char *body;			/* NULL: none */
	size_t		body_len;
	const char *id;				/* the same for each attempt */
	const char *nonce;			/* another for each */
	TimestampTz now;
} AccordSignRequest;

/* A signature by templates: see accord_sign_check(). */
typedef struct AccordSignRule
{
	AccordMac	hash;
	bool		base64;			/* of the signature; else hexadecimal */
	AccordSignKey key;
	AccordSignTime time;
	const char *user;			/* {user} */
	const char *sign;			/* template of what is signed */
	int			n_lines;
	const char *names[ACCORD_SIGN_LINES];	/* headers, and templates of */
	const char *values[ACCORD_SIGN_LINES];	/* their values */
} AccordSignRule;

/* AWS Signature Version 4. */
typedef struct AccordSignAws
{
	const char *access_key;
	const char *secret;
	const char *session_token;	/* NULL: none */
	const char *region;
	const char *service;
} AccordSignAws;

/* What is added to the request; or why nothing can be. */
typedef struct AccordSignature
{
	int			n_lines;
	char	   *lines[ACCORD_SIGN_LINES];
	const char *error;			/* NULL: signed */
} AccordSignature;

/*
 * The first name in braces of a template that is no variable (palloc'd), or
 * NULL. {signature} is one only where "signature".
 */
extern char *accord_sign_check(const char *template, bool signature);

/* Whether a template names {signature}. */
extern bool accord_sign_has_signature(const char *template);

extern void accord_sign_rule(const AccordSignRule *rule, const char *secret,
							 const AccordSignRequest *request,
							 AccordSignature *signature);

/*
 * Standard Webhooks: one signature for each secret, so that a receiver who
 * knows any of them can verify. A secret is base64, perhaps after "whsec_".
 */
extern void accord_sign_standard(const char *const *secrets, int n_secrets,
								 const AccordSignRequest *request,
								 AccordSignature *signature);

/* The bytes of such a secret, palloc'd; NULL: it is not base64. */
extern uint8 *accord_sign_standard_key(const char *secret, size_t *len);

extern void accord_sign_aws(const AccordSignAws *aws,
							const AccordSignRequest *request,
							AccordSignature *signature);

/* The canonical request that is signed then; for tests. palloc'd. */
extern char *accord_sign_aws_canonical(const AccordSignAws *aws,
									   const AccordSignRequest *request);

#endif							/* ACCORD_SIGN_H */
