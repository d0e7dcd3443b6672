/*
 * latency.c: how long a commit takes to arrive at the channel.
 *
 *   latency CONNINFO SINK-FILE FIRST COUNT INTERVAL-US
 *
 * Commits COUNT events, one at a time, one every INTERVAL-US. Event number n
 * carries {"n": n}; the sink, which maps the same file, stamps its arrival
 * with the same clock. Prints three numbers each (median, 99th percentile,
 * maximum, in milliseconds) for the time since COMMIT was sent, the time
 * since COMMIT was answered, and how long COMMIT took; then how many never
 * arrived within 30 seconds after the last one.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "sink.h"

#define SECOND INT64_C(1000000000)

static PGconn *connection;

static int64_t
now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * SECOND + now.tv_nsec;
}

static void
sleep_until(int64_t when)
{
	struct timespec until = {when / SECOND, when % SECOND};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void
die(const char *what)
{
	fprintf(stderr, "latency: %s: %s\n", what,
			connection ? PQerrorMessage(connection) : "");
	exit(1);
}

static void
finish(PGresult *result, const char *what)
{
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die(what);
	PQclear(result);
}

static SinkFile *
map_file(const char *path)
{
	int			fd = open(path, O_RDONLY);
	SinkFile   *file = mmap(NULL, sizeof(SinkFile), PROT_READ, MAP_SHARED, fd,
							0);

	if (fd < 0 || file == MAP_FAILED)
		die(path);
	return file;
}

/* Commits event n; notes when COMMIT was sent and when it was answered. */
static void
commit_event(int n, int64_t *sent, int64_t *answered)
{
	char		number[16];
	const char *values[] = {number};

	snprintf(number, sizeof(number), "%d", n);
	finish(PQexec(connection, "BEGIN"), "BEGIN");
	finish(PQexecPrepared(connection, "event", 1, values, NULL, NULL, 0),
		   "INSERT");
	*sent = now_ns(CLOCK_REALTIME);
	finish(PQexec(connection, "COMMIT"), "COMMIT");
	*answered = now_ns(CLOCK_REALTIME);
}

static int64_t
wait_for_arrival(SinkFile *file, int n, int64_t deadline)
{
	int64_t		at;

	while ((at = __atomic_load_n(&file->arrivals[n], __ATOMIC_ACQUIRE)) == 0 &&
		   now_ns(CLOCK_MONOTONIC) < deadline)
		sleep_until(now_ns(CLOCK_MONOTONIC) + SECOND / 100);
	return at;
}

static int
compare(const void *a, const void *b)
{
	int64_t		left = *(const int64_t *) a;
	int64_t		right = *(const int64_t *) b;

	return (left > right) - (left < right);
}

static void
print_percentiles(int64_t *values, int n)
{
	qsort(values, n, sizeof(int64_t), compare);
	printf("%.3f %.3f %.3f ", values[n / 2] / 1e6, values[n * 99 / 100] / 1e6,
		   values[n - 1] / 1e6);
}

int
main(int argc, char **argv)
{
	SinkFile   *file;
	int			first;
	int			count;
	int			n = 0;
	int64_t		interval;
	int64_t		start;
	int64_t		deadline;
	int64_t    *sent;
	int64_t    *answered;
	int64_t    *took;

	if (argc != 6)
		die("usage: CONNINFO SINK-FILE FIRST COUNT INTERVAL-US");
	file = map_file(argv[2]);
	first = atoi(argv[3]);
	count = atoi(argv[4]);
	interval = atoll(argv[5]) * 1000;
	sent = calloc(count, sizeof(int64_t));
	answered = calloc(count, sizeof(int64_t));
	took = calloc(count, sizeof(int64_t));
	if (count < 1 || first + count > SINK_ARRIVALS || !sent || !answered ||
		!took)
		die("count");
	connection = PQconnectdb(argv[1]);
	if (PQstatus(connection) != CONNECTION_OK)
		die("connect");
	finish(PQprepare(connection, "event",
					 "INSERT INTO accord.outbox (topic, key, payload) VALUES "
					 "('latency.probe', 'probe' || $1, "
					 "jsonb_build_object('n', $1::int))", 1, NULL), "prepare");

	start = now_ns(CLOCK_MONOTONIC);
	for (int i = 0; i < count; i++)
	{
		sleep_until(start + i * interval);
		commit_event(first + i, &sent[i], &answered[i]);
	}
	deadline = now_ns(CLOCK_MONOTONIC) + 30 * SECOND;
	for (int i = 0; i < count; i++)
	{
		int64_t		at = wait_for_arrival(file, first + i, deadline);

		if (at == 0)
			continue;
		took[n] = answered[i] - sent[i];
		sent[n] = at - sent[i];
		answered[n] = at - answered[i];
		n++;
	}
	if (n == 0)
		die("nothing arrived");
	print_percentiles(sent, n);
	print_percentiles(answered, n);
	print_percentiles(took, n);
	printf("%d\n", count - n);
	return 0;
}
