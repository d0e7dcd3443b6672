/*
 * http_check.c: what keeps a request from being made.
 *
 * Runs in dispatchers (each request before it starts) and in any backend
 * (URLs and settings when they are given). No network, no handle of curl's.
 *
 * Invariants: whatever passes can be put into a request without becoming
 * part of another header or of another request, and goes to the host that a
 * reader of the URL would name. No fault's description holds a secret or the
 * value of a header.
 *
 * On failure a palloc'd sentence fragment says what is wrong.
 */
#include "postgres.h"

#include <netdb.h>

#include "lib/stringinfo.h"

#include "guc.h"
#include "http.h"
#include "http_private.h"
#include "network.h"

/* What is wrong with the bytes of a URL, or NULL. Costs little. */
static const char *
find_url_fault(const char *url)
{
	const char *authority;
	const char *path;

	if (pg_strncasecmp(url, "http://", 7) != 0 &&
		pg_strncasecmp(url, "https://", 8) != 0)
		return "the scheme of the URL is not http or https";
	authority = strstr(url, "//") + 2;
	path = authority + strcspn(authority, "/?#");
	if (path == authority)
		return "the URL has no host";
	if (memchr(authority, '@', path - authority) != NULL)
		return "the URL has a user name or a password in it";
	for (const char *c = authority; *c != '\0'; c++)
	{
		if ((unsigned char) *c <= ' ' || *c == 0x7f)
			return "the URL has a space or a control character in it";
		if (*c == '#')
			return "the URL has a fragment";
		if (IS_HIGHBIT_SET(*c) && c >= path)
			return "the URL has a character that must be percent-encoded";
	}
	return NULL;
}

static bool
is_token_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
		(c >= '0' && c <= '9') ||
		(c != '\0' && strchr("!#$%&'*+.^_`|~", c) != NULL);
}

/*
 * A token as HTTP means it: a method or a header's name. Not strspn(): that
 * makes a table of what it is given at every call.
 */
size_t
accord_http_token_length(const char *text)
{
	const char *end = text;

	while (is_token_char(*end))
		end++;
	return end - text;
}

char	   *
accord_http_encode(const char *text, bool upper)
{
	StringInfoData out;

	Assert(text != NULL);
	initStringInfo(&out);
	for (; *text != '\0'; text++)
		if (strchr(ACCORD_HTTP_UNRESERVED, *text) != NULL)
			appendStringInfoChar(&out, *text);
		else
			appendStringInfo(&out, upper ? "%%%02X" : "%%%02x",
							 (unsigned char) *text);
	return out.data;
}

/* Line feeds would begin another header, or another request. */
static bool
has_control(const char *text)
{
	for (; *text != '\0'; text++)
	{
		if (((unsigned char) *text < ' ' && *text != '\t') || *text == 0x7f)
			return true;
	}
	return false;
}

bool
accord_http_is_header(const char *line, const char *name)
{
	size_t		len = strlen(name);

	return pg_strncasecmp(line, name, len) == 0 && line[len] == ':';
}

bool
accord_http_header_reserved(const char *name, size_t len, bool credential)
{
	static const struct
	{
		const char *name;
		bool		credential;
	}			reserved[] = {
		{"authorization", true}, {"connection", false},
		{"content-length", false}, {"cookie", true}, {"expect", false},
		{"host", false}, {"keep-alive", false}, {"te", false},
		{"trailer", false}, {"transfer-encoding", false}, {"upgrade", false}
	};

	if (len >= 6 && pg_strncasecmp(name, "proxy-", 6) == 0)
		return true;
	for (int i = 0; i < lengthof(reserved); i++)
		if (strlen(reserved[i].name) == len &&
			pg_strncasecmp(name, reserved[i].name, len) == 0)
			return !(credential && reserved[i].credential);
	return false;
}

static char *
find_header_fault(const char *line)
{
	size_t		len = accord_http_token_length(line);

	if (len == 0 || line[len] != ':')
		return pstrdup("a header is not of the form \"Name: value\"");
	if (has_control(line + len))
		return psprintf("header \"%.*s\" has a control character in its value",
						(int) len, line);
	if (accord_http_header_reserved(line, len, false))
		return psprintf("header \"%.*s\" is reserved", (int) len, line);
	return NULL;
}

/* A line that is a credential may be what others may not. */
static char *
find_auth_line_fault(const char *line)
{
	size_t		len = accord_http_token_length(line);

	if (len == 0 || line[len] != ':' || has_control(line + len))
		return pstrdup("a header that it is signed by is not one line");
	if (accord_http_header_reserved(line, len, true))
		return psprintf("header \"%.*s\" is reserved", (int) len, line);
	return NULL;
}

static char *
find_auth_fault(const AccordHttpRequest *request)
{
	char	   *fault = NULL;
	size_t		len;

	for (int i = 0; i < request->n_auth_lines && fault == NULL; i++)
		fault = find_auth_line_fault(request->auth_lines[i]);
	if (request->auth == ACCORD_HTTP_AUTH_NONE || fault != NULL)
		return fault;
	if (request->auth_secret == NULL)
		return pstrdup("the secret is missing");
	if (has_control(request->auth_secret))
		return pstrdup("the secret has a control character in it");
	if (request->auth == ACCORD_HTTP_AUTH_BEARER)
		return NULL;
	if (request->auth_name == NULL)
		return pstrdup("the name that goes with the secret is missing");
	if (request->auth == ACCORD_HTTP_AUTH_QUERY)
		return request->auth_name[strspn(request->auth_name,
										 ACCORD_HTTP_UNRESERVED)] ?
			psprintf("\"%s\" is not the name of a parameter",
					 request->auth_name) : NULL;
	if (request->auth == ACCORD_HTTP_AUTH_BASIC ||
		request->auth == ACCORD_HTTP_AUTH_DIGEST)
	{
		if (strchr(request->auth_name, ':') != NULL ||
			has_control(request->auth_name))
			return pstrdup("the user name has a colon or control character");
		return NULL;
	}
	len = accord_http_token_length(request->auth_name);
	if (len == 0 || request->auth_name[len] != '\0')
		return psprintf("\"%s\" is not the name of a header",
						request->auth_name);
	if (accord_http_header_reserved(request->auth_name, len, true))
		return psprintf("header \"%s\" is reserved", request->auth_name);
	return NULL;
}

char	   *
accord_http_check_request(const AccordHttpRequest *request)
{
	const char *fault = find_url_fault(request->url);
	char	   *header_fault = NULL;

	if (fault != NULL)
		return pstrdup(fault);
	if (request->method[0] == '\0' ||
		request->method[accord_http_token_length(request->method)] != '\0')
		return psprintf("\"%s\" is not an HTTP method", request->method);
	if (request->body != NULL && strcmp(request->method, "HEAD") == 0)
		return pstrdup("a HEAD request cannot have a body");
	for (int i = 0; i < request->n_headers && header_fault == NULL; i++)
		header_fault = find_header_fault(request->headers[i]);
	return header_fault != NULL ? header_fault : find_auth_fault(request);
}

bool
accord_http_wants_body(const char *method)
{
	return strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0 ||
		strcmp(method, "PATCH") == 0;
}

char	   *
accord_http_check_url(const char *url)
{
	const char *fault = find_url_fault(url);
	CURLU	   *parsed;
	CURLUcode	code;

	if (fault != NULL)
		return pstrdup(fault);
	parsed = curl_url();
	code = parsed == NULL ? CURLUE_OUT_OF_MEMORY :
		curl_url_set(parsed, CURLUPART_URL, url, CURLU_PATH_AS_IS);
	curl_url_cleanup(parsed);
	return code == CURLUE_OK ? NULL :
		psprintf("the URL cannot be parsed: %s", curl_url_strerror(code));
}

/* Host of a URL as the resolver takes it (no brackets), malloc'd or NULL. */
static char *
extract_host(const char *url)
{
	CURLU	   *parsed = curl_url();
	char	   *host = NULL;
	size_t		len;

	if (parsed != NULL &&
		curl_url_set(parsed, CURLUPART_URL, url, 0) == CURLUE_OK)
		curl_url_get(parsed, CURLUPART_HOST, &host, 0);
	curl_url_cleanup(parsed);
	len = host == NULL ? 0 : strlen(host);
	if (len > 2 && host[0] == '[' && host[len - 1] == ']')
	{
		memmove(host, host + 1, len - 2);
		host[len - 2] = '\0';
	}
	return host;
}

bool
accord_http_literal_refused(const char *url)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST,
	.ai_socktype = SOCK_STREAM};
	struct addrinfo *found = NULL;
	char	   *host = extract_host(url);
	AccordAddress address;
	AccordNetwork *networks = NULL;
	int			n = 0;
	bool		refused = false;

	if (accord_allowed_networks != NULL)
		n = accord_network_parse(accord_allowed_networks, &networks);
	if (host != NULL && getaddrinfo(host, NULL, &hints, &found) == 0)
	{
		refused = accord_network_address(found->ai_addr, &address) &&
			accord_network_refused(&address, networks, Max(n, 0));
		freeaddrinfo(found);
	}
	curl_free(host);
	free(networks);
	return refused;
}

bool
accord_http_networks_valid(const char *list)
{
	AccordNetwork *parsed;
	int			n = accord_network_parse(list, &parsed);

	free(parsed);
	return n >= 0;
}

/* Scheme, host and port are the same; both are absolute. */
static bool
same_origin(CURLU *one, CURLU *other)
{
	static const CURLUPart parts[] = {
		CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT
	};
	bool		same = true;

	for (int i = 0; same && i < lengthof(parts); i++)
	{
		char	   *a = NULL;
		char	   *b = NULL;

		same = curl_url_get(one, parts[i], &a, CURLU_DEFAULT_PORT) ==
			CURLUE_OK &&
			curl_url_get(other, parts[i], &b, CURLU_DEFAULT_PORT) ==
			CURLUE_OK && pg_strcasecmp(a, b) == 0;
		curl_free(a);
		curl_free(b);
	}
	return same;
}

/* The resolved URL, malloc'd; NULL, with *fault. */
static char *
resolve(CURLU *base, CURLU *target, const char *url, const char *reference,
		const char **fault)
{
	char	   *resolved = NULL;

	*fault = "the link cannot be parsed";
	if (curl_url_set(base, CURLUPART_URL, url, 0) != CURLUE_OK ||
		curl_url_set(target, CURLUPART_URL, url, 0) != CURLUE_OK ||
		curl_url_set(target, CURLUPART_URL, reference, 0) != CURLUE_OK)
		return NULL;
	if (!same_origin(base, target))
	{
		*fault = "the link leads to another scheme, host or port";
		return NULL;
	}
	if (curl_url_set(target, CURLUPART_FRAGMENT, NULL, 0) != CURLUE_OK ||
		curl_url_get(target, CURLUPART_URL, &resolved, 0) != CURLUE_OK)
		return NULL;
	return resolved;
}

char	   *
accord_http_resolve(const char *url, const char *reference, size_t len,
					const char **fault)
{
	char	   *copy = pnstrdup(reference, len);
	CURLU	   *base = curl_url();
	CURLU	   *target = curl_url();
	char	   *resolved = NULL;
	char	   *result = NULL;

	*fault = "out of memory";
	if (base != NULL && target != NULL)
		resolved = resolve(base, target, url, copy, fault);
	curl_url_cleanup(base);
	curl_url_cleanup(target);
	if (resolved != NULL && find_url_fault(resolved) != NULL)
		*fault = find_url_fault(resolved);
	else if (resolved != NULL)
		result = pstrdup(resolved);
	curl_free(resolved);
	pfree(copy);
	return result;
}
