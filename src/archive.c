/*
 * archive.c: functions that copy slots of the logs out before they go.
 *
 * Runs in the keeper, and in backends that configure accord.archive. The
 * function is a user's; it runs as the owner of its row, security-restricted,
 * as a route's body function does, and may take its time: nobody waits for it.
 *
 * Invariants: EXECUTE is checked at every call; what is owned by a mere user
 * is not run as a superuser.
 *
 * On failure the function's error is raised; accord.archive_slots() notes it
 * and keeps the slot.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "config.h"

PG_FUNCTION_INFO_V1(accord_archive_check);
PG_FUNCTION_INFO_V1(accord_archive_run);

/* The function, if there is one fit for it; raises when its owner may not
 * have it run. */
static Oid
find_function(const char *name, Oid owner)
{
	Oid			function = accord_config_archive_function(name);

	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function \"%s\" of accord.archive does not exist "
						"with the right signature", name),
				 errhint("It must be FUNCTION %s(accord.retirement) RETURNS "
						 "void.", name)));
	if (!accord_function_executable(function, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", name),
				 errhint("GRANT EXECUTE on it to the owner of the archive.")));
	if (!accord_config_may_run(function, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("function %s would run as superuser \"%s\", but its "
						"owner is none", name,
						GetUserNameFromId(owner, false)),
				 errhint("Give another role as the archive's owner, or make "
						 "the function a superuser's.")));
	return function;
}

/* Sets a text column of the row to be stored. */
static HeapTuple
set_text(TriggerData *trigger, HeapTuple row, const char *column,
		 const char *value)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			number = SPI_fnumber(desc, column);
	Datum		datum = CStringGetTextDatum(value);
	bool		isnull = false;

	return heap_modify_tuple_by_cols(row, desc, 1, &number, &datum, &isnull);
}

/*
 * Trigger of accord.archive: the function exists, is stored by its full name,
 * and runs as whoever gave it; a superuser may name another.
 */
Datum
accord_archive_check(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	HeapTuple	row;
	char	   *name;
	char	   *owner;
	Oid			function;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "accord.archive_check() was not called by a trigger");
	desc = RelationGetDescr(trigger->tg_relation);
	row = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
		trigger->tg_newtuple : trigger->tg_trigtuple;
	name = SPI_getvalue(row, desc, SPI_fnumber(desc, "function"));
	owner = SPI_getvalue(row, desc, SPI_fnumber(desc, "owner"));
	if (name == NULL || owner == NULL)
		return PointerGetDatum(row);	/* refused as null */
	if (!superuser())
		owner = GetUserNameFromId(GetUserId(), false);
	function = find_function(name, get_role_oid(owner, false));
	name = quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
									  get_func_name(function));
	row = set_text(trigger, row, "function", name);
	return PointerGetDatum(set_text(trigger, row, "owner", owner));
}

/* What it returns is nothing, null or not. */
static void
call_function(Oid function, Datum slot)
{
	LOCAL_FCINFO(fcinfo, 1);
	FmgrInfo	flinfo;

	fmgr_info(function, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = slot;
	fcinfo->args[0].isnull = false;
	(void) FunctionCallInvoke(fcinfo);
}

/* accord.archive_run(function, owner, slot) */
Datum
accord_archive_run(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			owner = get_role_oid(text_to_cstring(PG_GETARG_TEXT_PP(1)),
									 false);
	Oid			function = find_function(name, owner);
	Oid			user;
	int			context;
	int			nest_level;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(owner, context | SECURITY_RESTRICTED_OPERATION);
	nest_level = NewGUCNestLevel();
	/* row security is off for the keeper's own work, not for users' */
	set_config_option("row_security", "on", PGC_USERSET, PGC_S_SESSION,
					  GUC_ACTION_SAVE, true, 0, false);
	call_function(function, PG_GETARG_DATUM(2));
	AtEOXact_GUC(false, nest_level);
	SetUserIdAndSecContext(user, context);
	PG_RETURN_VOID();
}
