/*
 * request_function.c: a function of a user makes a request, or its body.
 *
 * Runs in dispatchers, in a transaction, and in backends (accord.preview()).
 * The function runs as its route's owner, in a subtransaction, for at most
 * accord.function_timeout.
 *
 * Invariants: nothing that it does wrong escapes: an error aborts the
 * subtransaction and becomes request->error; whether another try may help is
 * judged by its SQLSTATE. When the request is only looked at, what it wrote is
 * rolled back. In a backend its time being up is told from the cancellation of
 * the statement that asked, which is raised.
 *
 * On failure of a function to heed its cancellation a dispatcher ends, a
 * second later; a backend leaves that to its user.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

#include "accord.h"
#include "compat.h"
#include "guc.h"
#include "request_private.h"

volatile	sig_atomic_t accord_request_in_function = false;

static bool registered = false;
static TimeoutId cancel_timeout;	/* a function's time is up */
static TimeoutId end_timeout;	/* ... and it ignores its cancellation */
static volatile sig_atomic_t time_up = false;

/* Signal handler: as a statement's own timeout would. */
static void
cancel_function(void)
{
	time_up = true;
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

/* Signal handler: nothing in a function can catch this. */
static void
end_dispatcher(void)
{
	ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

void
accord_request_init_function(void)
{
	if (registered)
		return;
	cancel_timeout = RegisterTimeout(USER_TIMEOUT, cancel_function);
	end_timeout = RegisterTimeout(USER_TIMEOUT, end_dispatcher);
	registered = true;
}

/*
 * A function is cancelled when its time is up; and a dispatcher ends with it
 * when it goes on for another second all the same. In a backend the session's
 * own statement_timeout runs on.
 */
static void
begin_function(bool preview)
{
	time_up = false;
	if (preview)
	{
		enable_timeout_after(cancel_timeout, accord_function_timeout);
		return;
	}
	accord_request_in_function = true;
	enable_timeout_after(STATEMENT_TIMEOUT, accord_function_timeout);
	enable_timeout_after(end_timeout, accord_function_timeout + 1000);
}

static void
end_function(bool preview)
{
	if (preview)
	{
		disable_timeout(cancel_timeout, false);
		return;
	}
	disable_timeout(end_timeout, false);
	disable_timeout(STATEMENT_TIMEOUT, false);
	accord_request_in_function = false;
}

/* A field of the composite accord.http_request; NULL when null. */
static char *
result_text(HeapTupleHeader result, int field)
{
	bool		isnull;
	Datum		value = GetAttributeByNum(result, field, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* Takes over what a body function returned. */
static void
apply_result(AccordRequest *request, AccordRequestScope *scope,
			 HeapTupleHeader result)
{
	char	   *method = result_text(result, 1);
	char	   *path = result_text(result, 2);
	char	   *body = result_text(result, 4);
	bool		isnull;
	Datum		headers = GetAttributeByNum(result, 3, &isnull);

	if (method != NULL)
	{
		if (method[0] == '\0' ||
			strspn(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != strlen(method) ||
			strlen(method) > 20)
			request->error = psprintf("method \"%s\" is not an HTTP method",
									  method);
		request->http.method = method;
		if (!accord_request_method_has_body(method))
			accord_request_set_body(request, NULL);
	}
	if (request->error == NULL && path != NULL)
		accord_request_set_path(request, scope, path);
	if (request->error == NULL && !isnull &&
		!JB_ROOT_IS_OBJECT(DatumGetJsonbP(headers)))
		request->error = pstrdup("headers of the function's result are not "
								 "an object");
	if (request->error == NULL && !isnull)
		accord_request_add_headers(request, DatumGetJsonbP(headers), NULL);
	if (request->error == NULL && body != NULL)
		accord_request_take_body(request, scope, body);
	else if (request->error == NULL &&
			 accord_request_method_has_body(request->http.method))
		accord_request_make_body(request, scope);
}

/* The function that makes the body; NULL: none does. */
const char *
accord_request_function(const AccordRequestScope *scope)
{
	return scope->batch ? scope->route->batch_function :
		scope->route->body_function;
}

Oid
accord_request_function_oid(const AccordRequestScope *scope)
{
	return scope->batch ? scope->route->batch_function_oid :
		scope->route->body_function_oid;
}

/* The event, or the array of a batch's. */
static Datum
function_argument(const AccordRequestScope *scope)
{
	TupleDesc	desc = accord_request_event_desc();
	Datum	   *rows;

	if (scope->batch == NULL)
		return heap_copy_tuple_as_datum(scope->event->tuple, desc);
	rows = palloc(scope->n_batch * sizeof(Datum));
	for (int i = 0; i < scope->n_batch; i++)
		rows[i] = heap_copy_tuple_as_datum(scope->batch[i]->tuple, desc);
	return PointerGetDatum(construct_array(rows, scope->n_batch,
										   desc->tdtypeid, -1, false,
										   TYPALIGN_DOUBLE));
}

/* Calls the function with its argument; NULL: nothing to send. */
static HeapTupleHeader
call_function(AccordRequestScope *scope)
{
	LOCAL_FCINFO(fcinfo, 1);
	FmgrInfo	flinfo;
	Datum		result;

	fmgr_info(accord_request_function_oid(scope), &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = function_argument(scope);
	fcinfo->args[0].isnull = false;
	result = FunctionCallInvoke(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetHeapTupleHeader(result);
}

/*
 * Runs the function as the route's owner: security-restricted, with a fixed
 * search_path, EXECUTE checked now as the grants may have changed.
 */
static void
run_as_owner(AccordRequest *request, AccordRequestScope *scope)
{
	const AccordRoute *route = scope->route;
	HeapTupleHeader result;
	Oid			user;
	int			context;
	int			nest_level;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(route->owner,
						   context | SECURITY_RESTRICTED_OPERATION);
	nest_level = NewGUCNestLevel();
	/* row security is off for a dispatcher's own work, not for users' */
	set_config_option("row_security", "on", PGC_USERSET, PGC_S_SESSION,
					  GUC_ACTION_SAVE, true, 0, false);
	if (!accord_function_executable(accord_request_function_oid(scope), route->owner))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION,
					   accord_request_function(scope));
	if (!accord_config_may_run(accord_request_function_oid(scope), route->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("its owner, who is not a superuser, would run it as "
						"superuser"),
				 errhint("UPDATE accord.route SET owner to the application's "
						 "role.")));
	begin_function(scope->preview);
	result = call_function(scope);
	end_function(scope->preview);
	if (result == NULL)
		request->skip = true;
	else
		apply_result(request, scope, result);
	AtEOXact_GUC(false, nest_level);
	SetUserIdAndSecContext(user, context);
}

bool
accord_request_error_may_pass(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_SYSTEM_ERROR:
			return true;
		default:
			return false;
	}
}

/* What to say of an error that was caught. */
static void
note_error(AccordRequest *request, AccordRequestScope *scope,
		   const ErrorData *error)
{
	request->error = psprintf("function %s: %s",
							  accord_request_function(scope), time_up ?
							  "it took longer than accord.function_timeout" :
							  error->message);
	request->transient = accord_request_error_may_pass(error->sqlerrcode);
}

void
accord_request_run_function(AccordRequest *request, AccordRequestScope *scope)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction("accord_request");
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		run_as_owner(request, scope);
		if (scope->preview)
			RollbackAndReleaseCurrentSubTransaction();
		else
			ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		end_function(scope->preview);
		/* it is the statement that was cancelled, not the function */
		if (scope->preview && !time_up &&
			error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		note_error(request, scope, error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
}
