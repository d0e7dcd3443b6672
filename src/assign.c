/*
 * assign.c: today's configuration, as it applies to endpoints and deliveries.
 *
 * Runs in dispatchers. Endpoints outlive the configuration they were made
 * from: at every change each gets its limits anew, and is paused when its
 * channel or account is disabled. A delivery looks its route up when it is its
 * turn, so what is edited takes effect for everything that is still to be
 * sent.
 *
 * Invariants: pointers into the configuration are used between two refreshes
 * only; a delivery keeps its route's number, not its address.
 *
 * On failure the configuration as it was stays in force.
 */
#include "postgres.h"

#include "assign.h"
#include "request.h"

static AccordConfig *config = NULL;
static int64 config_generation = -1;

/* Gives an endpoint today's limits; pauses it when it may not send. */
static void
configure_endpoint(AccordDesk *desk, AccordEndpoint *endpoint)
{
	AccordChannel *channel = accord_config_channel(config, endpoint->channel);
	AccordAccount *account = channel == NULL || endpoint->account[0] == '\0' ?
	NULL : accord_config_account(config, channel, endpoint->account);

	if (channel == NULL)
	{
		/* what it is owed is settled as discarded, or read past */
		endpoint->paused = false;
		accord_endpoint_rotate(desk, endpoint);
		return;
	}
	endpoint->paused = !channel->enabled ||
		(account != NULL && !account->enabled);
	endpoint->ordered = channel->ordered;
	endpoint->max_in_flight = channel->max_in_flight;
	endpoint->policy.base_ms = channel->retry_base_ms;
	endpoint->policy.cap_ms = channel->retry_cap_ms;
	endpoint->policy.max_attempts = channel->max_attempts;
	endpoint->policy.max_age_ms = channel->max_age_ms;
	endpoint->policy.keyed = channel->idempotency_header != NULL;
	endpoint->policy.window_ms = channel->idempotency_window_ms;
	if (endpoint->paused && endpoint->rotating)
	{
		dlist_delete(&endpoint->ready_node);
		endpoint->rotating = false;
	}
	accord_endpoint_rotate(desk, endpoint);
}

/* Reloads the configuration if it changed. In a transaction. */
void
accord_assign_refresh(AccordDesk *desk)
{
	HASH_SEQ_STATUS scan;
	AccordEndpoint *endpoint;

	accord_config_pin(false);
	config = accord_config_get();
	accord_config_pin(true);
	if (config->generation == config_generation)
		return;
	config_generation = config->generation;
	accord_desk_scan(desk, &scan);
	while ((endpoint = accord_desk_scan_next(&scan)) != NULL)
		configure_endpoint(desk, endpoint);
}

AccordEndpoint *
accord_assign_endpoint(AccordDesk *desk, const char *channel, const char *account)
{
	AccordEndpoint *endpoint;

	if (!accord_desk_owns(desk, channel, account))
		return NULL;
	endpoint = accord_desk_endpoint(desk, channel, account, false);
	if (endpoint == NULL)
	{
		endpoint = accord_desk_endpoint(desk, channel, account, true);
		configure_endpoint(desk, endpoint);
	}
	return endpoint;
}

bool
accord_assign_route(AccordDelivery *delivery, AccordChannel **channel,
					AccordAccount **account, AccordRoute **route)
{
	*account = NULL;
	*channel = accord_config_channel(config, delivery->endpoint->channel);
	if (*channel == NULL)
		return false;
	if (delivery->endpoint->account[0] != '\0')
	{
		*account = accord_config_account(config, *channel,
										 delivery->endpoint->account);
		if (*account == NULL && (*channel)->has_accounts)
			return false;
	}
	*route = accord_config_route(*channel, delivery->route);
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
