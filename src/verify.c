/*
 * verify.c: whether the log is what was written and sealed.
 *
 * Runs in backends that call accord.verify(). Every event and every commit's
 * row is digested anew and compared with what was written at its commit; then
 * the digests with the tree that was sealed over them. What is wrong is named
 * as exactly as it can be: an event, a commit, or, where somebody has made
 * the digests fit, the 64 numbers among which it lies.
 *
 * Invariants: reads only, under the snapshot of the calling statement, which
 * holds locks that keep slots from being emptied meanwhile.
 *
 * On failure (a row that cannot be read at all) PostgreSQL's own error is
 * raised.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/skey.h"
#include "access/tableam.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "accord.h"
#include "digest.h"
#include "json.h"
#include "log.h"
#include "seal.h"

#define LISTED_AT_MOST 20		/* of missing events, one by one */
#define TOPIC_ERASE "accord.erase"

/* Ranges of numbers, first and last alternating, in order. */
typedef struct Ranges
{
	int64	   *bounds;
	int			n;				/* bounds */
} Ranges;

typedef struct Verifier
{
	ReturnSetInfo *result;
	AccordLogReader *reader;	/* of the range */
	AccordLogReader *finder;	/* of single events */
	AccordTree *tree;
	MemoryContext lasting;		/* of scans: they allocate as they go */
	MemoryContext scratch;		/* reset after every event */
	int64		first;
	int64		last;
	int64		sealed;
	Ranges		gaps;			/* numbers sealed as no transaction's */
	Ranges		retired;		/* of slots that were emptied */
	int64	   *wrong;			/* chunks in which something was found, in the
								 * order of finding */
	int			n_wrong;
	int			wrong_room;
	uint64	   *chunks;			/* those that have commits or a node */
	int			n_chunks;
	int			room;
} Verifier;

PG_FUNCTION_INFO_V1(accord_verify_log);

static void
note_wrong(Verifier *verifier, int64 chunk)
{
	if (verifier->n_wrong > 0 &&
		verifier->wrong[verifier->n_wrong - 1] == chunk)
		return;
	if (verifier->n_wrong == verifier->wrong_room)
	{
		verifier->wrong_room *= 2;
		verifier->wrong = repalloc_huge(verifier->wrong,
										verifier->wrong_room * sizeof(int64));
	}
	verifier->wrong[verifier->n_wrong++] = chunk;
}

static bool
is_wrong(const Verifier *verifier, int64 chunk)
{
	for (int i = 0; i < verifier->n_wrong; i++)
		if (verifier->wrong[i] == chunk)
			return true;
	return false;
}

/* One finding; ord and tx_id 0: null. */
static void
report(Verifier *verifier, int64 seq, int ord, int64 tx_id,
	   const char *problem, const char *detail)
{
	Datum		values[] = {Int64GetDatum(seq), Int32GetDatum(ord),
		Int64GetDatum(tx_id), CStringGetTextDatum(problem),
	CStringGetTextDatum(detail)};
	bool		nulls[] = {seq == 0, ord == 0, tx_id == 0, false, false};

	note_wrong(verifier, (seq - 1) / ACCORD_CHUNK);
	tuplestore_putvalues(verifier->result->setResult,
						 verifier->result->setDesc, values, nulls);
}

static bool
is_within(const Ranges *ranges, int64 number)
{
	int			low = 0;
	int			high = ranges->n / 2 - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;

		if (number < ranges->bounds[2 * middle])
			high = middle - 1;
		else if (number > ranges->bounds[2 * middle + 1])
			low = middle + 1;
		else
			return true;
	}
	return false;
}

/* Slots overlap, so all of their ranges are looked at. */
static bool
is_retired(const Verifier *verifier, int64 seq)
{
	for (int i = 0; i + 1 < verifier->retired.n; i += 2)
		if (seq >= verifier->retired.bounds[i] &&
			seq <= verifier->retired.bounds[i + 1])
			return true;
	return false;
}

/* ---- events and commits ---- */

static void
report_missing(Verifier *verifier, const AccordCommit *commit, int from,
			   int to)
{
	if (to - from >= LISTED_AT_MOST)
	{
		report(verifier, commit->seq, from, commit->tx_id, "removed",
			   psprintf("events %d to %d are missing", from, to));
		return;
	}
	for (int ord = from; ord <= to; ord++)
		report(verifier, commit->seq, ord, commit->tx_id, "removed",
			   "the event is missing");
}

/* Whether the log has the event that says that this one was erased. */
static bool
erasure_is_logged(Verifier *verifier, TupleTableSlot *row)
{
	AccordErased erased;
	char	   *event_id;
	uint32		ord;

	if (row->tts_isnull[ACCORD_EVENT_ERASED_BY - 1] ||
		!accord_digest_erased(row->tts_values, row->tts_isnull, &erased))
		return false;
	event_id = DatumGetCString(DirectFunctionCall1(uuid_out,
												   row->tts_values[ACCORD_EVENT_EVENT_ID - 1]));
	memcpy(&ord, erased.ord, sizeof(ord));
	for (int slot = 0; slot < ACCORD_LOG_SLOTS; slot++)
	{
		/* the finder's scans outlive the event at hand */
		MemoryContext old = MemoryContextSwitchTo(verifier->lasting);
		TupleTableSlot *found =
		accord_log_event(verifier->finder, slot,
						 DatumGetInt64(row->tts_values[ACCORD_EVENT_ERASED_BY - 1]),
						 (int) pg_ntoh32(ord));
		char	   *named = NULL;

		MemoryContextSwitchTo(old);
		if (found == NULL)
			continue;
		slot_getallattrs(found);
		if (!found->tts_isnull[ACCORD_EVENT_PAYLOAD - 1])
			named = accord_json_member(DatumGetJsonbP(found->tts_values[ACCORD_EVENT_PAYLOAD - 1]),
									   "event_id");
		return named != NULL && strcmp(named, event_id) == 0 &&
			strcmp(TextDatumGetCString(found->tts_values[ACCORD_EVENT_TOPIC - 1]),
				   TOPIC_ERASE) == 0;
	}
	return false;
}

/* One event; "expected" is the number it should have. True: nothing is wrong
 * with it. */
static bool
verify_event(Verifier *verifier, const AccordCommit *commit,
			 TupleTableSlot *row, int ord, int expected, AccordHash *leaf)
{
	bool		agrees = false;
	const char *problem = NULL;
	const char *detail = "";

	if (ord < expected || ord > commit->events)
	{
		problem = "inserted";
		detail = "the transaction wrote no such event";
	}
	else if (!accord_digest_stored(row->tts_values, row->tts_isnull, leaf,
								   &agrees) || !agrees)
	{
		problem = "changed";
		detail = "the event is not as it was written";
	}
	else if (row->tts_isnull[ACCORD_EVENT_SALT - 1] &&
			 !erasure_is_logged(verifier, row))
	{
		problem = "erased";
		detail = "the log has no event that says so";
	}
	if (problem != NULL)
		report(verifier, commit->seq, ord, commit->tx_id, problem, detail);
	return problem == NULL;
}

/* The digest over what there is, against the one that was written. */
static bool
digest_agrees(const AccordCommit *commit, const AccordFrontier *events)
{
	AccordHash	root;
	AccordHash	computed;
	AccordHash	stored;

	slot_getallattrs(commit->row);
	accord_frontier_root(events, &root);
	accord_digest_commit(commit->row->tts_values, commit->row->tts_isnull,
						 &root, &computed);
	accord_seal_digest(commit, &stored);
	return memcmp(&computed, &stored, sizeof(computed)) == 0;
}

static void
verify_commit(Verifier *verifier, const AccordCommit *commit)
{
	AccordFrontier events = {.size = 0};
	TupleTableSlot *row;
	int			expected = 1;
	bool		right = true;

	while ((row = accord_log_next_event(verifier->reader)) != NULL)
	{
		AccordHash	leaf = {{0}};
		MemoryContext old;
		int			ord;

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(row);
		ord = DatumGetInt32(row->tts_values[ACCORD_EVENT_ORD - 1]);
		if (ord > expected && expected <= commit->events)
		{
			report_missing(verifier, commit, expected,
						   Min(ord - 1, commit->events));
			right = false;
		}
		old = MemoryContextSwitchTo(verifier->scratch);
		right &= verify_event(verifier, commit, row, ord, expected, &leaf);
		MemoryContextSwitchTo(old);
		MemoryContextReset(verifier->scratch);
		accord_frontier_add(&events, &leaf);
		expected = Max(expected, ord + 1);
	}
	if (expected <= commit->events)
	{
		report_missing(verifier, commit, expected, commit->events);
		right = false;
	}
	if (right && !digest_agrees(commit, &events))
		report(verifier, commit->seq, 0, commit->tx_id, "changed",
			   "the commit, or an event with its check, is not as it was "
			   "written");
}

static void
add_chunk(Verifier *verifier, uint64 chunk)
{
	if (verifier->n_chunks > 0 &&
		verifier->chunks[verifier->n_chunks - 1] == chunk)
		return;
	if (verifier->n_chunks == verifier->room)
	{
		verifier->room *= 2;
		verifier->chunks = repalloc_huge(verifier->chunks,
										 verifier->room * sizeof(uint64));
	}
	verifier->chunks[verifier->n_chunks++] = chunk;
}

static void
verify_commits(Verifier *verifier)
{
	AccordCommit commit;
	int64		before = 0;

	while (accord_log_next_commit(verifier->reader, &commit))
	{
		if (commit.seq == before)
			report(verifier, commit.seq, 0, commit.tx_id, "inserted",
				   "there is another commit of that number");
		else if (commit.seq <= verifier->sealed &&
				 is_within(&verifier->gaps, commit.seq))
			report(verifier, commit.seq, 0, commit.tx_id, "inserted",
				   "the number was sealed as no transaction's");
		else
			verify_commit(verifier, &commit);
		if (commit.seq <= verifier->sealed)
			add_chunk(verifier, (commit.seq - 1) / ACCORD_CHUNK);
		before = commit.seq;
	}
}

/* ---- the tree ---- */

/* Indexes of the stored nodes of a level over the range, added to the list. */
static void
list_nodes(Verifier *verifier, int level)
{
	AccordTree *tree = verifier->tree;
	ScanKeyData keys[2];
	bool		isnull;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(level));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum((verifier->first - 1) >> level));
	index_rescan(tree->scan, keys, 2, NULL, 0);
	while (index_getnext_slot(tree->scan, ForwardScanDirection, tree->row))
	{
		int64		index = DatumGetInt64(slot_getattr(tree->row, 2, &isnull));

		if (index > (verifier->last - 1) >> level)
			break;
		add_chunk(verifier, index);
	}
}

static int
compare_chunks(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return (x > y) - (x < y);
}

/*
 * Leaves that are not there though they should be. False: the chunk cannot be
 * compared, as some of it went with its slot.
 */
static bool
verify_presence(Verifier *verifier, const AccordLeaves *leaves)
{
	bool		whole = true;

	for (int i = 0; i < ACCORD_CHUNK; i++)
	{
		int64		seq = (int64) leaves->chunk * ACCORD_CHUNK + i + 1;

		if (seq > verifier->sealed ||
			(leaves->present & (UINT64CONST(1) << i)) != 0 ||
			is_within(&verifier->gaps, seq))
			continue;
		if (!is_retired(verifier, seq))
		{
			if (seq >= verifier->first && seq <= verifier->last)
				report(verifier, seq, 0, 0, "removed",
					   "the commit is missing, with its events");
		}
		else
			whole &= leaves->packed;
	}
	return whole;
}

static void
verify_chunk(Verifier *verifier, uint64 chunk)
{
	AccordLeaves leaves;
	AccordHash	computed;
	AccordHash	stored;

	(void) accord_seal_leaves(verifier->tree, chunk, &leaves);
	if (!verify_presence(verifier, &leaves) ||
		(int64) (chunk + 1) * ACCORD_CHUNK > verifier->sealed)
		return;
	accord_seal_chunk_root(&leaves, &computed);
	if (!accord_seal_node(verifier->tree, ACCORD_CHUNK_LEVEL, chunk, &stored))
		stored = verifier->tree->empty[ACCORD_CHUNK_LEVEL];
	if (memcmp(&computed, &stored, sizeof(computed)) != 0 &&
		!is_wrong(verifier, chunk))
		report(verifier, (int64) chunk * ACCORD_CHUNK + 1, 0, 0, "changed",
			   psprintf("of the commits " INT64_FORMAT " to " INT64_FORMAT
						" some are not as they were sealed",
						(int64) chunk * ACCORD_CHUNK + 1,
						(int64) (chunk + 1) * ACCORD_CHUNK));
}

static void
verify_chunks(Verifier *verifier)
{
	uint64		before = PG_UINT64_MAX;

	list_nodes(verifier, ACCORD_CHUNK_LEVEL);
	qsort(verifier->chunks, verifier->n_chunks, sizeof(uint64),
		  compare_chunks);
	for (int i = 0; i < verifier->n_chunks; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (verifier->chunks[i] != before)
			verify_chunk(verifier, verifier->chunks[i]);
		before = verifier->chunks[i];
	}
}

/* Nodes above the chunks against those below them. */
static void
verify_nodes(Verifier *verifier)
{
	AccordTree *tree = verifier->tree;

	for (int level = ACCORD_CHUNK_LEVEL + 1;
		 level < ACCORD_MERKLE_LEVELS &&
		 (INT64CONST(1) << level) <= verifier->sealed; level++)
	{
		verifier->n_chunks = 0;
		list_nodes(verifier, level);
		for (int i = 0; i < verifier->n_chunks; i++)
		{
			uint64		index = verifier->chunks[i];
			AccordHash	child[2];
			AccordHash	stored;

			for (int j = 0; j < 2; j++)
				if (!accord_seal_node(tree, level - 1, 2 * index + j,
									  &child[j]))
					child[j] = tree->empty[level - 1];
			accord_merkle_node(&child[0], &child[1], &child[0]);
			if (!accord_seal_node(tree, level, index, &stored) ||
				memcmp(&child[0], &stored, sizeof(stored)) != 0)
				report(verifier, (int64) (index << level) + 1, 0, 0,
					   "changed",
					   psprintf("a node of the seal over the commits "
								INT64_FORMAT " to " INT64_FORMAT
								" does not fit",
								(int64) (index << level) + 1,
								(int64) ((index + 1) << level)));
		}
	}
}

static void
take_ranges(Ranges *ranges, ArrayType *array)
{
	ranges->bounds = (int64 *) ARR_DATA_PTR(array);
	ranges->n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
}

/* accord.verify_log(first, last, sealed, gaps, retired) */
Datum
accord_verify_log(PG_FUNCTION_ARGS)
{
	Verifier	verifier = {.room = 1024,.wrong_room = 64};
	AccordPoint after = {PG_GETARG_INT64(0) - 1, ACCORD_ORD_ALL};
	AccordPoint nowhere = {0, ACCORD_ORD_ALL};

	InitMaterializedSRF(fcinfo, 0);
	verifier.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verifier.first = PG_GETARG_INT64(0);
	verifier.last = PG_GETARG_INT64(1);
	verifier.sealed = PG_GETARG_INT64(2);
	take_ranges(&verifier.gaps, PG_GETARG_ARRAYTYPE_P(3));
	take_ranges(&verifier.retired, PG_GETARG_ARRAYTYPE_P(4));
	verifier.wrong = palloc(verifier.wrong_room * sizeof(int64));
	verifier.chunks = palloc(verifier.room * sizeof(uint64));
	verifier.lasting = CurrentMemoryContext;
	verifier.scratch = AllocSetContextCreate(CurrentMemoryContext,
											 "pg_accord verify",
											 ALLOCSET_DEFAULT_SIZES);
	verifier.tree = accord_seal_open();
	verifier.reader = accord_log_open(after, verifier.last);
	verifier.finder = accord_log_open(nowhere, 0);
	verify_commits(&verifier);
	verifier.last = Min(verifier.last, verifier.sealed);
	if (verifier.last >= verifier.first)
	{
		verify_chunks(&verifier);
		verify_nodes(&verifier);
	}
	accord_log_close(verifier.finder);
	accord_log_close(verifier.reader);
	accord_seal_close(verifier.tree);
	PG_RETURN_NULL();
}
