/*
 * unit_link.c: tests of link.c, without a server.
 *
 * The examples are those of RFC 8288, and what servers send; then bytes drawn
 * at random, which must neither crash nor be read beyond their end.
 */
#include "postgres.h"

#include "link.h"

static int	passed;
static int	failed;

static void
check(const char *value, const char *rel, const char *expected)
{
	const char *target;
	size_t		len;
	bool		found = accord_link_find(value, rel, &target, &len);

	if (found ? expected != NULL && strlen(expected) == len &&
		strncmp(target, expected, len) == 0 : expected == NULL)
		passed++;
	else
	{
		failed++;
		printf("FAILED  %s of %s: got %.*s, expected %s\n", rel, value,
			   found ? (int) len : 4, found ? target : "none",
			   expected ? expected : "none");
	}
}

static void
test_links(void)
{
	check("<https://a.example/?page=2>; rel=\"next\"", "next",
		  "https://a.example/?page=2");
	check("<https://a.example/?page=1>; rel=\"prev\", "
		  "<https://a.example/?page=3>; rel=\"next\"", "next",
		  "https://a.example/?page=3");
	check("</p?x=1,2;3>; rel=next", "next", "/p?x=1,2;3");
	check("<a>;rel=\"last\",<b>;REL=NEXT", "next", "b");
	check("<a>; title=\"one, <two>; rel=next\"; rel=\"prev\"", "next", NULL);
	check("<a>; title=\"a \\\" b\"; rel=\"next\"", "next", "a");
	check("<a>; rel=\"start next http://x.example/own\"", "next", "a");
	check("<a>; rel=\"nextpage\"", "next", NULL);
	check("<a>; rel=\"prev\"; rel=\"next\"", "next", NULL);
	check("<a>; rel=next; anchor=\"/other\", <b>; rel=next", "next", "b");
	check("<a> ; rel = \"next\"", "next", "a");
	check("<a>; crossorigin; rel=next", "next", "a");
	check(" , ,<a>; rel=next,", "next", "a");
	check("<>; rel=next", "next", "");
	check("<a>", "next", NULL);
	check("", "next", NULL);
	check("<a; rel=next", "next", NULL);
	check("<a>; rel=\"next", "next", NULL);
	check("<a>; rel=\"next\\", "next", NULL);
	check("<a> rel=next", "next", NULL);
	check("a; rel=next", "next", NULL);
	check("<a>; rel=next x, <b>; rel=next", "next", NULL);
	check("<a>; rel", "next", NULL);
	check("<a>; ;rel=next", "next", "a");
}

static void
test_any_bytes(void)
{
	static const char alphabet[] = "<>;,=\"\\ \tabrelnxt";
	uint32		seed = 20270101;
	int			links = 0;

	for (int i = 0; i < 200000; i++)
	{
		char		value[24];
		int			n = i % (int) sizeof(value);
		char	   *exact;
		const char *target;
		size_t		len;

		for (int j = 0; j < n; j++)
		{
			seed = seed * 1664525 + 1013904223;
			value[j] = alphabet[(seed >> 16) % (sizeof(alphabet) - 1)];
		}
		/* in memory of just that size, for a sanitizer to see */
		exact = malloc(n + 1);
		memcpy(exact, value, n);
		exact[n] = '\0';
		if (accord_link_find(exact, "n", &target, &len))
		{
			links++;
			if (target < exact || target + len >= exact + n)
			{
				failed++;
				printf("FAILED  target beyond the value: %s\n", exact);
			}
		}
		free(exact);
	}
	passed++;
	if (links < 0)
		failed++;
}

int
main(void)
{
	test_links();
	test_any_bytes();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
