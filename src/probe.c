/*
 * probe.c: accord.probe(): one harmless call to a channel, and what it says
 * about the channel in plain words.
 *
 * The call is made by the dispatcher that owns the channel; the backend that
 * asks waits for it on its latch. In a backend it would go by another road
 * than deliveries do: another resolver cache, no connection that is kept, a
 * token of its own where tokens are scarce; the keys that open secrets would
 * have to be in a user's session; and whoever may ask would hold the network
 * within a transaction of his own process, with curl's threads in it. So the
 * question goes through shared memory (inquiry.c), as an errand of nobody's
 * connection: it waits for no pause, breaker or limit, which are what one
 * wants to know the cause of, and counts for none. What there is to be paid
 * for that: it needs a running dispatcher, and says so where there is none.
 *
 * Invariants: no lock is held while anybody waits, and the question goes when
 * the asker does, however that ends. What is said names the address without
 * credentials, the status and libcurl's words; nothing of the answer's body.
 *
 * On failure: the asker's patience is the channel's own timeouts and a little
 * more; then it is said that nobody answered.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "assign.h"
#include "errand.h"
#include "guc.h"
#include "inquiry.h"
#include "probe.h"
#include "request.h"
#include "round.h"
#include "shmem.h"

#define PATIENCE 15000			/* ms beyond the channel's timeouts */
#define LOOK_EVERY 1000			/* ms, should a wake-up be lost */
#define MAX_ANSWER 1024			/* bytes of the body that are read */

/* What is asked, in a dispatcher, while the call is under way. */
typedef struct Probe
{
	AccordInquiryId id;
	AccordFinding finding;
} Probe;

/* Columns of the result */
enum
{
	OK, VERDICT, DETAIL, STATUS, DURATION, URL, N_COLUMNS
};

PG_FUNCTION_INFO_V1(accord_probe);

static void conclude(AccordFinding *finding, bool ok, const char *verdict,
					 const char *detail,...) pg_attribute_printf(4, 5);

static void
conclude(AccordFinding *finding, bool ok, const char *verdict,
		 const char *detail,...)
{
	va_list		args;

	finding->ok = ok;
	strlcpy(finding->verdict, verdict, sizeof(finding->verdict));
	va_start(args, detail);
	vsnprintf(finding->detail, sizeof(finding->detail), detail, args);
	va_end(args);
}

/* ---- what an answer means ---- */

/* It was answered, with this status. */
static void
judge_status(AccordFinding *finding, const AccordHttpResponse *response)
{
	int			status = response->result.status;

	if (status == 401 || status == 407)
		conclude(finding, false, "unauthorized", "it answered %d: it does not "
				 "accept the credential, or wants one", status);
	else if (status == 403)
		conclude(finding, false, "forbidden", "it answered 403: it knows who "
				 "asks, and refuses, or refuses everybody from here");
	else if (status == 429 || (status == 503 &&
							   response->result.retry_after_ms >= 0))
		conclude(finding, false, "throttled", "it answered %d: too many "
				 "requests%s", status, response->result.retry_after_ms >= 0 ?
				 psprintf(", try again in %d s",
						  (int) (response->result.retry_after_ms / 1000)) : "");
	else if (status >= 500)
		conclude(finding, false, "failing", "it answered %d: it is reachable, "
				 "and has trouble of its own", status);
	else if (status >= 300)
		conclude(finding, true, "reachable", "it answered %d: name, network "
				 "and certificate are fine; a path that answers 200 would "
				 "tell whether the credential is", status);
	else
		conclude(finding, true, "works", "it answered %d", status);
}

/* There was no answer: why, by how far it got. */
static void
judge_failure(AccordFinding *finding, const AccordHttpResponse *response)
{
	static const struct
	{
		AccordHttpCause cause;
		const char *verdict;
		const char *meaning;
	}			causes[] = {
		{ACCORD_HTTP_CAUSE_PROXY, "proxy",
		"its proxy is not reached, not trusted, or does not let it through"},
		{ACCORD_HTTP_CAUSE_NAME, "name not found",
		"no name server knows the host of base_url"},
		{ACCORD_HTTP_CAUSE_CONNECTION, "connection refused",
		"nothing accepts connections there, or nothing can be reached"},
		{ACCORD_HTTP_CAUSE_CERTIFICATE, "certificate",
		"its certificate is not trusted"},
		{ACCORD_HTTP_CAUSE_TLS, "TLS", "no TLS connection comes about"},
		{ACCORD_HTTP_CAUSE_TIMEOUT, "timed out",
		"no answer came within the channel's timeouts"}
	};
	const char *error = response->error ? response->error : "";

	if (response->result.transport == ACCORD_TRANSPORT_REFUSED)
	{
		conclude(finding, false, "refused network",
				 "%s: add it to accord.allowed_networks, if that is meant",
				 error);
		return;
	}
	for (int i = 0; i < lengthof(causes); i++)
		if (response->cause == causes[i].cause)
		{
			conclude(finding, false, causes[i].verdict, "%s: %s",
					 causes[i].meaning, error);
			return;
		}
	if (response->result.transport == ACCORD_TRANSPORT_GARBAGE)
		conclude(finding, false, "not HTTP", "what answers there does not "
				 "speak HTTP: %s", error);
	else if (response->result.transport == ACCORD_TRANSPORT_INVALID)
		conclude(finding, false, "not sent", "the request cannot be made: %s",
				 error);
	else
		conclude(finding, false, "cut off", "the connection ended before the "
				 "answer did: %s", error);
}

/* AccordErrandDone */
static void
probe_done(AccordErrand *errand, const AccordHttpResponse *response,
		   TimestampTz now)
{
	Probe	   *probe = errand->arg;
	AccordFinding *finding = &probe->finding;

	finding->status = response->result.status;
	finding->duration_ms = errand->started_at != 0 ? response->duration_ms :
		-1;
	if (response->result.transport == ACCORD_TRANSPORT_OK)
		judge_status(finding, response);
	else
		judge_failure(finding, response);
	accord_inquiry_answer(probe->id, finding);
}

/* ---- the dispatcher's side ---- */

/* Whether this dispatcher is the one to call a channel. */
static bool
owns_channel(const char *channel, void *desk)
{
	return accord_desk_owns(desk, channel);
}

/* Makes the request; false: the finding says why there is none. */
static bool
make_request(AccordRequest *request, const AccordInquiry *inquiry,
			 AccordFinding *finding)
{
	AccordConfig *config = accord_assign_config();
	AccordChannel *channel = accord_config_channel(config, inquiry->channel);
	AccordAccount *account = NULL;
	MemoryContext context = request->context;

	if (channel != NULL && inquiry->account[0] != '\0')
		account = accord_config_account(config, channel, inquiry->account);
	if (channel == NULL || (inquiry->account[0] != '\0' && account == NULL))
	{
		conclude(finding, false, "not sent",
				 "the dispatcher knows no such channel or account: was it "
				 "committed?");
		return false;
	}
	accord_request_make_probe(request, channel, account, inquiry->path);
	request->context = context;
	if (request->error == NULL)
	{
		strlcpy(finding->url, request->http.url, sizeof(finding->url));
		accord_request_equip(request, channel, account, false);
		request->http.max_response = MAX_ANSWER;
	}
	if (request->error != NULL)
		conclude(finding, false, "not sent", "%s", request->error);
	return request->error == NULL;
}

void
accord_probe_turn(AccordDesk *desk)
{
	AccordInquiry inquiry;
	AccordInquiryId id;

	while (accord_inquiry_next(owns_channel, desk, &inquiry, &id))
	{
		AccordErrand *errand = accord_errand_create(desk, NULL, probe_done,
													NULL);
		MemoryContext old = MemoryContextSwitchTo(errand->request.context);
		Probe	   *probe = palloc0(sizeof(Probe));

		probe->id = id;
		probe->finding.duration_ms = -1;
		errand->arg = probe;
		if (make_request(&errand->request, &inquiry, &probe->finding))
			accord_errand_start(errand);
		else
		{
			accord_inquiry_answer(id, &probe->finding);
			MemoryContextSwitchTo(old);
			MemoryContextDelete(errand->request.context);
		}
		MemoryContextSwitchTo(old);
	}
}

/* ---- the backend's side ---- */

/* Callback of the exit, and of an error. */
static void
forget_inquiry(int code, Datum arg)
{
	accord_inquiry_forget(*(AccordInquiryId *) DatumGetPointer(arg));
}

/* Waits for the answer; false: the patience has ended. */
static bool
await_answer(AccordInquiryId id, int64 patience, AccordFinding *finding,
			 bool *taken)
{
	TimestampTz deadline = GetCurrentTimestamp() + patience * 1000;

	while (!accord_inquiry_answered(id, finding, taken))
	{
		if (GetCurrentTimestamp() >= deadline)
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, LOOK_EVERY, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

static void
ask(const AccordInquiry *inquiry, int64 patience, AccordFinding *finding)
{
	AccordInquiryId id;
	bool		taken = false;
	bool		answered = false;

	if (!accord_inquiry_ask(inquiry, &id))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many sessions call accord.probe() at this moment"),
				 errhint("Try again when some of them have their answer.")));
	PG_ENSURE_ERROR_CLEANUP(forget_inquiry, PointerGetDatum(&id));
	{
		answered = await_answer(id, patience, finding, &taken);
	}
	PG_END_ENSURE_ERROR_CLEANUP(forget_inquiry, PointerGetDatum(&id));
	accord_inquiry_forget(id);
	if (!answered)
		conclude(finding, false, taken ? "timed out" : "no dispatcher",
				 taken ? "the dispatcher had no answer in time" :
				 "no dispatcher has taken the question: see the server's log, "
				 "and \"Sizing\" about max_worker_processes");
}

static void
copy_text(char *to, size_t size, text * from, const char *what)
{
	if (strlcpy(to, text_to_cstring(from), size) >= size)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%s to be probed is longer than %d bytes", what,
						(int) size - 1),
				 errhint("Give a shorter one.")));
}

static Datum
make_result(FunctionCallInfo fcinfo, const AccordFinding *finding)
{
	Datum		values[N_COLUMNS];
	bool		nulls[N_COLUMNS] = {false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "accord.probe_endpoint() does not return a row");
	values[OK] = BoolGetDatum(finding->ok);
	values[VERDICT] = CStringGetTextDatum(finding->verdict);
	values[DETAIL] = CStringGetTextDatum(finding->detail);
	values[STATUS] = Int32GetDatum(finding->status);
	nulls[STATUS] = finding->status == 0;
	values[DURATION] = Float4GetDatum((float4) finding->duration_ms);
	nulls[DURATION] = finding->duration_ms < 0;
	values[URL] = CStringGetTextDatum(finding->url);
	nulls[URL] = finding->url[0] == '\0';
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/* accord.probe_endpoint(channel, account, path, patience in ms) */
Datum
accord_probe(PG_FUNCTION_ARGS)
{
	AccordInquiry inquiry;
	AccordFinding *finding = palloc0(sizeof(AccordFinding));

	memset(&inquiry, 0, sizeof(inquiry));
	finding->duration_ms = -1;
	copy_text(inquiry.channel, sizeof(inquiry.channel), PG_GETARG_TEXT_PP(0),
			  "the channel");
	copy_text(inquiry.account, sizeof(inquiry.account), PG_GETARG_TEXT_PP(1),
			  "the account");
	copy_text(inquiry.path, sizeof(inquiry.path), PG_GETARG_TEXT_PP(2),
			  "the path");
	if (!accord_shmem_ready())
		conclude(finding, false, "no dispatcher", "pg_accord is not preloaded: "
				 "see shared_preload_libraries");
	else if (RecoveryInProgress())
		conclude(finding, false, "no dispatcher", "a standby dispatches "
				 "nothing");
	else if (!accord_dispatch)
		conclude(finding, false, "no dispatcher", "accord.dispatch is off");
	else
		ask(&inquiry, PG_GETARG_INT64(3) + PATIENCE, finding);
	PG_RETURN_DATUM(make_result(fcinfo, finding));
}
