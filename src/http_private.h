/*
 * http_private.h: what http.c and its parts, http_*.c, share
 *
 * Layer 2. Included by those only.
 */
#ifndef ACCORD_HTTP_PRIVATE_H
#define ACCORD_HTTP_PRIVATE_H

#include <curl/curl.h>

#include "http.h"
#include "network.h"

/* Of an answer, all lines together. */
#define ACCORD_HTTP_HEADER_BYTES (64 * 1024)

/* malloc'd, since curl's callbacks fill it */
typedef struct AccordBuffer
{
	char	   *data;
	size_t		len;
	size_t		size;
} AccordBuffer;

/* How a request's connection is to be made and watched. */
typedef struct AccordHttpLink
{
	bool		once;
	bool		tls;
	int			connect_timeout_ms;
	int			timeout_ms;
	int			stall_timeout_s;
} AccordHttpLink;

/* A request, its easy handle, and what came of it. Reused by pooling. */
typedef struct AccordTransfer
{
	CURL	   *easy;
	struct AccordTransfer *next;	/* in the pool or among the finished */
	void	   *owner;
	bool		errand;			/* what the owner is */
	AccordBuffer request;		/* list nodes, header lines, body */
	AccordBuffer response;		/* body */
	struct curl_slist *headers; /* in request */
	double		started;		/* ms of the monotonic clock */
	double		ended;
	AccordHttpLink link;		/* as set on the handle, once "linked" */
	bool		linked;
	bool		post;			/* set on the handle, with "method" */
	char		method[24];		/* "": none was */
	size_t		max_response;
	size_t		header_bytes;	/* of the answer so far */
	CURLcode	code;			/* how it ended */
	bool		is_delete;
	bool		user_auth;		/* the handle holds a user and a password */
	bool		spent;			/* ... and what a server said about them: not
								 * to be used for another */
	bool		headers_ended;	/* by an empty line */
	bool		hinted;			/* some of them tell of rate limits */
	bool		named;			/* ... or give the request an id */
	bool		truncated;		/* the body was cut off at max_response */
	bool		proxied;		/* addresses are the proxy's, which is allowed */
	bool		begun;			/* the request itself, not only a tunnel */
	bool		resolved;		/* the host has an address, or all is over */
	bool		opened;			/* a socket to an acceptable address */
	bool		refused;		/* an address was in a refused network */
	AccordAddress refused_address;
	int			ca_generation;	/* of the certificates set on the handle */
	char		error[CURL_ERROR_SIZE];
	char		request_id[200];
} AccordTransfer;

/* http_transfer.c */

/* A transfer with the options all requests share; NULL: no memory. */
extern AccordTransfer *accord_http_transfer_create(void);

/* Copies a checked request into it; false: no memory. */
extern bool accord_http_transfer_prepare(AccordTransfer *transfer,
										 const AccordHttpRequest *request);

/*
 * Forgets request and response, and large buffers' memory. False: it is not
 * to be used again, and freed.
 */
extern bool accord_http_transfer_clear(AccordTransfer *transfer);

/* http_answer.c */

/* Says what came of it, once code, ended and owner are set. */
extern void accord_http_transfer_respond(AccordTransfer *transfer,
										 AccordHttpResponse *response);

/* http_link.c */

/* Sets certificates and proxy, if any; false: that failed. */
extern bool accord_http_link_set(AccordTransfer *transfer,
								 const AccordHttpRequest *request);

/*
 * Whether each request through the proxy has to have a connection of its own,
 * as this libcurl would let others use one that its user has opened.
 */
extern bool accord_http_link_alone(const AccordHttpProxy *proxy);

/* Why it may not go by its proxy (palloc'd), or NULL. */
extern char *accord_http_link_fault(const AccordHttpRequest *request);

/* http_check.c */


/* The length of the token (method, header name) that text begins with. */
extern size_t accord_http_token_length(const char *text);

/* Whether a header line has this name. */
extern bool accord_http_is_header(const char *line, const char *name);

/* Methods whose requests say so when they have no body. */
extern bool accord_http_wants_body(const char *method);

#endif							/* ACCORD_HTTP_PRIVATE_H */
