/*
 * http_answer.c: what came of a request.
 *
 * Runs in dispatchers, when a transfer has ended.
 *
 * Invariants: an answer is complete only if its headers were ended by an empty
 * line and its body by what the headers promised. What the other side's bytes
 * are quoted in is printable.
 *
 * On failure the response says how far the request got: nothing sent,
 * something sent and no complete answer, answered.
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "utils/timestamp.h"

#include "http.h"
#include "http_private.h"
#include "network.h"

/* Why a transfer failed before any of the request was sent. */
static AccordTransport
classify_start(const AccordTransfer *transfer)
{
	switch (transfer->code)
	{
		case CURLE_URL_MALFORMAT:
		case CURLE_UNSUPPORTED_PROTOCOL:
		case CURLE_LOGIN_DENIED:
		case CURLE_BAD_FUNCTION_ARGUMENT:
			return ACCORD_TRANSPORT_INVALID;
		default:
			return ACCORD_TRANSPORT_UNREACHABLE;
	}
}

/* Why a transfer failed after some of the request was sent. */
static AccordTransport
classify_exchange(const AccordTransfer *transfer)
{
	switch (transfer->code)
	{
		case CURLE_OPERATION_TIMEDOUT:
			/* curl counts whole milliseconds */
			return transfer->ended - transfer->started + 2 >=
				transfer->link.timeout_ms ?
				ACCORD_TRANSPORT_TIMEOUT : ACCORD_TRANSPORT_STALLED;
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_CONNECT:
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
			return ACCORD_TRANSPORT_UNREACHABLE;
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_WRITE_ERROR: /* headers beyond our limit */
		case CURLE_OUT_OF_MEMORY:	/* a header line beyond curl's limit */
		case CURLE_UNSUPPORTED_PROTOCOL:	/* HTTP/0.9, so to say */
		case CURLE_BAD_CONTENT_ENCODING:
			return ACCORD_TRANSPORT_GARBAGE;
		default:
			return ACCORD_TRANSPORT_CUT_OFF;
	}
}

/*
 * How the transfer ended. Whether anything of the request left is known from
 * the bytes written to the connection; what failed before is a matter of
 * reaching the server, whatever curl calls it.
 */
static AccordTransport
classify_end(const AccordTransfer *transfer, bool sent)
{
	if (transfer->truncated)
		return ACCORD_TRANSPORT_OK;
	if (transfer->code == CURLE_OK)
		return transfer->headers_ended ? ACCORD_TRANSPORT_OK :
			ACCORD_TRANSPORT_CUT_OFF;
	if (transfer->refused && !transfer->opened)
		return ACCORD_TRANSPORT_REFUSED;
	return sent ? classify_exchange(transfer) : classify_start(transfer);
}

/* Whether it came no further than the proxy. */
static bool
is_proxy_fault(const AccordTransfer *transfer)
{
	long		status = 0;
	long		certificate = 0;

	if (!transfer->proxied || transfer->begun)
		return false;
	curl_easy_getinfo(transfer->easy, CURLINFO_HTTP_CONNECTCODE, &status);
	curl_easy_getinfo(transfer->easy, CURLINFO_PROXY_SSL_VERIFYRESULT,
					  &certificate);
	return transfer->code == CURLE_COULDNT_RESOLVE_PROXY ||
		transfer->code == CURLE_COULDNT_CONNECT ||
		transfer->code == CURLE_PROXY || status >= 300 || certificate != 0;
}

static AccordHttpCause
find_cause(const AccordTransfer *transfer)
{
	if (is_proxy_fault(transfer))
		return ACCORD_HTTP_CAUSE_PROXY;
	switch (transfer->code)
	{
		case CURLE_COULDNT_RESOLVE_HOST:
			return ACCORD_HTTP_CAUSE_NAME;
		case CURLE_COULDNT_CONNECT:
			return ACCORD_HTTP_CAUSE_CONNECTION;
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
			return ACCORD_HTTP_CAUSE_CERTIFICATE;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_SSL_CIPHER:
			return ACCORD_HTTP_CAUSE_TLS;
		case CURLE_OPERATION_TIMEDOUT:
			return ACCORD_HTTP_CAUSE_TIMEOUT;
		default:
			return ACCORD_HTTP_CAUSE_OTHER;
	}
}

/* Says what went wrong; curl's words may quote the server's bytes. */
static void
describe_end(AccordTransfer *transfer, AccordTransport transport)
{
	char		address[INET6_ADDRSTRLEN];

	if (transport == ACCORD_TRANSPORT_REFUSED)
	{
		accord_network_format(&transfer->refused_address, address,
							  sizeof(address));
		snprintf(transfer->error, sizeof(transfer->error),
				 "address %s is in a refused network", address);
	}
	else if (transfer->header_bytes > ACCORD_HTTP_HEADER_BYTES)
		snprintf(transfer->error, sizeof(transfer->error),
				 "headers of the answer exceed %d bytes", ACCORD_HTTP_HEADER_BYTES);
	else if (transport == ACCORD_TRANSPORT_CUT_OFF &&
			 transfer->code == CURLE_OK)
		snprintf(transfer->error, sizeof(transfer->error),
				 "the answer ended within its headers");
	else if (transport == ACCORD_TRANSPORT_GARBAGE &&
			 transfer->code == CURLE_OUT_OF_MEMORY)
		snprintf(transfer->error, sizeof(transfer->error),
				 "a header line of the answer is too long");
	else if (transfer->error[0] == '\0')
		strlcpy(transfer->error, curl_easy_strerror(transfer->code),
				sizeof(transfer->error));
	for (char *c = transfer->error; *c != '\0'; c++)
	{
		if ((unsigned char) *c < ' ' || (unsigned char) *c > '~')
			*c = '?';
	}
}

/* A header of the final answer, or NULL; valid until the next look-up. */
static const char *
find_answer_header(AccordTransfer *transfer, const char *name)
{
	struct curl_header *header;

	if (curl_easy_header(transfer->easy, name, 0, CURLH_HEADER, -1,
						 &header) != CURLHE_OK)
		return NULL;
	return header->value;
}

const char *
accord_http_answer_header(const AccordHttpResponse *response,
						  const char *name)
{
	if (response->transfer == NULL || response->result.status == 0)
		return NULL;
	return find_answer_header(response->transfer, name);
}

static const char *
find_request_id(AccordTransfer *transfer)
{
	const char *id = NULL;

	if (transfer->named)
		id = find_answer_header(transfer, "X-Request-Id");
	if (transfer->named && id == NULL)
		id = find_answer_header(transfer, "Request-Id");
	if (id == NULL || id[0] == '\0')
		return NULL;
	strlcpy(transfer->request_id, id, sizeof(transfer->request_id));
	return transfer->request_id;
}

/* Reads what the final answer says about the server's limits. */
static void
fill_hint(AccordTransfer *transfer, AccordHint *hint)
{
	struct curl_header *header = NULL;
	TimestampTz now = 0;

	hint->remaining = -1;
	hint->reset_ms = -1;
	while (transfer->hinted &&
		   (header = curl_easy_nextheader(transfer->easy, CURLH_HEADER, -1,
										  header)) != NULL)
	{
		char		first = header->name[0] | 0x20;

		if (first != 'r' && first != 'x')
			continue;
		if (now == 0)
			now = GetCurrentTimestamp();
		accord_limit_hint(header->name, strlen(header->name), header->value,
						  now, hint);
	}
}

static void
fill_result(AccordTransfer *transfer, AccordResult *result)
{
	long		sent = 0;
	long		status = 0;
	const char *after = NULL;

	/* curl did not take it: what it tells is of the request before */
	if (transfer->code != CURLE_FAILED_INIT)
	{
		curl_easy_getinfo(transfer->easy, CURLINFO_REQUEST_SIZE, &sent);
		curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	}
	if (status >= 300)
		after = find_answer_header(transfer, "Retry-After");
	if (transfer->proxied && !transfer->begun)
		sent = 0;				/* to the proxy alone */
	result->transport = classify_end(transfer, sent > 0);
	if (result->transport == ACCORD_TRANSPORT_OK)
		result->sent = ACCORD_SENT_YES;
	else
		result->sent = sent > 0 ? ACCORD_SENT_UNKNOWN : ACCORD_SENT_NO;
	result->status = status >= 200 ? (int) status : 0;
	result->is_delete = transfer->is_delete;
	result->retry_after_ms = after == NULL ? -1 :
		accord_retry_after_parse(after, GetCurrentTimestamp());
}

/* What the bodies took on the wire, as far as they got. */
static void
fill_bytes(AccordTransfer *transfer, AccordHttpResponse *response)
{
	curl_off_t	sent = 0;
	curl_off_t	received = 0;

	if (transfer->code == CURLE_FAILED_INIT)
		return;
	curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
	curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_DOWNLOAD_T, &received);
	response->bytes_sent = sent;
	response->bytes_received = received;
}

void
accord_http_transfer_respond(AccordTransfer *transfer,
							 AccordHttpResponse *response)
{
	memset(response, 0, sizeof(AccordHttpResponse));
	response->owner = transfer->owner;
	response->errand = transfer->errand;
	response->transfer = transfer;
	fill_result(transfer, &response->result);
	fill_hint(transfer, &response->hint);
	fill_bytes(transfer, response);
	response->duration_ms = transfer->ended - transfer->started;
	if (response->result.transport != ACCORD_TRANSPORT_OK)
	{
		describe_end(transfer, response->result.transport);
		response->cause = find_cause(transfer);
		response->error = transfer->error;
	}
	response->body = transfer->response.data;
	response->body_len = transfer->response.len;
	response->truncated = transfer->truncated;
	response->request_id = find_request_id(transfer);
}
