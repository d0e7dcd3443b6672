/*
 * stamp.h: exports of stamp.c
 *
 * Layer 1, pure: what puts the changes of one thing into one order,
 * everywhere the same.
 */
#ifndef ACCORD_STAMP_H
#define ACCORD_STAMP_H

#include "postgres.h"

/* The clock of what was there before anybody stamped anything. */
#define ACCORD_CLOCK_NONE PG_INT64_MIN

/*
 * Clock is a hybrid logical clock in microseconds since 2000-01-01 UTC.
 * Strings are compared as bytes; none is NULL but source and revision.
 */
typedef struct AccordStamp
{
	int			rank;			/* by the policy; not stored */
	int64		clock;
	const char *source;			/* NULL: the application itself */
	const char *name;			/* the source, or what this database is called
								 * elsewhere: breaks ties */
	const char *event;			/* the sender's id */
	const char *revision;		/* a decimal, or NULL */
} AccordStamp;

/* -1, 0, 1: rank, then clock, then name, then event. Total. */
extern int	accord_stamp_compare(const AccordStamp *a, const AccordStamp *b);

/*
 * The order of one source's own changes: by revision where there are any
 * (none is before the first), else by clock, then by event.
 */
extern int	accord_stamp_compare_own(const AccordStamp *a,
									 const AccordStamp *b);

extern bool accord_stamp_same_source(const AccordStamp *a,
									 const AccordStamp *b);

/* Compares two decimals as numbers; NULL is less than any. */
extern int	accord_stamp_compare_revisions(const char *a, const char *b);

/* Whether it is a finite decimal, as those are compared. */
extern bool accord_stamp_is_revision(const char *text);

#endif							/* ACCORD_STAMP_H */
