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

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "parser/parse_func.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "auth_check.h"
#include "compat.h"
#include "config.h"
#include "constraint.h"
#include "db.h"
#include "json.h"
#include "link_check.h"
#include "secret.h"
#include "template.h"

/* The row being checked, and what is changed in it on the way. */
typedef struct RowCheck
{
	TriggerData *trigger;
	Relation	rel;
	TupleDesc	desc;
	HeapTuple	old;			/* NULL: an INSERT */
	HeapTuple	row;
	const char *table;
} RowCheck;

/* What a template may name; those with true may be followed by a path. */
static const struct
{
	const char *name;
	bool		document;
}			variables[] = {
	{"key", false}, {"topic", false}, {"op", false}, {"account", false},
	{"channel", false}, {"event_id", false}, {"source", false},
	{"payload", true}, {"before", true}, {"headers", true}, {"vars", true}
};

#define MAX_HEADERS 60			/* of a channel, a route, an event */

#define VARIABLES_HINT \
	"Use key, topic, op, account, channel, event_id, source, payload.NAME, " \
	"before.NAME, headers.NAME or vars.NAME (of the account)."

PG_FUNCTION_INFO_V1(accord_config_check);

static Datum
get_column(RowCheck *check, HeapTuple row, const char *name, bool *isnull)
{
	return heap_getattr(row, SPI_fnumber(check->desc, name), check->desc,
						isnull);
}

static char *
get_text(RowCheck *check, const char *name)
{
	bool		isnull;
	Datum		value = get_column(check, check->row, name, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static Jsonb *
get_json(RowCheck *check, const char *name)
{
	bool		isnull;
	Datum		value = get_column(check, check->row, name, &isnull);

	return isnull ? NULL : DatumGetJsonbP(value);
}

static void
set_column(RowCheck *check, const char *name, Datum value)
{
	int			number = SPI_fnumber(check->desc, name);
	bool		isnull = false;

	check->row = heap_modify_tuple_by_cols(check->row, check->desc, 1, &number,
										   &value, &isnull);
}

/* Whether a column has another value than before; true for an INSERT. */
static bool
column_changed(RowCheck *check, const char *name)
{
	bool		isnull;
	bool		old_null;
	Datum		value = get_column(check, check->row, name, &isnull);
	Datum		old;

	if (check->old == NULL)
		return true;
	old = get_column(check, check->old, name, &old_null);
	if (isnull || old_null)
		return isnull != old_null;
	return strcmp(TextDatumGetCString(value), TextDatumGetCString(old)) != 0;
}

/*
 * Addresses
 */

static void
check_url(RowCheck *check)
{
	char	   *url = get_text(check, "base_url");
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
	set_column(check, "base_url",
			   PointerGetDatum(cstring_to_text_with_len(url, (int) len)));
}

/*
 * Templates and headers
 */

static bool
is_variable(const char *name)
{
	for (int i = 0; i < lengthof(variables); i++)
	{
		size_t		len = strlen(variables[i].name);

		if (strncmp(name, variables[i].name, len) == 0 &&
			(name[len] == '\0' ||
			 (name[len] == '.' && variables[i].document)))
			return true;
	}
	return false;
}

/* Templates that are expanded when a request is made may name more. */
static bool
is_remote_variable(const char *column, const char *name)
{
	if (strcmp(column, "poll") == 0 && strncmp(name, "answer", 6) == 0)
		return true;
	return (strcmp(column, "path") == 0 || strcmp(column, "headers") == 0 ||
			strcmp(column, "lookup") == 0 || strcmp(column, "poll") == 0) &&
		(strncmp(name, "remote.", 7) == 0 || strncmp(name, "needs.", 6) == 0);
}

static void
check_template(const char *relation, const char *column, const char *template)
{
	char	   *wrong = accord_template_check(template);
	const char *rest = template;
	char	   *name;

	if (wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" of %s is not a URI template: %s", column,
						template, relation, wrong),
				 errhint("Write variables as in RFC 6570, such as "
						 "\"/listings/{key}/rates/{payload.date}\".")));
	while ((name = accord_template_next_variable(&rest)) != NULL)
		if (!is_variable(name) && !is_remote_variable(column, name))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s \"%s\" of %s names \"%s\", which no event has",
							column, template, relation, name),
					 errhint(VARIABLES_HINT)));
}

/* Headers that are made by us, or would change the meaning of the rest. */
static void
refuse_reserved(const char *relation, const char *column, const char *name,
				bool credential)
{
	if (accord_http_header_reserved(name, strlen(name), credential))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("header \"%s\" in %s of %s is reserved", name, column,
						relation),
				 errhint("Use another header; credentials go into auth.")));
}

static void
check_header(const char *relation, const char *column, const char *name,
			 const char *value, bool templates)
{
	if (!accord_auth_is_token(name))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" in %s of %s is not the name of a header",
						name, column, relation),
				 errhint("Use letters, digits and dashes.")));
	refuse_reserved(relation, column, name, false);
	if (value == NULL || accord_auth_has_control(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header \"%s\" in %s of %s is not a line of text",
						name, column, relation),
				 errhint("Give a string without line breaks.")));
	if (templates)
		check_template(relation, column, value);
}

void
accord_config_check_headers(const char *relation, const char *column,
							Jsonb *headers, bool templates)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of %s is not an object", column, relation),
				 errhint("Write '{\"Name\": \"value\"}'.")));
	if (JB_ROOT_COUNT(headers) > MAX_HEADERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of %s has more than %d headers", column, relation,
						MAX_HEADERS),
				 errhint("Put what is more into the body.")));
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
			check_header(relation, column, name,
						 value.type == jbvString ?
						 pnstrdup(value.val.string.val,
								  value.val.string.len) : NULL, templates);
	}
}

static void
check_auth(RowCheck *check)
{
	Jsonb	   *auth = get_json(check, "auth");
	Jsonb	   *tls = get_json(check, "tls");

	if (auth != NULL)
		accord_auth_check(check->table, auth);
	if (tls != NULL)
		accord_link_check_tls(check->table, tls);
}

static void
check_path(const char *relation, const char *column, const char *path)
{
	check_template(relation, column, path);
	if (path[0] != '\0' && path[0] != '/' && path[0] != '?' &&
		strncmp(path, "{/", 2) != 0 && strncmp(path, "{?", 2) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" of %s does not begin with \"/\"", column,
						path, relation),
				 errhint("It is appended to the channel's base_url.")));
	if (accord_auth_has_control(path) || strpbrk(path, " #\\") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" of %s holds a character that a URL cannot",
						column, path, relation),
				 errhint("Percent-encode it.")));
}

static void
check_content_type(const char *type)
{
	const char *slash = strchr(type, '/');

	if (slash == NULL || slash == type || slash[1] == '\0' ||
		accord_auth_has_control(type))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("content_type \"%s\" of accord.route is not a media "
						"type", type),
				 errhint("Write it as in \"application/json\".")));
}

/*
 * Bodies and idempotency keys
 */

/* Where in a body the key goes: members of objects. */
static void
check_key_path(RowCheck *check, const char *path)
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
check_key(RowCheck *check)
{
	char	   *path = get_text(check, "idempotency_path");
	char	   *pattern = get_text(check, "idempotency_pattern");
	bool		isnull;
	Datum		value = get_column(check, check->row, "idempotency_max_length",
								   &isnull);
	AccordKeyForm form;

	check_template(check->table, "idempotency_key",
				   get_text(check, "idempotency_key"));
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

/* What a route's body is made of, and what it is called. */
static void
check_body(RowCheck *check)
{
	char	   *from = get_text(check, "body_from");
	char	   *root = get_text(check, "body_root");
	char	   *type = get_text(check, "content_type");

	if (!is_variable(from) || strpbrk(from, "*:,{}") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("body_from \"%s\" of %s is not something that an "
						"event has", from, check->table),
				 errhint(VARIABLES_HINT)));
	if (root != NULL && !accord_encode_xml_name(root))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("body_root \"%s\" of %s is not the name of an XML "
						"element", root, check->table),
				 errhint("Use letters, digits, \"_\", \"-\", \".\" and one "
						 "\":\" after a prefix.")));
	if (type != NULL)
		check_content_type(type);
}

/*
 * Tables
 */

static void
check_channel(RowCheck *check)
{
	char	   *header = get_text(check, "idempotency_header");

	if (check->old != NULL && column_changed(check, "name"))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot rename a channel to \"%s\": the logs know it "
						"by its old name", get_text(check, "name")),
				 errhint("INSERT a new channel and point its accounts and "
						 "routes at it.")));
	check_url(check);
	check_auth(check);
	if (get_json(check, "proxy") != NULL)
		accord_link_check_proxy(check->table, get_json(check, "proxy"));
	accord_config_check_headers(check->table, "headers",
								get_json(check, "headers"), true);
	if (header != NULL && !accord_auth_is_token(header))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idempotency_header \"%s\" of %s is not the name of a "
						"header", header, check->table),
				 errhint("Use a name such as Idempotency-Key; null when the "
						 "channel honours none.")));
	if (header != NULL)
		refuse_reserved(check->table, "idempotency_header", header, false);
	check_key(check);
	check_path("accord.channel", "probe_path",
			   get_text(check, "probe_path"));
	if (accord_config_limit_scope(get_text(check, "probe_path")) ==
		ACCORD_LIMIT_EVENT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("probe_path \"%s\" of accord.channel names something "
						"of an event", get_text(check, "probe_path")),
				 errhint("A probe is about none: use account, channel and "
						 "vars.NAME.")));
}

static void
check_account(RowCheck *check)
{
	check_url(check);
	check_auth(check);
}

static void
check_topic(const char *topic)
{
	if (strlen(topic) > ACCORD_MAX_TOPIC || accord_auth_has_control(topic) ||
		strchr(topic, ' ') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("topic \"%s\" of accord.route is not a pattern",
						topic),
				 errhint("Write a topic such as \"rate.changed\", with * for "
						 "any run of characters.")));
	if (accord_config_topic_reserved(topic) &&
		strcmp(topic, ACCORD_TOPIC_SEAL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("topic \"%s\" of accord.route is reserved", topic),
				 errhint("Of the topics that begin with \"accord.\" only "
						 "\"%s\" is sent.", ACCORD_TOPIC_SEAL)));
}

static void
check_ops(RowCheck *check)
{
	bool		isnull;
	Datum		value = get_column(check, check->row, "ops", &isnull);
	Datum	   *words;
	bool	   *nulls;
	int			n;

	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
					  TYPALIGN_INT, &words, &nulls, &n);
	for (int i = 0; i < n; i++)
		if (nulls[i] || accord_config_op(TextDatumGetCString(words[i])) < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("ops of accord.route holds \"%s\", which is not an "
							"op", nulls[i] ? "null" :
							TextDatumGetCString(words[i])),
					 errhint("Use insert, update, delete, truncate and "
							 "event; null for all.")));
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ops of accord.route is empty: it would match no "
						"event"),
				 errhint("Leave it null for all ops, or disable the route.")));
}

/* The route's owner: who its body function runs as. */
static Oid
check_owner(RowCheck *check)
{
	char	   *owner = get_text(check, "owner");
	char	   *user = GetUserNameFromId(GetUserId(), false);
	Oid			role;

	if (!superuser())
	{
		/* what another role's function may do is not theirs to change */
		if (check->old == NULL || column_changed(check, "body_function") ||
			column_changed(check, "batch_function") ||
			column_changed(check, "owner"))
			set_column(check, "owner", CStringGetTextDatum(user));
		return GetUserId();
	}
	role = get_role_oid(owner, true);
	if (!OidIsValid(role))
		ereport(WARNING,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\", owner of a route, does not exist",
						owner),
				 errhint("UPDATE accord.route SET owner to an existing "
						 "role.")));
	return role;
}

/* Stores a function's name qualified, so that it always means the same. */
static void
check_function(RowCheck *check, const char *column, bool batch, Oid owner)
{
	char	   *name = get_text(check, column);
	Oid			function;

	if (name == NULL)
		return;
	function = batch ? accord_config_batch_function(name) :
		accord_config_body_function(name);
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("%s \"%s\" of accord.route does not exist with the "
						"right signature", column, name),
				 errhint("It must be FUNCTION %s(accord.event_log%s) RETURNS "
						 "accord.http_request.", name, batch ? "[]" : "")));
	if (OidIsValid(owner) && !accord_function_executable(function, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", name),
				 errhint("GRANT EXECUTE on it to the route's owner.")));
	if (OidIsValid(owner) && !accord_config_may_run(function, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s %s would run as superuser \"%s\", but its owner is "
						"none", column, name,
						GetUserNameFromId(owner, false)),
				 errhint("Give the application's role as the route's owner, "
						 "or make the function a superuser's.")));
	name = quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
									  get_func_name(function));
	set_column(check, column, CStringGetTextDatum(name));
}

/* A dotted path into an answer. */
static void
check_answer_path(RowCheck *check, const char *column)
{
	char	   *path = get_text(check, column);
	size_t		len = path == NULL ? 0 : strlen(path);

	if (len == 0)
		return;
	if (path[0] == '.' || path[len - 1] == '.' || strstr(path, "..") != NULL ||
		strpbrk(path, "$[]*") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" of %s is not a dotted path", column, path,
						check->table),
				 errhint("Give names separated by dots, such as "
						 "\"result.items\"; a number is a place in an array, "
						 "and an empty path the whole.")));
}

/* What only a route that makes batches can have. */
static void
check_batch(RowCheck *check)
{
	char	   *group = get_text(check, "batch_group");
	bool		isnull;
	int			size = DatumGetInt32(get_column(check, check->row,
												"batch_size", &isnull));

	if (group != NULL)
		check_template(check->table, "batch_group", group);
	check_template(check->table, "batch_id", get_text(check, "batch_id"));
	check_answer_path(check, "batch_items");
	check_answer_path(check, "batch_item_id");
	check_answer_path(check, "batch_item_status");
	check_answer_path(check, "batch_item_error");
	if (size > 1 && get_text(check, "body_function") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a route of accord.route with batch_size %d cannot have "
						"a body_function", size),
				 errhint("Give a batch_function: it takes all the events of a "
						 "batch.")));
	if (size == 1 && get_text(check, "batch_function") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a route of accord.route with batch_size 1 cannot have "
						"a batch_function"),
				 errhint("Give a body_function, or a larger batch_size.")));
}

/* What only a route in state mode, and one that coalesces, can have. */
static void
check_coalesce(RowCheck *check)
{
	char	   *coalesce = get_text(check, "coalesce");
	bool		command = strcmp(get_text(check, "mode"), "command") == 0;
	bool		isnull;

	if (coalesce != NULL && coalesce[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("coalesce of accord.route is empty: all events would "
						"be one"),
				 errhint("Give a template such as \"{key}\", or null: every "
						 "event is sent.")));
	if (coalesce != NULL)
		check_template(check->table, "coalesce", coalesce);
	(void) get_column(check, check->row, "quiet", &isnull);
	if (!isnull && (command || coalesce == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a route of accord.route that does not coalesce "
						"cannot have a quiet period"),
				 errhint("Set mode to state and coalesce to a template, or "
						 "quiet to null.")));
	if (command && DatumGetBool(get_column(check, check->row,
										   "skip_unchanged", &isnull)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a route of accord.route in command mode cannot skip "
						"what is unchanged"),
				 errhint("Every command counts: set skip_unchanged to false, "
						 "or mode to state.")));
}

/* The strings of a request's body are templates, at whatever depth. */
static void
check_body_templates(const char *column, Jsonb *body)
{
	JsonbIterator *iterator = JsonbIteratorInit(&body->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
		if ((token == WJB_VALUE || token == WJB_ELEM) &&
			value.type == jbvString)
			check_template("accord.route", column,
						   pnstrdup(value.val.string.val,
									value.val.string.len));
}

/* What the channel calls things, and how it is asked about them. */
static void
check_remote(RowCheck *check)
{
	Jsonb	   *needs = get_json(check, "needs");
	Jsonb	   *lookup = get_json(check, "lookup");
	Jsonb	   *poll = get_json(check, "poll");
	static const char *const mines[] = {"remote_id", "remote_version",
	"remote_etag"};

	if (get_text(check, "remote_key") != NULL)
		check_template(check->table, "remote_key",
					   get_text(check, "remote_key"));
	for (int i = 0; i < lengthof(mines); i++)
		(void) accord_config_mine(mines[i], get_text(check, mines[i]));
	if (needs != NULL)
	{
		int			n;
		AccordNeed *need = accord_config_needs(needs, &n);

		for (int i = 0; i < n; i++)
			check_template(check->table, "needs", need[i].key);
	}
	if (lookup != NULL)
	{
		AccordLookup *question = accord_config_lookup(lookup);

		check_path(check->table, "lookup", question->path);
		if (question->body != NULL)
			check_body_templates("lookup", question->body);
	}
	if (poll != NULL)
	{
		AccordPoll *question = accord_config_poll(poll);

		if (question->path != NULL)
			check_path(check->table, "poll", question->path);
	}
}

static void
check_route(RowCheck *check)
{
	char	   *method = get_text(check, "method");
	Oid			owner = check_owner(check);

	check_topic(get_text(check, "topic"));
	check_ops(check);
	if (strcmp(method, "CONNECT") == 0 || strcmp(method, "TRACE") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("method %s of accord.route cannot be used", method),
				 errhint("Use POST, PUT, PATCH, DELETE or GET.")));
	check_path("accord.route", "path", get_text(check, "path"));
	check_remote(check);
	accord_config_check_headers(check->table, "headers",
								get_json(check, "headers"), true);
	check_body(check);
	check_coalesce(check);
	/* whoever disables a route need not be allowed to run its function */
	if (check->old == NULL || column_changed(check, "body_function") ||
		column_changed(check, "owner"))
		check_function(check, "body_function", false, owner);
	if (check->old == NULL || column_changed(check, "batch_function") ||
		column_changed(check, "owner"))
		check_function(check, "batch_function", true, owner);
	check_batch(check);
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
open_secret(RowCheck *check, const AccordSecretKeys *keys, const char *value)
{
	bool		isnull;
	const char *name = get_text(check, "name");
	const char *fault;
	char	   *plain;

	/* a row that only gets another name was sealed for the old one */
	if (check->old != NULL && !column_changed(check, "value"))
		name = TextDatumGetCString(get_column(check, check->old, "name",
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
check_secret(RowCheck *check)
{
	char	   *name = get_text(check, "name");
	char	   *value = get_text(check, "value");
	AccordSecretKeys *keys = read_secret_keys(name);
	char	   *plain = open_secret(check, keys, value);
	bool		renamed = check->old != NULL && column_changed(check, "name");
	bool		changed = renamed || column_changed(check, "value");

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
			set_column(check, "value",
					   CStringGetTextDatum(accord_secret_seal(keys, name,
															  plain)));
		explicit_bzero(plain, strlen(plain));
	}
	accord_secret_forget(keys);
	if (check->old != NULL && changed)
		set_column(check, "updated_at",
				   TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
}

/* The column as it is stored: sealed by the key that seals now. */
static void
seal_column(RowCheck *check, const char *column, const char *name,
			const AccordSecretKeys *keys)
{
	char	   *value = get_text(check, column);
	const char *fault;
	char	   *plain;

	if (value == NULL || keys == NULL || accord_secret_is_current(keys, value))
		return;
	plain = accord_secret_open(keys, name, value, &fault);
	if (plain == NULL)
		return;					/* whoever uses it finds out */
	set_column(check, column,
			   CStringGetTextDatum(accord_secret_seal(keys, name, plain)));
	explicit_bzero(plain, strlen(plain));
}

/* Tokens that were fetched are sealed as secrets are: see token.c. */
static void
check_token(RowCheck *check)
{
	char	   *key = get_text(check, "key");
	AccordSecretKeys *keys = read_secret_keys(psprintf("token/%s", key));

	seal_column(check, "access_token", psprintf("token/%s/access", key), keys);
	seal_column(check, "refresh_token", psprintf("token/%s/refresh", key),
				keys);
	accord_secret_forget(keys);
}

static void
check_rate_limit(RowCheck *check)
{
	check_template(check->table, "bucket", get_text(check, "bucket"));
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
check_rule(RowCheck *check)
{
	AccordStatusRange ranges[ACCORD_RULE_RANGES];
	char	   *status = get_text(check, "status");

	if (status != NULL && accord_rule_status(status, ranges) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("status \"%s\" of accord.rule is not a list of "
						"statuses", status),
				 errhint("Write 409, 4xx, 200-299, or at most %d of them with "
						 "commas between; null for any.",
						 ACCORD_RULE_RANGES)));
	check_rule_headers(get_json(check, "headers"));
}

static const struct
{
	const char *table;
	void		(*run) (RowCheck *check);
	const char *needed[6];		/* columns the check cannot do without */
}			checks[] = {

	{"channel", check_channel, {"name", "base_url", "auth", "headers",
	"idempotency_key", "probe_path"}},
	{"account", check_account, {"channel", "name"}},
	{"route", check_route, {"topic", "method", "path", "headers",
	"body_from", "mode"}},
	{"secret", check_secret, {"name", "value"}},
	{"token", check_token, {"key"}},
	{"rate_limit", check_rate_limit, {"channel", "bucket"}},
	{"rule", check_rule, {"channel", "headers", "outcome"}}
};

/* Whether NOT NULL will be violated: PostgreSQL says that better. */
static bool
lacks_column(RowCheck *check, const char *const *needed)
{
	for (int i = 0; i < 6 && needed[i] != NULL; i++)
	{
		bool		isnull;

		get_column(check, check->row, needed[i], &isnull);
		if (isnull)
			return true;
	}
	return false;
}

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
	RowCheck	check = {.trigger = (TriggerData *) fcinfo->context};
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
	accord_constraint_check(check.rel, check.row);
	for (int i = 0; i < lengthof(checks); i++)
		if (strcmp(RelationGetRelationName(check.rel), checks[i].table) == 0 &&
			!lacks_column(&check, checks[i].needed))
			checks[i].run(&check);
	return PointerGetDatum(check.row);
}
