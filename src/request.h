/*
 * request.h: exports of request.c
 *
 * Layer 5: an event becomes an HTTP request.
 */
#ifndef ACCORD_REQUEST_H
#define ACCORD_REQUEST_H

#include <signal.h>

#include "endpoint.h"

/* What came of making a request; everything palloc'd where it was made. */
typedef struct AccordRequest
{
	MemoryContext context;		/* the caller's to set and delete */
	AccordHttpRequest http;
	const char *key;			/* its idempotency key, wherever it is put */
	const char *plain;			/* the body before it was compressed; NULL: it
								 * was not */
	size_t		plain_len;
	bool		skip;			/* the body function has nothing to send */
	bool		transient;		/* error may pass: try again later */
	char	   *error;			/* NULL: http can be sent */
} AccordRequest;

/* True while a body function runs: SIGTERM cancels it. */
extern volatile sig_atomic_t accord_request_in_function;

/* Remembers the shape of event_log; in a transaction. */
extern void accord_request_init(void);

/* A column of an event. */
extern Datum accord_request_column(const AccordEvent *event, int column,
								   bool *isnull);

/* A text column as a palloc'd string, NULL when null. */
extern char *accord_request_text(const AccordEvent *event, int column);

/*
 * Expands a template of the configuration over an event; what it does not
 * define comes to nothing. palloc'd.
 */
extern char *accord_request_expand(const char *template,
								   const AccordRoute *route,
								   const AccordAccount *account,
								   const AccordEvent *event);

/* A timestamp of an event, 0 when null. */
extern TimestampTz accord_request_time(const AccordEvent *event, int column);

/* Whether making the request needs a transaction. */
extern bool accord_request_needs_transaction(const AccordRoute *route);

/*
 * Makes the request of an event. A body function runs as the route's owner,
 * in a subtransaction and for at most accord.function_timeout; nothing it
 * does wrong escapes: error says what it was.
 */
extern void accord_request_make(AccordRequest *request,
								const AccordRoute *route,
								const AccordAccount *account,
								const AccordEvent *event, int64 seq);

/*
 * The same, to be looked at only: the transaction is the caller's, and what a
 * function wrote is rolled back. Where the route makes batches it is of this
 * event alone.
 */
extern void accord_request_preview(AccordRequest *request,
								   const AccordRoute *route,
								   const AccordAccount *account,
								   const AccordEvent *event, int64 seq);

/*
 * The same of a batch: n events, whose path and headers are the first one's.
 * The body is what batch_function makes of all of them, else the array of their
 * payloads. A batch of the same events has the same idempotency key.
 */
extern void accord_request_make_batch(AccordRequest *request,
									  const AccordRoute *route,
									  const AccordAccount *account,
									  const AccordEvent *const *events, int n);

/*
 * A harmless one, of no event: GET of a path, a template over the account.
 */
extern void accord_request_make_probe(AccordRequest *request,
									  AccordChannel *channel,
									  const AccordAccount *account,
									  const char *path);

/*
 * A question about an event: a request with the channel's headers alone, its
 * path a template, and so are the strings of its body (NULL: none).
 */
extern void accord_request_ask(AccordRequest *request,
							   const AccordRoute *route,
							   const AccordAccount *account,
							   const AccordEvent *event, const char *method,
							   const char *path, Jsonb *body);

/*
 * A request to be kept word for word, and kept words back again. One that is
 * too large to be kept is NULL, and has an error.
 */
extern Jsonb *accord_request_freeze(AccordRequest *request);
extern void accord_request_thaw(AccordRequest *request, Jsonb *frozen);

/* The request of a command in what its rows keep; NULL: none is. */
extern Jsonb *accord_request_sent(Jsonb *kept);

/*
 * Completes a request with what is never stored: the credentials and limits
 * of today's configuration.
 */
extern void accord_request_equip(AccordRequest *request,
								 const AccordChannel *channel,
								 const AccordAccount *account, bool once);

#endif							/* ACCORD_REQUEST_H */
