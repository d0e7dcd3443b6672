/*
 * fingerprint.h: exports of fingerprint.c
 *
 * Layer 5: which requests a channel has accepted last, for routes that skip
 * what is unchanged.
 */
#ifndef ACCORD_FINGERPRINT_H
#define ACCORD_FINGERPRINT_H

#include "endpoint.h"
#include "request.h"

extern void accord_fingerprint_init(AccordDesk *desk);

/*
 * Whether the request is the one its channel accepted last for the delivery's
 * key. Remembers it, for accord_fingerprint_accept().
 */
extern bool accord_fingerprint_same(AccordDelivery *delivery,
									const AccordRequest *request);

/* Another request is sent: what the channel has is not known from now on. */
extern void accord_fingerprint_forget(const AccordDelivery *delivery);

/* The delivery's request was accepted. */
extern void accord_fingerprint_accept(const AccordDelivery *delivery);

#endif							/* ACCORD_FINGERPRINT_H */
