/*
 * sign.c: what a request is signed with.
 *
 * Runs in dispatchers, once for each attempt, and, without secrets, in
 * backends that check a configuration. Three kinds: a signature by templates,
 * for the many APIs that each do it their own way; Standard Webhooks; AWS
 * Signature Version 4. The last libcurl has as well, but up to 8.2 it signs a
 * query as it stands, unsorted, and never an encoded path as AWS does.
 *
 * Invariants: pure; the clock and the nonce are arguments. What is signed is
 * what is sent: the URL, headers and body as the request has them.
 *
 * On failure (a secret that is not what its encoding says, a library without
 * the algorithm) the signature's error says why, without the secret.
 */
#include "postgres.h"

#include <time.h>

#include "lib/stringinfo.h"

#include "sign.h"

#define SIGNATURE "signature"
#define AWS_ALGORITHM "AWS4-HMAC-SHA256"

/* ----------
 * Parts of a request
 * ----------
 */

/* A URL, cut: pointers into it. */
typedef struct UrlParts
{
	const char *host;			/* with a port, unless it is the scheme's */
	int			host_len;
	const char *target;			/* path and query */
	int			path_len;
	const char *query;			/* after "?"; "" when there is none */
} UrlParts;

static UrlParts
split_url(const char *url)
{
	UrlParts	parts;
	bool		tls = strncmp(url, "https:", 6) == 0;
	const char *port = tls ? ":443" : ":80";
	const char *slashes = strstr(url, "//");
	int			port_len = (int) strlen(port);

	parts.host = slashes ? slashes + 2 : url;
	parts.host_len = (int) strcspn(parts.host, "/?#");
	parts.target = parts.host + parts.host_len;
	parts.path_len = (int) strcspn(parts.target, "?");
	parts.query = parts.target + parts.path_len;
	if (*parts.query == '?')
		parts.query++;
	if (parts.host_len > port_len &&
		strncmp(parts.host + parts.host_len - port_len, port, port_len) == 0)
		parts.host_len -= port_len;
	return parts;
}

static int64
unix_us(TimestampTz time)
{
	return time + ((int64) POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
		USECS_PER_DAY;
}

static char *
format_utc(TimestampTz time, const char *format)
{
	time_t		seconds = (time_t) (unix_us(time) / USECS_PER_SEC);
	struct tm	utc;
	char		text[32];

	gmtime_r(&seconds, &utc);
	strftime(text, sizeof(text), format, &utc);
	return pstrdup(text);
}

/* A header's value without blanks around it; NULL: it has none of that name. */
static char *
find_header(const AccordSignRequest *request, const char *name, size_t len)
{
	for (int i = 0; i < request->n_headers; i++)
	{
		const char *line = request->headers[i];
		const char *value = line + len + 1;
		size_t		end;

		if (pg_strncasecmp(line, name, len) != 0 || line[len] != ':')
			continue;
		value += strspn(value, " \t");
		end = strlen(value);
		while (end > 0 && (value[end - 1] == ' ' || value[end - 1] == '\t'))
			end--;
		return pnstrdup(value, end);
	}
	return NULL;
}

static void
add_line(AccordSignature *signature, char *line)
{
	if (signature->n_lines < ACCORD_SIGN_LINES)
		signature->lines[signature->n_lines++] = line;
	else
		signature->error = "the signature has too many headers";
}

/* The hexadecimal SHA-256 of bytes; NULL when the library will not. */
static char *
hex_sha256(const char *bytes, size_t len)
{
	uint8		digest[ACCORD_MAC_BYTES];

	if (!accord_mac_digest(ACCORD_MAC_SHA256, bytes, len, digest))
		return NULL;
	return accord_mac_hex(digest, accord_mac_length(ACCORD_MAC_SHA256));
}

/* ----------
 * By templates
 * ----------
 */

typedef enum Variable
{
	VARIABLE_METHOD,
	VARIABLE_URL,
	VARIABLE_HOST,
	VARIABLE_PATH,
	VARIABLE_QUERY,
	VARIABLE_TARGET,
	VARIABLE_BODY,
	VARIABLE_BODY_SHA256,
	VARIABLE_TIMESTAMP,
	VARIABLE_NONCE,
	VARIABLE_ID,
	VARIABLE_USER,
	VARIABLE_SIGNATURE,
	VARIABLE_HEADER,			/* header.NAME */
	VARIABLE_NONE
} Variable;

static const char *const variable_names[] = {
	[VARIABLE_METHOD] = "method",
	[VARIABLE_URL] = "url",
	[VARIABLE_HOST] = "host",
	[VARIABLE_PATH] = "path",
	[VARIABLE_QUERY] = "query",
	[VARIABLE_TARGET] = "target",
	[VARIABLE_BODY] = "body",
	[VARIABLE_BODY_SHA256] = "body_sha256",
	[VARIABLE_TIMESTAMP] = "timestamp",
	[VARIABLE_NONCE] = "nonce",
	[VARIABLE_ID] = "id",
	[VARIABLE_USER] = "user",
	[VARIABLE_SIGNATURE] = SIGNATURE
};

static Variable
find_variable(const char *name, size_t len)
{
	for (int i = 0; i < lengthof(variable_names); i++)
		if (strlen(variable_names[i]) == len &&
			strncmp(variable_names[i], name, len) == 0)
			return i;
	return len > 7 && strncmp(name, "header.", 7) == 0 ? VARIABLE_HEADER :
		VARIABLE_NONE;
}

/*
 * The next variable of a template: its name and length, what stands before it
 * having been skipped; NULL: there is none left. *rest is behind it.
 */
static const char *
next_variable(const char **rest, size_t *len)
{
	const char *open = strchr(*rest, '{');

	if (open == NULL)
		return NULL;
	*len = strcspn(open + 1, "}");
	*rest = open + 1 + *len + (open[1 + *len] == '}' ? 1 : 0);
	return open + 1;
}

char	   *
accord_sign_check(const char *template, bool signature)
{
	const char *rest = template;
	const char *name;
	size_t		len;

	while ((name = next_variable(&rest, &len)) != NULL)
	{
		Variable	variable = find_variable(name, len);

		if (variable == VARIABLE_NONE || name[len] != '}' ||
			(variable == VARIABLE_SIGNATURE && !signature))
			return pnstrdup(name, len);
	}
	return NULL;
}

bool
accord_sign_has_signature(const char *template)
{
	return strstr(template, "{" SIGNATURE "}") != NULL;
}

static char *
format_time(AccordSignTime time, TimestampTz now)
{
	switch (time)
	{
		case ACCORD_SIGN_TIME_MS:
			return psprintf(INT64_FORMAT, unix_us(now) / 1000);
		case ACCORD_SIGN_TIME_ISO:
			return format_utc(now, "%Y-%m-%dT%H:%M:%SZ");
		default:
			return psprintf(INT64_FORMAT, unix_us(now) / USECS_PER_SEC);
	}
}

/* What a variable comes to, but for the body and the signature. */
static const char *
variable_value(Variable variable, const char *name, size_t len,
			   const AccordSignRule *rule, const AccordSignRequest *request)
{
	UrlParts	url = split_url(request->url);

	switch (variable)
	{
		case VARIABLE_METHOD:
			return request->method;
		case VARIABLE_URL:
			return request->url;
		case VARIABLE_HOST:
			return pnstrdup(url.host, url.host_len);
		case VARIABLE_PATH:
			return url.path_len == 0 ? "/" : pnstrdup(url.target,
													  url.path_len);
		case VARIABLE_QUERY:
			return url.query;
		case VARIABLE_TARGET:
			return url.path_len == 0 ? psprintf("/%s", url.target) :
				url.target;
		case VARIABLE_BODY_SHA256:
			return hex_sha256(request->body ? request->body : "",
							  request->body_len);
		case VARIABLE_TIMESTAMP:
			return format_time(rule->time, request->now);
		case VARIABLE_NONCE:
			return request->nonce;
		case VARIABLE_ID:
			return request->id;
		case VARIABLE_USER:
			return rule->user;
		case VARIABLE_HEADER:
			return find_header(request, name + 7, len - 7);
		default:
			return NULL;
	}
}

/* Expands a template; what is not there comes to nothing. */
static void
expand(StringInfo out, const char *template, const AccordSignRule *rule,
	   const AccordSignRequest *request, const char *signature)
{
	const char *rest = template;
	const char *before = template;
	const char *name;
	size_t		len;

	while ((name = next_variable(&rest, &len)) != NULL)
	{
		Variable	variable = find_variable(name, len);
		const char *value = variable == VARIABLE_SIGNATURE ? signature :
		variable_value(variable, name, len, rule, request);

		appendBinaryStringInfo(out, before, (int) (name - 1 - before));
		if (variable == VARIABLE_BODY && request->body != NULL)
			appendBinaryStringInfo(out, request->body,
								   (int) request->body_len);
		else if (value != NULL)
			appendStringInfoString(out, value);
		before = rest;
	}
	appendStringInfoString(out, before);
}

/* The secret's bytes; NULL: it is not written as the rule says. */
static const void *
key_bytes(const AccordSignRule *rule, const char *secret, size_t *len)
{
	switch (rule->key)
	{
		case ACCORD_SIGN_KEY_HEX:
			return accord_mac_from_hex(secret, len);
		case ACCORD_SIGN_KEY_BASE64:
			return accord_mac_from_base64(secret, len);
		default:
			*len = strlen(secret);
			return secret;
	}
}

void
accord_sign_rule(const AccordSignRule *rule, const char *secret,
				 const AccordSignRequest *request, AccordSignature *signature)
{
	StringInfoData text;
	uint8		digest[ACCORD_MAC_BYTES];
	size_t		len;
	const void *key = key_bytes(rule, secret, &len);
	char	   *written;

	memset(signature, 0, sizeof(*signature));
	if (key == NULL)
	{
		signature->error = "the secret is not written as \"key\" says";
		return;
	}
	initStringInfo(&text);
	expand(&text, rule->sign, rule, request, NULL);
	if (!accord_mac_hmac(rule->hash, key, len, text.data, text.len, digest))
	{
		signature->error = "the server's OpenSSL does not offer its hash";
		return;
	}
	len = accord_mac_length(rule->hash);
	written = rule->base64 ? accord_mac_base64(digest, len) :
		accord_mac_hex(digest, len);
	for (int i = 0; i < rule->n_lines; i++)
	{
		StringInfoData line;

		initStringInfo(&line);
		appendStringInfo(&line, "%s: ", rule->names[i]);
		expand(&line, rule->values[i], rule, request, written);
		add_line(signature, line.data);
	}
}

/* ----------
 * Standard Webhooks
 * ----------
 */

uint8	   *
accord_sign_standard_key(const char *secret, size_t *len)
{
	if (strncmp(secret, "whsec_", 6) == 0)
		secret += 6;
	return accord_mac_from_base64(secret, len);
}

void
accord_sign_standard(const char *const *secrets, int n_secrets,
					 const AccordSignRequest *request,
					 AccordSignature *signature)
{
	StringInfoData text;
	StringInfoData line;
	char	   *time = format_time(ACCORD_SIGN_TIME_SECONDS, request->now);

	memset(signature, 0, sizeof(*signature));
	initStringInfo(&text);
	appendStringInfo(&text, "%s.%s.", request->id, time);
	if (request->body != NULL)
		appendBinaryStringInfo(&text, request->body, (int) request->body_len);
	initStringInfo(&line);
	appendStringInfoString(&line, "webhook-signature:");
	for (int i = 0; i < n_secrets; i++)
	{
		uint8		digest[ACCORD_MAC_BYTES];
		size_t		len;
		uint8	   *key = accord_sign_standard_key(secrets[i], &len);

		if (key == NULL || len == 0)
		{
			signature->error = "a secret is not base64 after \"whsec_\"";
			return;
		}
		if (!accord_mac_hmac(ACCORD_MAC_SHA256, key, len, text.data, text.len,
							 digest))
		{
			signature->error = "the server's OpenSSL does not offer SHA-256";
			return;
		}
		appendStringInfo(&line, " v1,%s",
						 accord_mac_base64(digest,
										   accord_mac_length(ACCORD_MAC_SHA256)));
	}
	add_line(signature, psprintf("webhook-id: %s", request->id));
	add_line(signature, psprintf("webhook-timestamp: %s", time));
	add_line(signature, line.data);
}

/* ----------
 * AWS Signature Version 4
 * ----------
 */

/* A header that is signed, or a parameter of the query. */
typedef struct Pair
{
	char	   *name;
	char	   *value;
} Pair;

static int
compare_pairs(const void *a, const void *b)
{
	const Pair *one = a;
	const Pair *other = b;
	int			order = strcmp(one->name, other->name);

	return order != 0 ? order : strcmp(one->value, other->value);
}

static bool
is_unreserved(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
		(c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.' || c == '~';
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* As AWS's UriEncode() has it; "decode" takes percent-encoding off before. */
static void
append_encoded(StringInfo out, const char *text, int len, bool decode)
{
	for (int i = 0; i < len; i++)
	{
		unsigned char c = text[i];

		if (decode && c == '%' && i + 2 < len)
		{
			int			high = hex_digit(text[i + 1]);
			int			low = hex_digit(text[i + 2]);

			if (high >= 0 && low >= 0)
			{
				c = high << 4 | low;
				i += 2;
			}
		}
		if (is_unreserved(c))
			appendStringInfoChar(out, c);
		else
			appendStringInfo(out, "%%%02X", c);
	}
}

static char *
encoded(const char *text, int len)
{
	StringInfoData out;

	initStringInfo(&out);
	append_encoded(&out, text, len, true);
	return out.data;
}

/*
 * The path is encoded once more than it is sent, and slashes that follow each
 * other are one; but for S3, which takes it as it is.
 */
static void
append_path(StringInfo out, const UrlParts *url, bool s3)
{
	const char *path = url->target;
	const char *end = path + url->path_len;

	if (path == end)
		appendStringInfoChar(out, '/');
	while (path < end)
	{
		int			len = (int) strcspn(path, "/?");

		append_encoded(out, path, len, s3);
		path += len;
		if (path == end)
			break;
		appendStringInfoChar(out, '/');
		path += s3 ? 1 : strspn(path, "/");
	}
}

static void
append_query(StringInfo out, const char *query)
{
	int			n = 0;
	int			most = 1;
	Pair	   *pairs;

	for (const char *c = query; *c != '\0'; c++)
		most += *c == '&';
	pairs = palloc(most * sizeof(Pair));
	while (*query != '\0')
	{
		int			len = (int) strcspn(query, "&");
		int			name = (int) strcspn(query, "=&");

		if (len > 0)
		{
			pairs[n].name = encoded(query, name);
			pairs[n++].value = name < len ?
				encoded(query + name + 1, len - name - 1) : pstrdup("");
		}
		query += len + (query[len] == '&' ? 1 : 0);
	}
	qsort(pairs, n, sizeof(Pair), compare_pairs);
	for (int i = 0; i < n; i++)
		appendStringInfo(out, "%s%s=%s", i > 0 ? "&" : "", pairs[i].name,
						 pairs[i].value);
}

/* Runs of blanks are one. */
static void
collapse_blanks(char *text)
{
	char	   *to = text;

	for (const char *from = text; *from != '\0'; from++)
		if (*from != ' ' || to == text || to[-1] != ' ')
			*to++ = *from;
	*to = '\0';
}

/* Host, type, and whatever begins with x-amz-: those given and those made. */
static int
collect_headers(const AccordSignRequest *request, const UrlParts *url,
				const AccordSignature *made, Pair *pairs)
{
	int			n = 0;

	pairs[n].name = pstrdup("host");
	pairs[n++].value = pnstrdup(url->host, url->host_len);
	for (int i = 0; i < request->n_headers + made->n_lines; i++)
	{
		AccordSignRequest one = *request;
		const char *line = i < request->n_headers ? request->headers[i] :
		made->lines[i - request->n_headers];
		size_t		len = strcspn(line, ":");

		if (line[len] == '\0' ||
			(pg_strncasecmp(line, "x-amz-", 6) != 0 &&
			 pg_strncasecmp(line, "content-type:", 13) != 0))
			continue;
		one.headers = &line;
		one.n_headers = 1;
		pairs[n].name = pnstrdup(line, len);
		for (char *c = pairs[n].name; *c != '\0'; c++)
			*c = pg_tolower((unsigned char) *c);
		pairs[n].value = find_header(&one, line, len);
		collapse_blanks(pairs[n++].value);
	}
	qsort(pairs, n, sizeof(Pair), compare_pairs);
	return n;
}

/* The lines that a request to AWS gets besides its Authorization. */
static void
add_aws_lines(const AccordSignAws *aws, const AccordSignRequest *request,
			  AccordSignature *signature)
{
	memset(signature, 0, sizeof(*signature));
	add_line(signature, psprintf("X-Amz-Date: %s",
								 format_utc(request->now, "%Y%m%dT%H%M%SZ")));
	if (aws->session_token != NULL)
		add_line(signature, psprintf("X-Amz-Security-Token: %s",
									 aws->session_token));
	if (strcmp(aws->service, "s3") == 0)
		add_line(signature, psprintf("X-Amz-Content-Sha256: %s",
									 hex_sha256(request->body ? request->body :
												"", request->body_len)));
}

/* The canonical request; *names gets the list of the headers signed. */
static char *
make_canonical(const AccordSignAws *aws, const AccordSignRequest *request,
			   const AccordSignature *made, char **names)
{
	UrlParts	url = split_url(request->url);
	Pair	   *pairs = palloc((request->n_headers + made->n_lines + 1) *
							   sizeof(Pair));
	int			n = collect_headers(request, &url, made, pairs);
	StringInfoData text;
	StringInfoData list;

	initStringInfo(&text);
	initStringInfo(&list);
	appendStringInfo(&text, "%s\n", request->method);
	append_path(&text, &url, strcmp(aws->service, "s3") == 0);
	appendStringInfoChar(&text, '\n');
	append_query(&text, url.query);
	appendStringInfoChar(&text, '\n');
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(&text, "%s:%s\n", pairs[i].name, pairs[i].value);
		appendStringInfo(&list, "%s%s", i > 0 ? ";" : "", pairs[i].name);
	}
	appendStringInfo(&text, "\n%s\n%s", list.data,
					 hex_sha256(request->body ? request->body : "",
								request->body_len));
	*names = list.data;
	return text.data;
}

char	   *
accord_sign_aws_canonical(const AccordSignAws *aws,
						  const AccordSignRequest *request)
{
	AccordSignature made;
	char	   *names;

	add_aws_lines(aws, request, &made);
	return make_canonical(aws, request, &made, &names);
}

/* The key of a day, region and service; false when the library will not. */
static bool
derive_key(const AccordSignAws *aws, const char *day, uint8 *key)
{
	const char *steps[] = {day, aws->region, aws->service, "aws4_request"};
	char	   *first = psprintf("AWS4%s", aws->secret);
	uint8		next[ACCORD_MAC_BYTES];
	size_t		len = accord_mac_length(ACCORD_MAC_SHA256);

	for (int i = 0; i < lengthof(steps); i++)
	{
		if (!accord_mac_hmac(ACCORD_MAC_SHA256, i == 0 ? (uint8 *) first : key,
							 i == 0 ? strlen(first) : len, steps[i],
							 strlen(steps[i]), next))
			return false;
		memcpy(key, next, len);
	}
	return true;
}

void
accord_sign_aws(const AccordSignAws *aws, const AccordSignRequest *request,
				AccordSignature *signature)
{
	char	   *day = format_utc(request->now, "%Y%m%d");
	char	   *scope = psprintf("%s/%s/%s/aws4_request", day, aws->region,
								 aws->service);
	uint8		key[ACCORD_MAC_BYTES];
	uint8		digest[ACCORD_MAC_BYTES];
	char	   *names;
	char	   *canonical;
	char	   *text;

	add_aws_lines(aws, request, signature);
	canonical = make_canonical(aws, request, signature, &names);
	text = psprintf(AWS_ALGORITHM "\n%s\n%s\n%s",
					format_utc(request->now, "%Y%m%dT%H%M%SZ"), scope,
					hex_sha256(canonical, strlen(canonical)));
	if (!derive_key(aws, day, key) ||
		!accord_mac_hmac(ACCORD_MAC_SHA256, key,
						 accord_mac_length(ACCORD_MAC_SHA256), text,
						 strlen(text), digest))
	{
		signature->error = "the server's OpenSSL does not offer SHA-256";
		return;
	}
	add_line(signature,
			 psprintf("Authorization: " AWS_ALGORITHM " Credential=%s/%s, "
					  "SignedHeaders=%s, Signature=%s", aws->access_key, scope,
					  names,
					  accord_mac_hex(digest,
									 accord_mac_length(ACCORD_MAC_SHA256))));
}
