/*
 * auth_check.c: an auth column is checked when it is given.
 *
 * Runs in whatever backend edits a channel or an account. Which members a type
 * has, and of which kind each is, says the table in auth.c; each kind has one
 * check here.
 *
 * Invariants: what is refused is named with its member; a value is shown only
 * where it cannot be a secret: of a member that names one, the name is.
 *
 * On failure the statement raises, with a hint that lists what the type takes.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "auth.h"
#include "auth_check.h"
#include "compat.h"
#include "db.h"
#include "json.h"

/* What is being checked. */
typedef struct AuthCheck
{
	const char *table;
	Jsonb	   *auth;
	const AccordAuthKind *kind;
} AuthCheck;

/* What people put into auth that everybody could read there. */
static const char *const misplaced[] = {
	"password", "token", "value", "api_key", "client_secret", "secret_key",
	"access_token"
};

bool
accord_auth_is_token(const char *text)
{
	if (text[0] == '\0')
		return false;
	for (const char *p = text; *p != '\0'; p++)
		if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			  (*p >= '0' && *p <= '9') ||
			  strchr("!#$%&'*+-.^_`|~", *p) != NULL))
			return false;
	return true;
}

bool
accord_auth_has_control(const char *text)
{
	for (const unsigned char *p = (const unsigned char *) text; *p; p++)
		if (*p < ' ' || *p == 0x7F)
			return true;
	return false;
}

/* "type, user, secret": what a type takes, what is optional in brackets. */
static char *
list_members(const AccordAuthKind *kind)
{
	StringInfoData list;

	initStringInfo(&list);
	appendStringInfoString(&list, "type");
	for (int i = 0; i < ACCORD_AUTH_MEMBERS && kind->members[i].name; i++)
		appendStringInfo(&list, kind->members[i].optional ? ", [%s]" : ", %s",
						 kind->members[i].name);
	return list.data;
}

/* "a", "b" or "c" */
static char *
list_words(const AccordAuthMember *member)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < lengthof(member->words) && member->words[i]; i++)
		appendStringInfo(&list, "%s\"%s\"", i > 0 ? ", " : "",
						 member->words[i]);
	return list.data;
}

pg_noreturn static void refuse(const AuthCheck *check,
							   const AccordAuthMember *member,
							   const char *what, const char *hint);
pg_noreturn static void refuse_missing(const AuthCheck *check,
									   const AccordAuthMember *member);

static void
refuse(const AuthCheck *check, const AccordAuthMember *member,
	   const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" in auth of %s %s", member->name, check->table,
					what),
			 errhint("%s", hint)));
}

/* A member that is not there, or not a string where it must be one. */
static void
refuse_missing(const AuthCheck *check, const AccordAuthMember *member)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("auth of %s with type \"%s\" needs a \"%s\"", check->table,
					check->kind->word, member->name),
			 errhint("Type \"%s\" takes: %s.", check->kind->word,
					 list_members(check->kind))));
}

/* Members nobody has asked for, and those that do not belong here. */
static void
check_member_name(const AuthCheck *check, const char *name)
{
	if (strcmp(name, "type") == 0)
		return;
	for (int i = 0; i < ACCORD_AUTH_MEMBERS && check->kind->members[i].name;
		 i++)
		if (strcmp(check->kind->members[i].name, name) == 0)
			return;
	for (int i = 0; i < lengthof(misplaced); i++)
		if (strcmp(name, misplaced[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("auth of %s holds a \"%s\", which everybody could "
							"read", check->table, name),
					 errhint("INSERT it INTO accord.secret (name, value) and "
							 "give that name as \"secret\".")));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("auth of %s has an option \"%s\" that type \"%s\" does "
					"not know", check->table, name, check->kind->word),
			 errhint("Type \"%s\" takes: %s.", check->kind->word,
					 list_members(check->kind))));
}

static void
refuse_reserved(const AuthCheck *check, const char *name)
{
	if (accord_http_header_reserved(name, strlen(name), true))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("header \"%s\" in auth of %s is reserved", name,
						check->table),
				 errhint("Use another header; credentials go into auth.")));
}

/* Warns when a named secret is not stored: it may be later. */
void
accord_auth_check_stored(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	Oid			user;
	int			context;
	bool		stored;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(accord_db_owner(),
						   context | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();
	if (SPI_execute_with_args("SELECT FROM accord.secret WHERE name "
							  "OPERATOR(pg_catalog.=) $1", 1, types, values,
							  NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read accord.secret");
	stored = SPI_processed > 0;
	SPI_finish();
	SetUserIdAndSecContext(user, context);
	if (!stored)
		ereport(WARNING,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" is not stored yet", name),
				 errhint("INSERT INTO accord.secret (name, value) before "
						 "events are sent.")));
}

static void
check_secrets(const AuthCheck *check, const AccordAuthMember *member)
{
	JsonbValue *list = accord_json_path(check->auth, member->name);
	JsonbContainer *container;

	if (list == NULL)
		refuse_missing(check, member);
	container = list->type == jbvBinary ? list->val.binary.data : NULL;
	if (container == NULL || !JsonContainerIsArray(container) ||
		JsonContainerSize(container) < 1 ||
		JsonContainerSize(container) > ACCORD_SIGN_SECRETS)
		refuse(check, member, "is not an array of one to four names",
			   "Give the names of rows of accord.secret; all of them sign, "
			   "while one replaces another.");
	for (uint32 i = 0; i < JsonContainerSize(container); i++)
	{
		JsonbValue *name = getIthJsonbValueFromContainer(container, i);

		if (name->type != jbvString || name->val.string.len == 0)
			refuse(check, member, "holds what is not the name of a secret",
				   "Give the names of rows of accord.secret.");
		accord_auth_check_stored(accord_json_text(name));
	}
}

static void
check_template(const AuthCheck *check, const AccordAuthMember *member,
			   const char *template, bool signature)
{
	char	   *wrong = accord_sign_check(template, signature);

	if (wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" in auth of %s names \"%s\", which no request "
						"has", member->name, check->table, wrong),
				 errhint("Use method, url, host, path, query, target, body, "
						 "body_sha256, timestamp, nonce, id, user or "
						 "header.NAME%s.", signature ? ", and signature" :
						 "")));
}

/* Headers of a signature: an object of templates, one with the signature. */
static void
check_templates(const AuthCheck *check, const AccordAuthMember *member)
{
	JsonbValue *object = accord_json_path(check->auth, member->name);
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		has_signature = false;

	if (object == NULL)
		refuse_missing(check, member);
	if (object->type != jbvBinary ||
		!JsonContainerIsObject(object->val.binary.data) ||
		JsonContainerSize(object->val.binary.data) > ACCORD_SIGN_LINES)
		refuse(check, member, "is not an object of at most eight headers",
			   "Write {\"X-Signature\": \"sha256={signature}\"}.");
	iterator = JsonbIteratorInit(object->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		char	   *text = token == WJB_KEY || token == WJB_VALUE ?
		accord_json_text(&value) : NULL;

		if (token == WJB_KEY && !accord_auth_is_token(text))
			refuse(check, member, "has a name that no header can have",
				   "Use letters, digits and dashes.");
		if (token == WJB_KEY)
			refuse_reserved(check, text);
		if (token != WJB_VALUE)
			continue;
		if (value.type != jbvString || accord_auth_has_control(text))
			refuse(check, member, "has a value that is not a line of text",
				   "Give a string without line breaks.");
		check_template(check, member, text, true);
		has_signature |= accord_sign_has_signature(text);
	}
	if (!has_signature)
		refuse(check, member, "names {signature} nowhere",
			   "Write {\"X-Signature\": \"sha256={signature}\"}.");
}

static void
check_word(const AuthCheck *check, const AccordAuthMember *member,
		   const char *word)
{
	for (int i = 0; i < lengthof(member->words) && member->words[i]; i++)
		if (strcmp(word, member->words[i]) == 0)
			return;
	refuse(check, member, psprintf("is \"%s\", which is not known", word),
		   psprintf("Use %s.", list_words(member)));
}

static void
check_url(const AuthCheck *check, const AccordAuthMember *member,
		  const char *url)
{
	char	   *wrong = accord_http_check_url(url);

	if (wrong != NULL)
		refuse(check, member, psprintf("cannot be used: %s", wrong),
			   "Give an absolute address such as "
			   "\"https://auth.example.com/token\".");
	if (accord_http_literal_refused(url))
		ereport(WARNING,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" in auth of %s is in a refused network",
						member->name, check->table),
				 errhint("To allow it, add the network to "
						 "accord.allowed_networks.")));
}

/* An object of strings. */
static void
check_object(const AuthCheck *check, const AccordAuthMember *member)
{
	JsonbValue *object = accord_json_path(check->auth, member->name);
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (object->type != jbvBinary ||
		!JsonContainerIsObject(object->val.binary.data))
		refuse(check, member, "is not an object",
			   "Write {\"audience\": \"https://api.example.com\"}.");
	iterator = JsonbIteratorInit(object->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_VALUE && value.type != jbvString)
			refuse(check, member, "has a value that is not a string",
				   "Give strings.");
		if (token == WJB_KEY &&
			(pg_strncasecmp(value.val.string.val, "password", 8) == 0 ||
			 pg_strncasecmp(value.val.string.val, "client_secret", 13) == 0))
			refuse(check, member, "holds a secret, which everybody could read",
				   "INSERT it INTO accord.secret (name, value) and give that "
				   "name as \"secret\".");
	}
}

static void
check_seconds(const AuthCheck *check, const AccordAuthMember *member)
{
	JsonbValue *value = accord_json_path(check->auth, member->name);
	char	   *text = value->type == jbvNumeric ? accord_json_text(value) : "";
	size_t		len = strlen(text);

	if (len < 1 || len > 8 || strspn(text, "0123456789") != len)
		refuse(check, member, "is not a number of seconds",
			   "Give a whole number, such as 3600.");
}

static void
check_path(const AuthCheck *check, const AccordAuthMember *member,
		   const char *path)
{
	size_t		len = strlen(path);

	if (len == 0 || path[0] == '.' || path[len - 1] == '.' || strstr(path, "..") != NULL ||
		strpbrk(path, "$[]*") != NULL)
		refuse(check, member, psprintf("is \"%s\", which is not a dotted path",
									   path),
			   "Give names separated by dots, such as \"data.token\".");
}

/* Members whose value is a string. */
static void
check_string(const AuthCheck *check, const AccordAuthMember *member)
{
	char	   *value = accord_json_member(check->auth, member->name);

	/* what is signed may have line breaks in it */
	if (value == NULL || (value[0] == '\0' && !member->optional) ||
		(member->value != ACCORD_AUTH_TEMPLATE &&
		 accord_auth_has_control(value)) ||
		(member->value == ACCORD_AUTH_HEADER_NAME &&
		 !accord_auth_is_token(value)))
		refuse_missing(check, member);
	switch (member->value)
	{
		case ACCORD_AUTH_USER:
			if (strchr(value, ':') != NULL)
				refuse(check, member, "holds a colon",
					   "INSERT the password INTO accord.secret (name, value) "
					   "and give that name as \"secret\".");
			break;
		case ACCORD_AUTH_HEADER_NAME:
			refuse_reserved(check, value);
			break;
		case ACCORD_AUTH_SECRET:
			accord_auth_check_stored(value);
			break;
		case ACCORD_AUTH_TEMPLATE:
			check_template(check, member, value, false);
			break;
		case ACCORD_AUTH_WORD:
			check_word(check, member, value);
			break;
		case ACCORD_AUTH_URL:
			check_url(check, member, value);
			break;
		case ACCORD_AUTH_PATH:
			check_path(check, member, value);
			break;
		default:
			break;
	}
}

static void
check_member(const AuthCheck *check, const AccordAuthMember *member)
{
	if (member->optional &&
		accord_json_path(check->auth, member->name) == NULL)
		return;
	switch (member->value)
	{
		case ACCORD_AUTH_SECRETS:
			check_secrets(check, member);
			break;
		case ACCORD_AUTH_TEMPLATES:
			check_templates(check, member);
			break;
		case ACCORD_AUTH_OBJECT:
			check_object(check, member);
			break;
		case ACCORD_AUTH_SECONDS:
			check_seconds(check, member);
			break;
		default:
			check_string(check, member);
	}
}

/* What a single member cannot tell. */
static void
check_together(const AuthCheck *check)
{
	char	   *name = accord_json_member(check->auth, "name");

	if (check->kind->type == ACCORD_AUTH_QUERY &&
		name[strspn(name, ACCORD_HTTP_UNRESERVED)] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"name\" in auth of %s is \"%s\", which is not the name "
						"of a parameter", check->table, name),
				 errhint("Use letters, digits and any of -._~.")));
	if (check->kind->type == ACCORD_AUTH_OAUTH2 &&
		accord_json_path(check->auth, "secret") == NULL &&
		accord_json_path(check->auth, "refresh_token") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("auth of %s with type \"oauth2\" needs a \"secret\", or "
						"a \"refresh_token\"", check->table),
				 errhint("With a secret alone the grant is "
						 "client_credentials; with a refresh_token it is "
						 "that.")));
}

void
accord_auth_check(const char *table, Jsonb *auth)
{
	AuthCheck	check = {table, auth, NULL};
	char	   *word = accord_json_member(auth, "type");
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	check.kind = word ? accord_auth_kind(word) : NULL;
	if (check.kind == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 word ? errmsg("auth of %s has type \"%s\", which is not known",
							   table, word) :
				 errmsg("auth of %s has no type", table),
				 errhint("Use {\"type\": TYPE}, where TYPE is one of %s.",
						 accord_auth_words())));
	iterator = JsonbIteratorInit(&auth->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		if (token == WJB_KEY)
			check_member_name(&check, pnstrdup(value.val.string.val,
											   value.val.string.len));
	for (int i = 0; i < ACCORD_AUTH_MEMBERS && check.kind->members[i].name;
		 i++)
		check_member(&check, &check.kind->members[i]);
	check_together(&check);
}
