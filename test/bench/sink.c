/*
 * sink.c: an HTTP server that takes everything, for measurements.
 *
 *   sink PORT FILE      PORT 0: any; the port is printed on standard output
 *
 * One thread, one epoll set, keep-alive, pipelining. Every request is answered
 * with 200 and "{}", counted and stamped in FILE (see sink.h). Paths that
 * begin with "/h" are read and not answered: a server that hangs, until
 * SIGUSR1, which closes the connections these came on. It knows just enough
 * of HTTP/1.1 for the clients measured here: Content-Length, no chunks. It is
 * much cheaper than any client, so that it is the client that is measured.
 *
 * Invariants
 *   - A request is stamped with the time at which its last byte was read.
 *   - One that is not all here yet stays in its connection's buffer.
 *
 * Ends with a signal. What it cannot understand, or hold, ends the connection;
 * what it cannot do for want of memory or descriptors ends the sink.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sink.h"

#define BUFFER_SIZE (64 * 1024)
#define EVENTS 256
#define MAX_FD 65536

static const char answer[] =
"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
"Content-Length: 2\r\n\r\n{}";

typedef struct Connection
{
	int			fd;
	bool		hangs;			/* a request is not answered */
	size_t		len;
	char		data[BUFFER_SIZE];
} Connection;

static SinkFile *file;
static Connection *connections[MAX_FD]; /* by descriptor; null: none */
static volatile sig_atomic_t let_go = 0;	/* SIGUSR1 came */

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static void
map_file(const char *path)
{
	int			fd = open(path, O_RDWR | O_CREAT, 0600);

	if (fd < 0 || ftruncate(fd, sizeof(SinkFile)) != 0)
		die(path);
	file = mmap(NULL, sizeof(SinkFile), PROT_READ | PROT_WRITE, MAP_SHARED,
				fd, 0);
	if (file == MAP_FAILED)
		die(path);
	close(fd);
}

/* Length of a request whose headers end at "body"; 0: not all here. */
static size_t
request_length(const char *start, const char *body, size_t len)
{
	static const char name[] = "\r\nContent-Length:";
	const char *header = memmem(start, body - start, name, sizeof(name) - 1);
	size_t		length = body - start;

	if (header != NULL)
		length += strtoul(header + sizeof(name) - 1, NULL, 10);
	return length <= len ? length : 0;
}

static void
note_arrival(const char *body, size_t len, int64_t now)
{
	const char *n = memmem(body, len, "\"n\":", 4);
	unsigned long number;

	if (n == NULL)
		return;
	number = strtoul(n + 4, NULL, 10);
	if (number < SINK_ARRIVALS && file->arrivals[number] == 0)
		__atomic_store_n(&file->arrivals[number], now, __ATOMIC_RELEASE);
}

/* Counts a request; true: it gets an answer. */
static bool
take_request(const char *start, const char *body, size_t len, int64_t now)
{
	const char *path = memchr(start, ' ', body - start);
	unsigned char letter = path == NULL || path[1] != '/' ? 0 : path[2];
	SinkLane   *lane = &file->lanes[letter % SINK_LANES];

	if (lane->requests == 0)
		lane->first_ns = now;
	lane->last_ns = now;
	__atomic_store_n(&lane->requests, lane->requests + 1, __ATOMIC_RELEASE);
	if (letter == 'l')
		note_arrival(body, start + len - body, now);
	return letter != 'h';
}

/* Answers the whole requests of a connection; false: it is to be closed. */
static bool
serve(Connection *connection, int64_t now)
{
	size_t		done = 0;

	for (;;)
	{
		char	   *start = connection->data + done;
		size_t		len = connection->len - done;
		char	   *body = memmem(start, len, "\r\n\r\n", 4);
		size_t		length;

		if (body == NULL)
			break;
		body += 4;
		length = request_length(start, body, len);
		if (length == 0)
			break;
		/* an answer that does not fit: its client does not read, away */
		if (!take_request(start, body, length, now))
			connection->hangs = true;
		else if (send(connection->fd, answer, sizeof(answer) - 1,
					  MSG_NOSIGNAL) != sizeof(answer) - 1)
			return false;
		done += length;
	}
	connection->len -= done;
	memmove(connection->data, connection->data + done, connection->len);
	return connection->len < BUFFER_SIZE;
}

static void
forget(Connection *connection)
{
	connections[connection->fd] = NULL;
	close(connection->fd);
	free(connection);
}

/* Ends the connections that hang. */
static void
forget_hanging(void)
{
	let_go = 0;
	for (int fd = 0; fd < MAX_FD; fd++)
		if (connections[fd] != NULL && connections[fd]->hangs)
			forget(connections[fd]);
}

static void
handle_let_go(int signal_number)
{
	(void) signal_number;
	let_go = 1;
}

static void
receive(Connection *connection)
{
	ssize_t		n = recv(connection->fd, connection->data + connection->len,
						 BUFFER_SIZE - connection->len, 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
	{
		connection->len += n;
		if (serve(connection, sink_now()))
			return;
	}
	forget(connection);
}

static void
accept_connection(int epoll_fd, int listener)
{
	int			one = 1;
	int			fd = accept4(listener, NULL, NULL,
							 SOCK_NONBLOCK | SOCK_CLOEXEC);
	Connection *connection;
	struct epoll_event event = {.events = EPOLLIN};

	if (fd < 0)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	connection = malloc(sizeof(Connection));
	if (connection == NULL || fd >= MAX_FD)
		die("connection");
	connection->fd = fd;
	connection->hangs = false;
	connection->len = 0;
	connections[fd] = connection;
	event.data.ptr = connection;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		die("epoll_ctl");
}

static int
start_listening(int port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)
	};
	socklen_t	len = sizeof(address);
	int			one = 1;
	int			fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *) &address, len) != 0 ||
		listen(fd, 1024) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &len) != 0)
		die("listen");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

int
main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];
	struct epoll_event event = {.events = EPOLLIN};
	int			epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	int			listener;
	sigset_t	blocked;
	sigset_t	waiting;

	if (argc != 3)
	{
		fprintf(stderr, "usage: sink PORT FILE\n");
		return 2;
	}
	map_file(argv[2]);
	/* SIGUSR1 comes while it waits, or is waiting then */
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, &waiting);
	signal(SIGUSR1, handle_let_go);
	listener = start_listening(atoi(argv[1]));
	if (epoll_fd < 0 ||
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event) != 0)
		die("epoll");
	for (;;)
	{
		int			n = epoll_pwait(epoll_fd, events, EVENTS, -1, &waiting);

		for (int i = 0; i < n; i++)
		{
			if (events[i].data.ptr == NULL)
				accept_connection(epoll_fd, listener);
			else
				receive(events[i].data.ptr);
		}
		/* only now: none of the events is of a connection that is gone */
		if (let_go)
			forget_hanging();
	}
}
