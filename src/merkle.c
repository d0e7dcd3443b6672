/*
 * merkle.c: Merkle trees as RFC 6962 (section 2.1) hashes them, and their
 * proofs.
 *
 * Runs anywhere; pure. A leaf is SHA-256 of 0x00 and its data, a node that of
 * 0x01 and its two children, so that neither can be taken for the other. A
 * tree of n leaves is split at the largest power of two below n.
 *
 * The context for hashing is the caller's; one is enough. Making one for each
 * hash, or having the library find SHA-256 anew, would cost more than hashing
 * the few bytes that there are.
 *
 * On failure nothing is raised: a hash that could not be computed (the
 * system's library refused) is zero, and accord_merkle_intact() says so.
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include <openssl/evp.h>

#include "common/sha2.h"

#include "merkle.h"

#define PREFIX_NODE 0x01

StaticAssertDecl(ACCORD_HASH_BYTES == PG_SHA256_DIGEST_LENGTH,
				 "a hash is one of SHA-256");

static EVP_MD_CTX *context = NULL;
static bool intact = true;

/* A tree whose subtrees are asked for, and the proof that is made of it. */
typedef struct Prover
{
	AccordSubtree subtree;
	void	   *arg;
	AccordHash *path;
	int			n;
	bool		known;			/* so far */
} Prover;

bool
accord_merkle_use(EVP_MD_CTX *a_context)
{
	context = a_context;
	return context != NULL &&
		EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1;
}

bool
accord_merkle_intact(void)
{
	return intact;
}

/* Begins with the algorithm that the context has: it is looked up only once. */
void
accord_merkle_hash(const void *data, size_t len, AccordHash *result)
{
	if (context == NULL ||
		EVP_DigestInit_ex(context, NULL, NULL) != 1 ||
		EVP_DigestUpdate(context, data, len) != 1 ||
		EVP_DigestFinal_ex(context, result->bytes, NULL) != 1)
	{
		memset(result, 0, sizeof(*result));
		intact = false;
	}
}

void
accord_merkle_node(const AccordHash *left, const AccordHash *right,
				   AccordHash *result)
{
	uint8		data[1 + 2 * ACCORD_HASH_BYTES];

	data[0] = PREFIX_NODE;
	memcpy(&data[1], left->bytes, ACCORD_HASH_BYTES);
	memcpy(&data[1 + ACCORD_HASH_BYTES], right->bytes, ACCORD_HASH_BYTES);
	accord_merkle_hash(data, sizeof(data), result);
}

/* As in adding one to a binary number: what is carried becomes a node. */
void
accord_frontier_add(AccordFrontier *frontier, const AccordHash *leaf)
{
	AccordHash	hash = *leaf;
	int			level = 0;

	for (; (frontier->size >> level) & 1; level++)
		accord_merkle_node(&frontier->nodes[level], &hash, &hash);
	frontier->nodes[level] = hash;
	frontier->size++;
}

void
accord_frontier_root(const AccordFrontier *frontier, AccordHash *root)
{
	bool		first = true;

	if (frontier->size == 0)
	{
		accord_merkle_hash("", 0, root);
		return;
	}
	for (int level = 0; level < ACCORD_MERKLE_LEVELS; level++)
	{
		if (((frontier->size >> level) & 1) == 0)
			continue;
		if (first)
			*root = frontier->nodes[level];
		else
			accord_merkle_node(&frontier->nodes[level], root, root);
		first = false;
	}
}

/* The largest power of two below n, as its level; n > 1. */
static int
split_level(uint64 n)
{
	int			level = 0;

	while ((UINT64CONST(1) << (level + 1)) < n)
		level++;
	return level;
}

/* The root of n leaves from leaf "first", which is where such a tree can
 * begin. */
static void
range_root(Prover *prover, uint64 first, uint64 n, AccordHash *root)
{
	AccordHash	left;
	AccordHash	right;
	int			level;

	if ((n & (n - 1)) == 0)
	{
		for (level = 0; (UINT64CONST(1) << level) < n; level++)
			;
		if (!prover->subtree(prover->arg, level, first >> level, root))
		{
			prover->known = false;
			memset(root, 0, sizeof(*root));
		}
		return;
	}
	level = split_level(n);
	range_root(prover, first, UINT64CONST(1) << level, &left);
	range_root(prover, first + (UINT64CONST(1) << level),
			   n - (UINT64CONST(1) << level), &right);
	accord_merkle_node(&left, &right, root);
}

bool
accord_merkle_root(AccordSubtree subtree, void *arg, uint64 size,
				   AccordHash *root)
{
	Prover		prover = {subtree, arg, NULL, 0, true};
	AccordFrontier nothing = {.size = 0};

	if (size == 0)
		accord_frontier_root(&nothing, root);
	else
		range_root(&prover, 0, size, root);
	return prover.known;
}

/* Adds the root of a range to the proof. */
static void
add_range(Prover *prover, uint64 first, uint64 n)
{
	Assert(prover->n < ACCORD_PROOF_LIMIT);
	range_root(prover, first, n, &prover->path[prover->n]);
	prover->n++;
}

/* The RFC calls it PATH: of leaf m of the tree of n leaves from "first". */
static void
add_path(Prover *prover, uint64 m, uint64 first, uint64 n)
{
	uint64		k;

	if (n == 1)
		return;
	k = UINT64CONST(1) << split_level(n);
	if (m < k)
	{
		add_path(prover, m, first, k);
		add_range(prover, first + k, n - k);
	}
	else
	{
		add_path(prover, m - k, first + k, n - k);
		add_range(prover, first, k);
	}
}

int
accord_merkle_inclusion(AccordSubtree subtree, void *arg, uint64 index,
						uint64 size, AccordHash *path)
{
	Prover		prover = {subtree, arg, path, 0, true};

	Assert(index < size);
	add_path(&prover, index, 0, size);
	return prover.known ? prover.n : -1;
}

/* SUBPROOF(m, D[n], whole) of the RFC. */
static void
add_subproof(Prover *prover, uint64 m, uint64 first, uint64 n, bool whole)
{
	uint64		k;

	if (m == n)
	{
		if (!whole)
			add_range(prover, first, n);
		return;
	}
	k = UINT64CONST(1) << split_level(n);
	if (m <= k)
	{
		add_subproof(prover, m, first, k, whole);
		add_range(prover, first + k, n - k);
	}
	else
	{
		add_subproof(prover, m - k, first + k, n - k, false);
		add_range(prover, first, k);
	}
}

int
accord_merkle_consistency(AccordSubtree subtree, void *arg, uint64 old_size,
						  uint64 size, AccordHash *path)
{
	Prover		prover = {subtree, arg, path, 0, true};

	Assert(old_size <= size);
	if (old_size > 0)
		add_subproof(&prover, old_size, 0, size, true);
	return prover.known ? prover.n : -1;
}

static bool
is_same(const AccordHash *a, const AccordHash *b)
{
	return memcmp(a, b, sizeof(AccordHash)) == 0;
}

/*
 * One step up on the way from leaf "node" to the root; "last" is the last leaf.
 * True: the hash at hand is on the left.
 */
static bool
step_up(uint64 *node, uint64 *last)
{
	bool		left = (*node & 1) != 0 || *node == *last;

	if (left)
		while ((*node & 1) == 0 && *node != 0)
		{
			*node >>= 1;
			*last >>= 1;
		}
	*node >>= 1;
	*last >>= 1;
	return left;
}

bool
accord_merkle_check_inclusion(const AccordHash *leaf, uint64 index,
							  uint64 size, const AccordHash *path, int n,
							  const AccordHash *root)
{
	AccordHash	hash = *leaf;
	uint64		last = size - 1;

	if (index >= size)
		return false;
	for (int i = 0; i < n; i++)
	{
		if (last == 0)
			return false;
		if (step_up(&index, &last))
			accord_merkle_node(&path[i], &hash, &hash);
		else
			accord_merkle_node(&hash, &path[i], &hash);
	}
	return last == 0 && is_same(&hash, root);
}

bool
accord_merkle_check_consistency(uint64 old_size, uint64 size,
								const AccordHash *path, int n,
								const AccordHash *old_root,
								const AccordHash *root)
{
	uint64		node = old_size - 1;
	uint64		last = size - 1;
	AccordHash	old_hash;
	AccordHash	hash;
	int			i = 0;

	if (old_size > size)
		return false;
	if (old_size == size)
		return n == 0 && is_same(old_root, root);
	if (old_size == 0)
		return n == 0;
	while (node & 1)
	{
		node >>= 1;
		last >>= 1;
	}
	/* a complete old tree is a node of the new one, and not in the proof */
	if (node == 0)
		hash = *old_root;
	else if (n > 0)
		hash = path[i++];
	else
		return false;
	old_hash = hash;
	for (; i < n; i++)
	{
		if (last == 0)
			return false;
		if (step_up(&node, &last))
		{
			accord_merkle_node(&path[i], &old_hash, &old_hash);
			accord_merkle_node(&path[i], &hash, &hash);
		}
		else
			accord_merkle_node(&hash, &path[i], &hash);
	}
	return last == 0 && is_same(&old_hash, old_root) && is_same(&hash, root);
}
