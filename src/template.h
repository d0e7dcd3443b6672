/*
 * template.h: exports of template.c
 *
 * Layer 1, pure: URI templates (RFC 6570, all four levels' operators;
 * prefix ":n" and explode "*" modifiers).
 */
#ifndef ACCORD_TEMPLATE_H
#define ACCORD_TEMPLATE_H

#include "utils/jsonb.h"

/*
 * Gives the value of a variable, or NULL when it is undefined. Arrays are
 * lists, objects associative arrays, as the RFC has them.
 */
typedef JsonbValue *(*AccordTemplateLookup) (const char *name, void *arg);

/*
 * Checks a template; returns NULL when it is well formed, else a palloc'd
 * sentence fragment saying what is wrong and where ("unclosed \"{\" at
 * character 7"). Never raises.
 */
extern char *accord_template_check(const char *template);

/*
 * The names of a checked template's variables, one after the other: moves
 * *template on; palloc'd; NULL: no more.
 */
extern char *accord_template_next_variable(const char **template);

/*
 * Expands a template that accord_template_check() passed; palloc'd.
 * With raw set (header values) values are inserted unescaped.
 * *missing, if not NULL, is set to the name of the first variable that was
 * undefined in a simple expression ({x}, {+x}), else to NULL: an undefined
 * variable in a path is a poisoned request, not an empty segment.
 */
extern char *accord_template_expand(const char *template, bool raw,
									AccordTemplateLookup lookup, void *arg,
									char **missing);

#endif							/* ACCORD_TEMPLATE_H */
