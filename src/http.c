/*
 * http.c: HTTP requests, many at once.
 *
 * Runs in dispatchers. Together with http_transfer.c (one request and its
 * answer), http_answer.c (what came of it), http_link.c (certificates and
 * proxies) and http_check.c (what keeps a request from being made) this is
 * all that knows curl.
 *
 * Transfers are pooled. What is submitted is given to curl when it is driven
 * next, all at once. curl's multi handle drives those in flight and says
 * which sockets it waits for; they are kept in an epoll descriptor that the
 * dispatcher waits on.
 *
 * Invariants:
 * - All signals are blocked while curl runs, so that the threads it starts to
 *   resolve names are born with them blocked and never run a handler of
 *   PostgreSQL's.
 * - curl's callbacks neither raise nor palloc: a longjmp through curl would
 *   leave its state in ruins. They use malloc, note what went wrong in the
 *   transfer and let curl end it.
 * - A socket of ours stays registered in epoll between two requests, idle: to
 *   take it out and in again costs 5 us a request. An event on an idle socket
 *   (the server closed it) takes it out, since a level-triggered epoll would
 *   report it for ever; curl finds out when it wants the connection next.
 * - Every address is checked when a socket is about to be opened, after
 *   names were resolved, and again before a kept connection is used when the
 *   setting has changed since. No proxy, no redirect leads around that.
 * - Of the descriptors that RLIMIT_NOFILE allows a part is left to
 *   PostgreSQL's files (see count_descriptors()); each socket is reported to
 *   fd.c, which closes files of its own when both together come near the
 *   limit.
 *
 * On failure a request ends with a response that says how far it got. The
 * process may exit at any time without cleaning up: the kernel closes the
 * sockets, and the resolver's threads own nothing.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "storage/fd.h"

#include "guc.h"
#include "http.h"
#include "http_private.h"
#include "network.h"

#define EVENT_BATCH 256			/* events taken from epoll at once */
#define SPARE_DESCRIPTORS 32	/* epoll, latch, resolver, certificates */
#define MIN_PG_DESCRIPTORS 64	/* never leave PostgreSQL less */
#define RESOLVER_DESCRIPTORS 4	/* of a thread that resolves a name */
#define MAX_RESOLVING 256		/* such threads */

/* Bits of SocketState */
#define SOCKET_OURS 0x1			/* opened by us, so we hear of its end */
#define SOCKET_REGISTERED 0x2	/* in the epoll set, with "mask" */
#define SOCKET_WANTED 0x4		/* curl waits for it; else it is idle */
#define SOCKET_PLAIN 0x8		/* to an http URL: HTTP/1.1, one at a time */

typedef struct SocketState
{
	uint8		flags;
	uint8		mask;			/* EPOLLIN and EPOLLOUT */
} SocketState;

static CURLM *multi = NULL;
static int	epoll_fd = -1;
static SocketState *sockets = NULL; /* by descriptor */
static int	n_sockets = 0;
static double deadline = -1;	/* ms of the monotonic clock; -1: none */
static int	descriptors = 0;	/* sockets there may be */
static AccordTransfer *pool = NULL;
static AccordTransfer *submitted_first = NULL;	/* not with curl yet */
static AccordTransfer *submitted_last = NULL;
static AccordTransfer *finished_first = NULL;
static AccordTransfer *finished_last = NULL;
static AccordTransfer *handed_out = NULL;	/* by accord_http_next() */
static int	in_flight = 0;
static int	resolving = 0;		/* of these, not known to have an address */

/* The setting as last seen, malloc'd or NULL. */
static char *networks_setting = NULL;
static AccordNetwork *networks = NULL;
static int	n_networks = 0;
static bool networks_changed = false;	/* since a connection may have begun */

static double
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000.0 + now.tv_nsec / 1000000.0;
}

static void
block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

static void
restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* ----------
 * Sockets
 * ----------
 */

/* Parses the allowed networks again when their setting has changed. */
static void
follow_networks(void)
{
	const char *setting = accord_allowed_networks;
	char	   *copy;

	if (setting == NULL)
		setting = "";
	if (networks_setting != NULL && strcmp(networks_setting, setting) == 0)
		return;
	copy = strdup(setting);
	networks_changed = networks_setting != NULL || copy == NULL;
	free(networks_setting);
	networks_setting = copy;
	free(networks);
	n_networks = accord_network_parse(setting, &networks);
	if (n_networks < 0)
		n_networks = 0;			/* refuse rather than guess */
}

/* Makes room for a descriptor's state; false when there is no memory. */
static bool
reserve_socket(int fd)
{
	int			enough = Max(fd + 1, n_sockets * 2);
	SocketState *grown;

	if (fd < n_sockets)
		return true;
	grown = realloc(sockets, enough * sizeof(SocketState));
	if (grown == NULL)
		return false;
	memset(grown + n_sockets, 0, (enough - n_sockets) * sizeof(SocketState));
	sockets = grown;
	n_sockets = enough;
	return true;
}

static bool
watch_socket(int fd, uint8 mask)
{
	SocketState *state = &sockets[fd];
	struct epoll_event event = {.events = mask,.data.fd = fd};
	bool		known = (state->flags & SOCKET_REGISTERED) != 0;

	if (known && state->mask == mask)
		return true;
	if (epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
				  &event) != 0)
		return false;
	state->flags |= SOCKET_REGISTERED;
	state->mask = mask;
	return true;
}

static void
unwatch_socket(int fd)
{
	if (sockets[fd].flags & SOCKET_REGISTERED)
		(void) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	sockets[fd].flags &= ~SOCKET_REGISTERED;
}

/*
 * curl says what it waits for. A socket that cannot be watched is left to the
 * request's timeouts: to return an error here would kill the multi handle
 * with all its transfers.
 */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	AccordTransfer *transfer = NULL;
	uint8		mask = 0;

	if (what == CURL_POLL_REMOVE)
	{
		if (fd < n_sockets)
		{
			sockets[fd].flags &= ~SOCKET_WANTED;
			if (!(sockets[fd].flags & SOCKET_OURS))
				unwatch_socket(fd);
		}
		return 0;
	}
	if (what & CURL_POLL_IN)
		mask |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		mask |= EPOLLOUT;
	if (reserve_socket(fd) && watch_socket(fd, mask))
		sockets[fd].flags |= SOCKET_WANTED;
	else if (curl_easy_getinfo(easy, CURLINFO_PRIVATE, &transfer) == CURLE_OK)
		snprintf(transfer->error, sizeof(transfer->error),
				 "could not wait for a socket: %s", strerror(errno));
	return 0;
}

static int
on_timer(CURLM *handle, long timeout_ms, void *arg)
{
	deadline = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
	return 0;
}

/* Whether an address may be called; notes it in the transfer when not. */
static bool
check_address(AccordTransfer *transfer, const AccordAddress *address)
{
	follow_networks();
	if (!accord_network_refused(address, networks, n_networks))
		return true;
	transfer->refused = true;
	transfer->refused_address = *address;
	return false;
}

/* The host has an address: the thread that looked for it is gone. */
static void
note_resolved(AccordTransfer *transfer)
{
	if (!transfer->resolved)
		resolving--;
	transfer->resolved = true;
}

static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *peer)
{
	AccordTransfer *transfer = arg;
	AccordAddress address;
	int			fd;

	note_resolved(transfer);
	if (!transfer->proxied &&
		(!accord_network_address(&peer->addr, &address) ||
		 !check_address(transfer, &address)))
		return CURL_SOCKET_BAD;
	ReserveExternalFD();
	fd = socket(peer->family, peer->socktype | SOCK_CLOEXEC, peer->protocol);
	if (fd >= 0 && reserve_socket(fd))
	{
		sockets[fd].flags = SOCKET_OURS;
		if (!transfer->link.tls)
			sockets[fd].flags |= SOCKET_PLAIN;
		transfer->opened = true;
		return fd;
	}
	if (fd >= 0)
		close(fd);
	ReleaseExternalFD();
	return CURL_SOCKET_BAD;
}

static int
on_close_socket(void *arg, curl_socket_t fd)
{
	unwatch_socket(fd);
	sockets[fd].flags = 0;
	ReleaseExternalFD();
	return close(fd);
}

/* Called when a connection, new or kept, is about to be used. */
static int
on_request(void *arg, char *peer, char *local, int peer_port, int local_port)
{
	AccordTransfer *transfer = arg;
	AccordAddress address;

	note_resolved(transfer);
	transfer->begun = true;
	follow_networks();
	if (!networks_changed || transfer->proxied)
		return CURL_PREREQFUNC_OK;
	if (accord_network_address_text(peer, &address) &&
		check_address(transfer, &address))
		return CURL_PREREQFUNC_OK;
	transfer->opened = false;
	return CURL_PREREQFUNC_ABORT;
}

/* ----------
 * Requests and responses
 * ----------
 */

static void
set_socket_callbacks(AccordTransfer *transfer)
{
	CURL	   *easy = transfer->easy;

	curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close_socket);
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_request);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, transfer);
}

/* A transfer from the pool, else a new one; NULL: no memory. */
static AccordTransfer *
take_transfer(void)
{
	AccordTransfer *transfer = pool;

	if (transfer != NULL)
	{
		pool = transfer->next;
		return transfer;
	}
	transfer = accord_http_transfer_create();
	if (transfer != NULL)
		set_socket_callbacks(transfer);
	return transfer;
}

static void
return_transfer(AccordTransfer *transfer)
{
	if (!accord_http_transfer_clear(transfer))
		return;
	transfer->next = pool;
	pool = transfer;
}

/* Puts a transfer at the end of a list. */
static void
append_transfer(AccordTransfer **first, AccordTransfer **last,
				AccordTransfer *transfer)
{
	transfer->next = NULL;
	if (*first == NULL)
		*first = transfer;
	else
		(*last)->next = transfer;
	*last = transfer;
}

bool
accord_http_submit(const AccordHttpRequest *request, void *owner,
				   const char **error)
{
	AccordTransfer *transfer;

	*error = accord_http_check_request(request);
	if (*error == NULL)
		*error = accord_http_link_fault(request);
	if (*error != NULL)
		return false;
	transfer = take_transfer();
	if (transfer == NULL || !accord_http_transfer_prepare(transfer, request))
	{
		if (transfer != NULL)
			return_transfer(transfer);
		*error = pstrdup("the request could not be started: out of memory");
		return false;
	}
	transfer->owner = owner;
	transfer->errand = request->errand;
	transfer->started = now_ms();
	transfer->resolved = false;
	resolving++;
	in_flight++;
	append_transfer(&submitted_first, &submitted_last, transfer);
	return true;
}

AccordHttpResponse *
accord_http_next(void)
{
	static AccordHttpResponse response;
	AccordTransfer *transfer = finished_first;

	if (handed_out != NULL)
		return_transfer(handed_out);
	handed_out = transfer;
	if (transfer == NULL)
		return NULL;
	finished_first = transfer->next;
	in_flight--;

	accord_http_transfer_respond(transfer, &response);
	return &response;
}

/* ----------
 * The loop's side
 * ----------
 */

/* How a transfer ended; it waits to be handed out. */
static void
finish_transfer(AccordTransfer *transfer, CURLcode code)
{
	transfer->code = code;
	transfer->ended = now_ms();
	note_resolved(transfer);
	append_transfer(&finished_first, &finished_last, transfer);
}

/* Gives curl what was submitted; it asks at once to be driven then. */
static void
start_submitted(void)
{
	while (submitted_first != NULL)
	{
		AccordTransfer *transfer = submitted_first;
		CURLMcode	code;

		submitted_first = transfer->next;
		code = curl_multi_add_handle(multi, transfer->easy);
		if (code == CURLM_OK)
			continue;
		snprintf(transfer->error, sizeof(transfer->error),
				 "the request could not be started: %s",
				 curl_multi_strerror(code));
		finish_transfer(transfer, CURLE_FAILED_INIT);
	}
}

/* Takes what curl has finished out of its hands. */
static void
collect_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		AccordTransfer *transfer;
		CURL	   *easy = message->easy_handle;
		CURLcode	code = message->data.result;

		curl_easy_getinfo(easy, CURLINFO_PRIVATE, &transfer);
		curl_multi_remove_handle(multi, easy);	/* message is gone now */
		finish_transfer(transfer, code);
	}
}

/*
 * Where a connection may carry several requests at a time, curl is not told
 * what the event was: it would keep that with the connection and may apply it
 * to another stream of HTTP/2, whose answer is then lost (seen with servers
 * that answer before they have read the body). It asks the kernel again. What
 * was an error it is to find out, and name, by itself everywhere.
 */
static void
handle_event(const struct epoll_event *event)
{
	int			fd = event->data.fd;
	int			bits = 0;
	int			running;

	if ((sockets[fd].flags & SOCKET_PLAIN) &&
		!(event->events & ~(EPOLLIN | EPOLLOUT)))
		bits = (event->events & EPOLLIN ? CURL_CSELECT_IN : 0) |
			(event->events & EPOLLOUT ? CURL_CSELECT_OUT : 0);
	if (sockets[fd].flags & SOCKET_WANTED)
		curl_multi_socket_action(multi, fd, bits, &running);
	else
		unwatch_socket(fd);
}

void
accord_http_drive(void)
{
	struct epoll_event events[EVENT_BATCH];
	sigset_t	saved;
	int			n = epoll_wait(epoll_fd, events, EVENT_BATCH, 0);
	int			running;

	block_signals(&saved);
	start_submitted();
	for (int i = 0; i < n; i++)
		handle_event(&events[i]);
	if (deadline >= 0 && now_ms() >= deadline)
	{
		deadline = -1;
		curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
	collect_finished();
	restore_signals(&saved);
}

int
accord_http_fd(void)
{
	return epoll_fd;
}

long
accord_http_timeout(void)
{
	double		left = deadline - now_ms();

	if (submitted_first != NULL || finished_first != NULL)
		return 0;
	if (deadline < 0)
		return -1;
	return left <= 0 ? 0 : (long) left + 1;
}

int
accord_http_in_flight(void)
{
	return in_flight;
}

bool
accord_http_submitted(void)
{
	return submitted_first != NULL;
}

/*
 * A name is resolved by a thread with descriptors of its own; while the name
 * server is slow there are as many of them as requests. A request counts as
 * resolving from its submission until its socket is opened or a kept one is
 * found, which takes one turn of the loop when the name is known.
 */
int
accord_http_capacity(void)
{
	int			most = descriptors - resolving * (RESOLVER_DESCRIPTORS - 1);

	most = Min(most, in_flight - resolving + MAX_RESOLVING);
	most = Min(most, accord_max_in_flight);
	return Max(most, 1);
}

/*
 * How many sockets there may be. PostgreSQL's files get a quarter of the
 * descriptors the process may have, and at least MIN_PG_DESCRIPTORS: fd.c
 * closes what it has not used lately when there are more, and being told of
 * our sockets it begins to before the limit is hit. A few are spared for what
 * else is open now and then.
 */
static int
count_descriptors(void)
{
	struct rlimit limit;
	int			all = 1024;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
		all = (int) Min(limit.rlim_cur, (rlim_t) (1024 * 1024));
	all -= Max(all / 4, MIN_PG_DESCRIPTORS) + SPARE_DESCRIPTORS;
	return Max(all, 1);
}

static void
raise_init_error(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("could not initialize HTTP client: %s", what),
			 errhint("Raise the server's limits of memory and open files.")));
}

void
accord_http_init(void)
{
	long		connections;

	if (multi != NULL)
		return;
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		raise_init_error("libcurl cannot be used");
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		raise_init_error(strerror(errno));
	multi = curl_multi_init();
	if (multi == NULL)
		raise_init_error("out of memory");

	/* kept connections of many hosts cost memory, TLS about 50 kB each */
	descriptors = count_descriptors();
	connections = Min(2 * Max(accord_max_in_flight, 32), descriptors);
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_PIPELINING, (long) CURLPIPE_MULTIPLEX);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, connections);
	curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
					  (long) descriptors);
}
