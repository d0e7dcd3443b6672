/*
 * merkle.h: exports of merkle.c
 *
 * Layer 1, pure: Merkle trees as RFC 6962 (section 2.1) hashes them, and
 * their proofs.
 */
#ifndef ACCORD_MERKLE_H
#define ACCORD_MERKLE_H

#define ACCORD_HASH_BYTES 32	/* SHA-256 */
#define ACCORD_MERKLE_LEVELS 63
#define ACCORD_PROOF_LIMIT 128	/* hashes a proof can have */

typedef struct AccordHash
{
	uint8		bytes[ACCORD_HASH_BYTES];
} AccordHash;

struct evp_md_ctx_st;

/*
 * The context for SHA-256 that all of these use; set before any other call.
 * False: the library of hashes has none.
 */
extern bool accord_merkle_use(struct evp_md_ctx_st *context);

/* Whether every hash so far could be computed; one that could not is zero. */
extern bool accord_merkle_intact(void);

/* SHA-256. What is a leaf begins with ACCORD_MERKLE_LEAF. */
#define ACCORD_MERKLE_LEAF 0x00

extern void accord_merkle_hash(const void *data, size_t len,
							   AccordHash *result);
extern void accord_merkle_node(const AccordHash *left, const AccordHash *right,
							   AccordHash *result);

/* A tree that grows at its end: the roots of its complete subtrees. */
typedef struct AccordFrontier
{
	uint64		size;
	AccordHash	nodes[ACCORD_MERKLE_LEVELS];	/* by level; those of the bits
												 * of size */
} AccordFrontier;

extern void accord_frontier_add(AccordFrontier *frontier,
								const AccordHash *leaf);
extern void accord_frontier_root(const AccordFrontier *frontier,
								 AccordHash *root);

/*
 * A tree whose complete subtrees can be asked for: the one with 2^level leaves
 * from leaf index * 2^level. False: it is not known.
 */
typedef bool (*AccordSubtree) (void *arg, int level, uint64 index,
							   AccordHash *hash);

/* The root of the first "size" leaves; false: some subtree is not known. */
extern bool accord_merkle_root(AccordSubtree subtree, void *arg, uint64 size,
							   AccordHash *root);

/*
 * The proof that a leaf is in the tree of so many leaves; or that this tree is
 * the beginning of that one. Returns the number of hashes; -1: some subtree is
 * not known.
 */
extern int	accord_merkle_inclusion(AccordSubtree subtree, void *arg,
									uint64 index, uint64 size,
									AccordHash *path);
extern int	accord_merkle_consistency(AccordSubtree subtree, void *arg,
									  uint64 old_size, uint64 size,
									  AccordHash *path);

/* Whether such a proof holds. */
extern bool accord_merkle_check_inclusion(const AccordHash *leaf, uint64 index,
										  uint64 size, const AccordHash *path,
										  int n, const AccordHash *root);
extern bool accord_merkle_check_consistency(uint64 old_size, uint64 size,
											const AccordHash *path, int n,
											const AccordHash *old_root,
											const AccordHash *root);

#endif							/* ACCORD_MERKLE_H */
