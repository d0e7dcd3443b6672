/*
 * settle_rows.c: the rows that conclusions about deliveries become.
 *
 * Runs in dispatchers. Nothing here decides: settle.c and settle_position.c
 * do. Rows wait in the batch, in its own memory, for settle_commit.c.
 *
 * Invariant: a delivery is in the batch at most once.
 *
 * On failure (more at once than there is room for, which callers prevent) the
 * error ends the dispatcher, as in settle_commit.c.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "guc.h"
#include "json.h"
#include "settle_private.h"
#include "tally.h"
#include "token.h"

AccordSettlement *
accord_settle_add(AccordDelivery *delivery, AccordSequel sequel)
{
	AccordSettlement *settlement;

	if (accord_settling.n_settlements == lengthof(accord_settling.settlements))
		elog(ERROR, "too many deliveries settle at once");
	if (accord_settling.n_settlements == 0)
		accord_settling.since = GetCurrentTimestamp();
	settlement = &accord_settling.settlements[accord_settling.n_settlements++];
	memset(settlement, 0, sizeof(*settlement));
	settlement->delivery = delivery;
	Assert(!delivery->settling);
	delivery->settling = true;
	settlement->sequel = sequel;
	return settlement;
}

AccordBacklogRow *
accord_settle_row(AccordSettlement *settlement, AccordState state,
				  const char *error,
				  Jsonb *request)
{
	AccordDelivery *delivery = settlement->delivery;
	AccordBacklogRow *row = &accord_settling.rows[accord_settling.n_rows++];
	MemoryContext old = MemoryContextSwitchTo(accord_settling.context);

	settlement->has_row = true;
	settlement->row = accord_settling.n_rows - 1;
	settlement->state = state;
	row->replay = delivery->replay ? delivery->replay->id : 0;
	row->seq = delivery->seq;
	row->tx_id = delivery->tx_id;
	row->owed_since = delivery->owed_since;
	row->attempted_at = delivery->attempted_at;
	row->due_at = settlement->due_at;
	row->route = delivery->route;
	row->decided_by = delivery->decided_by;
	row->ord = delivery->ord;
	row->version = delivery->version + 1;
	row->attempts = delivery->attempts;
	row->event_slot = delivery->slot;
	row->priority = delivery->endpoint->priority;
	row->channel = delivery->endpoint->channel;
	row->account = delivery->endpoint->account;
	row->key = delivery->event == NULL ? NULL :
		accord_request_text(delivery->event, ACCORD_EVENT_KEY);
	row->state = state;
	row->error = error ? pstrdup(error) : NULL;
	row->request = request;
	MemoryContextSwitchTo(old);
	return row;
}

/* What the endpoint shows of an attempt. */
static void
show_attempt(AccordDelivery *delivery, AccordOutcome outcome,
			 const AccordHttpResponse *response, const char *error,
			 TimestampTz now)
{
	AccordConnection *connection = delivery->endpoint->connection;
	bool		delivered = outcome == ACCORD_OUTCOME_DELIVERED;

	accord_connection_touch(accord_settling.desk, connection);
	accord_tally_attempt(connection, outcome);
	if (outcome >= ACCORD_OUTCOME_SKIPPED && outcome != ACCORD_OUTCOME_LOST)
		return;					/* nothing was tried */
	accord_gauge_attempt(&connection->gauge, delivered,
						 response ? response->duration_ms : -1, now);
	connection->last_outcome = outcome;
	connection->last_attempt_at = now;
	if (delivered)
		connection->last_delivered_at = now;
	if (error != NULL)
	{
		connection->last_error_at = now;
		strlcpy(connection->last_error, error,
				sizeof(connection->last_error));
		connection->last_error[pg_mbcliplen(connection->last_error,
											strlen(connection->last_error),
											sizeof(connection->last_error) - 1)] = '\0';
	}
}

char	   *
accord_settle_foreign_text(const AccordConnection *connection,
						   const char *bytes, size_t len, size_t keep)
{
	const char *access = connection->token ? connection->token->access : NULL;
	const AccordChannel *channel = connection->hub->config;

	/* an account is reached by its channel's proxy */
	if (channel != NULL)
		bytes = accord_auth_redact(connection->config != NULL &&
								   connection->config->has_auth ?
								   &connection->config->auth : &channel->auth,
								   access, channel->link.proxy, bytes, &len,
								   keep);
	return accord_json_clean(bytes, len, keep);
}

AccordAttemptRow *
accord_settle_attempt(AccordDelivery *delivery, AccordOutcome outcome,
					  const AccordHttpResponse *response, const char *error,
					  TimestampTz now)
{
	AccordAttemptRow *row =
	&accord_settling.attempts[accord_settling.n_attempts++];
	MemoryContext old = MemoryContextSwitchTo(accord_settling.context);

	show_attempt(delivery, outcome, response, error, now);
	memset(row, 0, sizeof(*row));
	row->seq = delivery->seq;
	row->replay = delivery->replay ? delivery->replay->id : 0;
	row->ord = delivery->ord;
	row->attempt = delivery->attempts;
	row->duration_ms = response ? response->duration_ms : -1;
	row->channel = delivery->endpoint->channel;
	row->account = delivery->endpoint->account;
	row->outcome = accord_retry_word(outcome);
	row->error = error ? pstrdup(error) : NULL;
	if (response != NULL)
	{
		row->status = response->result.status;
		row->sent = accord_retry_sent_word(response->result.sent);
		if (outcome != ACCORD_OUTCOME_DELIVERED && response->body_len > 0)
			row->response =
				accord_settle_foreign_text(delivery->endpoint->connection,
										   response->body, response->body_len,
										   accord_response_excerpt);
		if (response->request_id != NULL)
			row->request_id =
				accord_settle_foreign_text(delivery->endpoint->connection,
										   response->request_id,
										   strlen(response->request_id), 200);
	}
	else if (outcome == ACCORD_OUTCOME_LOST)
		row->sent = accord_retry_sent_word(ACCORD_SENT_UNKNOWN);
	MemoryContextSwitchTo(old);
	return row;
}
