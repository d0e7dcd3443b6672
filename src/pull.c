/*
 * pull.c: fetches what channels have: pages of feeds, and what reconciliations
 * read.
 *
 * Runs in dispatchers. What there is to pull, when, and by which request, SQL
 * says (accord.pull_list(), accord.pull_request()); an errand makes the
 * request, a clerk takes in its answer (accord.pull_take()) and says when to
 * go on. So a pull is a loop of three steps, and this file has nothing to
 * remember but where in it each pull is:
 *
 *    WAITING --due--> ASKING --answered--> ANSWERED --clerk free--> TAKING
 *       ^                '--nothing to ask---^                        |
 *       '---------------------- when to go on ------------------------'
 *
 * Invariants
 *   - Only SQL's state counts, and it changes only in the transaction that
 *     takes an answer in: what happens to this process is of no consequence.
 *   - An answer carries the version of the state that it was asked for; it is
 *     thrown away when somebody has changed that since.
 *
 * On failure of the channel pull_take() is told, and says when to try again;
 * an error of the session ends the dispatcher, and the next one begins with
 * what SQL says.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "assign.h"
#include "clerk.h"
#include "db.h"
#include "errand.h"
#include "invalidation.h"
#include "json.h"
#include "pull.h"
#include "settle.h"

#define ASK_AT_ONCE 64			/* pulls begun in one turn */
#define ASK_CHANNEL 8			/* ... and under way for one channel */
#define ASK_AGAIN USECS_PER_SEC /* one for which there was no room */
#define MAX_REFUSAL 1024		/* bytes of an answer that is none */
#define MAX_HEEDED 64			/* looked at one by one; else all are */

typedef enum PullKind
{
	PULL_FEED,
	PULL_SCHEDULE,				/* a reconciliation's: makes jobs */
	PULL_JOB,
	PULL_KINDS
} PullKind;

static const struct
{
	const char *word;
	AccordClerkDesk clerk;
}			kinds[] = {
	[PULL_FEED] = {"feed", ACCORD_CLERK_FEEDS},
	[PULL_SCHEDULE] = {"schedule", ACCORD_CLERK_JOBS},
	[PULL_JOB] = {"job", ACCORD_CLERK_JOBS}
};

typedef enum PullPhase
{
	PULL_WAITING,				/* next: ASKING, ANSWERED, freed */
	PULL_ASKING,				/* next: ANSWERED, WAITING */
	PULL_ANSWERED,				/* next: TAKING, WAITING */
	PULL_TAKING					/* next: WAITING */
} PullPhase;

typedef struct PullKey
{
	int64		id;
	uint64		account;		/* hash of its name */
	int64		kind;
} PullKey;

typedef struct Pull
{
	PullKey		key;			/* hash key */
	PullPhase	phase;
	char	   *channel;
	char	   *account;		/* "": the channel itself */
	TimestampTz due_at;			/* WAITING */
	pairingheap_node due_node;	/* ... in the heap */
	AccordErrand *errand;		/* ASKING */
	MemoryContext context;		/* ASKING to TAKING: of what follows */
	int64		version;		/* of the state that was asked for */
	int			status;
	char	   *headers;
	char	   *error;
	char	   *body;			/* NULL: none */
	size_t		body_len;
	dlist_node	node;			/* in asking, or its clerk's queue */
	bool		listed;			/* still there, at the last look */
} Pull;

static HTAB *pulls = NULL;
static pairingheap *waiting = NULL;
static dlist_head asking = DLIST_STATIC_INIT(asking);
static dlist_head answered[ACCORD_CLERKS];
static Pull *taking[ACCORD_CLERKS];
static bool stale = true;		/* there may be others */
static int64 heeded[MAX_HEEDED][2]; /* kind and id, to be looked at again */
static int	n_heeded = 0;
static Oid	watched[8];
static int	n_watched = 0;

/* ---- which there are ---- */

/* Relation cache callback. */
static void
note_change(Datum arg, Oid relid)
{
	for (int i = 0; i < n_watched; i++)
		stale |= relid == watched[i];
	stale |= !OidIsValid(relid);
}

static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz one = pairingheap_const_container(Pull, due_node, a)->due_at;
	TimestampTz other = pairingheap_const_container(Pull, due_node, b)->due_at;

	return one < other ? 1 : one > other ? -1 : 0;
}

static void
initialize(AccordDesk *desk)
{
	static const char *const tables[] = {
		"feed", "reconciliation", "channel", "account", "paused"
	};
	HASHCTL		ctl;
	MemoryContext old;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(PullKey);
	ctl.entrysize = sizeof(Pull);
	ctl.hcxt = desk->context;
	pulls = hash_create("pg_accord pulls", 64, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	old = MemoryContextSwitchTo(desk->context);
	waiting = pairingheap_allocate(compare_due, NULL);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < ACCORD_CLERKS; i++)
		dlist_init(&answered[i]);
	for (int i = 0; i < lengthof(tables); i++)
		watched[n_watched++] = accord_db_relid(tables[i]);
	accord_invalidation_heed(note_change, (Datum) 0);
}

static char *
text_column(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						column);
}

static Datum
datum_column(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

static PullKind
kind_of(const char *word)
{
	PullKind	kind = PULL_FEED;

	while (kind < PULL_KINDS && strcmp(kinds[kind].word, word) != 0)
		kind++;
	return kind;
}

static void
wait_until(Pull *pull, TimestampTz due_at)
{
	pull->phase = PULL_WAITING;
	pull->due_at = due_at;
	pairingheap_add(waiting, &pull->due_node);
}

/* Nothing is left of what was asked. */
static void
drop_answer(Pull *pull)
{
	if (pull->context != NULL)
		MemoryContextDelete(pull->context);
	pull->context = NULL;
	pull->headers = pull->error = pull->body = NULL;
	pull->body_len = 0;
	pull->status = 0;
}

/* One that is not there any more; in no list and no heap. */
static void
forget(Pull *pull)
{
	drop_answer(pull);
	pfree(pull->channel);
	pfree(pull->account);
	hash_search(pulls, &pull->key, HASH_REMOVE, NULL);
}

/* A row of accord.pull_list(). */
static void
enlist(AccordDesk *desk, int row)
{
	PullKind	kind = kind_of(text_column(row, 1));
	char	   *account = text_column(row, 3);
	char	   *channel = text_column(row, 4);
	PullKey		key;
	Pull	   *pull;
	bool		isnull;
	bool		found;
	TimestampTz due_at;

	if (kind == PULL_KINDS || !accord_desk_owns(desk, channel))
		return;
	memset(&key, 0, sizeof(key));
	key.kind = kind;
	key.id = DatumGetInt64(datum_column(row, 2, &isnull));
	key.account = hash_bytes_extended((unsigned char *) account,
									  strlen(account), 0);
	due_at = DatumGetTimestampTz(datum_column(row, 5, &isnull));
	if (isnull)
		due_at = DT_NOEND;
	pull = hash_search(pulls, &key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) pull + sizeof(PullKey), 0,
			   sizeof(Pull) - sizeof(PullKey));
		pull->channel = MemoryContextStrdup(desk->context, channel);
		pull->account = MemoryContextStrdup(desk->context, account);
		wait_until(pull, due_at);
	}
	else if (pull->phase == PULL_WAITING)
	{
		pairingheap_remove(waiting, &pull->due_node);
		wait_until(pull, due_at);
	}
	pull->listed = true;
}

static void
read_list(AccordDesk *desk, const char *kind, int64 id)
{
	Oid			types[] = {TEXTOID, INT8OID};
	Datum		values[] = {kind ? CStringGetTextDatum(kind) : 0,
	Int64GetDatum(id)};
	char		nulls[] = {kind ? ' ' : 'n', kind ? ' ' : 'n'};

	SPI_connect();
	if (SPI_execute_with_args("SELECT kind, id, account, channel, due_at "
							  "FROM accord.pull_list($1, $2)", 2, types,
							  values, nulls, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run accord.pull_list()");
	for (int i = 0; i < (int) SPI_processed; i++)
		enlist(desk, i);
	SPI_finish();
}

/* One that is gone: what is under way for it is given up. */
static void
give_up(Pull *pull)
{
	if (pull->phase == PULL_TAKING)
		return;					/* the clerk's word ends it */
	if (pull->phase == PULL_WAITING)
		pairingheap_remove(waiting, &pull->due_node);
	else
		dlist_delete(&pull->node);
	if (pull->phase == PULL_ASKING)
		accord_errand_cancel(pull->errand);
	forget(pull);
}

static bool
is_heeded(const PullKey *key)
{
	for (int i = 0; i < n_heeded; i++)
		if (heeded[i][0] == key->kind && heeded[i][1] == key->id)
			return true;
	return false;
}

/* Looks again at all, or at those that the log spoke of. */
static void
look(AccordDesk *desk)
{
	HASH_SEQ_STATUS status;
	Pull	   *pull;

	if (pulls == NULL)
		initialize(desk);
	hash_seq_init(&status, pulls);
	while ((pull = hash_seq_search(&status)) != NULL)
		if (stale || is_heeded(&pull->key))
			pull->listed = false;
	if (stale)
		read_list(desk, NULL, 0);
	for (int i = 0; i < n_heeded && !stale; i++)
		read_list(desk, kinds[heeded[i][0]].word, heeded[i][1]);
	hash_seq_init(&status, pulls);
	while ((pull = hash_seq_search(&status)) != NULL)
		if (!pull->listed)
			give_up(pull);
	n_heeded = 0;
	stale = false;
}

void
accord_pull_heed(Jsonb *payload)
{
	char	   *word = accord_json_member(payload, "kind");
	char	   *id = accord_json_member(payload, "id");
	PullKind	kind = word ? kind_of(word) : PULL_KINDS;

	if (kind == PULL_KINDS || id == NULL || n_heeded == MAX_HEEDED)
	{
		stale = true;
		return;
	}
	heeded[n_heeded][0] = kind;
	heeded[n_heeded++][1] = strtoll(id, NULL, 10);
}

/* ---- asking ---- */

static void
queue_for_clerk(Pull *pull)
{
	pull->phase = PULL_ANSWERED;
	dlist_push_tail(&answered[kinds[pull->key.kind].clerk], &pull->node);
}

/* The headers that SQL is told of, as an object of names and values. */
static char *
headers_text(const AccordHttpResponse *response)
{
	static const char *const names[] = {
		"content-type", "date", "etag", "last-modified", "link"
	};
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	for (int i = 0; i < lengthof(names); i++)
	{
		const char *value = accord_http_answer_header(response, names[i]);

		if (value == NULL)
			continue;
		if (text.len > 1)
			appendStringInfoChar(&text, ',');
		escape_json(&text, names[i]);
		appendStringInfoChar(&text, ':');
		escape_json(&text, accord_json_clean(value, strlen(value), 8192));
	}
	appendStringInfoChar(&text, '}');
	return text.data;
}

/* An errand's callback: keeps the answer for a clerk. */
static void
note_answer(AccordErrand *errand, const AccordHttpResponse *response,
			TimestampTz now)
{
	Pull	   *pull = errand->arg;
	MemoryContext old = MemoryContextSwitchTo(pull->context);

	dlist_delete(&pull->node);
	pull->errand = NULL;
	pull->status = response->result.status;
	if (response->result.transport != ACCORD_TRANSPORT_OK)
	{
		pull->status = 0;
		pull->error = pstrdup(response->error ? response->error :
							  "there was no answer");
	}
	else if (response->truncated)
		pull->error = pstrdup("the answer is larger than max_page allows");
	else if ((pull->status < 200 || pull->status > 299) &&
			 errand->connection != NULL)
	{
		/* of what is refused a part is kept, for people */
		pull->headers = headers_text(response);
		pull->body = accord_settle_foreign_text(errand->connection,
												response->body,
												response->body_len,
												MAX_REFUSAL);
		pull->body_len = strlen(pull->body);
	}
	else
	{
		pull->headers = headers_text(response);
		pull->body = MemoryContextAllocExtended(pull->context,
												response->body_len + 1,
												MCXT_ALLOC_HUGE |
												MCXT_ALLOC_NO_OOM);
		pull->body_len = response->body_len;
		if (pull->body != NULL && response->body_len > 0)
			memcpy(pull->body, response->body, response->body_len);
	}
	if (pull->body == NULL && pull->error == NULL)
		pull->error = pstrdup("there is no memory for the answer");
	MemoryContextSwitchTo(old);
	queue_for_clerk(pull);
}

/* "Name: value" of each, in the errand's memory. */
static void
fill_headers(AccordErrand *errand, Datum array)
{
	Datum	   *lines;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &lines, NULL, &n);
	errand->request.http.headers = palloc(Max(n, 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
		errand->request.http.headers[i] = TextDatumGetCString(lines[i]);
	errand->request.http.n_headers = n;
}

/* The request of a row of accord.pull_request(). */
static void
fill_request(AccordErrand *errand, char *url, char *method)
{
	MemoryContext old = MemoryContextSwitchTo(errand->request.context);
	bool		isnull;
	Datum		value;

	errand->request.http.url = pstrdup(url);
	errand->request.http.method = pstrdup(method);
	value = datum_column(0, 4, &isnull);
	if (!isnull)
		fill_headers(errand, value);
	value = datum_column(0, 5, &isnull);
	if (!isnull)
	{
		errand->request.http.body = TextDatumGetCString(value);
		errand->request.http.body_len = strlen(errand->request.http.body);
	}
	value = datum_column(0, 6, &isnull);
	errand->request.http.max_response = isnull ? 0 : DatumGetInt32(value);
	MemoryContextSwitchTo(old);
}

static bool
run_request(Pull *pull)
{
	Oid			types[] = {TEXTOID, INT8OID, TEXTOID};
	Datum		values[] = {
		CStringGetTextDatum(kinds[pull->key.kind].word),
		Int64GetDatum(pull->key.id), CStringGetTextDatum(pull->account)
	};

	if (SPI_execute_with_args("SELECT version, url, method, headers, body, "
							  "max_response, error "
							  "FROM accord.pull_request($1, $2, $3)", 3, types,
							  values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run accord.pull_request()");
	return SPI_processed > 0;
}

/*
 * Begins a pull that is due: it is ASKING, or, when there is nothing to be
 * asked for it, ANSWERED. Whether it is ASKING; it may be gone, too.
 */
static bool
begin(AccordDesk *desk, Pull *pull, AccordConnection *connection)
{
	char	   *url;
	char	   *error;
	bool		isnull;

	SPI_connect();
	if (!run_request(pull))
	{
		SPI_finish();
		forget(pull);
		return false;
	}
	pull->context = AllocSetContextCreate(desk->context, "pg_accord pull",
										  ALLOCSET_SMALL_SIZES);
	pull->version = DatumGetInt64(datum_column(0, 1, &isnull));
	url = text_column(0, 2);
	error = text_column(0, 7);
	if (error != NULL)
		pull->error = MemoryContextStrdup(pull->context, error);
	if (url == NULL || error != NULL)
		queue_for_clerk(pull);
	else
	{
		pull->errand = accord_errand_create(desk, connection, note_answer,
											pull);
		fill_request(pull->errand, url, text_column(0, 3));
		pull->phase = PULL_ASKING;
		dlist_push_tail(&asking, &pull->node);
	}
	SPI_finish();
	return pull->phase == PULL_ASKING;
}

/* Whether a channel has as many under way as it may. */
static bool
is_busy(const char *channel)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &asking)
		n += strcmp(dlist_container(Pull, node, iter.cur)->channel,
					channel) == 0;
	return n >= ASK_CHANNEL;
}

/*
 * Whether it can be asked for now; one that cannot waits. Who pauses or
 * resumes an endpoint has all of them looked at again.
 */
static AccordConnection *
connection_of(AccordDesk *desk, Pull *pull, TimestampTz now)
{
	AccordConnection *connection =
	accord_assign_connection(desk, pull->channel, pull->account);

	if (connection != NULL && !connection->paused && !is_busy(pull->channel))
		return connection;
	wait_until(pull, now + (connection == NULL || connection->paused ?
							USECS_PER_MINUTE : ASK_AGAIN));
	return NULL;
}

static Pull *
next_due(TimestampTz now)
{
	Pull	   *pull;

	if (waiting == NULL || pairingheap_is_empty(waiting))
		return NULL;
	pull = pairingheap_container(Pull, due_node, pairingheap_first(waiting));
	return pull->due_at <= now ? pull : NULL;
}

/* Begins what is due. */
static void
ask(AccordDesk *desk, TimestampTz now)
{
	Pull	   *begun[ASK_AT_ONCE];
	Pull	   *pull;
	int			n = 0;

	if (next_due(now) == NULL)
		return;
	accord_db_begin();
	accord_assign_refresh(desk);
	for (int i = 0; i < ASK_AT_ONCE && (pull = next_due(now)) != NULL; i++)
	{
		AccordConnection *connection;

		(void) pairingheap_remove_first(waiting);
		connection = connection_of(desk, pull, now);
		if (connection == NULL)
			continue;
		if (begin(desk, pull, connection))
			begun[n++] = pull;
	}
	accord_db_commit();
	for (int i = 0; i < n; i++)
		accord_errand_start(begun[i]->errand);
}

/* ---- having it taken in ---- */

static void
give_order(AccordClerkDesk clerk, TimestampTz now)
{
	Pull	   *pull;
	AccordClerkOrder order;

	if (taking[clerk] != NULL || dlist_is_empty(&answered[clerk]))
		return;
	pull = dlist_head_element(Pull, node, &answered[clerk]);
	order.kind = kinds[pull->key.kind].word;
	order.id = pull->key.id;
	order.account = pull->account;
	order.version = pull->version;
	order.status = pull->status;
	order.headers = pull->headers;
	order.error = pull->error;
	order.body = pull->body;
	order.body_len = pull->body_len;
	dlist_delete(&pull->node);
	if (accord_clerk_give(clerk, &order))
	{
		pull->phase = PULL_TAKING;
		taking[clerk] = pull;
	}
	else
		wait_until(pull, now + 5 * USECS_PER_SEC);
	drop_answer(pull);
}

static void
ask_clerk(AccordClerkDesk clerk, TimestampTz now)
{
	Pull	   *pull = taking[clerk];
	TimestampTz due_at = DT_NOEND;
	AccordClerkState state = pull == NULL ? ACCORD_CLERK_FREE :
	accord_clerk_ask(clerk, &due_at);

	if (state == ACCORD_CLERK_FREE || state == ACCORD_CLERK_BUSY)
		return;
	taking[clerk] = NULL;
	if (!pull->listed)
		forget(pull);
	else
		wait_until(pull, state == ACCORD_CLERK_DONE ? due_at :
				   now + USECS_PER_SEC);
}

void
accord_pull_turn(AccordDesk *desk, TimestampTz now)
{
	MemoryContext old = CurrentMemoryContext;

	if (stale || n_heeded > 0)
	{
		accord_db_begin();
		look(desk);
		accord_db_commit();
	}
	for (int i = 0; i < ACCORD_CLERKS; i++)
		ask_clerk(i, now);
	ask(desk, now);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < ACCORD_CLERKS; i++)
		give_order(i, now);
}

TimestampTz
accord_pull_due(void)
{
	Pull	   *pull;

	if (stale || n_heeded > 0)
		return 1;
	if (waiting == NULL || pairingheap_is_empty(waiting))
		return 0;
	pull = pairingheap_container(Pull, due_node, pairingheap_first(waiting));
	return pull->due_at == DT_NOEND ? 0 : pull->due_at;
}
