/*
 * request_private.h: what request.c and its parts share
 *
 * Layer 5. Included by request.c, request_*.c only.
 */
#ifndef ACCORD_REQUEST_PRIVATE_H
#define ACCORD_REQUEST_PRIVATE_H

#include "access/tupdesc.h"
#include "request.h"

#define ACCORD_REQUEST_HEADERS 256	/* of all sources; each has its own limit */

/* What a request is made of. */
typedef struct AccordRequestScope
{
	const AccordRoute *route;
	const AccordAccount *account;
	const AccordEvent *event;	/* of a batch the first one */
	const AccordEvent *const *batch;	/* all its events, or NULL */
	int			n_batch;
	int64		seq;			/* the event's commit; 0: of a batch, or none */
	bool		preview;		/* it is only looked at */
	char	   *key;			/* the idempotency key; NULL: none is sent */
	char	   *boundary;		/* of the body's parts; NULL: it has none of
								 * ours */
} AccordRequestScope;

/* request_event.c */

extern TupleDesc accord_request_event_desc(void);

/* A column that holds a document; NULL when null. */
extern Jsonb *accord_request_document(const AccordEvent *event, int column);

/* palloc'd */
extern char *accord_request_event_id(const AccordEvent *event);

/* What events of this database have as their source elsewhere. */
extern const char *accord_request_origin(void);

/* An AccordTemplateLookup: the variables of a scope. */
extern JsonbValue *accord_request_variable(const char *name, void *scope);

/* request_key.c */

/*
 * The scope's idempotency key, fit for its channel; NULL with the name of a
 * variable that the event does not define.
 */
extern char *accord_request_key(AccordRequestScope *scope, char **missing);

/* request_body.c */

/* Whether a method has a body, unless a function makes one. */
extern bool accord_request_method_has_body(const char *method);

/* Makes the body that the route asks for, with the key where it belongs. */
extern void accord_request_make_body(AccordRequest *request,
									 AccordRequestScope *scope);

/* Takes a function's body in its place; NULL: none. */
extern void accord_request_take_body(AccordRequest *request,
									 AccordRequestScope *scope,
									 const char *text);

/* Sets it to text in the database's encoding; none when NULL or empty. */
extern void accord_request_set_body(AccordRequest *request, const char *text);

/* Its Content-Type, unless it has one. */
extern void accord_request_add_type(AccordRequest *request,
									AccordRequestScope *scope);

/* Compresses the body when it is longer than that and gains by it. */
extern void accord_request_compress(AccordRequest *request, size_t above);

/* request_function.c */

/* Once per process. */
extern void accord_request_init_function(void);

/* The function that makes the body; NULL: none does. */
extern const char *accord_request_function(const AccordRequestScope *scope);
extern Oid	accord_request_function_oid(const AccordRequestScope *scope);

/*
 * Has it make the request's parts; its subtransaction is rolled back when the
 * request is not to be sent.
 */
extern void accord_request_run_function(AccordRequest *request,
										AccordRequestScope *scope);

/* Errors that another try may not meet: SQLSTATE classes. */
extern bool accord_request_error_may_pass(int sqlerrcode);

/* request.c */

/* Adds a header, in place of an earlier one of that name. */
extern void accord_request_add_header(AccordRequest *request,
									  const char *name, const char *value);

/* Adds the members of an object; as templates when a scope is given. */
extern void accord_request_add_headers(AccordRequest *request, Jsonb *object,
									   AccordRequestScope *scope);

/* Whether a header of that name was added. */
extern bool accord_request_has_header(const AccordRequest *request,
									  const char *name);

/* Sets url: the path after the base, and the key where it is a parameter. */
extern void accord_request_set_path(AccordRequest *request,
									AccordRequestScope *scope,
									const char *path);

#endif							/* ACCORD_REQUEST_PRIVATE_H */
