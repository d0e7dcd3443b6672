/*
 * choose.c: by what a channel has of a thing: which route, and whether yet.
 *
 * Runs in dispatchers, when it is a delivery's turn, for channels of which a
 * route keeps, needs or asks for ids. An event was routed when it was read, by
 * its topic and op alone: what the channel will have of its thing by the time
 * it is sent, nobody knew then. Now its lane is its own, everything before it
 * is committed, and accord.remote_id says what there is: a create goes by the
 * route for what is unknown, an update by the one for what is known. One that
 * needs what is not there yet waits for it (await.c).
 *
 * Invariants: a delivery keeps the route it was read with, by which it is
 * coalesced; the one that was chosen is forgotten with the answer. A delivery
 * that waits has nothing in flight, and costs no token.
 *
 * On failure nothing is raised: what cannot be sent is concluded.
 */
#include "postgres.h"

#include "assign.h"
#include "await.h"
#include "choose.h"
#include "delivery.h"
#include "flow.h"
#include "request.h"
#include "settle.h"

#define MAX_KEY 2200			/* bytes of account and key: they are indexed */

/* A template's text, or NULL when it comes to nothing. */
static char *
expand(const char *template, const AccordDelivery *delivery,
	   const AccordAccount *account, const AccordRoute *route)
{
	char	   *text = accord_request_expand(template, route, account,
											 delivery->event);

	if (text[0] == '\0' ||
		strlen(text) + strlen(delivery->endpoint->account) > MAX_KEY)
		return NULL;
	return text;
}

AccordRemote
accord_choose_remote(const AccordDelivery *delivery,
					 const AccordAccount *account, const AccordRoute *route)
{
	AccordRemote remote = {.kind = route->remote};

	if (route->remote != NULL)
		remote.key = expand(route->remote_key, delivery, account, route);
	return remote;
}

static void
find(const AccordDelivery *delivery, AccordRemote *remote)
{
	accord_remote_find(delivery->endpoint->channel,
					   delivery->endpoint->account, remote);
}

AccordRemoteScope *
accord_choose_scope(const AccordDelivery *delivery,
					const AccordAccount *account, const AccordRoute *route)
{
	AccordRemoteScope *scope = palloc0(sizeof(AccordRemoteScope));

	scope->own = accord_choose_remote(delivery, account, route);
	if (scope->own.kind != NULL)
		find(delivery, &scope->own);
	scope->needs = palloc0(route->n_needs * sizeof(AccordRemote) + 1);
	for (int i = 0; i < route->n_needs; i++)
	{
		AccordRemote *need = &scope->needs[scope->n_needs++];

		need->kind = route->needs[i].kind;
		need->key = expand(route->needs[i].key, delivery, account, route);
		find(delivery, need);
	}
	return scope;
}

/* Whether a route takes events whose thing is known, or is not. */
static bool
takes(const AccordRoute *route, bool known)
{
	return route->remote_when == ACCORD_REMOTE_ANY ||
		known == (route->remote_when == ACCORD_REMOTE_KNOWN);
}

/*
 * The first route that takes the event, and its thing as it is; NULL: none
 * does. Where none takes its topic and op any more, it keeps its own.
 */
static AccordRoute *
choose(const AccordDelivery *delivery, const AccordAccount *account,
	   AccordRoute *own)
{
	AccordChannel *channel = own->channel;
	char	   *topic = accord_request_text(delivery->event,
											ACCORD_EVENT_TOPIC);
	AccordOp	op = accord_config_op(accord_request_text(delivery->event,
														  ACCORD_EVENT_OP));
	bool		any = false;

	for (int i = 0; i < channel->n_routes; i++)
	{
		AccordRoute *route = channel->routes[i];
		AccordRemote remote;

		if (!accord_config_takes(route, topic, op))
			continue;
		any = true;
		if (route->remote_when == ACCORD_REMOTE_ANY)
			return route;
		remote = accord_choose_remote(delivery, account, route);
		find(delivery, &remote);
		if (takes(route, remote.known))
			return route;
	}
	return any ? NULL : own;
}

AccordRoute *
accord_choose_for(AccordEvent *event, const AccordAccount *account,
				  AccordRoute *route)
{
	AccordEndpoint endpoint = {.channel = route->channel->name,
	.account = account ? account->name : ""};
	AccordDelivery delivery = {.endpoint = &endpoint,.event = event};

	route = choose(&delivery, account, route);
	if (route != NULL)
		accord_remote_enter(accord_choose_scope(&delivery, account, route));
	return route;
}

/* It waits for that, but not for longer than it may be tried. */
static void
wait_for(AccordDesk *desk, AccordDelivery *delivery, const AccordRemote *need,
		 TimestampTz over_at, TimestampTz now)
{
	AccordEndpoint *endpoint = delivery->endpoint;

	if (delivery->expires_at != 0)
		over_at = Min(over_at, delivery->expires_at);
	accord_flow_return(delivery, now);
	accord_delivery_defer(desk, delivery, over_at);
	accord_await_enter(desk, delivery,
					   accord_await_hash(endpoint->channel, endpoint->account,
										 need->kind, need->key));
	accord_merge_enter(desk, delivery);
}

/* Whether all that it needs is there; else it waits, or is given up. */
static bool
has_needs(AccordDesk *desk, AccordDelivery *delivery,
		  const AccordRemoteScope *scope, TimestampTz now)
{
	TimestampTz over_at = delivery->owed_since + 1000 *
	delivery->endpoint->connection->policy.max_age_ms;

	for (int i = 0; i < scope->n_needs; i++)
	{
		const AccordRemote *need = &scope->needs[i];

		if (need->known)
			continue;
		if (need->key != NULL && now < over_at)
		{
			wait_for(desk, delivery, need, over_at, now);
			return false;
		}
		delivery->attempts++;
		accord_settle_without(delivery, ACCORD_OUTCOME_INVALID,
							  need->key == NULL ?
							  psprintf("the event does not say which %s it "
									   "needs", need->kind) :
							  psprintf("it needs %s \"%s\", of which the "
									   "channel has no id", need->kind,
									   need->key), now);
		return false;
	}
	return true;
}

bool
accord_choose_route(AccordDesk *desk, AccordDelivery *delivery,
					const AccordAccount *account, AccordRoute **route,
					TimestampTz now)
{
	AccordRoute *chosen = choose(delivery, account, *route);
	AccordRemoteScope *scope;

	if (chosen == NULL)
	{
		accord_settle_without(delivery, ACCORD_OUTCOME_SKIPPED,
							  "there is nothing to send: no route takes it, by "
							  "what the channel has of it", now);
		return false;
	}
	*route = chosen;
	scope = accord_choose_scope(delivery, account, chosen);
	delivery->chosen = chosen->id;
	delivery->known_remote = scope->own.known;
	accord_remote_enter(scope);
	/* what is under way at the channel needs nothing more */
	return accord_delivery_asks(delivery) ||
		has_needs(desk, delivery, scope, now);
}
