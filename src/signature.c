/*
 * signature.c: whether a webhook comes from whom it says it does.
 *
 * Runs in the application's backends. Each scheme is a few rules: which header
 * has the signature, what is signed, and how the digest is written; two of
 * them sign a time as well, which must be near ours. A secret is as good as
 * any other of the source, so that one can be replaced by another while both
 * are in use.
 *
 *   standard     Standard Webhooks: webhook-id.webhook-timestamp.body, HMAC
 *                SHA-256, base64, "v1,..." and more after blanks; secrets are
 *                base64, whsec_ before them is taken off
 *   stripe       t=time,v1=hex of time.body, any number of v1
 *   shopify, woocommerce, github, hmac
 *                HMAC of the body, base64 or hex, perhaps after a prefix
 *   basic        HTTP basic authentication
 *   header       the secret itself
 *
 * Invariants: nothing is kept, no clock is read. What is secret is compared
 * in a time that does not depend on where it differs, and stays out of
 * whatever is returned.
 *
 * On failure the reason is returned; only the cryptographic library's raises.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "json.h"
#include "mac.h"
#include "sign.h"
#include "signature.h"

/* Schemes that sign the body as it is; "hmac" has options of its own. */
typedef struct BodyScheme
{
	const char *type;
	const char *header;
	const char *prefix;
	bool		base64;
} BodyScheme;

static const BodyScheme body_schemes[] = {
	{"shopify", "x-shopify-hmac-sha256", "", true},
	{"woocommerce", "x-wc-webhook-signature", "", true},
	{"github", "x-hub-signature-256", "sha256=", false}
};

/* Headers in which a scheme names a delivery, and its topic. */
static const struct
{
	const char *type;
	const char *id;
	const char *other_id;		/* NULL: none */
	const char *topic;			/* NULL: none */
}			scheme_headers[] = {
	{"standard", "webhook-id", "svix-id", NULL},
	{"shopify", "x-shopify-webhook-id", "x-shopify-event-id", "x-shopify-topic"},
	{"woocommerce", "x-wc-webhook-delivery-id", NULL, "x-wc-webhook-topic"},
	{"github", "x-github-delivery", NULL, "x-github-event"}
};

/* What is checked, and with what. */
typedef struct Check
{
	Jsonb	   *verify;
	char	  **secrets;
	int			n_secrets;
	int64		tolerance;
	const AccordWebhook *webhook;
	TimestampTz now;
} Check;

char	   *
accord_signature_header(Jsonb *headers, const char *name)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		wanted = false;

	if (!JB_ROOT_IS_OBJECT(headers))
		return NULL;
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			wanted = value.val.string.len == strlen(name) &&
				pg_strncasecmp(value.val.string.val, name, strlen(name)) == 0;
		else if (token == WJB_VALUE && wanted && value.type == jbvString)
			return pnstrdup(value.val.string.val, value.val.string.len);
	}
	return NULL;
}

/* Takes as long whatever the texts have in common; a is the given one. */
static bool
same_text(const char *a, size_t a_len, const char *b)
{
	size_t		b_len = strlen(b);
	volatile unsigned char differs = a_len != b_len;

	for (size_t i = 0; i < a_len; i++)
		differs |= a[i] ^ (b_len == 0 ? 1 : b[i % b_len]);
	return differs == 0;
}

/* HMAC (RFC 2104) of two pieces, one after the other. */
static void
compute_hmac(AccordMac type, const void *key, size_t key_len,
			 const char *first, size_t first_len, const char *second,
			 size_t second_len, uint8 *digest)
{
	char	   *both = palloc(first_len + second_len + 1);

	memcpy(both, first, first_len);
	memcpy(both + first_len, second, second_len);
	if (!accord_mac_hmac(type, key, key_len, both, first_len + second_len,
						 digest))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute the signature of a webhook"),
				 errhint("Check the server's cryptographic library.")));
	pfree(both);
}

/* Unix time near enough? */
static const char *
check_time(const Check *check, const char *seconds)
{
	char	   *end;
	int64		given = strtoll(seconds, &end, 10);
	int64		now = (check->now / USECS_PER_SEC) +
	(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
	int64		tolerance = check->tolerance / USECS_PER_SEC;

	if (*seconds < '0' || *seconds > '9' || *end != '\0' ||
		end - seconds > 18)
		return "its timestamp is not a number of seconds";
	if (given < now - tolerance)
		return "its timestamp is too old";
	if (given > now + tolerance)
		return "its timestamp is in the future";
	return NULL;
}

/* Whether one of the signatures of the list, "v1,..." each, is this one. */
static bool
in_standard_list(const char *list, const char *signature)
{
	bool		found = false;

	while (*list != '\0')
	{
		size_t		len = strcspn(list, " ");

		if (len > 3 && strncmp(list, "v1,", 3) == 0)
			found |= same_text(list + 3, len - 3, signature);
		list += len + strspn(list + len, " ");
	}
	return found;
}

/* A header by the name of the specification, or that of Svix. */
static char *
standard_header(const Check *check, const char *name)
{
	char	   *value = accord_signature_header(check->webhook->headers,
												psprintf("webhook-%s", name));

	return value != NULL ? value :
		accord_signature_header(check->webhook->headers,
								psprintf("svix-%s", name));
}

static const char *
check_standard(const Check *check)
{
	char	   *id = standard_header(check, "id");
	char	   *time = standard_header(check, "timestamp");
	char	   *list = standard_header(check, "signature");
	const char *wrong;
	char	   *head;

	if (id == NULL || time == NULL || list == NULL)
		return "it lacks webhook-id, webhook-timestamp or webhook-signature";
	wrong = check_time(check, time);
	if (wrong != NULL)
		return wrong;
	head = psprintf("%s.%s.", id, time);
	for (int i = 0; i < check->n_secrets; i++)
	{
		uint8		digest[ACCORD_MAC_BYTES];
		size_t		len;
		uint8	   *key = accord_sign_standard_key(check->secrets[i], &len);

		if (key == NULL || len == 0)
			continue;
		compute_hmac(ACCORD_MAC_SHA256, key, len, head, strlen(head),
					 check->webhook->body, check->webhook->len, digest);
		if (in_standard_list(list, accord_mac_base64(digest, accord_mac_length(ACCORD_MAC_SHA256))))
			return NULL;
	}
	return "its signature is not that of any secret";
}

/* Whether one of the elements v1=... of the header is this signature. */
static bool
in_stripe_list(const char *list, const char *signature)
{
	bool		found = false;

	while (*list != '\0')
	{
		size_t		len = strcspn(list, ",");

		if (len > 3 && strncmp(list, "v1=", 3) == 0)
			found |= same_text(list + 3, len - 3, signature);
		list += len + strspn(list + len, ", ");
	}
	return found;
}

static const char *
check_stripe(const Check *check)
{
	char	   *list = accord_signature_header(check->webhook->headers,
											   "stripe-signature");
	const char *start;
	const char *wrong;
	char	   *time;

	if (list == NULL)
		return "it has no Stripe-Signature";
	start = strncmp(list, "t=", 2) == 0 ? list : strstr(list, ",t=");
	if (start == NULL)
		return "its Stripe-Signature has no time";
	start = strchr(start, '=') + 1;
	time = pnstrdup(start, strcspn(start, ","));
	wrong = check_time(check, time);
	if (wrong != NULL)
		return wrong;
	time = psprintf("%s.", time);
	for (int i = 0; i < check->n_secrets; i++)
	{
		uint8		digest[ACCORD_MAC_BYTES];

		compute_hmac(ACCORD_MAC_SHA256, check->secrets[i], strlen(check->secrets[i]),
					 time, strlen(time), check->webhook->body,
					 check->webhook->len, digest);
		if (in_stripe_list(list, accord_mac_hex(digest, accord_mac_length(ACCORD_MAC_SHA256))))
			return NULL;
	}
	return "its signature is not that of any secret";
}

static const char *
check_body(const Check *check, const BodyScheme *scheme,
		   AccordMac type)
{
	char	   *given = accord_signature_header(check->webhook->headers,
												scheme->header);
	size_t		prefix = strlen(scheme->prefix);

	if (given == NULL)
		return psprintf("it has no header %s", scheme->header);
	if (strncmp(given, scheme->prefix, prefix) != 0)
		return psprintf("its header %s does not begin with \"%s\"",
						scheme->header, scheme->prefix);
	for (int i = 0; i < check->n_secrets; i++)
	{
		uint8		digest[ACCORD_MAC_BYTES];
		size_t		len = accord_mac_length(type);

		compute_hmac(type, check->secrets[i], strlen(check->secrets[i]),
					 check->webhook->body, check->webhook->len, "", 0, digest);
		if (same_text(given + prefix, strlen(given + prefix),
					  scheme->base64 ? accord_mac_base64(digest, len) :
					  accord_mac_hex(digest, len)))
			return NULL;
	}
	return "its signature is not that of any secret";
}

static const char *
check_hmac(const Check *check)
{
	char	   *hash = accord_json_member(check->verify, "hash");
	char	   *encoding = accord_json_member(check->verify, "encoding");
	BodyScheme	scheme = {0};
	AccordMac	type = ACCORD_MAC_SHA256;

	scheme.header = accord_json_member(check->verify, "header");
	scheme.prefix = accord_json_member(check->verify, "prefix");
	if (scheme.prefix == NULL)
		scheme.prefix = "";
	scheme.base64 = encoding != NULL && strcmp(encoding, "base64") == 0;
	if (hash != NULL && strcmp(hash, "sha1") == 0)
		type = ACCORD_MAC_SHA1;
	else if (hash != NULL && strcmp(hash, "sha512") == 0)
		type = ACCORD_MAC_SHA512;
	return check_body(check, &scheme, type);
}

static const char *
check_basic(const Check *check)
{
	char	   *given = accord_signature_header(check->webhook->headers,
												"authorization");
	char	   *user = accord_json_member(check->verify, "user");

	if (given == NULL || pg_strncasecmp(given, "basic ", 6) != 0)
		return "it has no basic authentication";
	given += 6 + strspn(given + 6, " ");
	for (int i = 0; i < check->n_secrets; i++)
	{
		char	   *both = psprintf("%s:%s", user, check->secrets[i]);

		if (same_text(given, strlen(given), accord_mac_base64(both, strlen(both))))
			return NULL;
	}
	return "its user and password are not those of the source";
}

static const char *
check_header(const Check *check)
{
	char	   *name = accord_json_member(check->verify, "name");
	char	   *given = accord_signature_header(check->webhook->headers, name);

	if (given == NULL)
		return psprintf("it has no header %s", name);
	for (int i = 0; i < check->n_secrets; i++)
		if (same_text(given, strlen(given), check->secrets[i]))
			return NULL;
	return psprintf("its header %s is not any of the secrets", name);
}

static const struct
{
	const char *type;
	const char *(*run) (const Check *check);
}			checks[] = {
	{"standard", check_standard},
	{"stripe", check_stripe},
	{"hmac", check_hmac},
	{"basic", check_basic},
	{"header", check_header}
};

const char *
accord_signature_check(Jsonb *verify, char **secrets, int n_secrets,
					   int64 tolerance, const AccordWebhook *webhook,
					   TimestampTz now)
{
	Check		check = {verify, secrets, n_secrets, tolerance, webhook, now};
	char	   *type = accord_json_member(verify, "type");

	if (type == NULL)
		return "its source does not say how to check it";
	if (strcmp(type, "none") == 0)
		return NULL;
	if (n_secrets == 0)
		return "none of its source's secrets is stored";
	for (int i = 0; i < lengthof(body_schemes); i++)
		if (strcmp(body_schemes[i].type, type) == 0)
			return check_body(&check, &body_schemes[i], ACCORD_MAC_SHA256);
	for (int i = 0; i < lengthof(checks); i++)
		if (strcmp(checks[i].type, type) == 0)
			return checks[i].run(&check);
	return "its source does not say how to check it";
}

char	   *
accord_signature_delivery(Jsonb *verify, Jsonb *headers)
{
	char	   *type = accord_json_member(verify, "type");

	for (int i = 0; type != NULL && i < lengthof(scheme_headers); i++)
		if (strcmp(scheme_headers[i].type, type) == 0)
		{
			char	   *id = accord_signature_header(headers,
													 scheme_headers[i].id);

			return id != NULL || scheme_headers[i].other_id == NULL ? id :
				accord_signature_header(headers, scheme_headers[i].other_id);
		}
	return NULL;
}

char	   *
accord_signature_topic(Jsonb *verify, Jsonb *headers)
{
	char	   *type = accord_json_member(verify, "type");

	for (int i = 0; type != NULL && i < lengthof(scheme_headers); i++)
		if (strcmp(scheme_headers[i].type, type) == 0 &&
			scheme_headers[i].topic != NULL)
			return accord_signature_header(headers, scheme_headers[i].topic);
	return NULL;
}
