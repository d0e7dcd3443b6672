/*
 * seal.c: the Merkle tree over the log.
 *
 * Runs in the keeper, which extends the tree, and in backends that ask for a
 * proof. The tree (RFC 6962) has a leaf for every commit number from 1 on: the
 * digest of the commit's row, or, where no transaction has the number, the
 * leaf of a gap. So the place of a leaf is its number, and a gap is proven
 * like anything else. What the sequence passed over in a crash costs nothing:
 * a subtree of gaps alone is known by its height.
 *
 * Kept are the roots of complete subtrees of 64 leaves (a chunk) and more, in
 * seal_node; the leaves themselves are in commit_log. Before a slot is
 * emptied, the leaves of chunks that must still be looked into (others of
 * their leaves stay, or a sealed tree ends within) are packed into one row of
 * level 0. Nodes remain for good, so that proofs and later seals do.
 *
 * Invariants: only what can change no more is sealed: numbers up to the safe
 * one, whose commits are flushed. Sealed sizes only grow, and end with a
 * commit. One process seals at a time (accord.seal is locked).
 *
 * On failure the transaction is rolled back; the next turn seals it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "digest.h"
#include "log.h"
#include "seal.h"
#include "seek.h"
#include "shmem.h"

#define COMMITS_AT_ONCE 1000000 /* sealed in one transaction */
#define NODES_AT_ONCE 500		/* inserted together */

/* Columns of accord.seal_node. */
enum
{
	NODE_LEVEL = 1,
	NODE_INDEX,
	NODE_HASH,
	NODE_COLUMNS = NODE_HASH
};

/* Nodes of one level, in order. */
typedef struct NodeList
{
	int			n;
	int			room;
	uint64	   *index;
	AccordHash *hash;
} NodeList;

PG_FUNCTION_INFO_V1(accord_seal_extend);
PG_FUNCTION_INFO_V1(accord_seal_root);
PG_FUNCTION_INFO_V1(accord_seal_keep);
PG_FUNCTION_INFO_V1(accord_seal_inclusion);
PG_FUNCTION_INFO_V1(accord_seal_consistency);
PG_FUNCTION_INFO_V1(accord_check_proof);
PG_FUNCTION_INFO_V1(accord_check_consistency);

/* ---- the tree as it is stored ---- */

AccordTree *
accord_seal_open(void)
{
	AccordTree *tree = palloc0(sizeof(AccordTree));

	accord_digest_ready();
	tree->nodes = table_open(accord_db_relid("seal_node"), AccessShareLock);
	tree->index = accord_seek_primary_key(tree->nodes);
	tree->scan = accord_index_beginscan(tree->nodes, tree->index,
										GetActiveSnapshot(), 2);
	tree->row = table_slot_create(tree->nodes, NULL);
	accord_digest_gap(&tree->empty[0]);
	for (int i = 1; i < ACCORD_MERKLE_LEVELS; i++)
		accord_merkle_node(&tree->empty[i - 1], &tree->empty[i - 1],
						   &tree->empty[i]);
	return tree;
}

void
accord_seal_close(AccordTree *tree)
{
	ExecDropSingleTupleTableSlot(tree->row);
	index_endscan(tree->scan);
	index_close(tree->index, NoLock);
	table_close(tree->nodes, NoLock);
	pfree(tree);
	accord_digest_finish();
}

/* A stored row's hash, of so many bytes; false: there is none such. */
static bool
read_node(AccordTree *tree, int level, uint64 index, void *hash, int size)
{
	ScanKeyData keys[2];
	bool		isnull;
	bytea	   *stored;

	ScanKeyInit(&keys[0], NODE_LEVEL, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(level));
	ScanKeyInit(&keys[1], NODE_INDEX, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum((int64) index));
	index_rescan(tree->scan, keys, 2, NULL, 0);
	if (!index_getnext_slot(tree->scan, ForwardScanDirection, tree->row))
		return false;
	stored = DatumGetByteaPP(slot_getattr(tree->row, NODE_HASH, &isnull));
	if (VARSIZE_ANY_EXHDR(stored) != size)
		return false;
	memcpy(hash, VARDATA_ANY(stored), size);
	return true;
}

bool
accord_seal_node(AccordTree *tree, int level, uint64 index, AccordHash *hash)
{
	return read_node(tree, level, index, hash, sizeof(*hash));
}

bool
accord_seal_leaves(AccordTree *tree, uint64 chunk, AccordLeaves *leaves)
{
	int64		before = (int64) chunk * ACCORD_CHUNK;
	AccordPoint after = {before, ACCORD_ORD_ALL};
	AccordLogReader *reader;
	AccordCommit commit;

	leaves->chunk = chunk;
	leaves->present = 0;
	for (int i = 0; i < ACCORD_CHUNK; i++)
		leaves->hash[i] = tree->empty[0];
	leaves->packed = read_node(tree, 0, chunk, leaves->hash,
							   sizeof(leaves->hash));
	reader = accord_log_open(after, before + ACCORD_CHUNK);
	while (accord_log_next_commit(reader, &commit))
	{
		int			i = (int) (commit.seq - before - 1);

		leaves->present |= UINT64CONST(1) << i;
		accord_seal_digest(&commit, &leaves->hash[i]);
	}
	accord_log_close(reader);
	return leaves->packed || leaves->present != 0;
}

void
accord_seal_digest(const AccordCommit *commit, AccordHash *digest)
{
	bool		isnull;
	Datum		value = slot_getattr(commit->row, ACCORD_COMMIT_DIGEST, &isnull);
	bytea	   *stored = isnull ? NULL : DatumGetByteaPP(value);

	if (stored != NULL && VARSIZE_ANY_EXHDR(stored) == ACCORD_HASH_BYTES)
		memcpy(digest->bytes, VARDATA_ANY(stored), ACCORD_HASH_BYTES);
	else
		memset(digest, 0, sizeof(*digest));
}

/* A subtree within a chunk. */
static void
fold_leaves(const AccordLeaves *leaves, int level, uint64 index,
			AccordHash *hash)
{
	AccordFrontier frontier = {.size = 0};
	int			first = (int) ((index << level) % ACCORD_CHUNK);

	for (int i = 0; i < (1 << level); i++)
		accord_frontier_add(&frontier, &leaves->hash[first + i]);
	accord_frontier_root(&frontier, hash);
}

void
accord_seal_chunk_root(const AccordLeaves *leaves, AccordHash *hash)
{
	fold_leaves(leaves, ACCORD_CHUNK_LEVEL, leaves->chunk, hash);
}

bool
accord_seal_subtree(void *arg, int level, uint64 index, AccordHash *hash)
{
	AccordTree *tree = arg;
	uint64		chunk;

	if (level >= ACCORD_CHUNK_LEVEL)
	{
		if (!accord_seal_node(tree, level, index, hash))
			*hash = tree->empty[level];
		return true;
	}
	chunk = (index << level) / ACCORD_CHUNK;
	if (!tree->loaded || tree->leaves.chunk != chunk)
		(void) accord_seal_leaves(tree, chunk, &tree->leaves);
	tree->loaded = true;
	fold_leaves(&tree->leaves, level, index, hash);
	return true;
}

/* ---- extending it ---- */

static void
add_to_list(NodeList *list, uint64 index, const AccordHash *hash)
{
	if (list->n == list->room)
	{
		list->room = Max(64, 2 * list->room);
		list->index = list->index == NULL ?
			palloc(list->room * sizeof(uint64)) :
			repalloc(list->index, list->room * sizeof(uint64));
		list->hash = list->hash == NULL ?
			palloc(list->room * sizeof(AccordHash)) :
			repalloc(list->hash, list->room * sizeof(AccordHash));
	}
	list->index[list->n] = index;
	list->hash[list->n++] = *hash;
}

static bool
find_in_list(const NodeList *list, uint64 index, AccordHash *hash)
{
	int			low = 0;
	int			high = list->n - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;

		if (list->index[middle] == index)
		{
			*hash = list->hash[middle];
			return true;
		}
		if (list->index[middle] < index)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return false;
}

static HeapTuple
make_node(Relation rel, int level, uint64 index, const void *hash, int size)
{
	Datum		values[NODE_COLUMNS];
	bool		nulls[NODE_COLUMNS] = {0};
	bytea	   *bytes = palloc(VARHDRSZ + size);

	SET_VARSIZE(bytes, VARHDRSZ + size);
	memcpy(VARDATA(bytes), hash, size);
	values[NODE_LEVEL - 1] = Int16GetDatum(level);
	values[NODE_INDEX - 1] = Int64GetDatum((int64) index);
	values[NODE_HASH - 1] = PointerGetDatum(bytes);
	return heap_form_tuple(RelationGetDescr(rel), values, nulls);
}

static void
insert_nodes(int level, const NodeList *list)
{
	Relation	rel = table_open(accord_db_relid("seal_node"),
								 RowExclusiveLock);
	HeapTuple  *rows = palloc(NODES_AT_ONCE * sizeof(HeapTuple));

	for (int i = 0; i < list->n;)
	{
		int			n = 0;

		for (; n < NODES_AT_ONCE && i < list->n; n++, i++)
			rows[n] = make_node(rel, level, list->index[i], &list->hash[i],
								ACCORD_HASH_BYTES);
		accord_db_insert(rel, rows, n);
		for (int j = 0; j < n; j++)
			heap_freetuple(rows[j]);
	}
	pfree(rows);
	table_close(rel, NoLock);
}

/* A node of the tree of so many leaves, if all its leaves are there and not
 * all are gaps: from those below it. */
static void
add_parent(AccordTree *tree, int level, uint64 index, uint64 size,
		   const NodeList *below, NodeList *above)
{
	AccordHash	children[2];
	bool		any = false;

	if (((index + 1) << level) > size)
		return;
	if (above->n > 0 && above->index[above->n - 1] >= index)
		return;
	for (int i = 0; i < 2; i++)
	{
		if (find_in_list(below, 2 * index + i, &children[i]) ||
			accord_seal_node(tree, level - 1, 2 * index + i, &children[i]))
			any = true;
		else
			children[i] = tree->empty[level - 1];
	}
	if (!any)
		return;
	accord_merkle_node(&children[0], &children[1], &children[0]);
	add_to_list(above, index, &children[0]);
}

/*
 * Stores the new chunks' nodes and those above them that are complete now;
 * among them those that the end of the old tree had left incomplete.
 */
static void
store_levels(AccordTree *tree, NodeList *chunks, uint64 old_size, uint64 size)
{
	NodeList   *below = chunks;

	for (int level = ACCORD_CHUNK_LEVEL + 1; level < ACCORD_MERKLE_LEVELS;
		 level++)
	{
		NodeList   *above = palloc0(sizeof(NodeList));

		insert_nodes(level - 1, below);
		add_parent(tree, level, old_size >> level, size, below, above);
		for (int i = 0; i < below->n; i++)
			add_parent(tree, level, below->index[i] >> 1, size, below, above);
		below = above;
		if ((UINT64CONST(1) << level) > size)
			break;
	}
}

/* Notes numbers that no transaction has. */
static void
insert_gap(int64 first, int64 last)
{
	Relation	rel = table_open(accord_db_relid("seal_gap"),
								 RowExclusiveLock);
	Datum		values[] = {Int64GetDatum(first), Int64GetDatum(last)};
	bool		nulls[] = {false, false};
	HeapTuple	row = heap_form_tuple(RelationGetDescr(rel), values, nulls);

	accord_db_insert(rel, &row, 1);
	heap_freetuple(row);
	table_close(rel, NoLock);
}

/* A chunk that is complete at its end gets a node. */
static void
finish_chunk(NodeList *chunks, const AccordLeaves *leaves, uint64 size)
{
	AccordHash	root;

	if ((leaves->present == 0 && !leaves->packed) ||
		(leaves->chunk + 1) * ACCORD_CHUNK > size)
		return;
	accord_seal_chunk_root(leaves, &root);
	add_to_list(chunks, leaves->chunk, &root);
}

/*
 * Reads what was committed after old_size, whole chunks from the one that the
 * old tree ends in; notes gaps. Returns the number of the last commit; 0:
 * there is none, or only the one that told of the last seal.
 */
static int64
read_commits(AccordTree *tree, int64 old_size, int64 safe, int64 witness,
			 NodeList *chunks)
{
	uint64		chunk = old_size / ACCORD_CHUNK;
	AccordPoint after = {old_size, ACCORD_ORD_ALL};
	AccordLogReader *reader = accord_log_open(after, safe);
	AccordLeaves leaves;
	AccordCommit commit;
	int64		last = old_size;
	int			n = 0;
	bool		news = false;

	/* of the chunk that the old tree ends in, what is sealed already */
	(void) accord_seal_leaves(tree, chunk, &leaves);
	while (n++ < COMMITS_AT_ONCE && accord_log_next_commit(reader, &commit))
	{
		uint64		place = commit.seq - 1;

		CHECK_FOR_INTERRUPTS();
		news |= commit.tx_id != witness;
		if (place / ACCORD_CHUNK != leaves.chunk)
		{
			finish_chunk(chunks, &leaves, place);
			leaves.chunk = place / ACCORD_CHUNK;
			leaves.present = 0;
			leaves.packed = false;
			for (int i = 0; i < ACCORD_CHUNK; i++)
				leaves.hash[i] = tree->empty[0];
		}
		accord_seal_digest(&commit, &leaves.hash[place % ACCORD_CHUNK]);
		leaves.present |= UINT64CONST(1) << (place % ACCORD_CHUNK);
		if (commit.seq > last + 1)
			insert_gap(last + 1, commit.seq - 1);
		last = commit.seq;
	}
	accord_log_close(reader);
	finish_chunk(chunks, &leaves, last);
	return news ? last : 0;
}

/*
 * accord.seal_extend(old_size, witness): makes the tree as large as the log,
 * and returns its size; null: there is nothing new.
 */
Datum
accord_seal_extend(PG_FUNCTION_ARGS)
{
	int64		old_size = PG_GETARG_INT64(0);
	int64		safe = accord_log_safe_seq();
	NodeList	chunks = {0};
	AccordTree *tree;
	int64		size;

	if (safe <= old_size)
		PG_RETURN_NULL();
	/* a commit that a crash could undo is not to be sealed */
	XLogFlush(accord_shmem_commit_lsn());
	PushActiveSnapshot(GetLatestSnapshot());
	tree = accord_seal_open();
	size = read_commits(tree, old_size, safe, PG_GETARG_INT64(1), &chunks);
	if (size > 0)
		store_levels(tree, &chunks, old_size, size);
	accord_seal_close(tree);
	PopActiveSnapshot();
	if (size == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(size);
}

static bytea *
hash_bytea(const AccordHash *hash)
{
	bytea	   *bytes = palloc(VARHDRSZ + ACCORD_HASH_BYTES);

	SET_VARSIZE(bytes, VARHDRSZ + ACCORD_HASH_BYTES);
	memcpy(VARDATA(bytes), hash->bytes, ACCORD_HASH_BYTES);
	return bytes;
}

/* accord.seal_root(size): of the tree of so many leaves. */
Datum
accord_seal_root(PG_FUNCTION_ARGS)
{
	AccordTree *tree;
	AccordHash	root;

	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	tree = accord_seal_open();
	(void) accord_merkle_root(accord_seal_subtree, tree, PG_GETARG_INT64(0),
							  &root);
	accord_seal_close(tree);
	PopActiveSnapshot();
	PG_RETURN_BYTEA_P(hash_bytea(&root));
}

/* ---- before a slot is emptied ---- */

/* Writes the leaves of a chunk into its row of level 0, a new one or the one
 * that is there. */
static void
pack_leaves(AccordTree *tree, const AccordLeaves *leaves)
{
	Relation	rel = table_open(accord_db_relid("seal_node"),
								 RowExclusiveLock);
	HeapTuple	row = make_node(rel, 0, leaves->chunk, leaves->hash,
								sizeof(leaves->hash));

	if (leaves->packed)
	{
		AccordHash	nothing[ACCORD_CHUNK];

		/* the scan stands on it then */
		(void) read_node(tree, 0, leaves->chunk, nothing, sizeof(nothing));
		simple_heap_delete(rel, &tree->row->tts_tid);
		CommandCounterIncrement();
	}
	accord_db_insert(rel, &row, 1);
	heap_freetuple(row);
	table_close(rel, NoLock);
}

/* Whether a number is in a sorted array. */
static bool
is_listed(ArrayType *array, int64 number)
{
	int64	   *numbers = (int64 *) ARR_DATA_PTR(array);
	int			low = 0;
	int			high = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;

		if (numbers[middle] == number)
			return true;
		if (numbers[middle] < number)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return false;
}

/* What is known of a chunk that loses leaves with a slot. */
typedef struct Losing
{
	uint64		chunk;
	bool		loses;
	bool		keeps;			/* others of its leaves */
} Losing;

static void
pack_if_needed(AccordTree *tree, const Losing *losing, int64 sealed,
			   ArrayType *ends)
{
	AccordLeaves leaves;

	if (!losing->loses)
		return;
	if (!losing->keeps && (losing->chunk + 1) * ACCORD_CHUNK <= sealed &&
		!is_listed(ends, losing->chunk))
		return;
	(void) accord_seal_leaves(tree, losing->chunk, &leaves);
	pack_leaves(tree, &leaves);
}

/*
 * accord.seal_keep(slot, first, last, sealed, ends): packs the leaves of those
 * chunks of a slot that must be known when the slot is gone: chunks in which
 * sealed trees end are in "ends".
 */
Datum
accord_seal_keep(PG_FUNCTION_ARGS)
{
	int			slot = PG_GETARG_INT32(0);
	int64		first = PG_GETARG_INT64(1);
	int64		last = PG_GETARG_INT64(2);
	int64		sealed = PG_GETARG_INT64(3);
	ArrayType  *ends = PG_GETARG_ARRAYTYPE_P(4);
	AccordPoint after = {(first - 1) / ACCORD_CHUNK * ACCORD_CHUNK,
	ACCORD_ORD_ALL};
	int64		upto = ((last - 1) / ACCORD_CHUNK + 1) * ACCORD_CHUNK;
	Losing		losing = {.loses = false};
	AccordTree *tree;
	AccordLogReader *reader;
	AccordCommit commit;

	PushActiveSnapshot(GetLatestSnapshot());
	tree = accord_seal_open();
	reader = accord_log_open(after, upto);
	while (accord_log_next_commit(reader, &commit))
	{
		uint64		chunk = (commit.seq - 1) / ACCORD_CHUNK;

		CHECK_FOR_INTERRUPTS();
		if (chunk != losing.chunk)
		{
			pack_if_needed(tree, &losing, sealed, ends);
			losing = (Losing)
			{
				.chunk = chunk
			};
		}
		if (commit.slot == slot)
			losing.loses = true;
		else
			losing.keeps = true;
	}
	pack_if_needed(tree, &losing, sealed, ends);
	accord_log_close(reader);
	accord_seal_close(tree);
	PopActiveSnapshot();
	PG_RETURN_VOID();
}

/* ---- proofs ---- */

static Datum
path_array(const AccordHash *path, int n)
{
	Datum		elements[ACCORD_PROOF_LIMIT];

	for (int i = 0; i < n; i++)
		elements[i] = PointerGetDatum(hash_bytea(&path[i]));
	return PointerGetDatum(construct_array(elements, n, BYTEAOID, -1, false,
										   TYPALIGN_INT));
}

/* accord.seal_inclusion(seq, size): leaf and path; the caller has checked. */
Datum
accord_seal_inclusion(PG_FUNCTION_ARGS)
{
	uint64		index = PG_GETARG_INT64(0) - 1;
	uint64		size = PG_GETARG_INT64(1);
	AccordHash	path[ACCORD_PROOF_LIMIT];
	AccordHash	leaf;
	AccordTree *tree;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};
	int			n;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.seal_inclusion() must return a row");
	PushActiveSnapshot(GetLatestSnapshot());
	tree = accord_seal_open();
	(void) accord_seal_subtree(tree, 0, index, &leaf);
	n = accord_merkle_inclusion(accord_seal_subtree, tree, index, size, path);
	accord_seal_close(tree);
	PopActiveSnapshot();
	values[0] = PointerGetDatum(hash_bytea(&leaf));
	values[1] = path_array(path, n);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* accord.seal_consistency(old_size, size): the path; the caller has checked. */
Datum
accord_seal_consistency(PG_FUNCTION_ARGS)
{
	AccordHash	path[ACCORD_PROOF_LIMIT];
	AccordTree *tree;
	int			n;

	PushActiveSnapshot(GetLatestSnapshot());
	tree = accord_seal_open();
	n = accord_merkle_consistency(accord_seal_subtree, tree,
								  PG_GETARG_INT64(0), PG_GETARG_INT64(1),
								  path);
	accord_seal_close(tree);
	PopActiveSnapshot();
	PG_RETURN_DATUM(path_array(path, n));
}

/* The hash that a bytea is; false: it is none. */
static bool
to_hash(bytea *bytes, AccordHash *hash)
{
	if (VARSIZE_ANY_EXHDR(bytes) != ACCORD_HASH_BYTES)
		return false;
	memcpy(hash->bytes, VARDATA_ANY(bytes), ACCORD_HASH_BYTES);
	return true;
}

/* The hashes of a proof; -1: it is none. */
static int
to_path(ArrayType *array, AccordHash *path)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, BYTEAOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &n);
	if (n > ACCORD_PROOF_LIMIT)
		return -1;
	for (int i = 0; i < n; i++)
		if (nulls[i] || !to_hash(DatumGetByteaPP(elements[i]), &path[i]))
			return -1;
	return n;
}

/* accord.check_proof(seq, size, leaf, path, root) */
Datum
accord_check_proof(PG_FUNCTION_ARGS)
{
	int64		seq = PG_GETARG_INT64(0);
	int64		size = PG_GETARG_INT64(1);
	AccordHash	path[ACCORD_PROOF_LIMIT];
	AccordHash	leaf;
	AccordHash	root;
	int			n = to_path(PG_GETARG_ARRAYTYPE_P(3), path);
	bool		holds;

	accord_digest_ready();
	holds = seq > 0 && seq <= size && n >= 0 &&
		to_hash(PG_GETARG_BYTEA_PP(2), &leaf) &&
		to_hash(PG_GETARG_BYTEA_PP(4), &root) &&
		accord_merkle_check_inclusion(&leaf, seq - 1, size, path, n, &root);
	accord_digest_finish();
	PG_RETURN_BOOL(holds);
}

/* accord.check_consistency(old_size, old_root, size, root, path) */
Datum
accord_check_consistency(PG_FUNCTION_ARGS)
{
	int64		old_size = PG_GETARG_INT64(0);
	int64		size = PG_GETARG_INT64(2);
	AccordHash	path[ACCORD_PROOF_LIMIT];
	AccordHash	old_root;
	AccordHash	root;
	int			n = to_path(PG_GETARG_ARRAYTYPE_P(4), path);
	bool		holds;

	accord_digest_ready();
	holds = old_size > 0 && old_size <= size && n >= 0 &&
		to_hash(PG_GETARG_BYTEA_PP(1), &old_root) &&
		to_hash(PG_GETARG_BYTEA_PP(3), &root) &&
		accord_merkle_check_consistency(old_size, size, path, n, &old_root,
										&root);
	accord_digest_finish();
	PG_RETURN_BOOL(holds);
}
