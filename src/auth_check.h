/*
 * auth_check.h: exports of auth_check.c
 *
 * Layer 3: an auth column is checked when it is given.
 */
#ifndef ACCORD_AUTH_CHECK_H
#define ACCORD_AUTH_CHECK_H

#include "utils/jsonb.h"

/*
 * Raises unless auth is one that can be used; warns of secrets that are not
 * stored yet. table names whose it is in messages.
 */
extern void accord_auth_check(const char *table, Jsonb *auth);

/* Whether a text is a token as HTTP means it: a header's name. */
extern bool accord_auth_is_token(const char *text);

/* Whether it holds a line break or another control character. */
extern bool accord_auth_has_control(const char *text);

/* Warns when there is no row of accord.secret of that name. */
extern void accord_auth_check_stored(const char *name);

#endif							/* ACCORD_AUTH_CHECK_H */
