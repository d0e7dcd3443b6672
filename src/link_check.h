/*
 * link_check.h: exports of link_check.c
 *
 * Layer 3: how a channel is reached is checked when it is given.
 */
#ifndef ACCORD_LINK_CHECK_H
#define ACCORD_LINK_CHECK_H

#include "utils/jsonb.h"

/* Raise unless a column tls, or proxy, can be used. table is whose it is. */
extern void accord_link_check_tls(const char *table, Jsonb *tls);
extern void accord_link_check_proxy(const char *table, Jsonb *proxy);

#endif							/* ACCORD_LINK_CHECK_H */
