/*
 * gauge.c: how an endpoint is doing lately.
 *
 * Runs in dispatchers, for every attempt. Rates are moving averages with
 * exponential decay, as a system's load is; latencies are counted in a
 * histogram of which every five minutes the older half is thrown away.
 *
 * Invariants: pure, no I/O, nothing allocated, nothing raised, nothing kept. A
 * clock that goes back costs accuracy for as long as it went.
 *
 * On failure there is nothing to clean up.
 */
#include "postgres.h"

#include <math.h>

#include "gauge.h"

#define LEAST_MS 0.125
#define CLASSES_PER_DOUBLING 4
#define HALF_LASTS (300 * USECS_PER_SEC)

static const double spans[] = {60.0, 300.0};	/* seconds */
static const double bounds[ACCORD_GAUGE_BOUNDS] = {0.5, 1, 2.5, 5, 10, 25, 50,
100, 250, 500, 1000, 2500, 5000, 10000, 30000}; /* ms */

/* What is left of an average after so long. */
static double
decay(int span, TimestampTz from, TimestampTz now)
{
	return now <= from ? 1.0 :
		exp(-(double) (now - from) / USECS_PER_SEC / spans[span]);
}

static int
class_of(double ms)
{
	double		class;

	if (ms <= LEAST_MS)
		return 0;
	class = ceil(log2(ms / LEAST_MS) * CLASSES_PER_DOUBLING);
	return (int) Min(class, ACCORD_GAUGE_CLASSES - 1);
}

/* Throws away the half, or all, that is too old. */
static void
turn_halves(AccordGauge *gauge, TimestampTz now)
{
	if (now - gauge->turned_at < HALF_LASTS)
		return;
	if (now - gauge->turned_at < 2 * HALF_LASTS)
		memcpy(gauge->latency[1], gauge->latency[0], sizeof(gauge->latency[0]));
	else
		memset(gauge->latency[1], 0, sizeof(gauge->latency[1]));
	memset(gauge->latency[0], 0, sizeof(gauge->latency[0]));
	gauge->turned_at = now;
}

/* Counts one more; a class that is full halves them all. */
static void
count_latency(AccordGauge *gauge, int class)
{
	if (gauge->latency[0][class] == PG_UINT16_MAX)
		for (int i = 0; i < ACCORD_GAUGE_CLASSES; i++)
		{
			gauge->latency[0][i] /= 2;
			gauge->latency[1][i] /= 2;
		}
	gauge->latency[0][class]++;
}

void
accord_gauge_attempt(AccordGauge *gauge, bool delivered, double duration_ms,
					 TimestampTz now)
{
	for (int i = 0; i < lengthof(spans); i++)
	{
		double		left = decay(i, gauge->at, now);

		gauge->delivered[i] *= left;
		gauge->failed[i] *= left;
		if (delivered)
			gauge->delivered[i] += 1.0 / spans[i];
		else
			gauge->failed[i] += 1.0 / spans[i];
	}
	gauge->at = Max(gauge->at, now);
	turn_halves(gauge, now);
	if (delivered && duration_ms >= 0)
		count_latency(gauge, class_of(duration_ms));
}

double
accord_gauge_delivered(const AccordGauge *gauge, int span, TimestampTz now)
{
	return gauge->delivered[span] * decay(span, gauge->at, now);
}

double
accord_gauge_failed(const AccordGauge *gauge, int span, TimestampTz now)
{
	return gauge->failed[span] * decay(span, gauge->at, now);
}

double
accord_gauge_latency(const AccordGauge *gauge, double part, TimestampTz now)
{
	TimestampTz age = now - gauge->turned_at;
	bool		halves[2];
	uint64		total = 0;
	uint64		seen = 0;

	halves[0] = age < 2 * HALF_LASTS;
	halves[1] = age < HALF_LASTS;
	for (int i = 0; i < ACCORD_GAUGE_CLASSES; i++)
		total += (halves[0] ? gauge->latency[0][i] : 0) +
			(halves[1] ? gauge->latency[1][i] : 0);
	if (total == 0)
		return -1;
	for (int i = 0; i < ACCORD_GAUGE_CLASSES; i++)
	{
		seen += (halves[0] ? gauge->latency[0][i] : 0) +
			(halves[1] ? gauge->latency[1][i] : 0);
		if ((double) seen >= part * (double) total)
			return LEAST_MS * exp2((double) i / CLASSES_PER_DOUBLING);
	}
	return LEAST_MS * exp2((double) ACCORD_GAUGE_CLASSES /
						   CLASSES_PER_DOUBLING);
}

double
accord_gauge_bound(int i)
{
	return bounds[i];
}

int
accord_gauge_bucket(double duration_ms)
{
	int			i = 0;

	while (i < ACCORD_GAUGE_BOUNDS && duration_ms > bounds[i])
		i++;
	return i;
}
