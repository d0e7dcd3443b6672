/*
 * auth.c: the auth column of a channel or account.
 *
 * Runs in dispatchers, and in backends that check or preview a configuration.
 * One table says which types there are and what members each has: what checks
 * a row when it is given reads it, and so do error messages, so that neither
 * can say otherwise than the other.
 *
 * Invariants: a credential is never part of what a request stores or shows
 * (URL, headers, body): it goes into fields of its own, which are put together
 * with the rest when curl is given it. Signatures are made for each attempt.
 *
 * On failure (a secret that is not stored, or is not what it must be) the
 * reason is returned; it never holds a secret.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/timestamp.h"

#include "auth.h"
#include "json.h"

#define MASK "***"
#define SHORTEST_REDACTED 4		/* bytes: what is shorter is everywhere */

#define NEEDS(name, value) {name, ACCORD_AUTH_##value, false, {NULL}}
#define MAY_HAVE(name, value) {name, ACCORD_AUTH_##value, true, {NULL}}
#define ONE_OF(name, ...) {name, ACCORD_AUTH_WORD, true, {__VA_ARGS__}}
#define END {NULL, ACCORD_AUTH_TEXT, true, {NULL}}

static const AccordAuthKind kinds[] = {
	{"none", ACCORD_AUTH_NONE, {END}},
	{"bearer", ACCORD_AUTH_BEARER, {NEEDS("secret", SECRET), END}},
	{"basic", ACCORD_AUTH_BASIC,
	{NEEDS("user", USER), NEEDS("secret", SECRET), END}},
	{"header", ACCORD_AUTH_HEADER,
	{NEEDS("name", HEADER_NAME), NEEDS("secret", SECRET), END}},
	{"query", ACCORD_AUTH_QUERY,
	{NEEDS("name", TEXT), NEEDS("secret", SECRET), END}},
	{"digest", ACCORD_AUTH_DIGEST,
	{NEEDS("user", USER), NEEDS("secret", SECRET), END}},
	{"hmac", ACCORD_AUTH_HMAC,
		{NEEDS("secret", SECRET), NEEDS("sign", TEMPLATE),
			NEEDS("headers", TEMPLATES), MAY_HAVE("user", TEXT),
			ONE_OF("hash", "sha256", "sha1", "sha512"),
			ONE_OF("encoding", "hex", "base64"),
			ONE_OF("key", "text", "hex", "base64"),
	ONE_OF("timestamp", "s", "ms", "iso"), END}},
	{"standard", ACCORD_AUTH_STANDARD, {NEEDS("secrets", SECRETS), END}},
	{"aws_sigv4", ACCORD_AUTH_AWS,
		{NEEDS("access_key", TEXT), NEEDS("secret", SECRET),
			NEEDS("region", TEXT), NEEDS("service", TEXT),
	MAY_HAVE("session_token", SECRET), END}},
	{"oauth2", ACCORD_AUTH_OAUTH2,
		{NEEDS("token_url", URL), NEEDS("client_id", TEXT),
			MAY_HAVE("secret", SECRET), MAY_HAVE("refresh_token", SECRET),
			MAY_HAVE("scope", TEXT), MAY_HAVE("parameters", OBJECT),
			ONE_OF("client_auth", "basic", "body"),
			MAY_HAVE("lifetime", SECONDS), MAY_HAVE("margin", SECONDS),
	END}},
	{"login", ACCORD_AUTH_LOGIN,
		{NEEDS("token_url", URL), NEEDS("secret", SECRET),
			MAY_HAVE("secret_parameter", TEXT), MAY_HAVE("parameters", OBJECT),
			ONE_OF("format", "json", "form"), MAY_HAVE("token", PATH),
			MAY_HAVE("expires", PATH), MAY_HAVE("lifetime", SECONDS),
			MAY_HAVE("margin", SECONDS), MAY_HAVE("name", HEADER_NAME),
	MAY_HAVE("prefix", TEXT), END}}
};

const AccordAuthKind *
accord_auth_kind(const char *word)
{
	for (int i = 0; i < lengthof(kinds); i++)
		if (strcmp(word, kinds[i].word) == 0)
			return &kinds[i];
	return NULL;
}

char	   *
accord_auth_words(void)
{
	StringInfoData words;

	initStringInfo(&words);
	for (int i = 0; i < lengthof(kinds); i++)
		appendStringInfo(&words, "%s%s", i > 0 ? ", " : "", kinds[i].word);
	return words.data;
}

/* ----------
 * Loading
 * ----------
 */

/* The place of a word among a member's; the first one's when it is absent. */
static int
word_of(Jsonb *json, const AccordAuthKind *kind, const char *member)
{
	char	   *word = accord_json_member(json, member);

	for (int i = 0; word != NULL && i < ACCORD_AUTH_MEMBERS; i++)
	{
		if (kind->members[i].name == NULL ||
			strcmp(kind->members[i].name, member) != 0)
			continue;
		for (int j = 0; j < lengthof(kind->members[i].words); j++)
			if (kind->members[i].words[j] != NULL &&
				strcmp(kind->members[i].words[j], word) == 0)
				return j;
	}
	return 0;
}

static void
add_secret(AccordAuth *auth, char *name, AccordAuthLookup lookup)
{
	AccordAuthSecret *secret = &auth->secrets[auth->n_secrets];

	if (name == NULL || auth->n_secrets == ACCORD_SIGN_SECRETS)
		return;
	auth->n_secrets++;
	secret->name = name;
	lookup(secret);
}

/* The secrets, in the order of the kind's members. */
static void
load_secrets(AccordAuth *auth, Jsonb *json, const AccordAuthKind *kind,
			 AccordAuthLookup lookup)
{
	for (int i = 0; i < ACCORD_AUTH_MEMBERS && kind->members[i].name; i++)
	{
		const AccordAuthMember *member = &kind->members[i];

		if (member->value == ACCORD_AUTH_SECRET)
			add_secret(auth, accord_json_member(json, member->name), lookup);
		for (int j = 0; member->value == ACCORD_AUTH_SECRETS &&
			 j < ACCORD_SIGN_SECRETS; j++)
		{
			JsonbValue *name = accord_json_path(json,
												psprintf("%s.%d", member->name,
														 j));

			add_secret(auth, name ? accord_json_text(name) : NULL, lookup);
		}
	}
}

/* A signature by templates. */
static AccordSignRule *
load_rule(Jsonb *json, const AccordAuthKind *kind)
{
	static const AccordMac hashes[] = {
		ACCORD_MAC_SHA256, ACCORD_MAC_SHA1, ACCORD_MAC_SHA512
	};
	AccordSignRule *rule = palloc0(sizeof(AccordSignRule));
	JsonbValue *headers = accord_json_path(json, "headers");
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			hash = word_of(json, kind, "hash");

	Assert(hash < lengthof(hashes));
	rule->hash = hashes[hash];
	rule->base64 = word_of(json, kind, "encoding") == 1;
	rule->key = word_of(json, kind, "key");
	rule->time = word_of(json, kind, "timestamp");
	rule->user = accord_json_member(json, "user");
	rule->sign = accord_json_member(json, "sign");
	if (rule->sign == NULL)
		rule->sign = "";
	if (headers == NULL || headers->type != jbvBinary)
		return rule;
	iterator = JsonbIteratorInit(headers->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY && rule->n_lines < ACCORD_SIGN_LINES)
			rule->names[rule->n_lines] = pnstrdup(value.val.string.val,
												  value.val.string.len);
		else if (token == WJB_VALUE && value.type == jbvString &&
				 rule->n_lines < ACCORD_SIGN_LINES)
			rule->values[rule->n_lines++] = pnstrdup(value.val.string.val,
													 value.val.string.len);
	}
	return rule;
}

static AccordSignAws *
load_aws(Jsonb *json)
{
	AccordSignAws *aws = palloc0(sizeof(AccordSignAws));

	aws->access_key = accord_json_member(json, "access_key");
	aws->region = accord_json_member(json, "region");
	aws->service = accord_json_member(json, "service");
	return aws;
}

/* A member's text, or what it is where that is absent. */
static char *
text_of(Jsonb *json, const char *member, const char *absent)
{
	char	   *text = accord_json_member(json, member);

	return text != NULL || absent == NULL ? text : pstrdup(absent);
}

static int
seconds_of(Jsonb *json, const char *member, int absent)
{
	JsonbValue *value = accord_json_path(json, member);

	return value == NULL ? absent : atoi(accord_json_text(value));
}

/* A digest of the column: accounts whose columns are equal share a token. */
static void
make_token_key(AccordTokenSpec *spec, Jsonb *json)
{
	char	   *text = accord_json_print(json);
	uint8		digest[ACCORD_MAC_BYTES];

	if (!accord_mac_digest(ACCORD_MAC_SHA256, text, strlen(text), digest))
		elog(ERROR, "could not compute SHA-256");
	strlcpy(spec->key,
			accord_mac_hex(digest, accord_mac_length(ACCORD_MAC_SHA256)),
			sizeof(spec->key));
}

/* How a token is fetched; the secrets are there already. */
static AccordTokenSpec *
load_token(const AccordAuth *auth, Jsonb *json, const AccordAuthKind *kind)
{
	AccordTokenSpec *spec = palloc0(sizeof(AccordTokenSpec));
	JsonbValue *parameters = accord_json_path(json, "parameters");
	int			n = 0;

	make_token_key(spec, json);
	spec->login = kind->type == ACCORD_AUTH_LOGIN;
	spec->url = text_of(json, "token_url", "");
	spec->json = spec->login && word_of(json, kind, "format") == 0;
	spec->client_in_body = word_of(json, kind, "client_auth") == 1;
	spec->client_id = text_of(json, "client_id", "");
	spec->scope = text_of(json, "scope", NULL);
	spec->secret_parameter = text_of(json, "secret_parameter", "password");
	spec->parameters = parameters == NULL ? NULL :
		JsonbValueToJsonb(parameters);
	spec->token_path = text_of(json, "token",
							   spec->login ? "token" : "access_token");
	spec->expires_path = text_of(json, "expires", "expires_in");
	spec->lifetime_s = seconds_of(json, "lifetime", 0);
	spec->margin_s = seconds_of(json, "margin", -1);
	spec->header = text_of(json, "name", "Authorization");
	spec->prefix = text_of(json, "prefix", "Bearer");
	spec->client_secret = accord_json_member(json, "secret") ? n++ : -1;
	spec->refresh_secret = !spec->login &&
		accord_json_member(json, "refresh_token") ? n++ : -1;
	for (int i = 0; i < auth->n_secrets; i++)
		spec->secrets_at = Max(spec->secrets_at, auth->secrets[i].set_at);
	return spec;
}

void
accord_auth_load(AccordAuth *auth, Jsonb *json, AccordAuthLookup lookup)
{
	char	   *word = json ? accord_json_member(json, "type") : NULL;
	const AccordAuthKind *kind = word ? accord_auth_kind(word) : NULL;

	memset(auth, 0, sizeof(*auth));
	if (kind == NULL)
		return;
	auth->type = kind->type;
	auth->name = accord_json_member(json, kind->type == ACCORD_AUTH_BASIC ||
									kind->type == ACCORD_AUTH_DIGEST ?
									"user" : "name");
	load_secrets(auth, json, kind, lookup);
	if (kind->type == ACCORD_AUTH_HMAC)
		auth->rule = load_rule(json, kind);
	if (kind->type == ACCORD_AUTH_AWS)
		auth->aws = load_aws(json);
	if (kind->type >= ACCORD_AUTH_OAUTH2)
		auth->token = load_token(auth, json, kind);
}

/* ----------
 * Applying
 * ----------
 */

/* Why one of the secrets cannot be used, or NULL. */
static char *
find_secret_fault(const AccordAuth *auth)
{
	if (auth->type != ACCORD_AUTH_NONE && auth->n_secrets == 0)
		return pstrdup("its auth names no secret");
	for (int i = 0; i < auth->n_secrets; i++)
		if (auth->secrets[i].value == NULL)
			return auth->secrets[i].fault ? pstrdup(auth->secrets[i].fault) :
				psprintf("secret \"%s\" is not stored", auth->secrets[i].name);
	return NULL;
}

/* Plain: put in its place by whoever makes the request. */
static void
apply_plain(const AccordAuth *auth, AccordHttpRequest *request)
{
	static const AccordHttpAuth places[] = {
		[ACCORD_AUTH_BEARER] = ACCORD_HTTP_AUTH_BEARER,
		[ACCORD_AUTH_BASIC] = ACCORD_HTTP_AUTH_BASIC,
		[ACCORD_AUTH_DIGEST] = ACCORD_HTTP_AUTH_DIGEST,
		[ACCORD_AUTH_HEADER] = ACCORD_HTTP_AUTH_HEADER,
		[ACCORD_AUTH_QUERY] = ACCORD_HTTP_AUTH_QUERY
	};

	/* copies: the configuration may be replaced before the request leaves */
	request->auth = places[auth->type];
	request->auth_name = auth->name ? pstrdup(auth->name) : NULL;
	request->auth_secret = pstrdup(auth->secrets[0].value);
}

/* A UUID's worth of random bits. */
static char *
random_text(void)
{
	uint8		bytes[16];

	if (!pg_strong_random(bytes, sizeof(bytes)))
		return NULL;
	return accord_mac_hex(bytes, sizeof(bytes));
}

static void
sign(const AccordAuth *auth, const AccordSignRequest *request,
	 AccordSignature *signature)
{
	const char *secrets[ACCORD_SIGN_SECRETS] = {NULL};
	AccordSignAws aws;

	Assert(auth->n_secrets > 0);
	for (int i = 0; i < auth->n_secrets; i++)
		secrets[i] = auth->secrets[i].value;
	switch (auth->type)
	{
		case ACCORD_AUTH_HMAC:
			accord_sign_rule(auth->rule, secrets[0], request, signature);
			break;
		case ACCORD_AUTH_STANDARD:
			accord_sign_standard(secrets, auth->n_secrets, request, signature);
			break;
		default:
			aws = *auth->aws;
			aws.secret = secrets[0];
			aws.session_token = auth->n_secrets > 1 ? secrets[1] : NULL;
			accord_sign_aws(&aws, request, signature);
	}
}

static char *
apply_signature(const AccordAuth *auth, const char *id,
				AccordHttpRequest *request, TimestampTz now)
{
	AccordSignature signature;
	AccordSignRequest signed_request = {
		.method = request->method,
		.url = request->url,
		.headers = request->headers,
		.n_headers = request->n_headers,
		.body = request->body,
		.body_len = request->body_len,
		.id = id ? id : random_text(),
		.nonce = random_text(),
		.now = now
	};

	if (signed_request.nonce == NULL || signed_request.id == NULL)
		return pstrdup("there are no random numbers to sign it with");
	sign(auth, &signed_request, &signature);
	if (signature.error != NULL)
		return psprintf("it cannot be signed with secret \"%s\": %s",
						auth->secrets[0].name, signature.error);
	request->auth_lines = palloc(signature.n_lines * sizeof(char *));
	for (int i = 0; i < signature.n_lines; i++)
		request->auth_lines[i] = signature.lines[i];
	request->n_auth_lines = signature.n_lines;
	return NULL;
}

/* A token that was fetched, in its header. */
static char *
apply_token(const AccordTokenSpec *spec, const char *access,
			AccordHttpRequest *request)
{
	if (access == NULL)
		return pstrdup("there is no token just now");
	request->auth_lines = palloc(sizeof(char *));
	request->auth_lines[0] = psprintf("%s: %s%s%s", spec->header, spec->prefix,
									  spec->prefix[0] ? " " : "", access);
	request->n_auth_lines = 1;
	return NULL;
}

char	   *
accord_auth_apply(const AccordAuth *auth, const char *id, const char *access,
				  AccordHttpRequest *request, TimestampTz now)
{
	char	   *fault;

	if (auth->type == ACCORD_AUTH_NONE)
		return NULL;
	if (auth->token != NULL)
		return apply_token(auth->token, access, request);
	fault = find_secret_fault(auth);
	if (fault != NULL)
		return fault;
	if (auth->type < ACCORD_AUTH_HMAC)
	{
		apply_plain(auth, request);
		return NULL;
	}
	return apply_signature(auth, id, request, now);
}

/* ----------
 * For people
 * ----------
 */

/* A template's constant parts, its variables masked. */
static char *
mask_template(const char *template)
{
	StringInfoData text;

	initStringInfo(&text);
	while (*template != '\0')
	{
		int			len = (int) strcspn(template, "{");

		appendBinaryStringInfo(&text, template, len);
		template += len;
		if (*template == '\0')
			break;
		appendStringInfoString(&text, MASK);
		template += strcspn(template, "}");
		template += *template == '}' ? 1 : 0;
	}
	return text.data;
}

int
accord_auth_mask(const AccordAuth *auth, const char **lines,
				 const char **query)
{
	int			n = 0;

	*query = NULL;
	switch (auth->type)
	{
		case ACCORD_AUTH_NONE:
			break;
		case ACCORD_AUTH_BEARER:
			lines[n++] = "Authorization: Bearer " MASK;
			break;
		case ACCORD_AUTH_BASIC:
			lines[n++] = "Authorization: Basic " MASK;
			break;
		case ACCORD_AUTH_DIGEST:
			lines[n++] = psprintf("Authorization: Digest username=\"%s\", "
								  MASK, auth->name);
			break;
		case ACCORD_AUTH_HEADER:
			lines[n++] = psprintf("%s: " MASK, auth->name);
			break;
		case ACCORD_AUTH_QUERY:
			*query = psprintf("%s=" MASK, auth->name);
			break;
		case ACCORD_AUTH_HMAC:
			for (; n < auth->rule->n_lines; n++)
				lines[n] = psprintf("%s: %s", auth->rule->names[n],
									mask_template(auth->rule->values[n]));
			break;
		case ACCORD_AUTH_STANDARD:
			lines[n++] = "webhook-id: " MASK;
			lines[n++] = "webhook-timestamp: " MASK;
			lines[n++] = "webhook-signature: v1," MASK;
			break;
		case ACCORD_AUTH_AWS:
			lines[n++] = "X-Amz-Date: " MASK;
			lines[n++] = psprintf("Authorization: AWS4-HMAC-SHA256 "
								  "Credential=%s/" MASK "/%s/%s/aws4_request, "
								  MASK, auth->aws->access_key,
								  auth->aws->region, auth->aws->service);
			break;
		case ACCORD_AUTH_OAUTH2:
		case ACCORD_AUTH_LOGIN:
			lines[n++] = psprintf("%s: %s%s" MASK, auth->token->header,
								  auth->token->prefix,
								  auth->token->prefix[0] ? " " : "");
			break;
	}
	return n;
}

/* Replaces a text in *len bytes by the mask. The copy is palloc'd. */
static const char *
replace(const char *bytes, size_t *len, const char *secret)
{
	size_t		secret_len = strlen(secret);
	StringInfoData out;
	size_t		done = 0;

	if (secret_len < SHORTEST_REDACTED)
		return bytes;
	for (size_t i = 0; i + secret_len <= *len;)
	{
		if (bytes[i] != secret[0] || memcmp(bytes + i, secret, secret_len) != 0)
		{
			i++;
			continue;
		}
		if (done == 0)
			initStringInfo(&out);
		appendBinaryStringInfo(&out, bytes + done, (int) (i - done));
		appendStringInfoString(&out, MASK);
		i += secret_len;
		done = i;
	}
	if (done == 0)
		return bytes;
	appendBinaryStringInfo(&out, bytes + done, (int) (*len - done));
	*len = out.len;
	return out.data;
}

/* As it is sent by basic authentication. */
static char *
basic_text(const char *user, const char *secret)
{
	char	   *both = psprintf("%s:%s", user, secret);

	return accord_mac_base64(both, strlen(both));
}

const char *
accord_auth_redact(const AccordAuth *auth, const char *access,
				   const AccordHttpProxy *proxy, const char *bytes,
				   size_t *len, size_t keep)
{
	const char *texts[ACCORD_SIGN_SECRETS + 5];
	size_t		longest = 0;
	int			n = 0;

	for (int i = 0; i < auth->n_secrets; i++)
		if (auth->secrets[i].value != NULL)
			texts[n++] = auth->secrets[i].value;
	if (n > 0 && auth->type == ACCORD_AUTH_BASIC)
		texts[n++] = basic_text(auth->name, auth->secrets[0].value);
	if (n > 0 && auth->type == ACCORD_AUTH_QUERY)
	{
		texts[n++] = accord_http_encode(auth->secrets[0].value, true);
		texts[n++] = accord_http_encode(auth->secrets[0].value, false);
	}
	if (access != NULL)
		texts[n++] = access;
	if (proxy != NULL && proxy->secret != NULL)
	{
		texts[n++] = proxy->secret;
		texts[n++] = basic_text(proxy->user, proxy->secret);
	}
	for (int i = 0; i < n; i++)
		longest = Max(longest, strlen(texts[i]));
	if (n > 0)
		*len = Min(*len, keep + longest);
	for (int i = 0; i < n; i++)
		bytes = replace(bytes, len, texts[i]);
	return bytes;
}
