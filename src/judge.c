/*
 * judge.c: what an answer means for a delivery.
 *
 * Runs in dispatchers, outside of transactions: jsonpath looks at nothing but
 * its arguments. The channel's rules are asked first (rule.c), the built-in
 * ones last (retry.c). A channel without rules never gets here.
 *
 * Invariants: an answer is hostile. It is parsed once at most, only when a rule
 * asks for its body, and whatever it holds that is not JSON, or that a jsonpath
 * stumbles over, is found by no rule. What is told of it was cleaned.
 *
 * On failure nothing is raised: an error of PostgreSQL's own (too deeply
 * nested, out of memory for a part of it) means that the rule does not apply.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "json.h"
#include "judge.h"

#define HTTP_TOO_MANY_REQUESTS 429
#define MAX_ERROR 1000			/* bytes told of an answer */

/* An answer while rules are asked about it. */
typedef struct Asked
{
	const AccordHttpResponse *response;
	Jsonb	   *json;			/* of all of it, or of an item */
	bool		parsed;
} Asked;

static const AccordOutcome rule_outcomes[] = {
	[ACCORD_RULE_DELIVERED] = ACCORD_OUTCOME_DELIVERED,
	[ACCORD_RULE_DUPLICATE] = ACCORD_OUTCOME_DELIVERED,
	[ACCORD_RULE_GONE] = ACCORD_OUTCOME_REJECTED,	/* see answer.c */
	[ACCORD_RULE_ACCEPTED] = ACCORD_OUTCOME_ACCEPTED,
	[ACCORD_RULE_CONFLICT] = ACCORD_OUTCOME_CONFLICT,
	[ACCORD_RULE_RETRY] = ACCORD_OUTCOME_RETRY,
	[ACCORD_RULE_RETRY_AFTER] = ACCORD_OUTCOME_RETRY_AFTER,
	[ACCORD_RULE_UNCLEAR] = ACCORD_OUTCOME_UNCLEAR,
	[ACCORD_RULE_REJECTED] = ACCORD_OUTCOME_REJECTED,
	[ACCORD_RULE_UNAUTHORIZED] = ACCORD_OUTCOME_UNAUTHORIZED,
	[ACCORD_RULE_PER_ITEM] = ACCORD_OUTCOME_DELIVERED
};

static Datum
call_jsonb_in(Datum *args)
{
	return DirectFunctionCall1(jsonb_in, args[0]);
}

static Datum
call_query(Datum *args)
{
	return DirectFunctionCall4(jsonb_path_query_array, args[0], args[1],
							   args[2], BoolGetDatum(true));
}

/* Calls one of PostgreSQL's functions; NULL: it raised. */
static void *
try_call(Datum (*call) (Datum *args), Datum *args)
{
	MemoryContext caller = CurrentMemoryContext;
	void	   *volatile result = NULL;

	PG_TRY();
	{
		result = DatumGetPointer(call(args));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		FlushErrorState();
	}
	PG_END_TRY();
	return result;
}

Jsonb	   *
accord_judge_json(const AccordHttpResponse *response)
{
	Datum		args[1];

	if (response->truncated || response->body_len == 0)
		return NULL;
	args[0] = CStringGetDatum(accord_json_clean(response->body,
												response->body_len,
												response->body_len));
	return try_call(call_jsonb_in, args);
}

/* All that a jsonpath finds, as an array; NULL: it stumbled. */
static Jsonb *
query(Jsonb *json, const void *path, Jsonb *vars)
{
	Datum		args[3];

	if (vars == NULL)
		vars = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												  CStringGetDatum("{}")));
	args[0] = JsonbPGetDatum(json);
	args[1] = PointerGetDatum(path);
	args[2] = JsonbPGetDatum(vars);
	return try_call(call_query, args);
}

static bool
is_nothing(const JsonbValue *value)
{
	return value->type == jbvNull ||
		(value->type == jbvBool && !value->val.boolean);
}

char	   *
accord_judge_text(Jsonb *json, const void *path, Jsonb *vars)
{
	Jsonb	   *found = json ? query(json, path, vars) : NULL;

	for (uint32 i = 0; found != NULL && i < JB_ROOT_COUNT(found); i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(&found->root, i);

		if (value->type != jbvNull)
			return accord_json_text(value);
	}
	return NULL;
}

static Jsonb *
json_of(Asked *asked)
{
	if (!asked->parsed)
		asked->json = accord_judge_json(asked->response);
	asked->parsed = true;
	return asked->json;
}

/* Callback of rules: whether a jsonpath finds anything in the body. */
static bool
has_body(const void *path, void *arg)
{
	Jsonb	   *json = json_of(arg);
	Jsonb	   *found = json ? query(json, path, NULL) : NULL;

	for (uint32 i = 0; found != NULL && i < JB_ROOT_COUNT(found); i++)
		if (!is_nothing(getIthJsonbValueFromContainer(&found->root, i)))
			return true;
	return false;
}

/* Callback of rules: a header's value. */
static const char *
header_of(const char *name, void *arg)
{
	Asked	   *asked = arg;

	return accord_http_answer_header(asked->response, name);
}

/* What is told of an answer that a rule decided about. */
static const char *
tell_error(const AccordRule *rule, Asked *asked, const char *fallback)
{
	char	   *error = rule->error == NULL ? NULL :
	accord_judge_text(json_of(asked), rule->error, NULL);

	if (error != NULL)
		return accord_json_clean(error, strlen(error), MAX_ERROR);
	return fallback;
}

/* What a rule makes of an answer. */
static void
apply_rule(AccordJudgement *judgement, const AccordRule *rule, Asked *asked,
		   const char *fallback)
{
	judgement->outcome = rule_outcomes[rule->outcome];
	judgement->rule = rule->id;
	judgement->pause_ms = rule->pause_ms;
	judgement->per_item = rule->outcome == ACCORD_RULE_PER_ITEM;
	judgement->gone = rule->outcome == ACCORD_RULE_GONE;
	judgement->free = rule->outcome == ACCORD_RULE_RETRY_AFTER;
	/* whoever says "retry" says that it was not done */
	judgement->sent = rule->outcome == ACCORD_RULE_UNCLEAR ?
		ACCORD_SENT_UNKNOWN : ACCORD_SENT_YES;
	judgement->error = tell_error(rule, asked,
								  judgement->outcome ==
								  ACCORD_OUTCOME_DELIVERED ? NULL : fallback);
	if (rule->outcome == ACCORD_RULE_DUPLICATE && judgement->error == NULL)
		judgement->error = "it was done before";
}

/* The transfer's error, else the status in words. */
static const char *
response_error(const AccordHttpResponse *response, AccordOutcome outcome)
{
	if (response->error != NULL || outcome == ACCORD_OUTCOME_DELIVERED)
		return response->error;
	return psprintf("HTTP status %d", response->result.status);
}

AccordJudgement
accord_judge_plain(const AccordHttpResponse *response)
{
	AccordJudgement judgement = {
		.outcome = accord_retry_outcome(&response->result),
		.sent = accord_retry_sent(&response->result),
		.pause_ms = -1
	};

	judgement.error = response_error(response, judgement.outcome);
	/* asked too early: that was none */
	judgement.free = response->result.status == HTTP_TOO_MANY_REQUESTS;
	return judgement;
}

AccordJudgement
accord_judge_answer(const AccordChannel *channel, const AccordRoute *route,
					const AccordHttpResponse *response)
{
	AccordJudgement judgement = accord_judge_plain(response);
	Asked		asked = {.response = response};
	AccordRuleAnswer answer = {
		.route = route ? route->id : 0,
		.transport = response->result.transport,
		.status = response->result.status,
		.header = header_of,
		.body = has_body,
		.arg = &asked
	};
	const AccordRule *rule = accord_rule_find(channel->rules,
											  channel->n_rules, &answer);

	if (rule != NULL)
		apply_rule(&judgement, rule, &asked,
				   response_error(response, ACCORD_OUTCOME_REJECTED));
	return judgement;
}

AccordJudgement
accord_judge_item(const AccordRoute *route, const AccordHttpResponse *response,
				  Jsonb *result, int status, const char *error)
{
	const AccordChannel *channel = route->channel;
	AccordJudgement judgement = {.sent = ACCORD_SENT_YES,.pause_ms = -1};
	Asked		asked = {.response = response,.json = result,.parsed = true};
	AccordRuleAnswer answer = {
		.route = route->id,
		.item = true,
		.transport = ACCORD_TRANSPORT_OK,
		.status = status,
		.header = header_of,
		.body = has_body,
		.arg = &asked
	};
	const AccordRule *rule = result == NULL ? NULL :
	accord_rule_find(channel->rules, channel->n_rules, &answer);
	AccordResult item = response->result;

	item.status = status;
	if (rule != NULL)
	{
		apply_rule(&judgement, rule, &asked, error);
		return judgement;
	}
	if (result == NULL)
	{
		judgement.outcome = ACCORD_OUTCOME_RETRY;
		judgement.error = "the answer tells nothing about this event";
	}
	else if (status > 0)
	{
		judgement.outcome = accord_retry_outcome(&item);
		judgement.sent = accord_retry_sent(&item);
		if (judgement.outcome != ACCORD_OUTCOME_DELIVERED)
			judgement.error = error ? error : psprintf("item status %d", status);
	}
	else
	{
		judgement.outcome = error ? ACCORD_OUTCOME_REJECTED :
			ACCORD_OUTCOME_DELIVERED;
		judgement.error = error;
	}
	return judgement;
}
