/*
 * compat.h: the only place that knows PostgreSQL's major versions.
 *
 * Layer 0. The code is written against the newest API; each shim says what
 * changed and when.
 */
#ifndef ACCORD_COMPAT_H
#define ACCORD_COMPAT_H

#include "access/amapi.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_proc.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/jsonb.h"

#if PG_VERSION_NUM < 150000
#error "pg_accord needs PostgreSQL 15 or newer"
#endif

/* 16 moved SET_VARSIZE() and its kind out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 18 has it before a declaration; before, pg_attribute_noreturn() was behind. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* 17 numbers processes by MyProcNumber; before, the number is in the PGPROC. */
#if PG_VERSION_NUM >= 170000
#define accord_my_proc_number() ((int) MyProcNumber)
#else
#define accord_my_proc_number() (MyProc->pgprocno)
#endif

/* 17 keeps the number of a process's transaction with its virtual id. */
#if PG_VERSION_NUM >= 170000
#define accord_my_lxid() (MyProc->vxid.lxid)
#else
#define accord_my_lxid() (MyProc->lxid)
#endif

/* 17 gave wait event sets to resource owners; before, to memory contexts. */
#if PG_VERSION_NUM >= 170000
#define accord_create_wait_event_set(n) CreateWaitEventSet(NULL, (n))
#else
#define accord_create_wait_event_set(n) \
	CreateWaitEventSet(TopMemoryContext, (n))
#endif

/*
 * 17 lets extensions name what they wait for: looked up, or registered, by its
 * name. Before, they all wait for the same.
 */
#if PG_VERSION_NUM >= 170000
#define accord_wait_event(name) WaitEventExtensionNew(name)
#else
#define accord_wait_event(name) PG_WAIT_EXTENSION
#endif

/*
 * 17 lets an access method keep state between inserts and asks for its end.
 * That leaves some of it in memory (brin its descriptor): where the context is
 * the index's own, accord_index_insert_forget() frees it. Before, and where
 * an access method has no such end, the state may stay.
 */
#if PG_VERSION_NUM >= 170000
#define accord_index_insert_cleanup(index, info) \
	index_insert_cleanup((index), (info))
#define accord_index_insert_forget(info) \
	do { \
		if ((info)->ii_AmCache == NULL) \
			MemoryContextReset((info)->ii_Context); \
	} while (0)
#else
#define accord_index_insert_cleanup(index, info) ((void) 0)
#define accord_index_insert_forget(info) ((void) 0)
#endif

/* 18 counts index searches for EXPLAIN; 19 passes scan flags besides. */
#if PG_VERSION_NUM >= 190000
#define accord_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0, 0)
#elif PG_VERSION_NUM >= 180000
#define accord_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0)
#else
#define accord_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), (nkeys), 0)
#endif

/* 19 passes scan flags. */
#if PG_VERSION_NUM >= 190000
#define accord_table_beginscan(rel, snapshot) \
	table_beginscan((rel), (snapshot), 0, NULL, 0)
#else
#define accord_table_beginscan(rel, snapshot) \
	table_beginscan((rel), (snapshot), 0, NULL)
#endif

/*
 * 16 tells of an update in place whether the summarizing indexes (brin) need
 * an entry all the same; before, they kept it from being in place.
 */
#if PG_VERSION_NUM >= 160000
#define AccordUpdatedIndexes TU_UpdateIndexes
#define accord_updated_any(indexes) ((indexes) != TU_None)
#define accord_updated_summarizing(indexes) ((indexes) == TU_Summarizing)
#define accord_index_summarizes(index) ((index)->rd_indam->amsummarizing)
#else
#define AccordUpdatedIndexes bool
#define accord_updated_any(indexes) (indexes)
#define accord_updated_summarizing(indexes) false
#define accord_index_summarizes(index) false
#endif

/* 16 lets columns be missing in what rows are converted from. */
#if PG_VERSION_NUM >= 160000
#define accord_attrmap(from, to) \
	build_attrmap_by_name_if_req((from), (to), false)
#else
#define accord_attrmap(from, to) build_attrmap_by_name_if_req((from), (to))
#endif

/* 16 replaced the pg_*_aclcheck() family by object_aclcheck(). */
#if PG_VERSION_NUM >= 160000
#define accord_function_executable(function, role) \
	(object_aclcheck(ProcedureRelationId, (function), (role), ACL_EXECUTE) == \
	 ACLCHECK_OK)
#else
#define accord_function_executable(function, role) \
	(pg_proc_aclcheck((function), (role), ACL_EXECUTE) == ACLCHECK_OK)
#endif

/* 16 replaced the pg_*_ownercheck() family by object_ownercheck(). */
#if PG_VERSION_NUM >= 160000
#define accord_database_owned(database, role) \
	object_ownercheck(DatabaseRelationId, (database), (role))
#else
#define accord_database_owned(database, role) \
	pg_database_ownercheck((database), (role))
#endif
#if PG_VERSION_NUM >= 160000
#define accord_relation_owned(relation, role) \
	object_ownercheck(RelationRelationId, (relation), (role))
#else
#define accord_relation_owned(relation, role) \
	pg_class_ownercheck((relation), (role))
#endif

/* 16 lets callers catch the error of a malformed name. */
#if PG_VERSION_NUM >= 160000
#define accord_qualified_name_list(name) \
	stringToQualifiedNameList((name), NULL)
#else
#define accord_qualified_name_list(name) stringToQualifiedNameList(name)
#endif

/*
 * 16 converts a character without raising. Before, its error is caught: the
 * conversion holds nothing that an abort would have to release, only the
 * holdoff that an error resets is the caller's.
 */
#if PG_VERSION_NUM >= 160000
#define accord_unicode_to_server(c, buffer) \
	pg_unicode_to_server_noerror((c), (buffer))
#else
static inline bool
accord_unicode_to_server(pg_wchar c, unsigned char *buffer)
{
	MemoryContext context = CurrentMemoryContext;
	volatile uint32 holdoff = InterruptHoldoffCount;
	volatile bool converted = true;

	PG_TRY();
	{
		pg_unicode_to_server(c, buffer);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		InterruptHoldoffCount = holdoff;
		converted = false;
	}
	PG_END_TRY();
	return converted;
}
#endif

/*
 * The next relation that a statement's plan writes to after the given one (-1:
 * the first), as an index of its range table; negative: no more. 19 has them
 * as a set.
 */
#if PG_VERSION_NUM >= 190000
#define accord_next_result_relation(plan, after) \
	bms_next_member((plan)->resultRelationRelids, (after))
#else
#define accord_next_result_relation(plan, after) \
	accord_next_in_list((plan)->resultRelations, (after))
static inline int
accord_next_in_list(const List *list, int after)
{
	int			next = -2;
	ListCell   *lc;

	foreach(lc, list)
		if (lfirst_int(lc) > after && (next < 0 || lfirst_int(lc) < next))
		next = lfirst_int(lc);
	return next;
}
#endif

/* 19 keeps what is being built of a jsonb, and the result, in one struct. */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState AccordJsonbState;
#define accord_jsonb_push(state, token, value) \
	pushJsonbValue((state), (token), (value))
#else
typedef struct AccordJsonbState
{
	JsonbParseState *parseState;
	JsonbValue *result;
} AccordJsonbState;
static inline void
accord_jsonb_push(AccordJsonbState *state, JsonbIteratorToken token,
				  JsonbValue *value)
{
	state->result = pushJsonbValue(&state->parseState, token, value);
}
#endif

/* The end of an array or object that is complete with it. */
static inline Jsonb *
accord_jsonb_end(AccordJsonbState *state, JsonbIteratorToken token)
{
	accord_jsonb_push(state, token, NULL);
	return JsonbValueToJsonb(state->result);
}

static inline bool
accord_jsonb_in_object(AccordJsonbState *state)
{
	return state->parseState != NULL &&
		state->parseState->contVal.type == jbvObject;
}

/*
 * 16 dropped the kind of a failed assertion. The unit tests, which have no
 * server, bring their own function of that name.
 */
#if PG_VERSION_NUM >= 160000
#define ACCORD_EXCEPTIONAL_CONDITION(condition, file, line) \
	ExceptionalCondition(const char *condition, const char *file, int line)
#else
#define ACCORD_EXCEPTIONAL_CONDITION(condition, file, line) \
	ExceptionalCondition(const char *condition, const char *type, \
						 const char *file, int line)
#endif

#endif							/* ACCORD_COMPAT_H */
