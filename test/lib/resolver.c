/*
 * resolver.c: a name server for tests, in the place of libc's getaddrinfo().
 *
 * Loaded into a server by LD_PRELOAD. Names that end in ".test" are answered
 * from the file that ACCORD_RESOLVER names, anew at each call: lines of a name
 * and one answer for each time it is asked, the last of them for ever; several
 * addresses of one answer are separated by commas. "echo.test 127.0.0.1
 * 127.0.0.2" is a name that is bound again. Who asks for each family of
 * addresses by itself, as newer versions of libcurl do, has asked once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*Resolver) (const char *, const char *, const struct addrinfo *,
						 struct addrinfo **);

/* Takes the answer whose turn it is out of the line; it is marked as given. */
static char *
take_answer(const char *name, char *line, int family)
{
	char		path[4096];
	char	   *answer = NULL;
	char	   *save = NULL;
	int			turn = 0;
	FILE	   *file;

	snprintf(path, sizeof(path), "%s.%s.%d", getenv("ACCORD_RESOLVER"), name,
			 family);
	file = fopen(path, "a+");
	if (file == NULL)
		return NULL;
	fseek(file, 0, SEEK_END);
	turn = (int) ftell(file);
	fputc('.', file);
	fclose(file);
	strtok_r(line, " \n", &save);
	for (int i = 0; i <= turn; i++)
	{
		char	   *next = strtok_r(NULL, " \n", &save);

		if (next == NULL)
			break;
		answer = next;
	}
	return answer;
}

int
getaddrinfo(const char *node, const char *service,
			const struct addrinfo *hints, struct addrinfo **result)
{
	Resolver	real = (Resolver) dlsym(RTLD_NEXT, "getaddrinfo");
	size_t		len = node ? strlen(node) : 0;
	char		line[1024];
	char	   *answer = NULL;
	char	   *save = NULL;
	FILE	   *file;
	struct addrinfo **end = result;

	if (len < 5 || strcmp(node + len - 5, ".test") != 0 ||
		getenv("ACCORD_RESOLVER") == NULL ||
		(hints != NULL && (hints->ai_flags & AI_NUMERICHOST)))
		return real(node, service, hints, result);
	file = fopen(getenv("ACCORD_RESOLVER"), "r");
	while (file != NULL && answer == NULL && fgets(line, sizeof(line), file))
		if (strncmp(line, node, len) == 0 && line[len] == ' ')
			answer = take_answer(node, line, hints ? hints->ai_family : 0);
	if (file != NULL)
		fclose(file);
	*result = NULL;
	for (char *address = answer ? strtok_r(answer, ",", &save) : NULL;
		 address != NULL; address = strtok_r(NULL, ",", &save))
	{
		if (real(address, service, hints, end) != 0)
			*end = NULL;		/* of another family */
		while (*end != NULL)
			end = &(*end)->ai_next;
	}
	return *result ? 0 : EAI_NONAME;
}
