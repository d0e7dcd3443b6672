/*
 * config.h: exports of config.c
 *
 * Layer 3: the configuration tables, read once and kept until they change.
 * The trigger functions that check a row when it is given live here too, so
 * that what is accepted and what is read cannot drift apart.
 */
#ifndef ACCORD_CONFIG_H
#define ACCORD_CONFIG_H

#include "auth.h"
#include "breaker.h"
#include "encode.h"
#include "keyform.h"
#include "limit.h"
#include "rule.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"

/* How a channel is reached; its secrets looked up. */
typedef struct AccordLink
{
	AccordHttpTls *tls;			/* NULL: as the server's settings say */
	AccordHttpProxy *proxy;		/* NULL: none */
	const char *fault;			/* NULL: all of it is there */
} AccordLink;

/* What a limit's buckets are told apart by. */
typedef enum AccordLimitScope
{
	ACCORD_LIMIT_CHANNEL,		/* nothing: one bucket */
	ACCORD_LIMIT_ACCOUNT,		/* account, vars.* */
	ACCORD_LIMIT_EVENT			/* anything of the event */
} AccordLimitScope;

typedef struct AccordLimit
{
	int64		id;
	char	   *bucket;			/* template */
	AccordLimitScope scope;
	AccordRate	rate;
} AccordLimit;

/* Somebody called accord.pause(). */
typedef struct AccordPause
{
	char	   *reason;			/* NULL: none given */
	TimestampTz until;			/* 0: until accord.resume() */
} AccordPause;

typedef struct AccordChannel
{
	char	   *name;
	char	   *base_url;		/* without a trailing slash */
	bool		enabled;
	AccordAuth	auth;
	AccordLink	link;
	Jsonb	   *headers;		/* object of header templates */
	bool		ordered;		/* ordering = 'key' */
	int			max_in_flight;	/* of all its accounts */
	int			account_max_in_flight;
	bool		throttle_channel;	/* throttle_scope = 'channel' */
	bool		heed_hints;
	AccordBreakerPolicy breaker;
	AccordPause *pause;			/* NULL: it is not */
	AccordLimit **limits;
	int			n_limits;
	AccordRule **rules;			/* enabled ones by (position, id) */
	int			n_rules;
	int			connect_timeout_ms;
	int			timeout_ms;
	int			stall_timeout_s;
	int64		retry_base_ms;
	int64		retry_cap_ms;
	int			max_attempts;
	int64		max_age_ms;
	bool		keyed;			/* takes an idempotency key, in one place or
								 * several: */
	char	   *idempotency_header; /* NULL: not there */
	char	   *idempotency_query;	/* name of a parameter; NULL: not there */
	char	   *idempotency_path;	/* in the body; NULL: not there */
	char	   *idempotency_key;	/* template; NULL: the event's id */
	int			idempotency_max_length; /* 0: any */
	char	   *idempotency_pattern;	/* NULL: visible ASCII */
	bool		key_checked;	/* a key may not fit */
	AccordKeyForm key_form;		/* of the hash that takes its place */
	int64		idempotency_window_ms;	/* 0: for ever */
	int			max_response;
	int			compress_above; /* bytes of a body; -1: none is */
	char	   *probe_path;		/* template */
	bool		has_accounts;
	bool		coalesces;		/* one of its routes does */
	bool		judges;			/* more than an answer's status counts */
	bool		remembers;		/* a route keeps, needs or asks for ids */
	struct AccordRoute **routes;	/* enabled ones by (position, id) */
	int			n_routes;
} AccordChannel;

typedef struct AccordAccount
{
	char	   *name;
	char	   *base_url;		/* NULL: the channel's */
	bool		enabled;
	int			max_in_flight;	/* 0: the channel's account_max_in_flight */
	int			weight;
	AccordPause *pause;			/* NULL: it is not */
	bool		has_auth;
	bool		has_tls;
	AccordLink	link;			/* tls, when it has its own */
	AccordAuth	auth;
	Jsonb	   *vars;
} AccordAccount;

/* Where an answer tells something: a header or a jsonpath; neither: nowhere. */
typedef struct AccordMine
{
	char	   *header;
	void	   *path;
} AccordMine;

/* What must be known at the channel before an event can be sent. */
typedef struct AccordNeed
{
	char	   *kind;
	char	   *key;			/* template */
} AccordNeed;

/* A request that tells whether, and as what, the channel has something. */
typedef struct AccordLookup
{
	char	   *method;
	char	   *path;			/* template */
	Jsonb	   *body;			/* its strings are templates; NULL: none */
	AccordMine	id;				/* nowhere: a 2xx says that it is there */
	AccordMine	version;
	AccordMine	etag;
} AccordLookup;

/* How what was accepted is asked about. */
typedef struct AccordPoll
{
	char	   *method;
	char	   *path;			/* template, also over the answer; or NULL, */
	char	   *location;		/* ... and a header that tells it; or NULL: it
								 * is told by accord.confirm() alone */
	int64		every_ms;
	int64		deadline_ms;
} AccordPoll;

/* Of route.remote_when. */
typedef enum AccordRemoteWhen
{
	ACCORD_REMOTE_ANY,
	ACCORD_REMOTE_KNOWN,
	ACCORD_REMOTE_UNKNOWN
} AccordRemoteWhen;

typedef struct AccordRoute
{
	int64		id;
	AccordChannel *channel;
	char	   *topic;			/* pattern */
	unsigned	ops;			/* bits of AccordOp; 0: all */
	char	   *method;
	char	   *path;
	Jsonb	   *headers;
	AccordBodyKind body;
	char	   *body_from;		/* the variable that is its content */
	char	   *body_root;		/* element of an XML document, or NULL */
	AccordFormArrays form_arrays;
	const char *content_type;
	bool		own_content_type;	/* it is given, not the kind's */
	bool		keyed;			/* its requests carry the channel's key */
	bool		command;
	bool		ambiguous_retry;
	bool		verify;			/* ambiguous = 'verify' */
	bool		hold_dead;		/* when_dead = 'hold' */
	char	   *remote;			/* kind of what it is about; NULL: no ids are
								 * kept */
	char	   *remote_key;		/* template */
	AccordRemoteWhen remote_when;
	AccordMine	remote_id;
	AccordMine	remote_version;
	AccordMine	remote_etag;
	AccordNeed *needs;
	int			n_needs;
	AccordLookup *lookup;		/* NULL: none */
	AccordPoll *poll;			/* NULL: none */
	char	   *coalesce;		/* template; NULL: not coalesced */
	int64		quiet_ms;		/* 0: sent at once */
	int64		quiet_max_ms;	/* 0: no latest time */
	bool		skip_unchanged;
	int			batch_size;		/* 1: each event by itself */
	int			batch_bytes;	/* of payloads; 0: no limit */
	int64		batch_wait_ms;	/* 0: goes with what is ready */
	char	   *batch_group;	/* template; NULL: all of an account */
	char	   *batch_function; /* schema-qualified and quoted, or NULL */
	Oid			batch_function_oid;
	char	   *batch_items;	/* path of the items' results, or NULL */
	char	   *batch_id;		/* template: how results name an item */
	char	   *batch_item_id;	/* path in a result; NULL: they are in order */
	char	   *batch_item_status;	/* path in a result, or NULL */
	char	   *batch_item_error;	/* path in a result, or NULL */
	char	   *body_function;	/* schema-qualified and quoted, or NULL */
	Oid			body_function_oid;
	Oid			owner;			/* InvalidOid: the role is gone */
} AccordRoute;

/* All of it, as of one snapshot. */
typedef struct AccordConfig
{
	MemoryContext context;
	Oid			relids[7];		/* of the tables it was read from */
	HTAB	   *accounts;		/* by channel and name */
	AccordChannel **channels;
	int			n_channels;
	int64		generation;		/* grows with every reload */
} AccordConfig;

/* event_log.op */
typedef enum AccordOp
{
	ACCORD_OP_INSERT,
	ACCORD_OP_UPDATE,
	ACCORD_OP_DELETE,
	ACCORD_OP_TRUNCATE,
	ACCORD_OP_EVENT
} AccordOp;

/* -1 when the word is none of them */
extern int	accord_config_op(const char *word);

/*
 * The current configuration. Needs a transaction with an active snapshot when
 * it must be (re)loaded; the previous one is freed then, so nobody keeps a
 * pointer into it across calls. A process's first call registers the
 * invalidation callback.
 */
extern AccordConfig *accord_config_get(void);

/*
 * While it is pinned accord_config_get() gives what it gave before, also when
 * that is stale: a dispatcher's pointers into it outlive the functions of
 * users that it calls. Returns whether it was pinned.
 */
extern bool accord_config_pin(bool pin);

/*
 * From now on the values of secrets are read, too, and their keys anew: for
 * dispatchers, at their start and when settings are reloaded.
 */
extern void accord_config_with_secrets(void);

/* Whether accord_config_get() would reload. No transaction needed. */
extern bool accord_config_stale(void);

/* NULL when there is none. */
extern AccordChannel *accord_config_channel(AccordConfig *config, const char *name);
extern AccordAccount *accord_config_account(AccordConfig *config,
											AccordChannel *channel,
											const char *name);
extern AccordRoute *accord_config_route(AccordChannel *channel, int64 id);

/*
 * The first of the channel's routes that takes such an event, or NULL.
 * '*' in a route's topic stands for any run of characters, dots included.
 */
extern AccordRoute *accord_config_match(AccordChannel *channel,
										const char *topic, AccordOp op);

/* Whether a route takes such an event. */
extern bool accord_config_takes(const AccordRoute *route, const char *topic,
								AccordOp op);

/* Whether a topic is one of the extension's own. */
extern bool accord_config_topic_reserved(const char *topic);

extern bool accord_config_topic_match(const char *pattern, const char *topic);

/*
 * Raises unless headers is an object of strings that may be sent as HTTP
 * headers; templates when "templates". relation and column name it in errors.
 * In config_check.c.
 */
extern void accord_config_check_headers(const char *relation,
										const char *column, Jsonb *headers,
										bool templates);

/*
 * Columns of a route, read; raise where they are wrong, naming the column. For
 * the check and for dispatchers alike. In config_answer.c.
 */
extern AccordMine accord_config_mine(const char *column, const char *text);
extern AccordNeed *accord_config_needs(Jsonb *json, int *n);
extern AccordLookup *accord_config_lookup(Jsonb *json);
extern AccordPoll *accord_config_poll(Jsonb *json);

/* What a limit's buckets are told apart by, of a checked template. */
extern AccordLimitScope accord_config_limit_scope(const char *bucket);

/* The body function of that name: InvalidOid when there is none fit for it. */
extern Oid	accord_config_body_function(const char *name);

/* The same for a batch: its argument is an array of events. */
extern Oid	accord_config_batch_function(const char *name);

/* The same for a slot of a log that is to be archived. */
extern Oid	accord_config_archive_function(const char *name);

/*
 * Whether a body function may run as that role. Not one of a mere user's as a
 * superuser: who owns a function can replace it.
 */
extern bool accord_config_may_run(Oid function, Oid role);

#endif							/* ACCORD_CONFIG_H */
