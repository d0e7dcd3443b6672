/*
 * answer.c: the answer to a delivery of its own, judged and settled.
 *
 * Runs in dispatchers, outside of transactions. Of a channel that has no rules
 * the status decides, and nothing is looked up.
 *
 * On failure nothing is raised: what an answer can do wrong is an outcome.
 */
#include "postgres.h"

#include "answer.h"
#include "assign.h"
#include "judge.h"
#include "settle.h"

void
accord_answer_land(AccordDesk *desk, AccordDelivery *delivery,
				   const AccordHttpResponse *response, TimestampTz now)
{
	AccordChannel *channel = delivery->endpoint->connection->hub->config;
	AccordAccount *account;
	AccordRoute *route;
	AccordJudgement judgement;

	if (channel == NULL || channel->n_rules == 0)
	{
		accord_settle_response(delivery, response, now);
		return;
	}
	if (!accord_assign_route(delivery, &channel, &account, &route))
		route = NULL;
	judgement = accord_judge_answer(channel, route, response);
	if (judgement.per_item)
		judgement = accord_judge_plain(response);
	accord_settle_judged(delivery, response, &judgement, now);
}
