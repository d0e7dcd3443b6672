/*
 * renew.c: the tokens that connections wait for are fetched.
 *
 * Runs in dispatchers. What wants a token, and what is known of it, is in
 * token.c; this gives it to the network, as an errand, and wakes whoever
 * waits.
 *
 * Invariants: a transaction is open while a row of accord.token is claimed or
 * written, never while the network is waited on. A token is asked for by one
 * errand at a time, of all dispatchers.
 *
 * On failure those who wait are told, in their status and in endpoint_log; they
 * ask again when it is time.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "db.h"
#include "errand.h"
#include "flow.h"
#include "renew.h"
#include "round.h"
#include "shmem.h"
#include "token.h"

static AccordDesk *desk_of_errands = NULL;	/* whose they are */

/* There is one, or a time to wait for: everybody asks anew. */
static void
wake_connections(AccordToken *token)
{
	dlist_iter	iter;

	dlist_foreach(iter, &token->connections)
		accord_connection_sleep(desk_of_errands,
								dlist_container(AccordConnection, token_node,
												iter.cur), 0);
}

/* Says whom it concerns that there is none, and why. */
static void
tell_failure(AccordToken *token)
{
	AccordHub  *told = NULL;
	dlist_iter	iter;
	char	   *reason = psprintf("no token: %s", token->error ? token->error :
								  "");

	dlist_foreach(iter, &token->connections)
	{
		AccordConnection *connection = dlist_container(AccordConnection,
													   token_node, iter.cur);
		bool		own = connection->config != NULL &&
		connection->config->has_auth;

		strlcpy(connection->last_error, reason,
				sizeof(connection->last_error));
		connection->last_error_at = GetCurrentTimestamp();
		accord_connection_touch(desk_of_errands, connection);
		/* once for a channel all of whose accounts have the same */
		if (!own && told == connection->hub)
			continue;
		told = connection->hub;
		accord_flow_note(connection->hub->channel, own ? connection->account :
						 "", "throttled", reason, token->retry_at);
	}
}

/* AccordErrandDone: the endpoint has answered, or could not be asked. */
static void
take_answer(AccordErrand *errand, const AccordHttpResponse *response,
			TimestampTz now)
{
	AccordToken *token = errand->arg;
	MemoryContext caller = CurrentMemoryContext;
	bool		there;

	accord_db_begin();
	MemoryContextSwitchTo(caller);
	there = accord_token_store(token, response, now);
	accord_db_commit();
	MemoryContextSwitchTo(caller);
	if (!there)
		tell_failure(token);
	wake_connections(token);
	accord_shmem_wake_dispatchers();
}

static void
start_errand(AccordDesk *desk, AccordToken *token, const char *refresh)
{
	AccordErrand *errand = accord_errand_create(desk, NULL, take_answer,
												token);
	MemoryContext old = MemoryContextSwitchTo(errand->request.context);
	AccordHttpResponse none;
	char	   *fault = accord_token_request(token, refresh,
											 &errand->request.http);

	MemoryContextSwitchTo(old);
	if (fault == NULL)
	{
		accord_errand_start(errand);
		return;
	}
	memset(&none, 0, sizeof(none));
	none.result.retry_after_ms = -1;
	none.error = fault;
	take_answer(errand, &none, GetCurrentTimestamp());
	MemoryContextDelete(errand->request.context);
}

/* A token that was claimed, and what it is to be asked for with. */
typedef struct Claim
{
	AccordToken *token;
	char	   *refresh;
} Claim;

/* Claims those that are wanted, in one transaction; how many are ours. */
static int
claim_wanted(Claim *claims, int max, bool awake, TimestampTz now)
{
	dlist_mutable_iter iter;
	MemoryContext caller = CurrentMemoryContext;
	int			n = 0;

	accord_db_begin();
	MemoryContextSwitchTo(caller);
	dlist_foreach_modify(iter, accord_token_wanted())
	{
		AccordToken *token = dlist_container(AccordToken, wanted_node,
											 iter.cur);

		if (n == max)
			break;
		if (token->state == ACCORD_TOKEN_ELSEWHERE && !awake &&
			token->look_at > now)
			continue;
		accord_token_claim(token, &claims[n].refresh, now);
		if (token->state == ACCORD_TOKEN_ASKED)
			claims[n++].token = token;
		else if (token->state == ACCORD_TOKEN_IDLE)
		{
			if (token->retry_at != 0)
				tell_failure(token);
			wake_connections(token);
		}
	}
	accord_db_commit();
	MemoryContextSwitchTo(caller);
	return n;
}

void
accord_renew_turn(AccordDesk *desk, bool awake, TimestampTz now)
{
	Claim		claims[64];
	int			n;

	if (dlist_is_empty(accord_token_wanted()))
		return;
	desk_of_errands = desk;
	n = claim_wanted(claims, lengthof(claims), awake, now);
	for (int i = 0; i < n; i++)
		start_errand(desk, claims[i].token, claims[i].refresh);
}

TimestampTz
accord_renew_due(void)
{
	return accord_token_due();
}
