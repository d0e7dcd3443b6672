/*
 * http_link.c: the way to a server: certificates that are its own, and a proxy.
 *
 * Runs in dispatchers (each request that has any) and, for the checks, in any
 * backend. Most requests have neither, and pay nothing.
 *
 * Invariants
 *   - A handle that had certificates or a proxy set is not used for another
 *     request; curl keeps connections apart by them, or each request has its
 *     own (accord_http_link_alone()).
 *   - Through a proxy it is the proxy that resolves a name and opens the
 *     connection, so refused networks cannot be kept from here. Only one that
 *     the server's settings name is used; a literal address is judged here
 *     all the same. Schemes by which names are resolved here and addresses
 *     given to the proxy (socks4, socks5) are none: curl shows nobody which.
 *   - The certificate of a proxy is vouched for by accord.ca_file, or the
 *     system's authorities, never by a channel's own; none is shown to it.
 *
 * On failure (a certificate that is none) curl says so before anything is
 * sent.
 */
#include "postgres.h"

#include "guc.h"
#include "http.h"
#include "http_private.h"

#define SOCKS5_USER_BYTES 255	/* RFC 1929 */

/*
 * These versions of libcurl, the last and the first that were seen to do so,
 * keep the tunnels of a proxy's users apart; 8.5.0 between them does not.
 */
#define APART_UNTIL 0x075801	/* 7.88.1 */
#define APART_AGAIN 0x080e01	/* 8.14.1 */

static CURLcode
set_blob(CURL *easy, CURLoption option, const char *pem)
{
	struct curl_blob blob = {
		.data = (void *) pem,
		.len = strlen(pem),
		.flags = CURL_BLOB_COPY
	};

	return curl_easy_setopt(easy, option, &blob);
}

static CURLcode
set_tls(CURL *easy, const AccordHttpTls *tls)
{
	CURLcode	code = CURLE_OK;

	if (tls->certificate != NULL)
	{
		code = set_blob(easy, CURLOPT_SSLCERT_BLOB, tls->certificate);
		if (code == CURLE_OK)
			code = set_blob(easy, CURLOPT_SSLKEY_BLOB, tls->key ? tls->key :
							tls->certificate);
	}
	if (code != CURLE_OK || tls->ca == NULL)
		return code;
	/* these and no others */
	curl_easy_setopt(easy, CURLOPT_CAINFO, NULL);
	curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	return set_blob(easy, CURLOPT_CAINFO_BLOB, tls->ca);
}

static CURLcode
set_proxy(CURL *easy, const AccordHttpProxy *proxy)
{
	CURLcode	code = curl_easy_setopt(easy, CURLOPT_PROXY, proxy->url);

	curl_easy_setopt(easy, CURLOPT_NOPROXY, "");
	curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	curl_easy_setopt(easy, CURLOPT_PROXYAUTH, (long) CURLAUTH_BASIC);
	if (code == CURLE_OK && proxy->user != NULL)
		code = curl_easy_setopt(easy, CURLOPT_PROXYUSERNAME, proxy->user);
	if (code == CURLE_OK && proxy->secret != NULL)
		code = curl_easy_setopt(easy, CURLOPT_PROXYPASSWORD, proxy->secret);
	return code;
}

bool
accord_http_link_alone(const AccordHttpProxy *proxy)
{
	static unsigned version = 0;

	if (proxy == NULL || proxy->user == NULL)
		return false;
	if (version == 0)
		version = curl_version_info(CURLVERSION_NOW)->version_num;
	return version > APART_UNTIL && version < APART_AGAIN;
}

bool
accord_http_link_set(AccordTransfer *transfer,
					 const AccordHttpRequest *request)
{
	CURLcode	code = CURLE_OK;

	transfer->proxied = request->proxy != NULL;
	transfer->begun = false;
	if (request->tls == NULL && request->proxy == NULL)
		return true;
	transfer->spent = true;
	if (request->tls != NULL)
		code = set_tls(transfer->easy, request->tls);
	if (code == CURLE_OK && request->proxy != NULL)
		code = set_proxy(transfer->easy, request->proxy);
	return code == CURLE_OK;
}

static const char *
copy(const char *text)
{
	return text ? pstrdup(text) : NULL;
}

void
accord_http_copy_link(AccordHttpRequest *request, const AccordHttpTls *tls,
					  const AccordHttpProxy *proxy)
{
	if (tls != NULL)
	{
		AccordHttpTls *own = palloc(sizeof(AccordHttpTls));

		own->certificate = copy(tls->certificate);
		own->key = copy(tls->key);
		own->ca = copy(tls->ca);
		request->tls = own;
	}
	if (proxy != NULL)
	{
		AccordHttpProxy *own = palloc(sizeof(AccordHttpProxy));

		own->url = copy(proxy->url);
		own->user = copy(proxy->user);
		own->secret = copy(proxy->secret);
		request->proxy = own;
	}
}

/* Whether curl would take it: host and port are such. */
static bool
is_parsed(const char *url)
{
	CURLU	   *parsed = curl_url();
	CURLUcode	code = CURLUE_OUT_OF_MEMORY;

	if (parsed != NULL)
		code = curl_url_set(parsed, CURLUPART_URL, url,
							CURLU_NON_SUPPORT_SCHEME);
	curl_url_cleanup(parsed);
	return code == CURLUE_OK;
}

bool
accord_http_proxy_valid(const char *url)
{
	static const char *const schemes[] = {
		"http://", "https://", "socks4a://", "socks5h://"
	};

	for (int i = 0; i < lengthof(schemes); i++)
	{
		size_t		len = strlen(schemes[i]);
		const char *host = url + len;
		const char *port;

		if (strncmp(url, schemes[i], len) != 0)
			continue;
		port = strrchr(host, ':');
		return port != NULL && port > host && port[1] != '\0' &&
			strspn(port + 1, "0123456789") == strlen(port + 1) &&
			strpbrk(host, "@/?#, ") == NULL && is_parsed(url);
	}
	return false;
}

const char *
accord_http_proxy_user_fault(const char *url, const char *user)
{
	if (strncmp(url, "socks4a:", 8) == 0)
		return "socks4a has no place for a secret";
	if (strncmp(url, "socks5h:", 8) == 0)
		return strlen(user) > SOCKS5_USER_BYTES ? "it is too long for socks5h" :
			NULL;
	return strchr(user, ':') != NULL ? "there is a colon in it" : NULL;
}

bool
accord_http_proxy_allowed(const char *url)
{
	const char *list = accord_allowed_proxies ? accord_allowed_proxies : "";
	size_t		url_len = strlen(url);

	while (*list != '\0')
	{
		size_t		len;

		list += strspn(list, ", \t\r\n");
		len = strcspn(list, ", \t\r\n");
		if (len == url_len && strncmp(list, url, len) == 0)
			return true;
		list += len;
	}
	return false;
}

char	   *
accord_http_link_fault(const AccordHttpRequest *request)
{
	if (request->proxy == NULL)
		return NULL;
	if (!accord_http_proxy_allowed(request->proxy->url))
		return psprintf("proxy \"%s\" is not in accord.allowed_proxies",
						request->proxy->url);
	if (accord_http_literal_refused(request->url))
		return pstrdup("the address of the URL is in a refused network");
	return NULL;
}
