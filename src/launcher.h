/*
 * launcher.h: exports of launcher.c
 *
 * Layer 6: the process that keeps every database's dispatchers running.
 */
#ifndef ACCORD_LAUNCHER_H
#define ACCORD_LAUNCHER_H

#include "postgres.h"

/* Registers the launcher; from _PG_init() under preload. */
extern void accord_launcher_init(void);

/* Entry point of the background worker. */
extern PGDLLEXPORT void accord_launcher_main(Datum arg);

#endif							/* ACCORD_LAUNCHER_H */
