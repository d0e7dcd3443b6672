/*
 * claims_private.h: what claims.c and its parts share
 *
 * Layer 5. Included by those only.
 */
#ifndef ACCORD_CLAIMS_PRIVATE_H
#define ACCORD_CLAIMS_PRIVATE_H

#include "utils/rangetypes.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#define ACCORD_CLAIM_PARTS INDEX_MAX_KEYS	/* columns of a resource, or of a
											 * key */

/* What is known of a table for one statement. */
typedef struct AccordClaims
{
	int			id;
	Oid			relid;
	Oid			owner;			/* of the table */
	char	   *topic;
	char	   *reach;			/* statements: see claims_statements() */
	char	   *decide;
	char	   *mark;
	char	   *tell;
	int			n_keys;
	int64		changed;		/* verdicts so far */
} AccordClaims;

/* A resource, and the time in which something may be different. */
typedef struct AccordClaimResource
{
	int			n;				/* columns; their values, then the multirange */
	Oid			types[ACCORD_CLAIM_PARTS + 1];
	Datum		values[ACCORD_CLAIM_PARTS + 1];
	char	   *name;
} AccordClaimResource;

/* A claim that is decided. */
typedef struct AccordClaim
{
	Datum	   *key;
	RangeBound	lower;
	RangeBound	upper;
	int			from;			/* places of the bounds in their order */
	int			to;
	int			capacity;
	bool		counts;			/* meets the condition and is not empty */
	bool		accepted;		/* as stored */
	bool		was;			/* before the statement */
	bool		fresh;			/* inserted by it */
	bool		marked;
	bool		verdict;
} AccordClaim;

typedef struct AccordClaimDecision
{
	int			n;
	AccordClaim *claims;		/* in the order in which they are decided */
	Oid			key_types[ACCORD_CLAIM_PARTS + 1];
	TypeCacheEntry *range;
} AccordClaimDecision;

/*
 * claims_read.c: within SPI
 */

/* A table's claims; a partition stands for the whole table. */
extern void accord_claims_find_table(AccordClaims *claims, Relation rel,
									 int id);

/* Reads how they are decided; returns the statement "changed" of that kind. */
extern char *accord_claims_read_statements(AccordClaims *claims,
										   const char *kind);

/* The resources that a statement touched. */
extern AccordClaimResource *accord_claims_read_resources(const char *changed,
														 int *n);

/* Widens the time until nothing that overlaps it reaches beyond it. */
extern void accord_claims_widen(const AccordClaims *claims,
								AccordClaimResource *resource);

/*
 * The claims in reach, in the order of their ranking; first: with what the
 * statement did to each.
 */
extern AccordClaimDecision *accord_claims_read(const AccordClaims *claims,
											   AccordClaimResource *resource,
											   bool first);

/* Runs a statement; what it reads is what is there now. How many rows. */
extern uint64 accord_claims_run(const char *statement, int n, Oid *types,
								Datum *values);

/* A value of a row of its result, by column; the last one outlives it. */
extern Datum accord_claims_value(int row, int column, bool *isnull);
extern bool accord_claims_bool(int row, int column);
extern char *accord_claims_text(int row, int column);
extern Datum accord_claims_copy(int row, int column, bool *isnull);

/*
 * claims.c: decides about everything that a statement of this kind touched.
 * Within SPI. How many verdicts changed is in claims->changed.
 */
extern void accord_claims_decide(AccordClaims *claims, const char *kind);

#endif							/* ACCORD_CLAIMS_PRIVATE_H */
