/*
 * config_check_route.c: a row of accord.route is checked when it is given.
 *
 * Runs in whatever backend edits the table, within config_check.c.
 *
 * Invariants: nothing here depends on search_path but the names of functions,
 * which are stored qualified; so a dump restores as it was.
 *
 * On failure the statement raises and says what to do.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "accord.h"
#include "auth_check.h"
#include "compat.h"
#include "config.h"
#include "config_check_private.h"

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

/* What a route's body is made of, and what it is called. */
static void
check_body(AccordRowCheck *check)
{
	char	   *from = accord_check_text(check, "body_from");
	char	   *root = accord_check_text(check, "body_root");
	char	   *type = accord_check_text(check, "content_type");

	if (!accord_check_variable(from) || strpbrk(from, "*:,{}") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("body_from \"%s\" of %s is not something that an "
						"event has", from, check->table),
				 errhint(ACCORD_VARIABLES_HINT)));
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
check_ops(AccordRowCheck *check)
{
	bool		isnull;
	Datum		value = accord_check_column(check, check->row, "ops", &isnull);
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
check_owner(AccordRowCheck *check)
{
	char	   *owner = accord_check_text(check, "owner");
	char	   *user = GetUserNameFromId(GetUserId(), false);
	Oid			role;

	if (!superuser())
	{
		/* what another role's function may do is not theirs to change */
		if (check->old == NULL ||
			accord_check_changed(check, "body_function") ||
			accord_check_changed(check, "batch_function") ||
			accord_check_changed(check, "owner"))
			accord_check_set(check, "owner", CStringGetTextDatum(user));
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
check_function(AccordRowCheck *check, const char *column, bool batch,
			   Oid owner)
{
	char	   *name = accord_check_text(check, column);
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
	name =
		quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
								   get_func_name(function));
	accord_check_set(check, column, CStringGetTextDatum(name));
}

/* A dotted path into an answer. */
static void
check_answer_path(AccordRowCheck *check, const char *column)
{
	char	   *path = accord_check_text(check, column);
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
check_batch(AccordRowCheck *check)
{
	char	   *group = accord_check_text(check, "batch_group");
	bool		isnull;
	int			size = DatumGetInt32(accord_check_column(check, check->row,
														 "batch_size",
														 &isnull));

	if (group != NULL)
		accord_check_template(check->table, "batch_group", group);
	accord_check_template(check->table, "batch_id",
						  accord_check_text(check, "batch_id"));
	check_answer_path(check, "batch_items");
	check_answer_path(check, "batch_item_id");
	check_answer_path(check, "batch_item_status");
	check_answer_path(check, "batch_item_error");
	if (size > 1 && accord_check_text(check, "body_function") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a route of accord.route with batch_size %d cannot have "
						"a body_function", size),
				 errhint("Give a batch_function: it takes all the events of a "
						 "batch.")));
	if (size == 1 && accord_check_text(check, "batch_function") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a route of accord.route with batch_size 1 cannot have "
						"a batch_function"),
				 errhint("Give a body_function, or a larger batch_size.")));
}

/* What only a route in state mode, and one that coalesces, can have. */
static void
check_coalesce(AccordRowCheck *check)
{
	char	   *coalesce = accord_check_text(check, "coalesce");
	bool		command =
	strcmp(accord_check_text(check, "mode"), "command") == 0;
	bool		isnull;

	if (coalesce != NULL && coalesce[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("coalesce of accord.route is empty: all events would "
						"be one"),
				 errhint("Give a template such as \"{key}\", or null: every "
						 "event is sent.")));
	if (coalesce != NULL)
		accord_check_template(check->table, "coalesce", coalesce);
	(void) accord_check_column(check, check->row, "quiet", &isnull);
	if (!isnull && (command || coalesce == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a route of accord.route that does not coalesce "
						"cannot have a quiet period"),
				 errhint("Set mode to state and coalesce to a template, or "
						 "quiet to null.")));
	if (command && DatumGetBool(accord_check_column(check, check->row,
													"skip_unchanged",
													&isnull)))
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
			accord_check_template("accord.route", column,
								  pnstrdup(value.val.string.val,
										   value.val.string.len));
}

/* What the channel calls things, and how it is asked about them. */
static void
check_remote(AccordRowCheck *check)
{
	Jsonb	   *needs = accord_check_json(check, "needs");
	Jsonb	   *lookup = accord_check_json(check, "lookup");
	Jsonb	   *poll = accord_check_json(check, "poll");
	static const char *const mines[] = {"remote_id", "remote_version",
	"remote_etag"};

	if (accord_check_text(check, "remote_key") != NULL)
		accord_check_template(check->table, "remote_key",
							  accord_check_text(check, "remote_key"));
	for (int i = 0; i < lengthof(mines); i++)
		(void) accord_config_mine(mines[i],
								  accord_check_text(check, mines[i]));
	if (needs != NULL)
	{
		int			n;
		AccordNeed *need = accord_config_needs(needs, &n);

		for (int i = 0; i < n; i++)
			accord_check_template(check->table, "needs", need[i].key);
	}
	if (lookup != NULL)
	{
		AccordLookup *question = accord_config_lookup(lookup);

		accord_check_path(check->table, "lookup", question->path);
		if (question->body != NULL)
			check_body_templates("lookup", question->body);
	}
	if (poll != NULL)
	{
		AccordPoll *question = accord_config_poll(poll);

		if (question->path != NULL)
			accord_check_path(check->table, "poll", question->path);
	}
}

void
accord_check_route(AccordRowCheck *check)
{
	char	   *method = accord_check_text(check, "method");
	Oid			owner = check_owner(check);

	check_topic(accord_check_text(check, "topic"));
	check_ops(check);
	if (strcmp(method, "CONNECT") == 0 || strcmp(method, "TRACE") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("method %s of accord.route cannot be used", method),
				 errhint("Use POST, PUT, PATCH, DELETE or GET.")));
	accord_check_path("accord.route", "path",
					  accord_check_text(check, "path"));
	check_remote(check);
	accord_config_check_headers(check->table, "headers",
								accord_check_json(check, "headers"), true);
	check_body(check);
	check_coalesce(check);
	/* whoever disables a route need not be allowed to run its function */
	if (check->old == NULL || accord_check_changed(check, "body_function") ||
		accord_check_changed(check, "owner"))
		check_function(check, "body_function", false, owner);
	if (check->old == NULL || accord_check_changed(check, "batch_function") ||
		accord_check_changed(check, "owner"))
		check_function(check, "batch_function", true, owner);
	check_batch(check);
}
