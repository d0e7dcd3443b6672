/*
 * sink.c: an HTTP server that takes everything, for measurements.
 *
 *   sink PORT FILE [CERTIFICATE KEY]
 *
 * PORT 0: any; the port is printed on standard output. With a certificate and
 * its key, in PEM files, it also speaks TLS, at 127.0.0.1 and another port,
 * printed after the first.
 *
 * It listens at 127.0.0.1 to 127.0.0.20: servers of as many channels, which
 * share no connection.
 *
 * One thread, one epoll set, keep-alive, pipelining. Every request is answered
 * with 200 and "{}", counted and stamped in FILE (see sink.h). Paths that
 * begin with "/h" are read and not answered: a server that hangs, until
 * SIGUSR1, which closes the connections these came on; those that begin with
 * "/s" are answered with 503. It knows just enough
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
#include <openssl/ssl.h>
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
#define HOSTS 20				/* 127.0.0.1 and up: as many channels' servers */

static const char answer[] =
"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
"Content-Length: 2\r\n\r\n{}";

static const char refusal[] =
"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

typedef struct Connection
{
	int			fd;
	SSL		   *tls;			/* NULL: plain */
	bool		hangs;			/* a request is not answered */
	size_t		len;
	char		data[BUFFER_SIZE];
} Connection;

typedef struct Listener
{
	int			fd;
	SSL_CTX    *tls;			/* NULL: plain */
} Listener;

static Listener listeners[HOSTS + 1];	/* the last one: of TLS */
static int	n_listeners = HOSTS;
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
	/* as libcurl writes it, and as undici does */
	static const char *const names[] = {"\r\nContent-Length:",
	"\r\ncontent-length:"};
	const size_t name_len = strlen(names[0]);
	const char *header = memmem(start, body - start, names[0], name_len);
	size_t		length = body - start;

	if (header == NULL)
		header = memmem(start, body - start, names[1], name_len);
	if (header != NULL)
		length += strtoul(header + name_len, NULL, 10);
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

/* Counts a request; returns its answer, NULL: it gets none. */
static const char *
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
	if (letter == 'h')
		return NULL;
	return letter == 's' ? refusal : answer;
}

static bool
send_answer(Connection *connection, const char *text)
{
	const int	len = strlen(text);

	if (connection->tls != NULL)
		return SSL_write(connection->tls, text, len) == len;
	return send(connection->fd, text, len, MSG_NOSIGNAL) == len;
}

/* As recv(): -1 and EAGAIN when there is nothing (more) yet, 0 at the end. */
static ssize_t
read_bytes(Connection *connection)
{
	char	   *end = connection->data + connection->len;
	size_t		room = BUFFER_SIZE - connection->len;
	int			n;

	if (connection->tls == NULL)
		return recv(connection->fd, end, room, 0);
	n = SSL_read(connection->tls, end, room);
	if (n > 0)
		return n;
	if (SSL_get_error(connection->tls, n) != SSL_ERROR_WANT_READ)
		return 0;
	errno = EAGAIN;
	return -1;
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
		const char *text;
		size_t		length;

		if (body == NULL)
			break;
		body += 4;
		length = request_length(start, body, len);
		if (length == 0)
			break;
		/* an answer that does not fit: its client does not read, away */
		text = take_request(start, body, length, now);
		if (text == NULL)
			connection->hangs = true;
		else if (!send_answer(connection, text))
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
	SSL_free(connection->tls);
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
	ssize_t		n;

	do
	{
		n = read_bytes(connection);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n > 0)
			connection->len += n;
		if (n <= 0 || !serve(connection, sink_now()))
		{
			forget(connection);
			return;
		}
		/* what was decrypted already makes no descriptor readable */
	} while (connection->tls != NULL && SSL_pending(connection->tls) > 0);
}

static void
accept_connection(int epoll_fd, const Listener *listener)
{
	int			one = 1;
	int			fd = accept4(listener->fd, NULL, NULL,
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
	connection->tls = NULL;
	if (listener->tls != NULL)
	{
		connection->tls = SSL_new(listener->tls);
		if (connection->tls == NULL || !SSL_set_fd(connection->tls, fd))
			die("TLS");
		SSL_set_accept_state(connection->tls);
	}
	connection->hangs = false;
	connection->len = 0;
	connections[fd] = connection;
	event.data.ptr = connection;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		die("epoll_ctl");
}

/* Listens at 127.0.0.<host>; sets *port, if it was 0. */
static int
start_listening(int host, int *port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,.sin_port = htons(*port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK + host - 1)
	};
	socklen_t	len = sizeof(address);
	int			one = 1;
	int			fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *) &address, len) != 0 ||
		listen(fd, 1024) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &len) != 0)
		die("listen");
	*port = ntohs(address.sin_port);
	return fd;
}

static void
add_listener(int epoll_fd, Listener *listener, int host, int *port)
{
	struct epoll_event event = {.events = EPOLLIN,.data.ptr = listener};

	listener->fd = start_listening(host, port);
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener->fd, &event) != 0)
		die("epoll");
}

/* Listens on one port of all its hosts; with a certificate, on another too. */
static void
start_all(int epoll_fd, int port, const char *certificate, const char *key)
{
	int			tls_port = 0;

	for (int i = 0; i < HOSTS; i++)
		add_listener(epoll_fd, &listeners[i], i + 1, &port);
	printf("%d", port);
	if (certificate != NULL)
	{
		Listener   *listener = &listeners[n_listeners++];

		listener->tls = SSL_CTX_new(TLS_server_method());
		if (listener->tls == NULL ||
			SSL_CTX_use_certificate_file(listener->tls, certificate,
										 SSL_FILETYPE_PEM) != 1 ||
			SSL_CTX_use_PrivateKey_file(listener->tls, key,
										SSL_FILETYPE_PEM) != 1)
			die(certificate);
		add_listener(epoll_fd, listener, 1, &tls_port);
		printf(" %d", tls_port);
	}
	printf("\n");
	fflush(stdout);
}

/* The listener that an event is of; NULL: it is a connection's. */
static Listener *
as_listener(void *which)
{
	for (int i = 0; i < n_listeners; i++)
		if (which == &listeners[i])
			return &listeners[i];
	return NULL;
}

int
main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];
	int			epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	sigset_t	blocked;
	sigset_t	waiting;

	if (argc != 3 && argc != 5)
	{
		fprintf(stderr, "usage: sink PORT FILE [CERTIFICATE KEY]\n");
		return 2;
	}
	map_file(argv[2]);
	/* SIGUSR1 comes while it waits, or is waiting then */
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, &waiting);
	signal(SIGUSR1, handle_let_go);
	start_all(epoll_fd, atoi(argv[1]), argc > 3 ? argv[3] : NULL,
			  argc > 3 ? argv[4] : NULL);
	for (;;)
	{
		int			n = epoll_pwait(epoll_fd, events, EVENTS, -1, &waiting);

		for (int i = 0; i < n; i++)
		{
			Listener   *listener = as_listener(events[i].data.ptr);

			if (listener != NULL)
				accept_connection(epoll_fd, listener);
			else
				receive(events[i].data.ptr);
		}
		/* only now: none of the events is of a connection that is gone */
		if (let_go)
			forget_hanging();
	}
}
