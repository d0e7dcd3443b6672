/*
 * config_channel.c: channels and accounts as the dispatcher needs them, with
 * the credentials they name.
 *
 * Runs in dispatchers, and in backends that need the configuration, within a
 * read of it (config.c).
 *
 * Invariant: the values of secrets are in memory as they are stored only while
 * the configuration is read; what stays is what a channel or account uses.
 *
 * On failure: a secret that cannot be opened is a fault of those that name it,
 * which their deliveries tell; other errors are the caller's.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "config_private.h"
#include "json.h"

typedef struct AccountKey
{
	AccordChannel *channel;
	uint64		name_hash[2];
} AccountKey;

typedef struct AccountEntry
{
	AccountKey	key;
	AccordAccount *account;
} AccountEntry;

/* Rows of accord.secret, sorted by name, while a configuration is read. */
typedef struct StoredSecret
{
	char	   *name;
	char	   *value;
	TimestampTz set_at;
} StoredSecret;

static const AccordSecretKeys *keys = NULL; /* while a configuration is read */
static const char *keys_fault = NULL;	/* why there are none */
static StoredSecret *stored = NULL;
static int	n_stored = 0;

void
accord_config_load_secrets(const AccordSecretKeys *with, const char *fault,
						   MemoryContext context)
{
	keys = with;
	keys_fault = fault;
	n_stored =
		(int) accord_column_query("SELECT s.name, s.value, s.updated_at "
								  "FROM accord.secret s "
								  "ORDER BY s.name COLLATE pg_catalog.\"C\"",
								  context);
	stored = palloc(Max(n_stored, 1) * sizeof(StoredSecret));
	for (int i = 0; i < n_stored; i++)
	{
		stored[i].name = accord_column_text(i, "name");
		stored[i].value = accord_column_text(i, "value");
		stored[i].set_at = accord_column_int64(i, "updated_at");
	}
}

void
accord_config_forget_secrets(void)
{
	keys = NULL;
	keys_fault = NULL;
	stored = NULL;
	n_stored = 0;
}

static int
compare_stored(const void *name, const void *secret)
{
	return strcmp(name, ((const StoredSecret *) secret)->name);
}

/* Opens the secret an auth names; when it cannot, it says why. */
static void
open_secret(AccordAuthSecret *secret)
{
	StoredSecret *found = n_stored == 0 ? NULL :
	bsearch(secret->name, stored, n_stored, sizeof(StoredSecret),
			compare_stored);

	if (found == NULL)
		return;
	secret->set_at = found->set_at;
	secret->value = accord_secret_open(keys, secret->name, found->value,
									   &secret->fault);
	if (secret->value == NULL && keys_fault != NULL)
		secret->fault = psprintf("secret \"%s\" cannot be opened: %s",
								 secret->name, keys_fault);
}

static void
load_auth(int row, AccordAuth *auth)
{
	accord_auth_load(auth, accord_column_json(row, "auth"), open_secret);
}

/* Where a channel takes an idempotency key, and of what form. */
static void
load_key(AccordChannel *channel, int row)
{
	channel->idempotency_header =
		accord_column_text(row, "idempotency_header");
	channel->idempotency_query = accord_column_text(row, "idempotency_query");
	channel->idempotency_path = accord_column_text(row, "idempotency_path");
	channel->keyed = channel->idempotency_header != NULL ||
		channel->idempotency_query != NULL ||
		channel->idempotency_path != NULL;
	channel->idempotency_window_ms =
		accord_column_ms(row, "idempotency_window");
	channel->idempotency_key = accord_column_text(row, "idempotency_key");
	if (strcmp(channel->idempotency_key, "{event_id}") == 0)
		channel->idempotency_key = NULL;
	channel->idempotency_max_length =
		accord_column_int(row, "idempotency_max_length");
	channel->idempotency_pattern =
		accord_column_text(row, "idempotency_pattern");
	channel->key_checked = channel->idempotency_key != NULL ||
		channel->idempotency_max_length > 0 ||
		channel->idempotency_pattern != NULL;
	if (channel->key_checked)
		(void) accord_keyform_find(channel->idempotency_max_length,
								   channel->idempotency_pattern,
								   &channel->key_form);
}

/* The value of a secret that a member names; NULL: it names none. */
static const char *
link_secret(AccordLink *link, Jsonb *json, const char *member)
{
	AccordAuthSecret secret = {.name = accord_json_member(json, member)};

	if (secret.name == NULL)
		return NULL;
	open_secret(&secret);
	if (secret.value == NULL)
		link->fault = secret.fault ? secret.fault :
			psprintf("secret \"%s\" is not stored", secret.name);
	return secret.value;
}

static void
load_tls(int row, AccordLink *link)
{
	Jsonb	   *json = accord_column_json(row, "tls");

	if (json == NULL)
		return;
	link->tls = palloc0(sizeof(AccordHttpTls));
	link->tls->certificate = link_secret(link, json, "certificate");
	link->tls->key = link_secret(link, json, "key");
	link->tls->ca = link_secret(link, json, "ca");
}

static void
load_proxy(int row, AccordLink *link)
{
	Jsonb	   *json = accord_column_json(row, "proxy");

	if (json == NULL)
		return;
	link->proxy = palloc0(sizeof(AccordHttpProxy));
	link->proxy->url = accord_json_member(json, "url");
	link->proxy->user = accord_json_member(json, "user");
	link->proxy->secret = link_secret(link, json, "secret");
}

/* A token is fetched by the way its channel is reached. */
static void
link_token(AccordAuth *auth, const AccordLink *link)
{
	if (auth->token == NULL)
		return;
	auth->token->tls = link->tls;
	auth->token->proxy = link->proxy;
}

static AccordChannel *
load_channel(int row)
{
	AccordChannel *channel = palloc0(sizeof(AccordChannel));
	bool		isnull;

	channel->name = accord_column_text(row, "name");
	channel->base_url = accord_column_text(row, "base_url");
	channel->enabled = accord_column_bool(row, "enabled");
	load_auth(row, &channel->auth);
	load_tls(row, &channel->link);
	load_proxy(row, &channel->link);
	link_token(&channel->auth, &channel->link);
	channel->headers = accord_column_json(row, "headers");
	channel->ordered = strcmp(accord_column_text(row, "ordering"), "key") == 0;
	channel->max_in_flight = accord_column_int(row, "max_in_flight");
	channel->account_max_in_flight =
		accord_column_int(row, "account_max_in_flight");
	if (channel->account_max_in_flight == 0)
		channel->account_max_in_flight = channel->max_in_flight;
	channel->throttle_channel =
		strcmp(accord_column_text(row, "throttle_scope"), "channel") == 0;
	channel->heed_hints = accord_column_bool(row, "heed_hints");
	channel->breaker.failures = accord_column_int(row, "breaker_failures");
	channel->breaker.ratio = accord_column_real(row, "breaker_ratio");
	channel->breaker.minimum = accord_column_int(row, "breaker_minimum");
	channel->breaker.window_ms = accord_column_ms(row, "breaker_window");
	channel->breaker.cooldown_ms = accord_column_ms(row, "breaker_cooldown");
	channel->breaker.cap_ms = accord_column_ms(row, "breaker_cap");
	channel->connect_timeout_ms =
		(int) accord_column_ms(row, "connect_timeout");
	channel->timeout_ms = (int) accord_column_ms(row, "timeout");
	channel->stall_timeout_s =
		(int) ((accord_column_ms(row, "stall_timeout") + 999) / 1000);
	channel->retry_base_ms = accord_column_ms(row, "retry_base");
	channel->retry_cap_ms = accord_column_ms(row, "retry_cap");
	channel->max_attempts = accord_column_int(row, "max_attempts");
	channel->max_age_ms = accord_column_ms(row, "max_age");
	load_key(channel, row);
	channel->max_response = accord_column_int(row, "max_response");
	(void) accord_column(row, "compress_above", &isnull);
	channel->compress_above = isnull ?
		-1 : accord_column_int(row, "compress_above");
	channel->probe_path = accord_column_text(row, "probe_path");
	return channel;
}

void
accord_config_load_channels(AccordConfig *config)
{
	uint64		n =
	accord_column_query("SELECT t.* FROM accord.channel t ORDER BY t.name",
						config->context);

	config->channels = palloc(Max(n, 1) * sizeof(AccordChannel *));
	for (uint64 i = 0; i < n; i++)
		config->channels[config->n_channels++] = load_channel(i);
}

HTAB	   *
accord_config_create_accounts(MemoryContext context)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AccountKey);
	ctl.entrysize = sizeof(AccountEntry);
	ctl.hcxt = context;
	return hash_create("pg_accord accounts", 256, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
account_key(AccountKey *key, AccordChannel *channel, const char *name)
{
	memset(key, 0, sizeof(*key));
	key->channel = channel;
	/* 128 bits: as good as the name */
	for (int i = 0; i < 2; i++)
		key->name_hash[i] = hash_bytes_extended((const unsigned char *) name,
												strlen(name), i + 1);
}

AccordAccount *
accord_config_account(AccordConfig *config, AccordChannel *channel,
					  const char *name)
{
	AccountKey	key;
	AccountEntry *entry;

	account_key(&key, channel, name);
	entry = hash_search(config->accounts, &key, HASH_FIND, NULL);
	return entry ? entry->account : NULL;
}

void
accord_config_load_accounts(AccordConfig *config)
{
	uint64		n = accord_column_query("SELECT t.* FROM accord.account t "
										"ORDER BY t.channel, t.name",
										config->context);

	for (uint64 i = 0; i < n; i++)
	{
		AccordAccount *account = palloc0(sizeof(AccordAccount));
		AccordChannel *channel =
		accord_config_channel(config, accord_column_text(i, "channel"));
		AccountKey	key;
		AccountEntry *entry;
		bool		isnull;

		if (channel == NULL)
			continue;			/* its foreign key is being cascaded */
		channel->has_accounts = true;
		account->name = accord_column_text(i, "name");
		account->base_url = accord_column_text(i, "base_url");
		account->enabled = accord_column_bool(i, "enabled");
		account->max_in_flight = accord_column_int(i, "max_in_flight");
		account->weight = accord_column_int(i, "weight");
		(void) accord_column(i, "auth", &isnull);
		account->has_auth = !isnull;
		load_auth(i, &account->auth);
		load_tls(i, &account->link);
		account->has_tls = account->link.tls != NULL;
		if (!account->has_tls)
			account->link.tls = channel->link.tls;
		account->link.proxy = channel->link.proxy;
		if (account->link.fault == NULL)
			account->link.fault = channel->link.fault;
		link_token(&account->auth, &account->link);
		account->vars = accord_column_json(i, "vars");
		account_key(&key, channel, account->name);
		entry = hash_search(config->accounts, &key, HASH_ENTER, NULL);
		entry->account = account;
	}
}
