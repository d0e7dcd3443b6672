/*
 * merkle.c: tests of the Merkle trees, without a server: the vectors that
 * implementations of RFC 6962 share, and against the definitions of the RFC,
 * spelled out.
 *
 * Runs by itself; test/unit/run links it with merkle.c and libcrypto.
 */
#include "postgres_fe.h"

#include <openssl/evp.h>

#include "merkle.h"

#define MOST 70					/* leaves of the largest tree */

static int	passed;
static int	failed;
static AccordHash leaves[MOST];

static void
check(bool right, const char *what, int a, int b)
{
	if (right)
		passed++;
	else
	{
		failed++;
		printf("FAILED  %s (%d, %d)\n", what, a, b);
	}
}

static bool
is_hex(const AccordHash *hash, const char *hex)
{
	char		text[65];

	for (int i = 0; i < 32; i++)
		snprintf(text + 2 * i, 3, "%02x", hash->bytes[i]);
	return strcmp(text, hex) == 0;
}

static bool
is_same(const AccordHash *a, const AccordHash *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

static void
hash_leaf(const void *data, size_t len, AccordHash *result)
{
	uint8		leaf[64];

	leaf[0] = ACCORD_MERKLE_LEAF;
	memcpy(&leaf[1], data, len);
	accord_merkle_hash(leaf, len + 1, result);
}

/* MTH(D[first:first+n]), as the RFC defines it. */
static void
define_root(int first, int n, AccordHash *root)
{
	AccordHash	left;
	AccordHash	right;
	int			k = 1;

	if (n == 1)
	{
		*root = leaves[first];
		return;
	}
	while (2 * k < n)
		k *= 2;
	define_root(first, k, &left);
	define_root(first + k, n - k, &right);
	accord_merkle_node(&left, &right, root);
}

static int	unknown_level = -1; /* subtrees that are not known */

static bool
subtree(void *arg, int level, uint64 index, AccordHash *hash)
{
	if (level == unknown_level)
		return false;
	define_root((int) (index << level), 1 << level, hash);
	return true;
}

/* The leaves and roots that the implementations of Certificate Transparency
 * share. */
static void
test_vectors(void)
{
	static const struct
	{
		const char *data;
		int			len;
		const char *root;		/* with all leaves before */
	}			vectors[] = {
		{"", 0, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
		{"\x00", 1, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"},
		{"\x10", 1, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"},
		{"\x20\x21", 2, "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"},
		{"\x30\x31", 2, "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"},
		{"\x40\x41\x42\x43", 4, "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"},
		{"\x50\x51\x52\x53\x54\x55\x56\x57", 8, "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"},
		{"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f", 16,
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"}
	};
	AccordFrontier frontier = {.size = 0};
	AccordHash	root;

	accord_frontier_root(&frontier, &root);
	check(is_hex(&root, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
		  "root of nothing", 0, 0);
	check(accord_merkle_root(subtree, NULL, 0, &root) &&
		  is_hex(&root, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
		  "root of nothing, by its subtrees", 0, 0);
	for (int i = 0; i < lengthof(vectors); i++)
	{
		AccordHash	leaf;

		hash_leaf(vectors[i].data, vectors[i].len, &leaf);
		accord_frontier_add(&frontier, &leaf);
		accord_frontier_root(&frontier, &root);
		check(is_hex(&root, vectors[i].root), "root of a vector", i + 1, 0);
	}
}

static void
make_leaves(void)
{
	for (int i = 0; i < MOST; i++)
		hash_leaf(&i, sizeof(i), &leaves[i]);
}

static void
test_roots(void)
{
	AccordFrontier frontier = {.size = 0};

	for (int n = 1; n <= MOST; n++)
	{
		AccordHash	expected;
		AccordHash	root;

		accord_frontier_add(&frontier, &leaves[n - 1]);
		define_root(0, n, &expected);
		accord_frontier_root(&frontier, &root);
		check(is_same(&root, &expected), "root by its frontier", n, 0);
		check(accord_merkle_root(subtree, NULL, n, &root) &&
			  is_same(&root, &expected), "root by its subtrees", n, 0);
	}
}

/* Every proof holds, and none does when a bit of anything is turned. */
static void
test_inclusion(void)
{
	AccordHash	path[ACCORD_PROOF_LIMIT];
	AccordHash	root;

	for (int n = 1; n <= MOST; n++)
		for (int i = 0; i < n; i++)
		{
			int			length = accord_merkle_inclusion(subtree, NULL, i, n,
														 path);

			define_root(0, n, &root);
			check(length <= 7 && accord_merkle_check_inclusion(&leaves[i], i, n, path, length, &root),
				  "inclusion", i, n);
			check(!accord_merkle_check_inclusion(&leaves[(i + 1) % MOST], i, n,
												 path, length, &root),
				  "inclusion of another leaf", i, n);
			check(n == 1 || !accord_merkle_check_inclusion(&leaves[i], i ^ 1, n, path, length, &root),
				  "inclusion elsewhere", i, n);
			check(!accord_merkle_check_inclusion(&leaves[i], i, n, path,
												 length + 1, &root),
				  "inclusion by too long a proof", i, n);
			check(length == 0 || !accord_merkle_check_inclusion(&leaves[i], i, n, path, length - 1, &root),
				  "inclusion by too short a proof", i, n);
			for (int j = 0; j < length; j++)
			{
				path[j].bytes[j] ^= 4;
				check(!accord_merkle_check_inclusion(&leaves[i], i, n, path,
													 length, &root),
					  "inclusion by a changed proof", i, n);
				path[j].bytes[j] ^= 4;
			}
		}
	check(!accord_merkle_check_inclusion(&leaves[0], 1, 1, path, 0, &leaves[0]),
		  "inclusion beyond the end", 1, 1);
}

static void
test_consistency(void)
{
	AccordHash	path[ACCORD_PROOF_LIMIT];
	AccordHash	old;
	AccordHash	root;

	for (int n = 1; n <= MOST; n++)
		for (int m = 1; m <= n; m++)
		{
			int			length = accord_merkle_consistency(subtree, NULL, m, n,
														   path);

			define_root(0, m, &old);
			define_root(0, n, &root);
			check(length <= 8 && accord_merkle_check_consistency(m, n, path, length, &old, &root),
				  "consistency", m, n);
			check(m == n || !accord_merkle_check_consistency(m, n, path, length, &root, &root),
				  "consistency of another tree", m, n);
			check(m == n || !accord_merkle_check_consistency(m, n, path, length, &old, &old),
				  "consistency with another tree", m, n);
			check(!accord_merkle_check_consistency(m, n, path, length + 1,
												   &old, &root),
				  "consistency by too long a proof", m, n);
			for (int j = 0; j < length; j++)
			{
				path[j].bytes[j] ^= 4;
				check(!accord_merkle_check_consistency(m, n, path, length,
													   &old, &root),
					  "consistency by a changed proof", m, n);
				path[j].bytes[j] ^= 4;
			}
		}
	define_root(0, 9, &root);
	check(accord_merkle_check_consistency(0, 9, path, 0, &old, &root),
		  "everything is consistent with nothing", 0, 9);
	check(!accord_merkle_check_consistency(9, 8, path, 0, &root, &root),
		  "no tree shrinks", 9, 8);
}

static void
test_unknown(void)
{
	AccordHash	path[ACCORD_PROOF_LIMIT];
	AccordHash	root;

	unknown_level = 3;
	check(!accord_merkle_root(subtree, NULL, 9, &root), "unknown root", 9, 0);
	check(accord_merkle_root(subtree, NULL, 7, &root), "known root", 7, 0);
	check(accord_merkle_inclusion(subtree, NULL, 8, 9, path) == -1,
		  "unknown inclusion", 8, 9);
	check(accord_merkle_consistency(subtree, NULL, 3, 12, path) == 5,
		  "known consistency", 3, 12);
	check(accord_merkle_consistency(subtree, NULL, 10, 12, path) == -1,
		  "unknown consistency", 10, 12);
	unknown_level = -1;
}

int
main(void)
{
	AccordHash	hash;

	hash_leaf("", 0, &hash);
	check(!accord_merkle_intact(), "without a context nothing is intact", 0, 0);
	check(!accord_merkle_use(NULL), "no context is none", 0, 0);
	check(accord_merkle_use(EVP_MD_CTX_new()), "there is SHA-256", 0, 0);
	test_vectors();
	make_leaves();
	test_roots();
	test_inclusion();
	test_consistency();
	test_unknown();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
