/*
 * lifecycle.h: exports of lifecycle.c
 *
 * Layer 6: statements that create, drop, rename or copy what dispatchers work
 * in.
 */
#ifndef ACCORD_LIFECYCLE_H
#define ACCORD_LIFECYCLE_H

/* Installs the hooks; from _PG_init() under preload. */
extern void accord_lifecycle_init(void);

#endif							/* ACCORD_LIFECYCLE_H */
