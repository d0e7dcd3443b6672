/*
 * auth.h: exports of auth.c
 *
 * Layer 2: the auth column of a channel or account: what it may say, and how
 * a request is given the credential.
 */
#ifndef ACCORD_AUTH_H
#define ACCORD_AUTH_H

#include "utils/jsonb.h"

#include "http.h"
#include "sign.h"

typedef enum AccordAuthType
{
	ACCORD_AUTH_NONE,
	ACCORD_AUTH_BEARER,			/* secret: the token */
	ACCORD_AUTH_BASIC,			/* name: user, secret: the password */
	ACCORD_AUTH_DIGEST,			/* the same */
	ACCORD_AUTH_HEADER,			/* name: header, secret: its value */
	ACCORD_AUTH_QUERY,			/* name: parameter, secret: its value */
	ACCORD_AUTH_HMAC,			/* rule, secret */
	ACCORD_AUTH_STANDARD,		/* secrets */
	ACCORD_AUTH_AWS				/* aws, secret, perhaps a session token */
} AccordAuthType;

/* What a member of an auth column is. */
typedef enum AccordAuthValue
{
	ACCORD_AUTH_TEXT,
	ACCORD_AUTH_USER,			/* without a colon */
	ACCORD_AUTH_HEADER_NAME,
	ACCORD_AUTH_SECRET,			/* the name of a row of accord.secret */
	ACCORD_AUTH_SECRETS,		/* one to four of them */
	ACCORD_AUTH_TEMPLATE,		/* of what is signed */
	ACCORD_AUTH_TEMPLATES,		/* object of headers, one with {signature} */
	ACCORD_AUTH_WORD			/* one of "words" */
} AccordAuthValue;

typedef struct AccordAuthMember
{
	const char *name;
	AccordAuthValue value;
	bool		optional;
	const char *words[4];		/* the first is the default */
} AccordAuthMember;

#define ACCORD_AUTH_MEMBERS 10

typedef struct AccordAuthKind
{
	const char *word;
	AccordAuthType type;
	AccordAuthMember members[ACCORD_AUTH_MEMBERS];	/* up to a null name */
} AccordAuthKind;

/* A secret that an auth column names. */
typedef struct AccordAuthSecret
{
	char	   *name;
	char	   *value;			/* NULL: see fault */
	const char *fault;			/* NULL with a null value: it is not stored */
} AccordAuthSecret;

/* Looks a secret up by the name it holds, and fills in the rest. */
typedef void (*AccordAuthLookup) (AccordAuthSecret *secret);

/* An auth column, its secrets looked up. */
typedef struct AccordAuth
{
	AccordAuthType type;
	char	   *name;			/* user, header, parameter, or access key */
	int			n_secrets;
	AccordAuthSecret secrets[ACCORD_SIGN_SECRETS];
	AccordSignRule *rule;
	AccordSignAws *aws;
} AccordAuth;

/* The kind of that word; NULL: there is none. */
extern const AccordAuthKind *accord_auth_kind(const char *word);

/* All words, for a hint: "none, bearer, ...". palloc'd. */
extern char *accord_auth_words(void);

/* Reads a checked column (NULL: there is none) into auth. */
extern void accord_auth_load(AccordAuth *auth, Jsonb *json,
							 AccordAuthLookup lookup);

/*
 * Gives a request its credential, which is kept apart from what may be stored;
 * signed is what is sent: nothing of it may change afterwards. id is the
 * request's own, the same for each attempt; NULL: one is made. Returns why it
 * cannot be done (palloc'd, without a secret), or NULL.
 */
extern char *accord_auth_apply(const AccordAuth *auth, const char *id,
							   AccordHttpRequest *request, TimestampTz now);

/*
 * The same for people: header lines with the secret parts as "***" are put
 * into lines (at least ACCORD_SIGN_LINES of them), how many is returned; *query
 * is what the URL gets, or NULL. Needs no secret to be known.
 */
extern int	accord_auth_mask(const AccordAuth *auth, const char **lines,
							 const char **query);

/*
 * Bytes that others wrote, every occurrence of a credential as "***": of their
 * first "keep", and what begins in these. *len bytes; a palloc'd copy where
 * there is one.
 */
extern const char *accord_auth_redact(const AccordAuth *auth,
									  const char *bytes, size_t *len,
									  size_t keep);

#endif							/* ACCORD_AUTH_H */
