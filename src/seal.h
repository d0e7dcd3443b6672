/*
 * seal.h: exports of seal.c
 *
 * Layer 4: the Merkle tree over the log, as it is stored.
 */
#ifndef ACCORD_SEAL_H
#define ACCORD_SEAL_H

#include "access/relscan.h"
#include "executor/tuptable.h"
#include "log.h"
#include "merkle.h"
#include "utils/rel.h"

#define ACCORD_CHUNK 64			/* leaves whose root is stored */
#define ACCORD_CHUNK_LEVEL 6

/* The leaves of a chunk: numbers 64 * chunk + 1 to 64 * chunk + 64. */
typedef struct AccordLeaves
{
	uint64		chunk;
	uint64		present;		/* bits: those that commit_log has */
	bool		packed;			/* there is a row of level 0 */
	AccordHash	hash[ACCORD_CHUNK]; /* of what is not known, a gap's */
} AccordLeaves;

/* Reads under the snapshot that was active when it was opened. */
typedef struct AccordTree
{
	Relation	nodes;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *row;
	AccordHash	empty[ACCORD_MERKLE_LEVELS];	/* subtrees of gaps alone */
	bool		loaded;
	AccordLeaves leaves;		/* of the chunk that was asked for last */
} AccordTree;

extern AccordTree *accord_seal_open(void);
extern void accord_seal_close(AccordTree *tree);

/* A stored node; false: there is none, as for gaps alone. */
extern bool accord_seal_node(AccordTree *tree, int level, uint64 index,
							 AccordHash *hash);

/* The leaves of a chunk; false: nothing is left of them. */
extern bool accord_seal_leaves(AccordTree *tree, uint64 chunk,
							   AccordLeaves *leaves);
extern void accord_seal_chunk_root(const AccordLeaves *leaves,
								   AccordHash *hash);

/* The digest that a commit's row holds; zero when it is none. */
extern void accord_seal_digest(const AccordCommit *commit,
							   AccordHash *digest);

/* AccordSubtree of a tree within what is sealed; arg is the AccordTree. */
extern bool accord_seal_subtree(void *arg, int level, uint64 index,
								AccordHash *hash);

#endif							/* ACCORD_SEAL_H */
