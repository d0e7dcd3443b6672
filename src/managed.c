/*
 * managed.c: a message's change, merged into a managed table.
 *
 * Runs in the application's backends, as the user who receives. resolve.c
 * merges the change and writes the table as the table's owner; so whether the
 * user may write it is looked at here.
 *
 * On failure the error is the caller's.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"

#include "accord.h"
#include "managed.h"
#include "resolve.h"

static AccordChangeOp
parse_op(const AccordMessage *message)
{
	char	   *op = message->op ? text_to_cstring(message->op) : "upsert";

	if (strcmp(op, "upsert") == 0)
		return ACCORD_CHANGE_UPSERT;
	if (strcmp(op, "insert") == 0)
		return ACCORD_CHANGE_INSERT;
	if (strcmp(op, "update") == 0)
		return ACCORD_CHANGE_UPDATE;
	if (strcmp(op, "delete") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("op \"%s\" of a message about a table is not known", op),
				 errhint("Use upsert (the default), insert, update or "
						 "delete.")));
	return ACCORD_CHANGE_DELETE;
}

/* Merging may insert, update and delete; the user must be allowed to. */
static void
check_privileges(Oid relid, AccordChangeOp op)
{
	AclMode		needed = op == ACCORD_CHANGE_DELETE ? ACL_DELETE :
	op == ACCORD_CHANGE_UPDATE ? ACL_UPDATE : ACL_INSERT | ACL_UPDATE;

	if ((pg_class_aclmask(relid, GetUserId(), needed, ACLMASK_ALL) & needed) !=
		needed)
		aclcheck_error(ACLCHECK_NO_PRIV,
					   get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
	if (check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row security of managed table \"%s\" applies to role "
						"\"%s\"", get_rel_name(relid),
						GetUserNameFromId(GetUserId(), false)),
				 errhint("Receive as a role that it does not apply to, such as "
						 "the table's owner.")));
}

/* Nothing in it? */
static Jsonb *
unless_empty(Jsonb *object)
{
	return object == NULL || JB_ROOT_COUNT(object) == 0 ? NULL : object;
}

/* What merging made of it, in the words of a message's result. */
static void
tell_resolved(const AccordMessage *message, const AccordResolved *resolved,
			  AccordApplied *applied)
{
	bool		any_applied = unless_empty(resolved->applied) != NULL;
	bool		any_lost = unless_empty(resolved->lost) != NULL;

	applied->row = resolved->row;
	applied->before = resolved->before;
	if (applied->row != NULL && applied->before == NULL)
		applied->op = "insert";
	else if (applied->row == NULL && applied->before != NULL)
		applied->op = "delete";
	else if (applied->row != NULL &&
			 compareJsonbContainers(&applied->row->root,
									&applied->before->root) != 0)
		applied->op = "update";
	if (resolved->is_lost || any_lost)
		applied->status = any_applied ? ACCORD_RECEIVED_PARTLY :
			ACCORD_RECEIVED_LOST;
	else
		applied->status = applied->op != NULL || any_applied ?
			ACCORD_RECEIVED_APPLIED : ACCORD_RECEIVED_IGNORED;
	applied->lost = unless_empty(resolved->lost);
	applied->clamped = resolved->clamped;
	/* what the message says itself need not be stored */
	if (message->changes != NULL && resolved->applied != NULL &&
		compareJsonbContainers(&resolved->applied->root,
							   &message->changes->root) != 0)
		applied->applied = resolved->applied;
}

bool
accord_managed_is(Oid relid)
{
	return accord_resolve_manages(relid);
}

void
accord_managed_apply(const AccordMessage *message, const AccordSource *source,
					 Jsonb *key, AccordApplied *applied)
{
	AccordChange change;
	AccordResolved resolved;

	memset(&change, 0, sizeof(change));
	memset(&resolved, 0, sizeof(resolved));
	change.relid = message->target;
	change.key = key;
	change.op = parse_op(message);
	change.changes = message->changes;
	change.base = message->base;
	change.source = source->name;
	change.event_id = text_to_cstring(message->event_id);
	change.occurred_at = message->has_occurred_at ? message->occurred_at : 0;
	if (message->revision != NULL)
		change.revision = DatumGetCString(DirectFunctionCall1(numeric_out,
															  NumericGetDatum(message->revision)));
	change.skew_us = source->skew;
	change.refuse_ahead = source->refuse_ahead;
	check_privileges(message->target, change.op);
	accord_resolve(&change, &resolved);

	tell_resolved(message, &resolved, applied);
}
