/*
 * trace.c: the trace that a transaction is a part of goes along with its
 * events.
 *
 * Runs in the application's backends, for every event that is appended. What
 * the application says by SET LOCAL accord.traceparent becomes a header of the
 * event, as if it had been given with it: so it is stored, digested, sent with
 * every attempt, and can be queried. Events of captured tables get it as well.
 *
 * Invariants: an event's own traceparent, in whatever case, is left alone, and
 * its tracestate with it, as the two belong together.
 *
 * On failure only out-of-memory can raise: the settings are checked when they
 * are set (guc.c).
 */
#include "postgres.h"

#include "utils/jsonb.h"

#include "accord.h"
#include "compat.h"
#include "guc.h"
#include "trace.h"

static bool
is_header(const JsonbValue *name, const char *header)
{
	return name->val.string.len == strlen(header) &&
		pg_strncasecmp(name->val.string.val, header,
					   name->val.string.len) == 0;
}

/* Whether an object of headers has a traceparent. */
static bool
has_traceparent(Jsonb *headers)
{
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		if (token == WJB_KEY && is_header(&value, "traceparent"))
			return true;
	return false;
}

/* Its members as they are, but for a tracestate of another trace. */
static void
push_members(AccordJsonbState *state, Jsonb *headers)
{
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		passes = true;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			passes = !is_header(&value, "tracestate");
		if (passes && (token == WJB_KEY || token == WJB_VALUE))
			accord_jsonb_push(state, token, &value);
	}
}

static void
push_header(AccordJsonbState *state, const char *name, const char *text)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, name);
	value.val.string.len = strlen(name);
	accord_jsonb_push(state, WJB_KEY, &value);
	value.val.string.val = unconstify(char *, text);
	value.val.string.len = strlen(text);
	accord_jsonb_push(state, WJB_VALUE, &value);
}

void
accord_trace_event(Datum *values, bool *nulls)
{
	int			column = ACCORD_EVENT_HEADERS - 1;
	Jsonb	   *given = nulls[column] ? NULL : DatumGetJsonbP(values[column]);
	AccordJsonbState state = {0};

	if (accord_traceparent == NULL || accord_traceparent[0] == '\0' ||
		(given != NULL && has_traceparent(given)))
		return;
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	if (given != NULL)
		push_members(&state, given);
	push_header(&state, "traceparent", accord_traceparent);
	if (accord_tracestate != NULL && accord_tracestate[0] != '\0')
		push_header(&state, "tracestate", accord_tracestate);
	values[column] = JsonbPGetDatum(accord_jsonb_end(&state, WJB_END_OBJECT));
	nulls[column] = false;
}
