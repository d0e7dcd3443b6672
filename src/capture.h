/*
 * capture.h: exports of capture.c
 *
 * Layer 5: the triggers of captured tables.
 */
#ifndef ACCORD_CAPTURE_H
#define ACCORD_CAPTURE_H

/* Installs the hook that tells when the triggers of a query are through. */
extern void accord_capture_init(void);

#endif							/* ACCORD_CAPTURE_H */
