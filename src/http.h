/*
 * http.h: exports of http.c
 *
 * Layer 2: HTTP requests, many at once, through libcurl's multi interface.
 * Runs in dispatchers; the checks at the end may run in any backend. Only
 * http.c and its parts, http_*.c, know curl.
 */
#ifndef ACCORD_HTTP_H
#define ACCORD_HTTP_H

#include "limit.h"
#include "retry.h"

typedef enum AccordHttpAuth
{
	ACCORD_HTTP_AUTH_NONE,
	ACCORD_HTTP_AUTH_BEARER,	/* secret: the token */
	ACCORD_HTTP_AUTH_BASIC,		/* user, secret: the password */
	ACCORD_HTTP_AUTH_HEADER,	/* header_name, secret: its value */
	ACCORD_HTTP_AUTH_QUERY,		/* parameter's name, secret: its value */
	ACCORD_HTTP_AUTH_DIGEST		/* user, secret: the password */
} AccordHttpAuth;

/* What needs no percent-encoding anywhere in a URL. */
#define ACCORD_HTTP_UNRESERVED \
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

/* Certificates, as PEM; each may be NULL. */
typedef struct AccordHttpTls
{
	const char *certificate;	/* to show, perhaps with its key */
	const char *key;
	const char *ca;				/* to trust, and no others */
} AccordHttpTls;

typedef struct AccordHttpProxy
{
	const char *url;
	const char *user;			/* NULL: none */
	const char *secret;
} AccordHttpProxy;

/* A request. Everything is copied by accord_http_submit(). */
typedef struct AccordHttpRequest
{
	const char *method;
	const char *url;			/* absolute, http or https */
	const char **headers;		/* "Name: value", n_headers of them */
	int			n_headers;
	const char *body;			/* NULL: no body at all */
	size_t		body_len;
	AccordHttpAuth auth;
	const char *auth_name;		/* user, header or parameter */
	const char *auth_secret;
	const char **auth_lines;	/* headers that are credentials, besides */
	int			n_auth_lines;
	const AccordHttpTls *tls;	/* NULL: the server's own */
	const AccordHttpProxy *proxy;	/* NULL: none */
	bool		once;			/* must never be repeated by the HTTP library
								 * itself: a fresh connection */
	bool		errand;			/* delivers nothing: its owner is an errand */
	int			connect_timeout_ms;
	int			timeout_ms;		/* the whole request */
	int			stall_timeout_s;	/* no byte in either direction; noticed up
									 * to 6 s late, the span over which curl
									 * measures speed */
	size_t		max_response;	/* bytes of the body kept; more is not read */
} AccordHttpRequest;

/* What kept a request from being answered, where that is known. */
typedef enum AccordHttpCause
{
	ACCORD_HTTP_CAUSE_OTHER,
	ACCORD_HTTP_CAUSE_PROXY,	/* it came as far as the proxy, at most */
	ACCORD_HTTP_CAUSE_NAME,		/* the host has no address */
	ACCORD_HTTP_CAUSE_CONNECTION,	/* nobody accepts it there */
	ACCORD_HTTP_CAUSE_CERTIFICATE,	/* nobody vouches for the server */
	ACCORD_HTTP_CAUSE_TLS,
	ACCORD_HTTP_CAUSE_TIMEOUT
} AccordHttpCause;

/* A finished transfer. Valid until the next accord_http_next(). */
typedef struct AccordHttpResponse
{
	void	   *owner;			/* as given to accord_http_submit() */
	bool		errand;			/* ... with such a request */
	AccordResult result;
	AccordHttpCause cause;
	AccordHint	hint;			/* what the server says about its limits */
	double		duration_ms;
	int64		bytes_sent;		/* of the bodies, as they went over the wire */
	int64		bytes_received;
	const char *error;			/* NULL when transport is OK; never holds a
								 * secret */
	const char *body;			/* cut at max_response; not terminated */
	size_t		body_len;
	bool		truncated;
	const char *request_id;		/* X-Request-Id or Request-Id of the answer,
								 * or NULL */
	void	   *transfer;		/* http.c's; NULL: none was made */
} AccordHttpResponse;

/*
 * Once per process; then accord_http_fd() is a descriptor that is readable
 * when accord_http_drive() has something to do (an epoll descriptor, which
 * nests in a WaitEventSet).
 */
extern void accord_http_init(void);
extern int	accord_http_fd(void);

/* Milliseconds until curl wants to be driven; -1: only by the descriptor. */
extern long accord_http_timeout(void);

/* Lets curl work on whatever is ready. Never raises. */
extern void accord_http_drive(void);

/*
 * Submits a request, which leaves with the next accord_http_drive(); owner
 * comes back with its response. Returns false, with *error a palloc'd sentence
 * fragment, when it cannot be made.
 */
extern bool accord_http_submit(const AccordHttpRequest *request, void *owner,
							   const char **error);

/* Gives a request copies of these; each may be NULL. */
extern void accord_http_copy_link(AccordHttpRequest *request,
								  const AccordHttpTls *tls,
								  const AccordHttpProxy *proxy);

/*
 * Text as it stands in a URL or a form, percent-encoded (RFC 3986, 2.1) with
 * digits A-F, or a-f; palloc'd.
 */
extern char *accord_http_encode(const char *text, bool upper);

/*
 * What keeps a request from ever being sent: NULL, or a palloc'd sentence
 * fragment without a secret.
 */
extern char *accord_http_check_request(const AccordHttpRequest *request);

/*
 * Whether a header of that name (len bytes) is not to be given by anybody:
 * HTTP's own machinery, and what carries credentials unless it is one.
 */
extern bool accord_http_header_reserved(const char *name, size_t len,
										bool credential);

/*
 * A header of the answer, the first of that name, or NULL; valid until the next
 * look-up.
 */
extern const char *accord_http_answer_header(const AccordHttpResponse *response,
											 const char *name);

/* The next finished transfer, or NULL. */
extern AccordHttpResponse *accord_http_next(void);

/* Whether something was submitted that has not left yet. */
extern bool accord_http_submitted(void);

/*
 * How many requests are in flight; how many may be just now. Ask before each
 * submit: while names are being resolved there is room for fewer.
 */
extern int	accord_http_in_flight(void);
extern int	accord_http_capacity(void);

/*
 * Checks an absolute URL without touching the network: scheme http or https,
 * a host, no user:password, no fragment. Returns NULL when it is fine, else a
 * palloc'd sentence fragment. May be called in any backend.
 */
extern char *accord_http_check_url(const char *url);

/*
 * A reference of len bytes, relative perhaps, as it is meant in an answer to a
 * request of that URL (RFC 3986); palloc'd. NULL, with *fault a sentence
 * fragment, when it is malformed, or leads to another scheme, host or port:
 * credentials are not to be sent there. May be called in any backend.
 */
extern char *accord_http_resolve(const char *url, const char *reference,
								 size_t len, const char **fault);

/*
 * Whether the URL's host is a literal address (in any notation the resolver
 * takes) in a network that is refused now; for a warning at configuration.
 */
extern bool accord_http_literal_refused(const char *url);

/*
 * Whether a proxy's URL is scheme, host and port, of a scheme that leaves
 * names to the proxy; and whether the setting accord.allowed_proxies names it.
 */
extern bool accord_http_proxy_valid(const char *url);
extern bool accord_http_proxy_allowed(const char *url);

/* Why a user cannot be told to this (valid) proxy, or NULL. */
extern const char *accord_http_proxy_user_fault(const char *url,
												const char *user);

/*
 * Checks the setting accord.allowed_networks: a comma-separated list of
 * networks in CIDR notation. False when one of them is not.
 */
extern bool accord_http_networks_valid(const char *list);

#endif							/* ACCORD_HTTP_H */
