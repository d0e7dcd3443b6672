/*
 * http_transfer.c: one request, and its answer as it comes.
 *
 * Runs in dispatchers. A transfer owns an easy handle of curl's and two
 * buffers: what is sent (header lines and body, packed) and what came back.
 * What is the same for all requests is set on the handle once.
 *
 * Invariants: nothing here starts or drives a transfer (http.c does). The
 * callbacks neither raise nor palloc: a longjmp through curl would leave its
 * state in ruins. They note what went wrong and let curl end the transfer.
 *
 * On failure (memory, a URL that curl does not take) the request is not begun.
 */
#include "postgres.h"

#include "accord.h"
#include "guc.h"
#include "http.h"
#include "http_private.h"

#define KEPT_BUFFER (64 * 1024) /* a larger one is freed after its request */

static char *ca_setting = NULL; /* as last seen, malloc'd */
static int	ca_generation = 0;

/*
 * Header lines of every request that has none of its own by that name; never
 * written to. That answers may be compressed curl would say by itself, at the
 * cost of a twentieth of the whole request.
 */
#define MAX_COMMON 5			/* these, a credential and a content type */
static char no_expect[] = "Expect:";
static char accept_gzip[] = "Accept-Encoding: gzip";
static char user_agent[] = "User-Agent: pg_accord/" ACCORD_VERSION;

/* ----------
 * Buffers
 * ----------
 */

static bool
reserve_buffer(AccordBuffer *buffer, size_t size)
{
	size_t		enough = Max(buffer->size * 2, 1024);
	char	   *data;

	if (size <= buffer->size)
		return true;
	enough = Max(enough, size);
	data = realloc(buffer->data, enough);
	if (data == NULL)
		return false;
	buffer->data = data;
	buffer->size = enough;
	return true;
}

static char *
append_buffer(AccordBuffer *buffer, const char *bytes, size_t len)
{
	char	   *start = buffer->data + buffer->len;

	Assert(len == 0 || bytes != NULL);
	Assert(buffer->size - buffer->len >= len);
	if (len > 0)
		memcpy(start, bytes, len);
	buffer->len += len;
	return start;
}

static void
shrink_buffer(AccordBuffer *buffer)
{
	buffer->len = 0;
	if (buffer->size > KEPT_BUFFER)
	{
		free(buffer->data);
		buffer->data = NULL;
		buffer->size = 0;
	}
}

/* Whether a header may tell of the server's rate limits. */
static bool
is_hint(const char *line, size_t len)
{
	if (line[0] == 'x' || line[0] == 'X')
		return len > 6 && pg_strncasecmp(line, "X-Rate", 6) == 0;
	return (line[0] == 'r' || line[0] == 'R') && len > 9 &&
		pg_strncasecmp(line, "RateLimit", 9) == 0;
}

/* Whether a header may be what the server calls this request. */
static bool
is_request_id(const char *line, size_t len)
{
	if (line[0] == 'x' || line[0] == 'X')
		return len > 12 && pg_strncasecmp(line, "X-Request-Id", 12) == 0;
	return (line[0] == 'r' || line[0] == 'R') && len > 10 &&
		pg_strncasecmp(line, "Request-Id", 10) == 0;
}

/* ----------
 * Answers, as they come
 * ----------
 */

static size_t
on_header(char *line, size_t size, size_t n, void *arg)
{
	AccordTransfer *transfer = arg;

	/* informational answers come first; trailers do not count */
	if (line[0] == '\r' || line[0] == '\n')
		transfer->headers_ended = true;
	else if (size * n >= 5 && memcmp(line, "HTTP/", 5) == 0)
		transfer->headers_ended = false;
	else if (is_hint(line, size * n))
		transfer->hinted = true;
	else if (is_request_id(line, size * n))
		transfer->named = true;
	transfer->header_bytes += size * n;
	return transfer->header_bytes > ACCORD_HTTP_HEADER_BYTES ? 0 : size * n;
}

/* Keeps what may be kept; to have taken less ends the transfer. */
static size_t
on_body(char *bytes, size_t size, size_t n, void *arg)
{
	AccordTransfer *transfer = arg;
	AccordBuffer *body = &transfer->response;
	size_t		len = size * n;
	size_t		room = transfer->max_response - body->len;

	if (len > room || !reserve_buffer(body, body->len + len))
	{
		transfer->truncated = true;
		len = reserve_buffer(body, body->len + room) ? room : 0;
	}
	append_buffer(body, bytes, len);
	return transfer->truncated ? CURL_WRITEFUNC_ERROR : len;
}

/* ----------
 * Handles
 * ----------
 */

/* The certificates' setting may change between any two requests. */
static void
follow_certificates(void)
{
	const char *setting = accord_ca_file == NULL ? "" : accord_ca_file;
	char	   *copy;

	if (ca_setting != NULL && strcmp(ca_setting, setting) == 0)
		return;
	copy = strdup(setting);
	if (copy == NULL)
		return;					/* next time */
	free(ca_setting);
	ca_setting = copy;
	ca_generation++;
}

static void
set_certificates(AccordTransfer *transfer)
{
	bool		own = ca_setting != NULL && ca_setting[0] != '\0';
	curl_version_info_data *built;

	if (transfer->ca_generation == ca_generation)
		return;
	built = curl_version_info(CURLVERSION_NOW);
	curl_easy_setopt(transfer->easy, CURLOPT_CAINFO,
					 own ? ca_setting : built->cainfo);
	curl_easy_setopt(transfer->easy, CURLOPT_CAPATH,
					 own ? NULL : built->capath);
	curl_easy_setopt(transfer->easy, CURLOPT_PROXY_CAINFO,
					 own ? ca_setting : built->cainfo);
	curl_easy_setopt(transfer->easy, CURLOPT_PROXY_CAPATH,
					 own ? NULL : built->capath);
	transfer->ca_generation = ca_generation;
}

/* Where a request may go and how it gets there. */
static void
set_transport_options(CURL *easy)
{
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	/* a name that takes longer than its request: do not wait for the thread */
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	curl_easy_setopt(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(easy, CURLOPT_HTTP09_ALLOWED, 0L);
	curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "");
	curl_easy_setopt(easy, CURLOPT_HTTPAUTH, (long) CURLAUTH_BASIC);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_PROXY_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_PROXY_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
}

AccordTransfer *
accord_http_transfer_create(void)
{
	AccordTransfer *transfer = calloc(1, sizeof(AccordTransfer));

	if (transfer == NULL)
		return NULL;
	transfer->easy = curl_easy_init();
	if (transfer->easy == NULL)
	{
		free(transfer);
		return NULL;
	}
	set_transport_options(transfer->easy);
	curl_easy_setopt(transfer->easy, CURLOPT_PRIVATE, transfer);
	curl_easy_setopt(transfer->easy, CURLOPT_ERRORBUFFER, transfer->error);
	curl_easy_setopt(transfer->easy, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(transfer->easy, CURLOPT_HEADERDATA, transfer);
	curl_easy_setopt(transfer->easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(transfer->easy, CURLOPT_WRITEDATA, transfer);
	return transfer;
}

/*
 * After digest authentication curl keeps the server's challenge with the
 * handle, whatever the next request is and to whom.
 */
bool
accord_http_transfer_clear(AccordTransfer *transfer)
{
	shrink_buffer(&transfer->request);
	shrink_buffer(&transfer->response);
	if (!transfer->spent)
		return true;
	curl_easy_cleanup(transfer->easy);
	free(transfer->request.data);
	free(transfer->response.data);
	free(transfer);
	return false;
}

/* ----------
 * Requests
 * ----------
 */

/* The next header line, begun by its name; value may follow it. */
static void
pack_header(AccordTransfer *transfer, struct curl_slist *node,
			const char *line, size_t len, const char *value)
{
	AccordBuffer *buffer = &transfer->request;

	node->data = append_buffer(buffer, line, len);
	if (value != NULL)
		append_buffer(buffer, value, strlen(value));
	append_buffer(buffer, "", 1);
	node->next = node + 1;
}

/*
 * A line as the caller gave it. With an empty value curl would take the line
 * to mean "do not send this header"; it has a notation of its own for that.
 */
static void
pack_given_header(AccordTransfer *transfer, struct curl_slist *node,
				  const char *line)
{
	size_t		name = accord_http_token_length(line);

	if (line[name + 1 + strspn(line + name + 1, " \t")] == '\0')
		pack_header(transfer, node, line, name, ";");
	else
		pack_header(transfer, node, line, strlen(line), NULL);
}

/* Returns the nodes used. */
static int
pack_auth_headers(AccordTransfer *transfer, struct curl_slist *node,
				  const AccordHttpRequest *request)
{
	static const char bearer[] = "Authorization: Bearer ";

	if (request->auth == ACCORD_HTTP_AUTH_BEARER)
		pack_header(transfer, node, bearer, strlen(bearer),
					request->auth_secret);
	else if (request->auth == ACCORD_HTTP_AUTH_HEADER)
	{
		pack_header(transfer, node, request->auth_name,
					strlen(request->auth_name), ": ");
		transfer->request.len--;	/* the value takes the place of its end */
		append_buffer(&transfer->request, request->auth_secret,
					  strlen(request->auth_secret) + 1);
	}
	else
	{
		for (int i = 0; i < request->n_auth_lines; i++)
			pack_given_header(transfer, &node[i], request->auth_lines[i]);
		return request->n_auth_lines;
	}
	return 1;
}

static void
add_common_header(struct curl_slist *node, char *line)
{
	node->data = line;
	node->next = node + 1;
}

/* Whether curl can take compressed answers apart. */
static bool
has_gzip(void)
{
	static int	features = -1;

	if (features < 0)
		features = curl_version_info(CURLVERSION_NOW)->features;
	return (features & CURL_VERSION_LIBZ) != 0;
}

/* Bytes that pack_request() needs at most. */
static size_t
measure_request(const AccordHttpRequest *request)
{
	size_t		size = (request->n_headers + request->n_auth_lines +
						MAX_COMMON) * sizeof(struct curl_slist);

	for (int i = 0; i < request->n_headers; i++)
		size += strlen(request->headers[i]) + 2;
	for (int i = 0; i < request->n_auth_lines; i++)
		size += strlen(request->auth_lines[i]) + 2;
	if (request->auth_name != NULL)
		size += strlen(request->auth_name);
	if (request->auth_secret != NULL)
		size += strlen(request->auth_secret);
	return size + 64 + request->body_len;
}

/*
 * Copies headers and body into the transfer's buffer: nodes of curl's list,
 * the lines they point to, the body. Returns the body, or NULL when there is
 * no memory.
 */
static const char *
pack_request(AccordTransfer *transfer, const AccordHttpRequest *request)
{
	AccordBuffer *buffer = &transfer->request;
	struct curl_slist *nodes;
	bool		own_agent = false;
	bool		own_encoding = !has_gzip();
	bool		typed = false;
	int			n = 0;

	if (!reserve_buffer(buffer, measure_request(request)))
		return NULL;
	nodes = (struct curl_slist *) buffer->data;
	buffer->len = (request->n_headers + request->n_auth_lines + MAX_COMMON) *
		sizeof(struct curl_slist);
	for (int i = 0; i < request->n_headers; i++)
	{
		const char *line = request->headers[i];

		own_agent |= accord_http_is_header(line, "User-Agent");
		own_encoding |= accord_http_is_header(line, "Accept-Encoding");
		typed |= accord_http_is_header(line, "Content-Type");
		pack_given_header(transfer, &nodes[n++], line);
	}
	n += pack_auth_headers(transfer, &nodes[n], request);
	/* without a type given curl would claim a body to be a form */
	if (!typed && (request->body != NULL ||
				   accord_http_wants_body(request->method)))
		pack_header(transfer, &nodes[n++], "Content-Type:", 13, NULL);

	if (!own_agent)
		add_common_header(&nodes[n++], user_agent);
	if (!own_encoding)
		add_common_header(&nodes[n++], accept_gzip);
	add_common_header(&nodes[n], no_expect);
	nodes[n].next = NULL;
	transfer->headers = nodes;
	return append_buffer(buffer, request->body, request->body_len);
}

/* What kind of request this is; set only where the last one was another. */
static CURLcode
set_method(AccordTransfer *transfer, const AccordHttpRequest *request)
{
	CURL	   *easy = transfer->easy;
	bool		post = request->body != NULL ||
	accord_http_wants_body(request->method);

	if (transfer->post == post &&
		strcmp(transfer->method, request->method) == 0)
		return CURLE_OK;
	transfer->post = post;
	strlcpy(transfer->method, request->method, sizeof(transfer->method));
	if (post)
		curl_easy_setopt(easy, CURLOPT_POST, 1L);
	else if (strcmp(request->method, "HEAD") == 0)
		curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
	else
		curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
	return curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method);
}

static void
set_body(AccordTransfer *transfer, const AccordHttpRequest *request,
		 const char *body)
{
	if (!transfer->post)
		return;
	curl_easy_setopt(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE,
					 (curl_off_t) request->body_len);
	curl_easy_setopt(transfer->easy, CURLOPT_POSTFIELDS, body);
}

/* Of digest authentication curl itself makes the second request. */
static CURLcode
set_user_auth(AccordTransfer *transfer, const AccordHttpRequest *request)
{
	bool		digest = request->auth == ACCORD_HTTP_AUTH_DIGEST;
	bool		user = request->auth == ACCORD_HTTP_AUTH_BASIC || digest;
	CURLcode	code = CURLE_OK;

	if (user || transfer->user_auth)
	{
		code = curl_easy_setopt(transfer->easy, CURLOPT_USERNAME,
								user ? request->auth_name : NULL);
		if (code == CURLE_OK)
			code = curl_easy_setopt(transfer->easy, CURLOPT_PASSWORD,
									user ? request->auth_secret : NULL);
	}
	if (code == CURLE_OK && digest)
		code = curl_easy_setopt(transfer->easy, CURLOPT_HTTPAUTH,
								(long) CURLAUTH_DIGEST);
	transfer->user_auth = user;
	transfer->spent |= digest;
	return code;
}

/* The URL, with the credential when that is a part of it. */
static CURLcode
set_url(AccordTransfer *transfer, const AccordHttpRequest *request)
{
	CURL	   *easy = transfer->easy;
	char	   *value;
	char	   *url = NULL;
	size_t		size;
	CURLcode	code = CURLE_OUT_OF_MEMORY;

	if (request->auth != ACCORD_HTTP_AUTH_QUERY)
		return curl_easy_setopt(easy, CURLOPT_URL, request->url);
	value = curl_easy_escape(easy, request->auth_secret, 0);
	if (value == NULL)
		return code;
	size = strlen(request->url) + strlen(request->auth_name) +
		strlen(value) + 3;
	url = malloc(size);
	if (url != NULL)
	{
		snprintf(url, size, "%s%c%s=%s", request->url,
				 strchr(request->url, '?') ? '&' : '?', request->auth_name,
				 value);
		code = curl_easy_setopt(easy, CURLOPT_URL, url);
	}
	free(url);
	curl_free(value);
	return code;
}

static bool
link_is_same(const AccordHttpLink *a, const AccordHttpLink *b)
{
	return a->once == b->once && a->tls == b->tls &&
		a->connect_timeout_ms == b->connect_timeout_ms &&
		a->timeout_ms == b->timeout_ms &&
		a->stall_timeout_s == b->stall_timeout_s;
}

/*
 * A request that must not be repeated gets a connection of its own: curl
 * quietly sends again what it sent on a kept connection that turns out dead,
 * and with HTTP/2 another request could join and make it a kept one.
 */
static void
set_connection(AccordTransfer *transfer, const AccordHttpRequest *request)
{
	CURL	   *easy = transfer->easy;
	AccordHttpLink link = {
		.once = request->once || accord_http_link_alone(request->proxy),
		.tls = pg_tolower((unsigned char) request->url[4]) == 's',
		.connect_timeout_ms = request->connect_timeout_ms,
		.timeout_ms = request->timeout_ms,
		.stall_timeout_s = request->stall_timeout_s
	};

	/* most requests go as the last one of the handle went */
	if (transfer->linked && link_is_same(&transfer->link, &link))
		return;
	transfer->linked = true;
	transfer->link = link;
	curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, (long) link.once);
	curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, (long) link.once);
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
					 (long) (link.once ? CURL_HTTP_VERSION_1_1 :
							 CURL_HTTP_VERSION_2TLS));
	curl_easy_setopt(easy, CURLOPT_PIPEWAIT, (long) (link.tls && !link.once));
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
					 (long) link.connect_timeout_ms);
	curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long) link.timeout_ms);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME,
					 (long) link.stall_timeout_s);
}

bool
accord_http_transfer_prepare(AccordTransfer *transfer,
							 const AccordHttpRequest *request)
{
	const char *body = pack_request(transfer, request);

	if (body == NULL ||
		set_url(transfer, request) != CURLE_OK ||
		set_method(transfer, request) != CURLE_OK ||
		set_user_auth(transfer, request) != CURLE_OK)
	{
		/* nothing is known of the handle: the next one sets all of it */
		transfer->method[0] = '\0';
		return false;
	}
	set_body(transfer, request, body);
	curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, transfer->headers);
	set_connection(transfer, request);
	follow_certificates();
	set_certificates(transfer);
	if (!accord_http_link_set(transfer, request))
		return false;

	transfer->max_response = request->max_response;
	transfer->is_delete = strcmp(request->method, "DELETE") == 0;
	transfer->header_bytes = 0;
	transfer->headers_ended = false;
	transfer->hinted = false;
	transfer->named = false;
	transfer->truncated = false;
	transfer->opened = false;
	transfer->refused = false;
	transfer->error[0] = '\0';
	return true;
}
