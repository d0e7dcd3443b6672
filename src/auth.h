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
	ACCORD_AUTH_AWS,			/* aws, secret, perhaps a session token */
	ACCORD_AUTH_OAUTH2,			/* token; client secret, refresh token */
	ACCORD_AUTH_LOGIN			/* token; the password */
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
	ACCORD_AUTH_WORD,			/* one of "words" */
	ACCORD_AUTH_URL,
	ACCORD_AUTH_OBJECT,			/* of strings */
	ACCORD_AUTH_PATH,			/* dotted, in an answer */
	ACCORD_AUTH_SECONDS
} AccordAuthValue;

typedef struct AccordAuthMember
{
	const char *name;
	AccordAuthValue value;
	bool		optional;
	const char *words[4];		/* the first is the default */
} AccordAuthMember;

#define ACCORD_AUTH_MEMBERS 16

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
	TimestampTz set_at;			/* 0: it is not stored */
} AccordAuthSecret;

/* Looks a secret up by the name it holds, and fills in the rest. */
typedef void (*AccordAuthLookup) (AccordAuthSecret *secret);

/* Bytes of what tells tokens apart: a SHA-256 in hexadecimal. */
#define ACCORD_TOKEN_KEY 65

/* How a token is fetched, and used. */
typedef struct AccordTokenSpec
{
	char		key[ACCORD_TOKEN_KEY];
	char	   *url;
	bool		login;			/* else OAuth 2.0 */
	bool		json;			/* the request's body; else a form */
	bool		client_in_body; /* client_id and secret; else basic */
	char	   *client_id;
	char	   *scope;			/* NULL: none */
	char	   *secret_parameter;	/* of a login */
	Jsonb	   *parameters;		/* NULL: none */
	char	   *token_path;		/* in the answer */
	char	   *expires_path;
	int			lifetime_s;		/* where the answer says none; 0: unknown */
	int			margin_s;		/* renewed so long before; -1: by lifetime */
	char	   *header;			/* that the token is sent in, after prefix */
	char	   *prefix;
	int			client_secret;	/* places in secrets, -1: none */
	int			refresh_secret;
	TimestampTz secrets_at;		/* when the last of them was set */
	const AccordHttpTls *tls;	/* of who has it, or NULL */
	const AccordHttpProxy *proxy;
} AccordTokenSpec;

/* An auth column, its secrets looked up. */
typedef struct AccordAuth
{
	AccordAuthType type;
	char	   *name;			/* user, header, parameter, or access key */
	int			n_secrets;
	AccordAuthSecret secrets[ACCORD_SIGN_SECRETS];
	AccordSignRule *rule;
	AccordSignAws *aws;
	AccordTokenSpec *token;		/* NULL: it needs none */
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
 * request's own, the same for each attempt; NULL: one is made. access is the
 * token, of an auth that needs one; NULL: there is none now. Returns why it
 * cannot be done (palloc'd, without a secret), or NULL.
 */
extern char *accord_auth_apply(const AccordAuth *auth, const char *id,
							   const char *access, AccordHttpRequest *request,
							   TimestampTz now);

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
 * there is one. access as in accord_auth_apply(); proxy is the way they came
 * by, whose credential is one as well, or NULL.
 */
extern const char *accord_auth_redact(const AccordAuth *auth,
									  const char *access,
									  const AccordHttpProxy *proxy,
									  const char *bytes, size_t *len,
									  size_t keep);

#endif							/* ACCORD_AUTH_H */
