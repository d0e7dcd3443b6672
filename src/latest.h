/*
 * latest.h: exports of latest.c
 *
 * Layer 1: the newest of each kind, within bounded memory. Pure: no I/O and no
 * clock; memory in the current context.
 */
#ifndef ACCORD_LATEST_H
#define ACCORD_LATEST_H

/* What a kind is known by: 96 bits of hashes. */
typedef struct AccordKind
{
	uint64		hash;
	uint32		check;
} AccordKind;

typedef struct AccordLatestEntry
{
	uint64		hash;
	int64		seq;			/* 0: the place is free */
	int32		ord;
	uint32		check;
} AccordLatestEntry;

/*
 * The newest place in the log of each kind whose hash lies in [low, high]. When
 * there are more kinds than fit, high comes down: the others' turn is another
 * pass, from high + 1 on.
 */
typedef struct AccordLatest
{
	AccordLatestEntry *entries;
	uint64		low;
	uint64		high;
	uint32		size;			/* of entries; a power of two */
	uint32		used;
	uint32		limit;			/* size it may grow to before high comes down */
	bool		fixed;			/* high must not come down: it grows on */
} AccordLatest;

/* At most about max kinds; fixed: as many as there are up to high. */
extern void accord_latest_init(AccordLatest *latest, uint64 low, uint64 high,
							   uint32 max, bool fixed);
extern void accord_latest_free(AccordLatest *latest);

/*
 * There is something of that kind at that place, from seq 1 on; only_known: of
 * no use unless the kind is there already.
 */
extern void accord_latest_note(AccordLatest *latest, AccordKind kind,
							   int64 seq, int32 ord, bool only_known);

/* Whether the kind belongs to this pass. */
extern bool accord_latest_covers(const AccordLatest *latest, AccordKind kind);

/* Whether nothing newer of that kind was noted than this, which was. */
extern bool accord_latest_is(const AccordLatest *latest, AccordKind kind,
							 int64 seq, int32 ord);

#endif							/* ACCORD_LATEST_H */
