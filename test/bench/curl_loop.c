/*
 * curl_loop.c: the least a program can do to send requests with libcurl; what
 * the dispatcher is measured against.
 *
 *   curl_loop URL BODY-FILE REQUESTS CONCURRENCY [CA-FILE]
 *
 * Sends the same POST again and again, so many at a time, over kept
 * connections, and prints requests per second and microseconds of CPU per
 * request. Its headers are those of the dispatcher's requests. It does what
 * the dispatcher's transport does and nothing else:
 * curl_multi_socket_action() over an epoll set in which sockets stay
 * registered between requests, each handle set up once. Nothing is recorded,
 * nothing is looked at but the status.
 *
 * Ends with status 1 when a request fails.
 */
#define _GNU_SOURCE
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256
#define MAX_FD 65536

static CURLM *multi;
static int	epoll_fd;
static unsigned char registered[MAX_FD];	/* epoll mask by descriptor */
static double deadline = -1;
static char body[65536];
static long body_len;

static double
now_ms(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void
die(const char *what, const char *why)
{
	fprintf(stderr, "curl_loop: %s: %s\n", what, why);
	exit(1);
}

static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	struct epoll_event event = {.data.fd = fd};

	(void) easy, (void) arg, (void) socket_arg;
	if (what == CURL_POLL_REMOVE)
		return 0;				/* stays until it is closed */
	if (what & CURL_POLL_IN)
		event.events |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		event.events |= EPOLLOUT;
	if (registered[fd] == event.events)
		return 0;
	if (epoll_ctl(epoll_fd, registered[fd] ? EPOLL_CTL_MOD : EPOLL_CTL_ADD,
				  fd, &event) != 0)
		die("epoll_ctl", "failed");
	registered[fd] = event.events;
	return 0;
}

static int
on_close_socket(void *arg, curl_socket_t fd)
{
	(void) arg;
	registered[fd] = 0;
	return close(fd);
}

static int
on_timer(CURLM *handle, long timeout_ms, void *arg)
{
	(void) handle, (void) arg;
	deadline = timeout_ms < 0 ? -1 : now_ms(CLOCK_MONOTONIC) + timeout_ms;
	return 0;
}

static size_t
on_body(char *bytes, size_t size, size_t n, void *arg)
{
	(void) bytes, (void) arg;
	return size * n;
}

static CURL *
create_handle(const char *url, struct curl_slist *headers, const char *ca)
{
	CURL	   *easy = curl_easy_init();

	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_POST, 1L);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, body_len);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close_socket);
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, 30000L);
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	if (ca != NULL)
		curl_easy_setopt(easy, CURLOPT_CAINFO, ca);
	return easy;
}

static void
check_result(CURLMsg *message)
{
	long		status = 0;

	if (message->data.result != CURLE_OK)
		die("request", curl_easy_strerror(message->data.result));
	curl_easy_getinfo(message->easy_handle, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		die("request", "status is not 200");
}

/* Waits, lets curl work; returns how many handles were sent again. */
static long
turn(long to_start, long *finished)
{
	struct epoll_event events[EVENTS];
	double		left = deadline - now_ms(CLOCK_MONOTONIC);
	int			n = epoll_wait(epoll_fd, events, EVENTS, deadline < 0 ? -1 :
							   left <= 0 ? 0 : (int) left + 1);
	int			running;
	int			queued;
	long		started = 0;
	CURLMsg    *message;

	for (int i = 0; i < n; i++)
		curl_multi_socket_action(multi, events[i].data.fd, 0, &running);
	if (deadline >= 0 && now_ms(CLOCK_MONOTONIC) >= deadline)
	{
		deadline = -1;
		curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
	while ((message = curl_multi_info_read(multi, &queued)) != NULL)
	{
		CURL	   *easy = message->easy_handle;

		check_result(message);
		curl_multi_remove_handle(multi, easy);
		(*finished)++;
		if (started < to_start)
		{
			curl_multi_add_handle(multi, easy);
			started++;
		}
	}
	return started;
}

static void
read_body(const char *path)
{
	FILE	   *input = fopen(path, "r");

	if (input == NULL)
		die(path, "could not be opened");
	body_len = fread(body, 1, sizeof(body) - 1, input);
	fclose(input);
}

int
main(int argc, char **argv)
{
	struct curl_slist *headers;
	struct rusage usage;
	long		requests;
	long		concurrency;
	long		started = 0;
	long		finished = 0;
	double		begun;
	double		took;
	double		cpu;

	if (argc < 5)
		die("usage", "URL BODY-FILE REQUESTS CONCURRENCY [CA-FILE]");
	read_body(argv[2]);
	requests = atol(argv[3]);
	concurrency = atol(argv[4]);
	curl_global_init(CURL_GLOBAL_DEFAULT);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	multi = curl_multi_init();
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, concurrency * 2);
	headers = curl_slist_append(NULL, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Expect:");
	headers = curl_slist_append(headers, "Idempotency-Key: "
								"01900000-0000-7000-8000-000000000000");
	headers = curl_slist_append(headers, "Accord-Topic: drain.x");
	headers = curl_slist_append(headers, "Accord-Sequence: 100000.100000");
	headers = curl_slist_append(headers, "User-Agent: pg_accord/1.0");

	begun = now_ms(CLOCK_MONOTONIC);
	for (; started < concurrency && started < requests; started++)
		curl_multi_add_handle(multi, create_handle(argv[1], headers, argc > 5 ?
												   argv[5] : NULL));
	while (finished < requests)
		started += turn(requests - started, &finished);
	took = now_ms(CLOCK_MONOTONIC) - begun;

	getrusage(RUSAGE_SELF, &usage);
	cpu = usage.ru_utime.tv_sec * 1e6 + usage.ru_utime.tv_usec +
		usage.ru_stime.tv_sec * 1e6 + usage.ru_stime.tv_usec;
	printf("%.1f %.2f\n", requests / took * 1000, cpu / requests);
	return 0;
}
