/*
 * token.h: exports of token.c
 *
 * Layer 4: tokens that are fetched: what a dispatcher knows of them, and what
 * all of them keep in accord.token.
 */
#ifndef ACCORD_TOKEN_H
#define ACCORD_TOKEN_H

#include "lib/ilist.h"

#include "auth.h"

typedef enum AccordTokenState
{
	ACCORD_TOKEN_IDLE,			/* next: WANTED */
	ACCORD_TOKEN_WANTED,		/* next: IDLE (there, or to wait), ASKED,
								 * ELSEWHERE */
	ACCORD_TOKEN_ASKED,			/* we fetch it; next: IDLE */
	ACCORD_TOKEN_ELSEWHERE		/* another dispatcher does; next: WANTED */
} AccordTokenState;

typedef struct AccordToken
{
	char		key[ACCORD_TOKEN_KEY];	/* hash key */
	const AccordTokenSpec *spec;	/* of today's configuration; NULL: nobody
									 * has it any more */
	const AccordAuth *auth;		/* whose spec that is */
	AccordTokenState state;
	char	   *access;			/* NULL: none */
	TimestampTz obtained_at;
	TimestampTz expires_at;		/* 0: unknown */
	TimestampTz renew_at;		/* 0: unknown */
	TimestampTz secrets_at;		/* of the secrets it came from */
	bool		spent;			/* refused, or about to end: not to be used */
	bool		force;			/* a person asks: do not wait for retry_at */
	int			failures;		/* to get one, in a row */
	TimestampTz retry_at;		/* 0: at once */
	TimestampTz look_at;		/* ELSEWHERE: when to look again */
	char	   *error;			/* of the last failure */
	int			refusals;		/* by channels, since one was accepted */
	TimestampTz refused_at;
	dlist_head	connections;	/* of this dispatcher that use it */
	dlist_node	wanted_node;	/* while WANTED, or ELSEWHERE */
} AccordToken;

/* The token of an auth that has one; made when it is new. NULL: it has none. */
extern AccordToken *accord_token_find(const AccordAuth *auth);

/* The configuration was read anew: specs are set by accord_token_find(). */
extern void accord_token_forget_specs(void);

/*
 * When a connection that needs it may send: 0, now; a time; or DT_NOEND: when
 * it is there. Asks for one that is missing, or about to expire.
 */
extern TimestampTz accord_token_ready(AccordToken *token, TimestampTz now);

/* Until when nothing is asked because it failed; 0: it did not. */
extern TimestampTz accord_token_blocked(const AccordToken *token,
										TimestampTz now);

/*
 * A request that left at started_at was answered 401. True: it is to be sent
 * again with another token, which is there or asked for.
 */
extern bool accord_token_refused(AccordToken *token, TimestampTz started_at,
								 TimestampTz now);
extern void accord_token_accepted(AccordToken *token);

/* Somebody resumes a connection that waits for it. */
extern void accord_token_resume(AccordToken *token);

/* Those that are WANTED or ELSEWHERE, and when to look at the latter; 0: no. */
extern dlist_head *accord_token_wanted(void);
extern TimestampTz accord_token_due(void);

/*
 * In a transaction: looks at accord.token, and claims it when nobody else
 * does. Its state is ASKED then, with *refresh the refresh token to be used,
 * or NULL.
 */
extern void accord_token_claim(AccordToken *token, char **refresh,
							   TimestampTz now);

/* The request for it. Filled in with what is palloc'd; an error, or NULL. */
extern char *accord_token_request(const AccordToken *token,
								  const char *refresh,
								  AccordHttpRequest *request);

/*
 * In a transaction: what came of it. True: there is a token now, stored with
 * the refresh token that came with it; else token->error says why not.
 */
extern bool accord_token_store(AccordToken *token,
							   const AccordHttpResponse *response,
							   TimestampTz now);

#endif							/* ACCORD_TOKEN_H */
