/*
 * sink.h: what the sink knows, in a file that others map too.
 *
 * Times are CLOCK_MONOTONIC, in nanoseconds: one clock for all processes of
 * the machine, that nobody sets.
 */
#ifndef SINK_H
#define SINK_H

#include <stdint.h>
#include <time.h>

#define SINK_LANES 128
#define SINK_ARRIVALS (1 << 20)
#define SINK_SECOND INT64_C(1000000000)

/* Requests whose path begins with "/" and one letter: a lane each. */
typedef struct SinkLane
{
	int64_t		requests;
	int64_t		first_ns;		/* arrival of the first one */
	int64_t		last_ns;		/* ... and of the latest */
} SinkLane;

typedef struct SinkFile
{
	SinkLane	lanes[SINK_LANES];	/* by that letter */
	int64_t		arrivals[SINK_ARRIVALS];	/* of lane 'l': first arrival of
											 * the request with "n" in its
											 * body; 0: none */
} SinkFile;

static inline int64_t
sink_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SINK_SECOND + now.tv_nsec;
}

#endif							/* SINK_H */
