/*
 * request_event.c: what a request can be made of: an event's columns, and the
 * variables that templates may name.
 *
 * Runs in dispatchers, without a transaction, and in backends
 * (accord.preview()).
 *
 * Invariants: nothing is looked up in the catalogue for an event: the shape of
 * event_log is remembered when the process starts to make requests. A variable
 * that is not defined is NULL; what that means is the template's.
 *
 * On failure only out-of-memory can raise.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "accord.h"
#include "db.h"
#include "guc.h"
#include "json.h"
#include "remote.h"
#include "request_private.h"
#include "template.h"

static TupleDesc event_desc = NULL;
static char *database = NULL;	/* its name */

void
accord_request_init(void)
{
	Relation	rel = table_open(accord_db_relid("event_log"),
								 AccessShareLock);
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	if (event_desc != NULL)
		FreeTupleDesc(event_desc);
	if (database != NULL)
		pfree(database);
	event_desc = CreateTupleDescCopy(RelationGetDescr(rel));
	database = get_database_name(MyDatabaseId);
	MemoryContextSwitchTo(old);
	table_close(rel, NoLock);
	accord_request_init_function();
}

TupleDesc
accord_request_event_desc(void)
{
	return event_desc;
}

const char *
accord_request_origin(void)
{
	return accord_node_name != NULL && accord_node_name[0] != '\0' ?
		accord_node_name : database;
}

Datum
accord_request_column(const AccordEvent *event, int column, bool *isnull)
{
	return heap_getattr(event->tuple, column, event_desc, isnull);
}

char	   *
accord_request_text(const AccordEvent *event, int column)
{
	bool		isnull;
	Datum		value = accord_request_column(event, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

TimestampTz
accord_request_time(const AccordEvent *event, int column)
{
	bool		isnull;
	Datum		value = accord_request_column(event, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}
Jsonb	   *
accord_request_document(const AccordEvent *event, int column)
{
	bool		isnull;
	Datum		document = accord_request_column(event, column, &isnull);

	return isnull ? NULL : DatumGetJsonbP(document);
}

static JsonbValue *
make_string(char *string)
{
	JsonbValue *value;

	if (string == NULL)
		return NULL;
	value = palloc(sizeof(JsonbValue));
	value->type = jbvString;
	value->val.string.val = string;
	value->val.string.len = strlen(string);
	return value;
}

char	   *
accord_request_event_id(const AccordEvent *event)
{
	bool		isnull;
	Datum		id = accord_request_column(event, ACCORD_EVENT_EVENT_ID,
										   &isnull);

	return DatumGetCString(DirectFunctionCall1(uuid_out, id));
}

/* The variables that are columns, and those that are reached into. */
static const struct
{
	const char *name;
	int			column;
}			variable_columns[] = {
	{"key", ACCORD_EVENT_KEY},
	{"topic", ACCORD_EVENT_TOPIC},
	{"op", ACCORD_EVENT_OP},
	{"account", ACCORD_EVENT_ACCOUNT},
	{"source", ACCORD_EVENT_SOURCE}
},			variable_documents[] = {
	{"payload", ACCORD_EVENT_PAYLOAD},
	{"before", ACCORD_EVENT_BEFORE},
	{"headers", ACCORD_EVENT_HEADERS}
};

/* The rest of a name after its root: "payload.a.b" is "a.b" of "payload". */
static const char *
path_below(const char *name, const char *root)
{
	size_t		len = strlen(root);

	if (strncmp(name, root, len) != 0)
		return NULL;
	if (name[len] == '\0')
		return name + len;
	return name[len] == '.' ? name + len + 1 : NULL;
}

JsonbValue *
accord_request_variable(const char *name, void *arg)
{
	AccordRequestScope *scope = arg;
	JsonbValue *remote;
	const char *path;

	if (strcmp(name, "channel") == 0)
		return make_string(pstrdup(scope->route->channel->name));
	if ((path = path_below(name, "vars")) != NULL)
		return scope->account ?
			accord_json_path(scope->account->vars, path) : NULL;
	if (accord_remote_variable(name, &remote))
		return remote;
	if (scope->event == NULL)
		return scope->account != NULL && strcmp(name, "account") == 0 ?
			make_string(pstrdup(scope->account->name)) : NULL;
	for (int i = 0; i < lengthof(variable_columns); i++)
		if (strcmp(name, variable_columns[i].name) == 0)
			return make_string(accord_request_text(scope->event,
												   variable_columns[i].column));
	if (strcmp(name, "event_id") == 0)
		return make_string(accord_request_event_id(scope->event));
	for (int i = 0; i < lengthof(variable_documents); i++)
	{
		Jsonb	   *document;

		path = path_below(name, variable_documents[i].name);
		if (path == NULL)
			continue;
		document = accord_request_document(scope->event,
										   variable_documents[i].column);
		return document ? accord_json_path(document, path) : NULL;
	}
	return NULL;
}

char	   *
accord_request_expand(const char *template, const AccordRoute *route,
					  const AccordAccount *account, const AccordEvent *event)
{
	AccordRequestScope scope = {.route = route,.account = account,
	.event = event};

	return accord_template_expand(template, true, accord_request_variable,
								  &scope, NULL);
}
