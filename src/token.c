/*
 * token.c: tokens that are fetched.
 *
 * Runs in dispatchers. What a channel's or account's auth asks for (OAuth 2.0,
 * or a login) is a token; everybody whose auth is the same shares it. It is
 * kept in accord.token, sealed, so that neither a restart nor another
 * dispatcher asks for one that is there: servers count them, some give five a
 * day.
 *
 * Invariants
 *   - Whoever asks has claimed the row, in a transaction of its own; others
 *     wait for what comes of it. The claim ends by itself when its process is
 *     gone, or after a minute.
 *   - A refresh token that came with an answer is committed together with the
 *     access token before either is used.
 *   - A token that a channel refuses is replaced once; the next that is refused
 *     before any was accepted, not before a time that grows.
 *   - Nothing that was fetched, and no answer's text, is in an error.
 *
 * On failure the reason is kept in the row, with a time before which nobody
 * asks again: it doubles, and is longer where the server has said no.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "db.h"
#include "json.h"
#include "secret.h"
#include "token.h"

#define USABLE_FOR (2 * USECS_PER_SEC)	/* a token that ends sooner has ended */
#define LOOK_EVERY USECS_PER_SEC	/* at what another dispatcher asks for */
#define DEFAULT_MARGIN 60		/* s */
#define RETRY_BASE 1000			/* ms, doubled with each failure */
#define REFUSED_BASE 60000		/* ... where the server has said no */
#define RETRY_CAP 3600000
#define RENEW_BASE 60000		/* ms between tokens that channels refuse */
#define RENEW_CAP 86400000
#define CONNECT_TIMEOUT 10000	/* ms */
#define TIMEOUT 30000
#define STALL_TIMEOUT 15		/* s */
#define MAX_ANSWER 65536

static HTAB *tokens = NULL;
static dlist_head wanted = DLIST_STATIC_INIT(wanted);

/* ----------
 * What is known
 * ----------
 */

static AccordToken *
enter_token(const char *key)
{
	AccordToken *token;
	bool		found;

	if (tokens == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = ACCORD_TOKEN_KEY;
		ctl.entrysize = sizeof(AccordToken);
		ctl.hcxt = TopMemoryContext;
		tokens = hash_create("pg_accord tokens", 64, &ctl,
							 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	token = hash_search(tokens, key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) token + ACCORD_TOKEN_KEY, 0,
			   sizeof(AccordToken) - ACCORD_TOKEN_KEY);
		dlist_init(&token->connections);
	}
	return token;
}

/* A string of the token's, replaced; wiped before. */
static void
keep(char **place, const char *text)
{
	if (*place != NULL)
	{
		explicit_bzero(*place, strlen(*place));
		pfree(*place);
	}
	*place = text ? MemoryContextStrdup(TopMemoryContext, text) : NULL;
}

/* Secrets were set anew: what came from the old ones does not count. */
static void
follow_secrets(AccordToken *token)
{
	if (token->secrets_at == token->spec->secrets_at)
		return;
	token->secrets_at = token->spec->secrets_at;
	keep(&token->access, NULL);
	keep(&token->error, NULL);
	token->obtained_at = 0;
	token->failures = 0;
	token->retry_at = 0;
	token->refusals = 0;
	token->spent = false;
}

AccordToken *
accord_token_find(const AccordAuth *auth)
{
	AccordToken *token;

	if (auth->token == NULL)
		return NULL;
	token = enter_token(auth->token->key);
	token->spec = auth->token;
	token->auth = auth;
	follow_secrets(token);
	return token;
}

void
accord_token_forget_specs(void)
{
	HASH_SEQ_STATUS scan;
	AccordToken *token;

	if (tokens == NULL)
		return;
	hash_seq_init(&scan, tokens);
	while ((token = hash_seq_search(&scan)) != NULL)
	{
		token->spec = NULL;
		token->auth = NULL;
	}
}

static void
want(AccordToken *token)
{
	Assert(token->state == ACCORD_TOKEN_IDLE);
	token->state = ACCORD_TOKEN_WANTED;
	dlist_push_tail(&wanted, &token->wanted_node);
}

static void
rest(AccordToken *token)
{
	if (token->state == ACCORD_TOKEN_WANTED ||
		token->state == ACCORD_TOKEN_ELSEWHERE)
		dlist_delete(&token->wanted_node);
	token->state = ACCORD_TOKEN_IDLE;
}

static bool
is_usable(const AccordToken *token, TimestampTz now)
{
	return token->access != NULL && !token->spent &&
		(token->expires_at == 0 || now < token->expires_at - USABLE_FOR);
}

TimestampTz
accord_token_ready(AccordToken *token, TimestampTz now)
{
	bool		usable = is_usable(token, now);

	if (usable && (token->renew_at == 0 || now < token->renew_at))
		return 0;
	if (token->state == ACCORD_TOKEN_IDLE && token->retry_at <= now)
		want(token);
	if (usable)
		return 0;
	return token->state == ACCORD_TOKEN_IDLE ? token->retry_at : DT_NOEND;
}

TimestampTz
accord_token_blocked(const AccordToken *token, TimestampTz now)
{
	return token->retry_at > now && !is_usable(token, now) ?
		token->retry_at : 0;
}

bool
accord_token_refused(AccordToken *token, TimestampTz started_at,
					 TimestampTz now)
{
	TimestampTz pause;

	if (token->spec == NULL)
		return false;
	/* it had left with another token than today's */
	if (token->obtained_at > started_at || token->spent)
		return true;
	pause = Min(RENEW_CAP, (int64) RENEW_BASE << Min(token->refusals, 12));
	if (token->refusals > 0 && now < token->refused_at + pause * 1000)
		return false;
	token->refusals++;
	token->refused_at = now;
	token->spent = true;
	if (token->state == ACCORD_TOKEN_IDLE && token->retry_at <= now)
		want(token);
	return true;
}

void
accord_token_accepted(AccordToken *token)
{
	if (!token->spent)
		token->refusals = 0;
}

void
accord_token_resume(AccordToken *token)
{
	token->refusals = 0;
	if (token->retry_at == 0)
		return;
	token->retry_at = 0;
	token->force = true;
}

dlist_head *
accord_token_wanted(void)
{
	return &wanted;
}

TimestampTz
accord_token_due(void)
{
	TimestampTz due = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &wanted)
	{
		AccordToken *token = dlist_container(AccordToken, wanted_node,
											 iter.cur);

		if (token->state == ACCORD_TOKEN_WANTED)
			return 1;
		if (due == 0 || token->look_at < due)
			due = token->look_at;
	}
	return due;
}

/* ----------
 * What is stored
 * ----------
 */

/* Under what name its values are sealed. */
static char *
sealed_name(const AccordToken *token, const char *which)
{
	return psprintf("token/%s/%s", token->key, which);
}

/* A value as it is stored; NULL stays NULL. */
static char *
seal(const AccordSecretKeys *keys, const AccordToken *token,
	 const char *which, const char *value)
{
	if (value == NULL || keys == NULL)
		return (char *) value;
	return accord_secret_seal(keys, sealed_name(token, which), value);
}

static TimestampTz
renewal_time(const AccordToken *token)
{
	int64		lifetime = token->expires_at - token->obtained_at;
	int64		margin = (int64) token->spec->margin_s * USECS_PER_SEC;

	if (token->expires_at == 0)
		return 0;
	if (margin < 0)
		margin = Min((int64) DEFAULT_MARGIN * USECS_PER_SEC, lifetime / 4);
	return token->expires_at - Min(margin, lifetime / 2);
}

static Datum
text_or_null(const char *text, char *null)
{
	*null = text ? ' ' : 'n';
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

static Datum
time_or_null(TimestampTz time, char *null)
{
	*null = time ? ' ' : 'n';
	return TimestampTzGetDatum(time);
}

static void
run(const char *query, int n, Oid *types, Datum *values, const char *nulls,
	int expected)
{
	if (SPI_execute_with_args(query, n, types, values, nulls, false, 0) !=
		expected)
		elog(ERROR, "could not run: %s", query);
}

/* A column of the only row, copied to the caller's memory; NULL when null. */
static char *
column_text(const char *name, MemoryContext context)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc,
									  SPI_fnumber(SPI_tuptable->tupdesc, name),
									  &isnull);
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *copy = isnull ? NULL : TextDatumGetCString(value);

	MemoryContextSwitchTo(old);
	return copy;
}

static int64
column_int(const char *name)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc,
									  SPI_fnumber(SPI_tuptable->tupdesc, name),
									  &isnull);

	return isnull ? 0 : strcmp(name, "failures") == 0 ?
		DatumGetInt32(value) : DatumGetInt64(value);
}

/* The row as it is in the database, and what it says we are to do. */
typedef struct TokenRow
{
	char	   *verdict;
	char	   *access;
	char	   *refresh;
	char	   *error;
	TimestampTz obtained_at;
	TimestampTz expires_at;
	TimestampTz retry_at;
	int			failures;
} TokenRow;

static void
claim_row(const AccordToken *token, TokenRow *row)
{
	Oid			types[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	BOOLOID, INT4OID};
	Datum		values[6];
	char		nulls[] = "      ";
	MemoryContext caller = CurrentMemoryContext;
	AccordDbUser before;

	values[0] = CStringGetTextDatum(token->key);
	values[1] = CStringGetTextDatum(token->spec->url);
	values[2] = time_or_null(token->spec->secrets_at, &nulls[2]);
	values[3] = time_or_null(token->obtained_at, &nulls[3]);
	values[4] = BoolGetDatum(token->force);
	values[5] = Int32GetDatum(MyProcPid);
	before = accord_db_become(accord_db_owner());
	SPI_connect();
	run("SELECT * FROM accord.claim_token($1, $2, $3, $4, $5, $6)", 6, types,
		values, nulls, SPI_OK_SELECT);
	row->verdict = column_text("verdict", caller);
	row->access = column_text("access_token", caller);
	row->refresh = column_text("refresh_token", caller);
	row->error = column_text("error", caller);
	row->obtained_at = column_int("obtained_at");
	row->expires_at = column_int("expires_at");
	row->retry_at = column_int("retry_at");
	row->failures = (int) column_int("failures");
	SPI_finish();
	accord_db_be_again(before);
}

/* Somebody has got one, now or before a restart. */
static void
take_over(AccordToken *token, const TokenRow *row, const char *access)
{
	keep(&token->access, access);
	token->obtained_at = row->obtained_at;
	token->expires_at = row->expires_at;
	token->renew_at = renewal_time(token);
	token->spent = false;
	token->failures = 0;
	token->retry_at = 0;
	rest(token);
}

/* It cannot be had just now. */
static void
fail(AccordToken *token, const char *error, bool refused,
	 int64 retry_after_ms, TimestampTz now)
{
	int64		delay = refused ? REFUSED_BASE : RETRY_BASE;

	token->failures++;
	delay = Min(RETRY_CAP, delay << Min(token->failures - 1, 12));
	delay = delay / 2 + (int64) (pg_prng_double(&pg_global_prng_state) *
								 (delay / 2));
	token->retry_at = now + 1000 * Max(delay, Min(retry_after_ms,
												  RENEW_CAP));
	keep(&token->error, error);
}

void
accord_token_claim(AccordToken *token, char **refresh, TimestampTz now)
{
	TokenRow	row;
	const char *fault;
	AccordSecretKeys *keys;
	char	   *access;

	*refresh = NULL;
	if (token->spec == NULL)
	{
		rest(token);
		return;
	}
	keys = accord_secret_keys(false, &fault);
	if (fault != NULL)
	{
		fail(token, psprintf("what it would be given cannot be sealed: %s",
							 fault), false, 0, now);
		rest(token);
		return;
	}
	claim_row(token, &row);
	access = row.access == NULL ? NULL :
		accord_secret_open(keys, sealed_name(token, "access"), row.access,
						   &fault);
	if (row.refresh != NULL)
		*refresh = accord_secret_open(keys, sealed_name(token, "refresh"),
									  row.refresh, &fault);
	accord_secret_forget(keys);
	if (strcmp(row.verdict, "have") == 0 && access != NULL)
		take_over(token, &row, access);
	else if (strcmp(row.verdict, "elsewhere") == 0)
	{
		token->state = ACCORD_TOKEN_ELSEWHERE;
		token->look_at = now + LOOK_EVERY;
	}
	else if (strcmp(row.verdict, "mine") == 0)
	{
		rest(token);
		token->state = ACCORD_TOKEN_ASKED;
		token->failures = row.failures;
	}
	else
	{
		/* the row holds what no key at hand opens: nobody asks meanwhile */
		token->failures = row.failures;
		token->retry_at = row.retry_at != 0 ? row.retry_at :
			now + 1000 * (int64) RETRY_BASE;
		keep(&token->error, row.error ? row.error : fault);
		rest(token);
	}
	token->force = false;
}

/* Writes the row as the token is; refresh: NULL: as it was. */
static void
store_row(const AccordToken *token, const char *access, const char *refresh)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, INT4OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[9];
	char		nulls[] = "         ";
	AccordDbUser before;

	values[0] = CStringGetTextDatum(token->key);
	values[1] = text_or_null(access, &nulls[1]);
	values[2] = text_or_null(refresh, &nulls[2]);
	values[3] = time_or_null(token->obtained_at, &nulls[3]);
	values[4] = time_or_null(token->expires_at, &nulls[4]);
	values[5] = Int32GetDatum(token->failures);
	values[6] = text_or_null(token->failures > 0 ? token->error : NULL,
							 &nulls[6]);
	values[7] = time_or_null(token->retry_at, &nulls[7]);
	values[8] = time_or_null(token->secrets_at, &nulls[8]);
	before = accord_db_become(accord_db_owner());
	SPI_connect();
	/* secrets that were set meanwhile make it worthless */
	run("UPDATE accord.token SET access_token = coalesce($2, access_token), "
		"refresh_token = coalesce($3, refresh_token), obtained_at = $4, "
		"expires_at = $5, failures = $6, error = $7, retry_at = $8, "
		"claimed_by = NULL, claimed_until = NULL "
		"WHERE key OPERATOR(pg_catalog.=) $1 "
		"AND secrets_at IS NOT DISTINCT FROM $9", 9, types, values, nulls,
		SPI_OK_UPDATE);
	SPI_finish();
	accord_db_be_again(before);
}

/* ----------
 * The request, and what comes of it
 * ----------
 */

/* One more member of a form, or of an object. */
static void
append_member(StringInfo body, bool json, const char *name,
			  const char *value)
{
	if (json)
	{
		appendStringInfoChar(body, body->len == 0 ? '{' : ',');
		escape_json(body, name);
		appendStringInfoChar(body, ':');
		escape_json(body, value);
		return;
	}
	if (body->len > 0)
		appendStringInfoChar(body, '&');
	appendStringInfoString(body, accord_http_encode(name, true));
	appendStringInfoChar(body, '=');
	appendStringInfoString(body, accord_http_encode(value, true));
}

static void
append_parameters(StringInfo body, bool json, Jsonb *parameters)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	if (parameters == NULL || !JB_ROOT_IS_OBJECT(parameters))
		return;
	iterator = JsonbIteratorInit(&parameters->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = accord_json_text(&value);
		else if (token == WJB_VALUE && value.type == jbvString)
			append_member(body, json, name, accord_json_text(&value));
	}
}

/* A secret's value, or why there is none. */
static const char *
secret_value(const AccordToken *token, int place, char **fault)
{
	const AccordAuthSecret *secret = &token->auth->secrets[place];

	if (secret->value == NULL)
		*fault = secret->fault ? pstrdup(secret->fault) :
			psprintf("secret \"%s\" is not stored", secret->name);
	return secret->value ? secret->value : "";
}

/* Members by OAuth 2.0 (RFC 6749, sections 4.4 and 6). */
static void
append_grant(StringInfo body, const AccordToken *token, const char *refresh,
			 const char *secret, char **fault)
{
	const AccordTokenSpec *spec = token->spec;

	if (spec->refresh_secret >= 0)
	{
		append_member(body, false, "grant_type", "refresh_token");
		append_member(body, false, "refresh_token", refresh ? refresh :
					  secret_value(token, spec->refresh_secret, fault));
	}
	else
		append_member(body, false, "grant_type", "client_credentials");
	if (spec->scope != NULL)
		append_member(body, false, "scope", spec->scope);
	/* a public client has nothing but its name */
	if (spec->client_in_body || secret == NULL)
		append_member(body, false, "client_id", spec->client_id);
	if (spec->client_in_body && secret != NULL)
		append_member(body, false, "client_secret", secret);
}

char	   *
accord_token_request(const AccordToken *token, const char *refresh,
					 AccordHttpRequest *request)
{
	const AccordTokenSpec *spec = token->spec;
	StringInfoData body;
	const char *secret = NULL;
	char	   *fault = NULL;

	if (spec == NULL)
		return pstrdup("nobody asks for it any more");
	if (spec->client_secret >= 0)
		secret = secret_value(token, spec->client_secret, &fault);
	initStringInfo(&body);
	if (!spec->login)
		append_grant(&body, token, refresh, secret, &fault);
	append_parameters(&body, spec->json, spec->parameters);
	if (spec->login)
		append_member(&body, spec->json, spec->secret_parameter, secret);
	if (spec->json)
		appendStringInfoChar(&body, '}');
	memset(request, 0, sizeof(*request));
	request->method = "POST";
	request->url = pstrdup(spec->url);
	request->headers = palloc(2 * sizeof(char *));
	request->headers[request->n_headers++] = spec->json ?
		"Content-Type: application/json" :
		"Content-Type: application/x-www-form-urlencoded";
	request->headers[request->n_headers++] = "Accept: application/json";
	request->body = body.data;
	request->body_len = body.len;
	if (!spec->login && secret != NULL && !spec->client_in_body)
	{
		request->auth = ACCORD_HTTP_AUTH_BASIC;
		request->auth_name = accord_http_encode(spec->client_id, true);
		request->auth_secret = accord_http_encode(secret, true);
	}
	accord_http_copy_link(request, spec->tls, spec->proxy);
	request->connect_timeout_ms = CONNECT_TIMEOUT;
	request->timeout_ms = TIMEOUT;
	request->stall_timeout_s = STALL_TIMEOUT;
	request->max_response = MAX_ANSWER;
	return fault;
}

/* The answer as JSON; NULL when it is none. Never raises. */
static Jsonb *
parse_answer(const AccordHttpResponse *response)
{
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *volatile json = NULL;
	char	   *text = accord_json_clean(response->body, response->body_len,
										 response->body_len);

	PG_TRY();
	{
		json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												  CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		FlushErrorState();
	}
	PG_END_TRY();
	return json;
}

/* A value of the answer as text, when it may be sent in a header. */
static char *
answer_text(Jsonb *answer, const char *path)
{
	JsonbValue *value = answer ? accord_json_path(answer, path) : NULL;
	char	   *text = value == NULL || value->type != jbvString ? NULL :
	accord_json_text(value);

	if (text == NULL || text[0] == '\0' || strlen(text) > ACCORD_MAX_SECRET)
		return NULL;
	for (const char *c = text; *c != '\0'; c++)
		if (*c <= ' ' || *c >= 0x7F)
			return NULL;
	return text;
}

/* Seconds that the token lasts; 0: unknown. */
static int64
answer_lifetime(Jsonb *answer, const AccordTokenSpec *spec)
{
	JsonbValue *value = accord_json_path(answer, spec->expires_path);
	char	   *text = value == NULL || value->type == jbvBinary ? NULL :
	accord_json_text(value);
	double		seconds = text ? strtod(text, NULL) : 0;

	if (!(seconds >= 1))
		return spec->lifetime_s;
	return (int64) Min(seconds, 1e9);
}

/*
 * Why there is no token. Of the answer only OAuth's word for it, which is of
 * few letters: the rest might say what was sent.
 */
static char *
describe_failure(const AccordHttpResponse *response, Jsonb *answer)
{
	char	   *word = answer_text(answer, "error");

	if (response->error != NULL)
		return pstrdup(response->error);
	if (word != NULL && strlen(word) <= 40 &&
		strspn(word, "abcdefghijklmnopqrstuvwxyz_") == strlen(word))
		return psprintf("HTTP status %d, %s", response->result.status, word);
	if (response->result.status / 100 == 2)
		return pstrdup("the answer holds no token");
	return psprintf("HTTP status %d", response->result.status);
}

static bool
has_said_no(const AccordHttpResponse *response)
{
	int			status = response->result.status;

	return status == 400 || status == 401 || status == 403;
}

bool
accord_token_store(AccordToken *token, const AccordHttpResponse *response,
				   TimestampTz now)
{
	bool		complete = response->error == NULL && !response->truncated;
	Jsonb	   *answer = complete && response->body_len > 0 ?
	parse_answer(response) : NULL;
	char	   *access = NULL;
	char	   *refresh;
	const char *fault;
	AccordSecretKeys *keys;
	int64		lifetime;

	Assert(token->state == ACCORD_TOKEN_ASKED);
	token->state = ACCORD_TOKEN_IDLE;
	if (token->spec == NULL)
		return false;
	if (complete && response->result.status / 100 == 2)
		access = answer_text(answer, token->spec->token_path);
	if (access == NULL)
	{
		fail(token, describe_failure(response, answer), has_said_no(response),
			 response->result.retry_after_ms, now);
		store_row(token, NULL, NULL);
		return false;
	}
	refresh = token->spec->login ? NULL : answer_text(answer, "refresh_token");
	lifetime = answer_lifetime(answer, token->spec);
	keep(&token->access, access);
	keep(&token->error, NULL);
	token->obtained_at = now;
	token->expires_at = lifetime == 0 ? 0 : now + lifetime * USECS_PER_SEC;
	token->renew_at = renewal_time(token);
	token->spent = false;
	token->failures = 0;
	token->retry_at = 0;
	/* read anew: they could be read when it was asked for */
	keys = accord_secret_keys(false, &fault);
	if (fault != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("a token of \"%s\" cannot be kept: %s",
						token->spec->url, fault),
				 errhint("Mend accord.secret_key_file; it is used until this "
						 "process ends.")));
	else
		store_row(token, seal(keys, token, "access", access),
				  seal(keys, token, "refresh", refresh));
	accord_secret_forget(keys);
	return true;
}
