/*
 * gauge.h: exports of gauge.c
 *
 * Layer 1: how an endpoint is doing lately: rates and latency. Pure: no I/O,
 * no memory, and the clock is an argument.
 */
#ifndef ACCORD_GAUGE_H
#define ACCORD_GAUGE_H

#include "datatype/timestamp.h"

/* Latencies are counted in classes, four for each doubling from 0.125 ms on. */
#define ACCORD_GAUGE_CLASSES 88

/* All zero: nothing happened yet. */
typedef struct AccordGauge
{
	TimestampTz at;				/* the rates are as of then */
	double		delivered[2];	/* per second, over 1 and 5 minutes */
	double		failed[2];
	TimestampTz turned_at;		/* when the newer half began */
	uint16		latency[2][ACCORD_GAUGE_CLASSES];	/* newer half, older */
} AccordGauge;

/* An attempt ended; duration_ms negative: no request was made. */
extern void accord_gauge_attempt(AccordGauge *gauge, bool delivered,
								 double duration_ms, TimestampTz now);

/* Per second, over the last minute (0) or five (1): a moving average. */
extern double accord_gauge_delivered(const AccordGauge *gauge, int span,
									 TimestampTz now);
extern double accord_gauge_failed(const AccordGauge *gauge, int span,
								  TimestampTz now);

/*
 * The time in milliseconds within which that part (0 to 1) of the deliveries
 * of the last five to ten minutes were answered, to a fifth; -1: there were
 * none.
 */
extern double accord_gauge_latency(const AccordGauge *gauge, double part,
								   TimestampTz now);

/*
 * Latencies that are counted for good: class i holds those of up to
 * accord_gauge_bound(i) milliseconds that no class before it holds; the last
 * one all others, and has no bound.
 */
#define ACCORD_GAUGE_BOUNDS 15

extern double accord_gauge_bound(int i);
extern int	accord_gauge_bucket(double duration_ms);

#endif							/* ACCORD_GAUGE_H */
