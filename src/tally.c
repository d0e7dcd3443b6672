/*
 * tally.c: a dispatcher counts what it does, for each of its endpoints.
 *
 * Runs in dispatchers, as answers are judged: before what follows from them is
 * committed, so what a crash repeats counts again. The counters are on the
 * board, in shared memory, and outlive the process.
 *
 * Invariants: a connection asks for its place once, and keeps it as long as
 * the process lives.
 *
 * On failure nothing is counted: the board may be full, which the log says
 * once.
 */
#include "postgres.h"

#include "gauge.h"
#include "tally.h"

/* How attempts fail, as far as it is counted; -1: it is not. */
static const int failures[] = {
	[ACCORD_OUTCOME_DELIVERED] = -1,
	[ACCORD_OUTCOME_ACCEPTED] = -1,
	[ACCORD_OUTCOME_CONFLICT] = -1,
	[ACCORD_OUTCOME_RETRY] = -1,
	[ACCORD_OUTCOME_RETRY_AFTER] = -1,
	[ACCORD_OUTCOME_REJECTED] = ACCORD_TALLY_REJECTED,
	[ACCORD_OUTCOME_UNAUTHORIZED] = ACCORD_TALLY_UNAUTHORIZED,
	[ACCORD_OUTCOME_UNREACHABLE] = ACCORD_TALLY_UNREACHABLE,
	[ACCORD_OUTCOME_TIMEOUT] = ACCORD_TALLY_TIMEOUTS,
	[ACCORD_OUTCOME_STALLED] = ACCORD_TALLY_TIMEOUTS,
	[ACCORD_OUTCOME_CUT_OFF] = ACCORD_TALLY_CUT_OFF,
	[ACCORD_OUTCOME_UNCLEAR] = -1,
	[ACCORD_OUTCOME_INVALID] = ACCORD_TALLY_INVALID,
};

int
accord_tally_place(AccordConnection *connection)
{
	static bool said = false;

	/* where there is no place, looking for one takes long */
	if (connection->board != ACCORD_BOARD_UNASKED)
		return connection->board;
	connection->board = accord_board_enter(connection->id);
	if (connection->board >= 0)
		return connection->board;
	connection->board = ACCORD_BOARD_FULL;
	if (!said)
		ereport(LOG,
				(errmsg("channel \"%s\", and perhaps others, cannot be shown "
						"in accord.status", connection->hub->channel),
				 errhint("Raise accord.max_endpoints, and restart the "
						 "server.")));
	said = true;
	return connection->board;
}

static void
count(AccordConnection *connection, int tally, int64 n)
{
	int			place = accord_tally_place(connection);

	if (place >= 0 && n != 0)
		accord_board_count(place, tally, n);
}

void
accord_tally(AccordConnection *connection, AccordTally tally)
{
	count(connection, tally, 1);
}

void
accord_tally_request(AccordConnection *connection,
					 const AccordHttpResponse *response)
{
	count(connection, ACCORD_TALLY_REQUESTS, 1);
	count(connection, ACCORD_TALLY_BYTES_SENT, response->bytes_sent);
	count(connection, ACCORD_TALLY_BYTES_RECEIVED, response->bytes_received);
	if (response->result.transport != ACCORD_TRANSPORT_OK)
		return;
	count(connection, ACCORD_TALLY_ANSWERED, 1);
	count(connection, ACCORD_TALLY_ANSWER_TIME,
		  (int64) (response->duration_ms * 1000));
	count(connection, ACCORD_TALLY_LATENCY +
		  accord_gauge_bucket(response->duration_ms), 1);
}

void
accord_tally_attempt(AccordConnection *connection, AccordOutcome outcome)
{
	int			failure = outcome < lengthof(failures) ? failures[outcome] : -1;

	if (failure >= 0)
		count(connection, failure, 1);
}

/* What a delivery that is done has come to. */
static int
end_of(AccordOutcome outcome)
{
	switch (outcome)
	{
		case ACCORD_OUTCOME_DELIVERED:
			return ACCORD_TALLY_DELIVERED;
		case ACCORD_OUTCOME_SKIPPED:
			return ACCORD_TALLY_SKIPPED;
		case ACCORD_OUTCOME_SUPERSEDED:
			return ACCORD_TALLY_SUPERSEDED;
		case ACCORD_OUTCOME_EXPIRED:
			return ACCORD_TALLY_EXPIRED;
		default:
			return ACCORD_TALLY_DISCARDED;
	}
}

void
accord_tally_verdict(AccordConnection *connection, AccordOutcome outcome,
					 AccordVerdict verdict)
{
	switch (verdict)
	{
		case ACCORD_VERDICT_DONE:
			count(connection, end_of(outcome), 1);
			break;
		case ACCORD_VERDICT_RETRY:
			count(connection, ACCORD_TALLY_RETRIED, 1);
			break;
		case ACCORD_VERDICT_ACCEPT:
		case ACCORD_VERDICT_VERIFY:
			break;				/* it has neither failed nor ended */
		case ACCORD_VERDICT_HOLD:
			count(connection, ACCORD_TALLY_HELD, 1);
			break;
		case ACCORD_VERDICT_DEAD:
			count(connection, ACCORD_TALLY_DEAD, 1);
			break;
	}
}
