/*
 * latency.c: how long a commit takes to arrive at the channel.
 *
 *   latency CONNINFO SINK-FILE FIRST COUNT INTERVAL-US [STATEMENT]
 *
 * STATEMENT enqueues event number $1; without one, that is accord.outbox.
 *
 * Commits COUNT events, one at a time, one every INTERVAL-US. Event number n
 * carries {"n": n}; the sink, which maps the same file, stamps its arrival
 * with the same clock. Prints a line of three numbers for each, in
 * milliseconds: arrival since COMMIT was sent; arrival since COMMIT was
 * answered (negative when the request was faster); and how long COMMIT took.
 *
 * An event that does not arrive within 30 seconds after the last commit ends
 * it with status 1, as does any error: a figure without the worst is none.
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

static PGconn *connection;

static void
sleep_until(int64_t when)
{
	struct timespec until = {when / SINK_SECOND, when % SINK_SECOND};

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
	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
		PQresultStatus(result) != PGRES_TUPLES_OK)
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
	*sent = sink_now();
	finish(PQexec(connection, "COMMIT"), "COMMIT");
	*answered = sink_now();
}

static int64_t
wait_for_arrival(SinkFile *file, int n, int64_t deadline)
{
	int64_t		at;

	while ((at = __atomic_load_n(&file->arrivals[n], __ATOMIC_ACQUIRE)) == 0 &&
		   sink_now() < deadline)
		sleep_until(sink_now() + SINK_SECOND / 100);
	return at;
}

int
main(int argc, char **argv)
{
	SinkFile   *file;
	int			first;
	int			count;
	int64_t		interval;
	int64_t		start;
	int64_t		deadline;
	int64_t    *sent;
	int64_t    *answered;

	if (argc != 6 && argc != 7)
		die("usage: CONNINFO SINK-FILE FIRST COUNT INTERVAL-US [STATEMENT]");
	file = map_file(argv[2]);
	first = atoi(argv[3]);
	count = atoi(argv[4]);
	interval = atoll(argv[5]) * 1000;
	sent = calloc(count, sizeof(int64_t));
	answered = calloc(count, sizeof(int64_t));
	if (count < 1 || first + count > SINK_ARRIVALS || !sent || !answered)
		die("count");
	connection = PQconnectdb(argv[1]);
	if (PQstatus(connection) != CONNECTION_OK)
		die("connect");
	finish(PQprepare(connection, "event", argc > 6 ? argv[6] :
					 "INSERT INTO accord.outbox (topic, key, payload) VALUES "
					 "('latency.probe', 'probe' || $1, "
					 "jsonb_build_object('n', $1::int))", 1, NULL), "prepare");

	start = sink_now();
	for (int i = 0; i < count; i++)
	{
		sleep_until(start + i * interval);
		commit_event(first + i, &sent[i], &answered[i]);
	}
	deadline = sink_now() + 30 * SINK_SECOND;
	for (int i = 0; i < count; i++)
	{
		int64_t		at = wait_for_arrival(file, first + i, deadline);

		if (at == 0)
			die("an event did not arrive");
		printf("%.4f %.4f %.4f\n", (at - sent[i]) / 1e6,
			   (at - answered[i]) / 1e6, (answered[i] - sent[i]) / 1e6);
	}
	return 0;
}
