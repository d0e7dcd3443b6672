/*
 * guc.h: exports of guc.c
 *
 * Layer 0: the settings, accord.*. README.md lists them.
 */
#ifndef ACCORD_GUC_H
#define ACCORD_GUC_H

/* Where an event must be before it is sent. */
typedef enum AccordDispatchAfter
{
	ACCORD_AFTER_COMMIT,		/* on this server's disk */
	ACCORD_AFTER_STANDBY		/* ... and on its synchronous standbys' */
} AccordDispatchAfter;

/* What a promoted standby does, and a cluster recovered to an earlier point. */
typedef enum AccordPromotion
{
	ACCORD_PROMOTION_DISPATCH,
	ACCORD_PROMOTION_SILENT		/* it is a copy, until it is adopted */
} AccordPromotion;

/* for the application's session */
extern char *accord_actor;		/* who, as the application knows them */
extern char *accord_reason;		/* why */
extern char *accord_correlation_id; /* part of what */
extern char *accord_source;		/* from whom the changes came */
extern char *accord_traceparent;	/* the trace they are a part of, as W3C */
extern char *accord_tracestate; /* Trace Context has it */
extern bool accord_override;	/* own writes win over policies */

/* for the workers */
extern bool accord_dispatch;	/* whether anything is sent at all */
extern int	accord_dispatchers; /* per database */
extern int	accord_dispatch_after;	/* AccordDispatchAfter */
extern int	accord_on_promotion;	/* AccordPromotion */
extern int	accord_max_in_flight;	/* requests of one dispatcher */
extern int	accord_dispatch_memory; /* kB of events one dispatcher may hold */
extern int	accord_restart_interval;	/* ms between starts of a crashing
										 * worker */
extern int	accord_function_timeout;	/* ms for a route's body function */
extern int	accord_settle_delay;	/* ms that outcomes may wait for company */
extern int	accord_response_excerpt;	/* bytes of an answer kept in
										 * attempt_log */
extern int	accord_log_max_size;	/* MB of events; 0: no bound */
extern int	accord_attempt_max_size;	/* MB of attempts; 0: no bound */
extern int	accord_log_retention;	/* minutes an event is kept, at least */
extern int	accord_attempt_retention;	/* minutes an attempt is kept */
extern int	accord_consumer_max_lag;	/* minutes the log is kept for a
										 * consumer */
extern int	accord_idempotency_retention;	/* minutes a key is kept */
extern int	accord_conflict_retention;	/* minutes a conflict is kept */
extern char *accord_node_name;	/* this database as a source elsewhere */
extern char *accord_allowed_networks;	/* private networks that may be called */
extern char *accord_allowed_proxies;	/* that may be used at all */
extern char *accord_ca_file;	/* certificates to trust, else the system's */
extern char *accord_secret_key_file;	/* keys that seal accord.secret */
extern char *accord_secret_key_command; /* prints them */
extern int	accord_max_databases;	/* places in shared memory */
extern int	accord_max_endpoints;	/* shown in accord.status */

/*
 * Defines them all; called once by _PG_init(). The argument says whether a
 * string is a list of networks, for accord.allowed_networks.
 */
extern void accord_guc_init(bool (*networks_valid) (const char *list));

#endif							/* ACCORD_GUC_H */
