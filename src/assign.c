/*
 * assign.c: today's configuration, as it applies to endpoints and deliveries.
 *
 * Runs in dispatchers. Endpoints outlive the configuration they were made
 * from: at every change each gets its limits anew, and is paused when its
 * channel or account is disabled or paused. A delivery looks its route up when it is its
 * turn, so what is edited takes effect for everything that is still to be
 * sent.
 *
 * Invariants: pointers into the configuration are used between two refreshes
 * only, at which those that hubs and connections keep are set anew; a delivery
 * keeps its route's number, not its address.
 *
 * On failure the configuration as it was stays in force.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "assign.h"
#include "flow.h"
#include "request.h"
#include "round.h"
#include "token.h"

static AccordConfig *config = NULL;
static int64 config_generation = -1;

/* Whether a pause holds; one that ends by itself is remembered. */
static bool
is_paused(AccordDesk *desk, const AccordPause *pause, TimestampTz now)
{
	if (pause == NULL || (pause->until != 0 && pause->until <= now))
		return false;
	if (pause->until != 0 &&
		(desk->resume_at == 0 || pause->until < desk->resume_at))
		desk->resume_at = pause->until;
	return true;
}

/* The token its requests need from now on; auth: NULL: none. */
static void
connect_token(AccordConnection *connection, const AccordAuth *auth)
{
	AccordToken *token = auth ? accord_token_find(auth) : NULL;

	if (connection->token == token)
		return;
	if (connection->token != NULL)
		dlist_delete(&connection->token_node);
	connection->token = token;
	if (token != NULL)
		dlist_push_tail(&token->connections, &connection->token_node);
}

/* Gives a connection today's limits; pauses it when it may not send. */
static void
configure_connection(AccordDesk *desk, AccordConnection *connection)
{
	AccordChannel *channel = accord_config_channel(config,
												   connection->hub->channel);
	AccordAccount *account = channel == NULL ||
	connection->account[0] == '\0' ? NULL :
	accord_config_account(config, channel, connection->account);
	TimestampTz now = GetCurrentTimestamp();

	connection->hub->config = channel;
	connection->config = account;
	if (channel == NULL)
	{
		connect_token(connection, NULL);
		/* what it is owed is settled as discarded, or read past */
		connection->paused = false;
		connection->n_meters = 0;
		connection->hub->n_meters = 0;
		accord_connection_rotate(desk, connection);
		return;
	}
	connection->paused = !channel->enabled ||
		(account != NULL && !account->enabled);
	connection->paused |= is_paused(desk, channel->pause, now);
	connection->paused |= account != NULL &&
		is_paused(desk, account->pause, now);
	connect_token(connection, account != NULL && account->has_auth ?
				  &account->auth : &channel->auth);
	connection->ordered = channel->ordered;
	connection->policy.base_ms = channel->retry_base_ms;
	connection->policy.cap_ms = channel->retry_cap_ms;
	connection->policy.max_attempts = channel->max_attempts;
	connection->policy.max_age_ms = channel->max_age_ms;
	connection->policy.keyed = channel->keyed;
	connection->policy.window_ms = channel->idempotency_window_ms;
	connection->policy.hold_dead = false;
	accord_flow_configure(connection, channel, account);
	if (connection->paused)
		accord_connection_rest(desk, connection);
	/* limits may have become wider: both are asked again */
	if (connection->hub->alarm.at != 0)
		accord_hub_sleep(desk, connection->hub, 0);
	accord_connection_sleep(desk, connection, 0);
}

static void
configure_all(AccordDesk *desk)
{
	AccordDeskScan scan;
	AccordConnection *connection;

	desk->resume_at = 0;
	accord_desk_scan(desk, &scan);
	while ((connection = accord_desk_scan_next(&scan)) != NULL)
		configure_connection(desk, connection);
	accord_flow_release(desk);
}

/* Reloads the configuration if it changed. In a transaction. */
void
accord_assign_refresh(AccordDesk *desk)
{
	accord_config_pin(false);
	config = accord_config_get();
	accord_config_pin(true);
	if (config->generation == config_generation)
		return;
	config_generation = config->generation;
	accord_token_forget_specs();
	configure_all(desk);
}

void
accord_assign_resume(AccordDesk *desk, TimestampTz now)
{
	if (desk->resume_at != 0 && desk->resume_at <= now)
		configure_all(desk);
}

AccordConnection *
accord_assign_connection(AccordDesk *desk, const char *channel,
						 const char *account)
{
	AccordConnection *connection;

	if (!accord_desk_owns(desk, channel))
		return NULL;
	connection = accord_desk_connection(desk, channel, account, false);
	if (connection == NULL)
	{
		connection = accord_desk_connection(desk, channel, account, true);
		configure_connection(desk, connection);
	}
	return connection;
}

AccordEndpoint *
accord_assign_endpoint(AccordDesk *desk, const char *channel,
					   const char *account, int priority)
{
	AccordConnection *connection = accord_assign_connection(desk, channel,
															account);

	return connection == NULL ? NULL :
		accord_connection_endpoint(desk, connection, priority);
}

AccordAccount *
accord_assign_account(const AccordDelivery *delivery)
{
	return delivery->endpoint->connection->config;
}

bool
accord_assign_route(AccordDelivery *delivery, AccordChannel **channel,
					AccordAccount **account, AccordRoute **route)
{
	AccordConnection *connection = delivery->endpoint->connection;

	*account = connection->config;
	*channel = connection->hub->config;
	if (*channel == NULL)
		return false;
	if (connection->account[0] != '\0' && *account == NULL &&
		(*channel)->has_accounts)
		return false;
	*route = accord_config_route(*channel, delivery->chosen != 0 ?
								 delivery->chosen : delivery->route);
	if (*route == NULL && delivery->event != NULL)
	{
		char	   *topic = accord_request_text(delivery->event,
												ACCORD_EVENT_TOPIC);
		char	   *op = accord_request_text(delivery->event,
											 ACCORD_EVENT_OP);

		*route = accord_config_match(*channel, topic, accord_config_op(op));
	}
	return *route != NULL;
}

AccordConfig *
accord_assign_config(void)
{
	return config;
}
