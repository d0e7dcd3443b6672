/*
 * config_answer.c: the columns of a route that say what answers tell, and how
 * a channel is asked.
 *
 * Runs in backends that edit the configuration and in dispatchers that read it:
 * what is accepted and what is read is read by the same functions.
 *
 * Invariants: nothing is kept; results are allocated where the caller is.
 *
 * On failure they raise, naming the column and what it takes. What was stored
 * has passed here before, so in a dispatcher nothing raises.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "config.h"
#include "json.h"

#define EVERY_MS 10000			/* poll.every, when it is not given */
#define DEADLINE_MS 86400000	/* poll.deadline, likewise */

static void
refuse(const char *column, const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s of accord.route %s", column, what),
			 errhint("%s", hint)));
}

static Datum
read_path(const char *column, const char *text)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile Datum path = (Datum) 0;

	PG_TRY();
	{
		path = DirectFunctionCall1(jsonpath_in, CStringGetDatum(text));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		FlushErrorState();
	}
	PG_END_TRY();
	if (path == (Datum) 0)
		refuse(psprintf("%s \"%s\"", column, text), "is not a jsonpath",
			   "Write a jsonpath such as \"$.data.id\", or the name of a "
			   "header.");
	return path;
}

AccordMine
accord_config_mine(const char *column, const char *text)
{
	AccordMine	mine = {NULL, NULL};

	if (text == NULL)
		return mine;
	if (text[0] == '$')
		mine.path = DatumGetPointer(read_path(column, text));
	else if (text[0] == '\0' ||
			 strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
					"0123456789-_") != strlen(text))
		refuse(psprintf("%s \"%s\"", column, text),
			   "is neither a jsonpath nor a header",
			   "Write a jsonpath, which begins with \"$\", or the name of a "
			   "header such as Location or ETag.");
	else
		mine.header = pstrdup(text);
	return mine;
}

/* The members of an object, one by one, as they are in it. */
typedef void (*Visit) (const char *name, JsonbValue *value, void *arg);

static void
visit_members(const char *column, Jsonb *json, const char *hint, Visit visit,
			  void *arg)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	if (!JB_ROOT_IS_OBJECT(json) || JB_ROOT_COUNT(json) == 0)
		refuse(column, "is not an object with members", hint);
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
			visit(name, &value, arg);
	}
}

/* ---- needs ---- */

#define NEEDS_HINT \
	"Write kinds and templates of keys, such as '{\"room_type\": " \
	"\"{payload.room}\"}'."

typedef struct Needs
{
	AccordNeed *needs;
	int			n;
} Needs;

static void
read_need(const char *name, JsonbValue *value, void *arg)
{
	Needs	   *needs = arg;

	if (value->type != jbvString || value->val.string.len == 0 ||
		name[0] == '\0' || strlen(name) > 63)
		refuse("needs", psprintf("has \"%s\", which is no template of a key",
								 name), NEEDS_HINT);
	needs->needs[needs->n].kind = pstrdup(name);
	needs->needs[needs->n++].key = accord_json_text(value);
}

AccordNeed *
accord_config_needs(Jsonb *json, int *n)
{
	Needs		needs = {palloc0(JB_ROOT_COUNT(json) * sizeof(AccordNeed) + 1),
	0};

	visit_members("needs", json, NEEDS_HINT, read_need, &needs);
	*n = needs.n;
	return needs.needs;
}

/* ---- lookup ---- */

#define LOOKUP_HINT \
	"It takes path (a template), method (GET), body (an object whose strings " \
	"are templates), id, version and etag (each a jsonpath or a header)."

static char *
read_string(const char *column, const char *name, JsonbValue *value,
			const char *hint)
{
	if (value->type != jbvString || value->val.string.len == 0)
		refuse(column, psprintf("has \"%s\", which is no text", name), hint);
	return accord_json_text(value);
}

static char *
read_method(const char *column, const char *name, JsonbValue *value,
			const char *hint)
{
	char	   *method = read_string(column, name, value, hint);

	if (strspn(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != strlen(method) ||
		strlen(method) > 20 || strcmp(method, "CONNECT") == 0 ||
		strcmp(method, "TRACE") == 0)
		refuse(column, psprintf("has method \"%s\", which cannot be used",
								method), "Use GET, POST, REPORT or the like.");
	return method;
}

static void
read_lookup(const char *name, JsonbValue *value, void *arg)
{
	AccordLookup *lookup = arg;

	if (strcmp(name, "path") == 0)
		lookup->path = read_string("lookup", name, value, LOOKUP_HINT);
	else if (strcmp(name, "method") == 0)
		lookup->method = read_method("lookup", name, value, LOOKUP_HINT);
	else if (strcmp(name, "body") == 0 && value->type == jbvBinary)
		lookup->body = JsonbValueToJsonb(value);
	else if (strcmp(name, "id") == 0)
		lookup->id = accord_config_mine("lookup", read_string("lookup", name,
															  value,
															  LOOKUP_HINT));
	else if (strcmp(name, "version") == 0)
		lookup->version = accord_config_mine("lookup",
											 read_string("lookup", name, value,
														 LOOKUP_HINT));
	else if (strcmp(name, "etag") == 0)
		lookup->etag = accord_config_mine("lookup", read_string("lookup", name,
																value,
																LOOKUP_HINT));
	else
		refuse("lookup", psprintf("has \"%s\", which cannot be", name),
			   LOOKUP_HINT);
}

AccordLookup *
accord_config_lookup(Jsonb *json)
{
	AccordLookup *lookup = palloc0(sizeof(AccordLookup));

	lookup->method = pstrdup("GET");
	visit_members("lookup", json, LOOKUP_HINT, read_lookup, lookup);
	if (lookup->path == NULL)
		refuse("lookup", "has no path", LOOKUP_HINT);
	return lookup;
}

/* ---- poll ---- */

#define POLL_HINT \
	"It takes path (a template, also over answer.NAME) or location (a header), " \
	"method (GET), every (10 s) and deadline (1 day)."

static int64
read_interval(const char *name, JsonbValue *value)
{
	char	   *text = read_string("poll", name, value, POLL_HINT);
	MemoryContext caller = CurrentMemoryContext;
	volatile int64 ms = 0;

	PG_TRY();
	{
		Interval   *interval =
		DatumGetIntervalP(DirectFunctionCall3(interval_in,
											  CStringGetDatum(text),
											  ObjectIdGetDatum(InvalidOid),
											  Int32GetDatum(-1)));

		ms = (interval->time + ((int64) interval->month * DAYS_PER_MONTH +
								interval->day) * USECS_PER_DAY) / 1000;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		FlushErrorState();
	}
	PG_END_TRY();
	if (ms < 1 || ms > INT64CONST(31) * 86400000)
		refuse("poll", psprintf("has \"%s\" of \"%s\", which is no time from "
								"1 ms to 31 days", name, text), POLL_HINT);
	return ms;
}

static void
read_poll(const char *name, JsonbValue *value, void *arg)
{
	AccordPoll *poll = arg;

	Assert(name != NULL);
	if (strcmp(name, "path") == 0)
		poll->path = read_string("poll", name, value, POLL_HINT);
	else if (strcmp(name, "location") == 0)
		poll->location = read_string("poll", name, value, POLL_HINT);
	else if (strcmp(name, "method") == 0)
		poll->method = read_method("poll", name, value, POLL_HINT);
	else if (strcmp(name, "every") == 0)
		poll->every_ms = read_interval(name, value);
	else if (strcmp(name, "deadline") == 0)
		poll->deadline_ms = read_interval(name, value);
	else
		refuse("poll", psprintf("has \"%s\", which cannot be", name),
			   POLL_HINT);
}

AccordPoll *
accord_config_poll(Jsonb *json)
{
	AccordPoll *poll = palloc0(sizeof(AccordPoll));

	poll->method = pstrdup("GET");
	poll->every_ms = EVERY_MS;
	poll->deadline_ms = DEADLINE_MS;
	visit_members("poll", json, POLL_HINT, read_poll, poll);
	if (poll->path != NULL && poll->location != NULL)
		refuse("poll", "has both path and location", POLL_HINT);
	if (poll->location != NULL)
		(void) accord_config_mine("poll", poll->location);
	return poll;
}
