/*
 * digest.h: exports of digest.c
 *
 * Layer 4: what the rows of the log come to: digests of events and commits.
 */
#ifndef ACCORD_DIGEST_H
#define ACCORD_DIGEST_H

#include "merkle.h"
#include "utils/uuid.h"

/*
 * The salt of an event: random bytes, without which what its content was
 * cannot be guessed from its digest; and the first bytes of the event's
 * digest, which tell which event of a transaction was changed.
 */
#define ACCORD_SALT_RANDOM 10
#define ACCORD_SALT_CHECK (UUID_LEN - ACCORD_SALT_RANDOM)

/*
 * What is kept of an event that was erased: its content's digest, the check,
 * and the place, in the transaction that erased it, of the event that says so.
 */
typedef struct AccordErased
{
	AccordHash	content;
	uint8		check[ACCORD_SALT_CHECK];
	uint8		ord[4];			/* big-endian */
} AccordErased;

/* To be called before anything else of merkle.h in a backend. */
extern void accord_digest_ready(void);

/* Raises when some hash so far could not be computed. */
extern void accord_digest_finish(void);

/*
 * Values and nulls of event_log, by column number - 1. The digest of payload,
 * before and headers; of the event, which includes that; of a commit_log row,
 * which includes the root of its events.
 */
extern void accord_digest_content(const Datum *values, const bool *nulls,
								  const uint8 *salt, AccordHash *content);
extern void accord_digest_event(const Datum *values, const bool *nulls,
								const AccordHash *content, AccordHash *event);
extern void accord_digest_commit(const Datum *values, const bool *nulls,
								 const AccordHash *events, AccordHash *commit);

/* The leaf of a number that no transaction has. */
extern void accord_digest_gap(AccordHash *gap);

/*
 * The digest of a row as it is stored, erased or not, and whether its check
 * agrees; false: it has neither salt nor what an erased one has.
 */
extern bool accord_digest_stored(const Datum *values, const bool *nulls,
								 AccordHash *event, bool *agrees);

/* What is kept of an event that was erased; false: it was not. */
extern bool accord_digest_erased(const Datum *values, const bool *nulls,
								 AccordErased *erased);

#endif							/* ACCORD_DIGEST_H */
