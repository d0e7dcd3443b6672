/*
 * dispatch.h: exports of dispatch.c
 *
 * Layer 5: the dispatcher.
 */
#ifndef ACCORD_DISPATCH_H
#define ACCORD_DISPATCH_H

/* Entry point of the background worker; see launcher.c for its arguments. */
extern PGDLLEXPORT void accord_dispatch_main(Datum arg);

#endif							/* ACCORD_DISPATCH_H */
