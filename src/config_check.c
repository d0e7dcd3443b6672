/*
 * config_check.c: a row of the configuration is checked when it is given.
 *
 * Runs in whatever backend edits the configuration, as BEFORE ROW triggers of
 * its tables. What passes here can be used by a
 * dispatcher; what would only fail at delivery is refused now, or warned of
 * when it may yet come right (a secret not stored yet, a network not allowed).
 *
 * Invariants: nothing here depends on search_path but the name of a body
 * function, which is stored qualified; so a dump restores as it was.
 *
 * On failure the statement raises and says what to do.
 */
#include "postgres.h"

#include "access/xact.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "auth_check.h"
#include "config.h"
#include "config_check_private.h"
#include "constraint.h"
#include "link_check.h"
#include "secret.h"

PG_FUNCTION_INFO_V1(accord_config_check);

/*
 * Addresses
 */

static void
check_url(AccordRowCheck *check)
{
	char	   *url = accord_check_text(check, "base_url");
	char	   *wrong;
	size_t		len;

	if (url == NULL)
		return;
	wrong = accord_http_check_url(url);
	if (wrong == NULL && strchr(url, '?') != NULL)
		wrong = "it has a query";
	if (wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("base_url \"%s\" of %s cannot be used: %s", url,
						check->table, wrong),
				 errhint("Give an absolute address such as "
						 "\"https://api.example.com/v1\"; credentials go into "
						 "auth, paths and queries into the routes.")));
	if (accord_http_literal_refused(url))
		ereport(WARNING,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("base_url \"%s\" of %s is in a refused network", url,
						check->table),
				 errhint("To allow it, add the network to "
						 "accord.allowed_networks.")));
	len = strlen(url);
	while (len > 0 && url[len - 1] == '/')
		len--;
	accord_check_set(check, "base_url",
					 PointerGetDatum(cstring_to_text_with_len(url,
															  (int) len)));
}

static void
check_auth(AccordRowCheck *check)
{
	Jsonb	   *auth = accord_check_json(check, "auth");
	Jsonb	   *tls = accord_check_json(check, "tls");

	if (auth != NULL)
		accord_auth_check(check->table, auth);
	if (tls != NULL)
		accord_link_check_tls(check->table, tls);
}

/*
 * Bodies and idempotency keys
 */

/* Where in a body the key goes: members of objects. */
static void
check_key_path(AccordRowCheck *check, const char *path)
{
	size_t		len = strlen(path);

	if (path[0] == '.' || path[len - 1] == '.' || strstr(path, "..") != NULL ||
		accord_auth_has_control(path) || strpbrk(path, "$[]*{}") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idempotency_path \"%s\" of %s is not a dotted path",
						path, check->table),
				 errhint("Give names of members separated by dots, such as "
						 "\"idempotency_key\" or \"variables.key\".")));
}

/* A key that does not fit is hashed: there must be a hash that does. */
static void
check_key(AccordRowCheck *check)
{
	char	   *path = accord_check_text(check, "idempotency_path");
	char	   *pattern = accord_check_text(check, "idempotency_pattern");
	bool		isnull;
	Datum		value =
	accord_check_column(check, check->row, "idempotency_max_length",
						&isnull);
	AccordKeyForm form;

	accord_check_template(check->table, "idempotency_key",
						  accord_check_text(check, "idempotency_key"));
	if (path != NULL && path[0] != '\0')
		check_key_path(check, path);
	if (!accord_keyform_find(isnull ? 0 : DatumGetInt32(value), pattern,
							 &form))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no key that is made takes the place of one that "
						"idempotency_pattern \"%s\" of %s refuses",
						pattern ? pattern : "", check->table),
				 errhint("Keys are UUIDs in lower case, or hexadecimal digits "
						 "up to idempotency_max_length: let the pattern match "
						 "one of them.")));
}

/*
 * Tables
 */

static void
check_channel(AccordRowCheck *check)
{
	char	   *header = accord_check_text(check, "idempotency_header");

	if (check->old != NULL && accord_check_changed(check, "name"))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot rename a channel to \"%s\": the logs know it "
						"by its old name", accord_check_text(check, "name")),
				 errhint("INSERT a new channel and point its accounts and "
						 "routes at it.")));
	check_url(check);
	check_auth(check);
	if (accord_check_json(check, "proxy") != NULL)
		accord_link_check_proxy(check->table,
								accord_check_json(check, "proxy"));
	accord_config_check_headers(check->table, "headers",
								accord_check_json(check, "headers"), true);
	if (header != NULL && !accord_auth_is_token(header))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idempotency_header \"%s\" of %s is not the name of a "
						"header", header, check->table),
				 errhint("Use a name such as Idempotency-Key; null when the "
						 "channel honours none.")));
	if (header != NULL)
		accord_check_reserved(check->table, "idempotency_header", header,
							  false);
	check_key(check);
	accord_check_path("accord.channel", "probe_path",
					  accord_check_text(check, "probe_path"));
	if (accord_config_limit_scope(accord_check_text(check, "probe_path")) ==
		ACCORD_LIMIT_EVENT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("probe_path \"%s\" of accord.channel names something "
						"of an event", accord_check_text(check, "probe_path")),
				 errhint("A probe is about none: use account, channel and "
						 "vars.NAME.")));
}

static void
check_account(AccordRowCheck *check)
{
	check_url(check);
	check_auth(check);
}

static void
check_secret_value(const char *name, const char *value)
{
	/* certificates and their keys are not sent in headers */
	if (strncmp(value, "-----BEGIN ", 11) != 0 &&
		accord_auth_has_control(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value of secret \"%s\" holds a line break or control "
						"character", name),
				 errhint("It is sent in a header and must be one line.")));
	if (strlen(value) > ACCORD_MAX_SECRET)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("value of secret \"%s\" is longer than %d bytes", name,
						ACCORD_MAX_SECRET),
				 errhint("Store what is sent as a credential, nothing else.")));
}

/* The keys; raises where they are configured and cannot be read. */
static AccordSecretKeys *
read_secret_keys(const char *name)
{
	const char *fault;
	AccordSecretKeys *keys = accord_secret_keys(true, &fault);

	if (fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("secret \"%s\" cannot be sealed: %s", name, fault),
				 errhint("Mend accord.secret_key_file; nothing is stored in "
						 "plain text while it is set.")));
	return keys;
}

/*
 * The plain value of a given one: as it stands, or opened. NULL when it was
 * sealed by a key that is not at hand, as in a restore elsewhere.
 */
static char *
open_secret(AccordRowCheck *check, const AccordSecretKeys *keys,
			const char *value)
{
	bool		isnull;
	const char *name = accord_check_text(check, "name");
	const char *fault;
	char	   *plain;

	/* a row that only gets another name was sealed for the old one */
	if (check->old != NULL && !accord_check_changed(check, "value"))
		name =
			TextDatumGetCString(accord_check_column(check, check->old, "name",
													&isnull));
	plain = accord_secret_open(keys, name, value, &fault);
	if (plain != NULL)
		return plain;
	ereport(accord_secret_has_key(keys, value) ? ERROR : WARNING,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s", fault),
			 errhint("Put its key into accord.secret_key_file, or give the "
					 "value itself.")));
	return NULL;
}

/*
 * What is stored: sealed by the first key, or as it was given where there are
 * no keys.
 */
static void
check_secret(AccordRowCheck *check)
{
	char	   *name = accord_check_text(check, "name");
	char	   *value = accord_check_text(check, "value");
	AccordSecretKeys *keys = read_secret_keys(name);
	char	   *plain = open_secret(check, keys, value);
	bool		renamed = check->old != NULL &&
	accord_check_changed(check, "name");
	bool		changed = renamed || accord_check_changed(check, "value");

	if (plain != NULL)
	{
		check_secret_value(name, plain);
		if (keys == NULL)
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("secret \"%s\" is stored in plain text", name),
					 errhint("Set accord.secret_key_file, then run SELECT "
							 "accord.reseal().")));
		else if (renamed || !accord_secret_is_current(keys, value))
			accord_check_set(check, "value",
							 CStringGetTextDatum(accord_secret_seal(keys, name,
																	plain)));
		explicit_bzero(plain, strlen(plain));
	}
	accord_secret_forget(keys);
	if (check->old != NULL && changed)
		accord_check_set(check, "updated_at",
						 TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
}

/* The column as it is stored: sealed by the key that seals now. */
static void
seal_column(AccordRowCheck *check, const char *column, const char *name,
			const AccordSecretKeys *keys)
{
	char	   *value = accord_check_text(check, column);
	const char *fault;
	char	   *plain;

	if (value == NULL || keys == NULL || accord_secret_is_current(keys, value))
		return;
	plain = accord_secret_open(keys, name, value, &fault);
	if (plain == NULL)
		return;					/* whoever uses it finds out */
	accord_check_set(check, column,
					 CStringGetTextDatum(accord_secret_seal(keys, name,
															plain)));
	explicit_bzero(plain, strlen(plain));
}

/* Tokens that were fetched are sealed as secrets are: see token.c. */
static void
check_token(AccordRowCheck *check)
{
	char	   *key = accord_check_text(check, "key");
	AccordSecretKeys *keys = read_secret_keys(psprintf("token/%s", key));

	seal_column(check, "access_token", psprintf("token/%s/access", key), keys);
	seal_column(check, "refresh_token", psprintf("token/%s/refresh", key),
				keys);
	accord_secret_forget(keys);
}

static void
check_rate_limit(AccordRowCheck *check)
{
	accord_check_template(check->table, "bucket",
						  accord_check_text(check, "bucket"));
}

/* Header conditions: names, and patterns that are strings. */
static void
check_rule_headers(Jsonb *headers)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		right = JB_ROOT_IS_OBJECT(headers);

	iterator = JsonbIteratorInit(&headers->root);
	while (right &&
		   (token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			right = accord_auth_is_token(pnstrdup(value.val.string.val,
												  value.val.string.len));
		else if (token == WJB_VALUE)
			right = value.type == jbvString;
	}
	if (!right)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers of accord.rule are not names and patterns"),
				 errhint("Write '{\"X-Error-Code\": \"THROTTLED*\"}'; * stands "
						 "for any run of characters.")));
}

static void
check_rule(AccordRowCheck *check)
{
	AccordStatusRange ranges[ACCORD_RULE_RANGES];
	char	   *status = accord_check_text(check, "status");

	if (status != NULL && accord_rule_status(status, ranges) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("status \"%s\" of accord.rule is not a list of "
						"statuses", status),
				 errhint("Write 409, 4xx, 200-299, or at most %d of them with "
						 "commas between; null for any.",
						 ACCORD_RULE_RANGES)));
	check_rule_headers(accord_check_json(check, "headers"));
}

static const struct
{
	const char *table;
	void		(*run) (AccordRowCheck *check);
}			checks[] = {

	{"channel", check_channel},
	{"account", check_account},
	{"route", accord_check_route},
	{"secret", check_secret},
	{"token", check_token},
	{"rate_limit", check_rate_limit},
	{"rule", check_rule}
};

/*
 * The statement holds a secret: it is taken out of sight of others, and of the
 * server's log, which shows whole what fails.
 */
static void
hide_statement(void)
{
	static const char hidden[] = "<a statement that sets accord.secret>";

	pgstat_report_activity(STATE_RUNNING, hidden);
	if (debug_query_string != NULL)
		debug_query_string = hidden;
}


Datum
accord_config_check(PG_FUNCTION_ARGS)
{
	AccordRowCheck check = {.trigger = (TriggerData *) fcinfo->context};
	TriggerData *trigger = check.trigger;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "accord.config_check() was not called by a trigger");
	check.rel = trigger->tg_relation;
	check.desc = RelationGetDescr(check.rel);
	check.table = psprintf("accord.%s", RelationGetRelationName(check.rel));
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		check.old = trigger->tg_trigtuple;
		check.row = trigger->tg_newtuple;
	}
	else
		check.row = trigger->tg_trigtuple;

	if (strcmp(RelationGetRelationName(check.rel), "secret") == 0)
		hide_statement();
	/* from here on no column is null that must not be */
	accord_constraint_check(check.rel, check.row);
	for (int i = 0; i < lengthof(checks); i++)
		if (strcmp(RelationGetRelationName(check.rel), checks[i].table) == 0)
			checks[i].run(&check);
	return PointerGetDatum(check.row);
}
