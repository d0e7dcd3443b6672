/*
 * sink.h: what the sink knows, in a file that others map too.
 */
#ifndef SINK_H
#define SINK_H

#include <stdint.h>

#define SINK_LANES 128
#define SINK_ARRIVALS (1 << 20)

/* Requests whose path begins with "/" and one letter: a lane each. */
typedef struct SinkLane
{
	int64_t		requests;
	int64_t		first_ns;		/* CLOCK_REALTIME of the first one */
	int64_t		last_ns;		/* ... and of the latest */
} SinkLane;

typedef struct SinkFile
{
	SinkLane	lanes[SINK_LANES];	/* by that letter */
	int64_t		arrivals[SINK_ARRIVALS];	/* of lane 'l': first arrival of
											 * the request with "n" in its
											 * body; 0: none */
} SinkFile;

#endif							/* SINK_H */
