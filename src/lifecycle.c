/*
 * lifecycle.c: statements that create, drop, rename or copy what dispatchers
 * work in.
 *
 * Runs in the backends that execute such statements. DROP DATABASE, ALTER
 * DATABASE ... RENAME, ALTER DATABASE ... SET TABLESPACE and CREATE DATABASE
 * ... TEMPLATE want a database to which nobody is connected. A dispatcher must
 * not be what stands in their way: it is asked to go before the statement
 * runs, and the database is kept clear until the transaction has ended. CREATE
 * and DROP EXTENSION tell the launcher, at commit.
 *
 * Invariants: a database is kept clear only for who may do to it what the
 * statement says, so that nobody else can hold up deliveries. Nothing is
 * decided here that PostgreSQL decides: the statement runs in any case, and
 * says itself what is wrong.
 *
 * On failure: when the statement raises, the database is released at once,
 * otherwise when the transaction ends; see shmem.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_trigger.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "accord.h"
#include "captured.h"
#include "compat.h"
#include "db.h"
#include "lifecycle.h"
#include "log.h"
#include "outbox.h"
#include "prepared.h"
#include "shmem.h"

static ProcessUtility_hook_type next_process_utility = NULL;
static object_access_hook_type next_object_access = NULL;

PG_FUNCTION_INFO_V1(accord_launch);

/* An option's value as a string; NULL when it is not given. */
static const char *
find_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/* Whether the current role has the attribute CREATEDB. */
static bool
may_create_databases(void)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID,
										ObjectIdGetDatum(GetUserId()));
	bool		may = false;

	if (HeapTupleIsValid(tuple))
	{
		may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return may;
}

static bool
is_template(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID,
										ObjectIdGetDatum(database));
	bool		template = false;

	if (HeapTupleIsValid(tuple))
	{
		template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return template;
}

/* InvalidOid: there is none, or it is not the current role's. */
static Oid
find_owned_database(const char *name)
{
	Oid			database = get_database_oid(name, true);

	if (OidIsValid(database) && accord_database_owned(database, GetUserId()))
		return database;
	return InvalidOid;
}

/* The database that CREATE DATABASE copies, if the current role may do so. */
static Oid
find_source_database(const CreatedbStmt *stmt)
{
	const char *name = find_option(stmt->options, "template");
	Oid			database = get_database_oid(name ? name : "template1", true);

	if (OidIsValid(database) &&
		(accord_database_owned(database, GetUserId()) ||
		 (is_template(database) && may_create_databases())))
		return database;
	return InvalidOid;
}

/* The database that nobody may be connected to while the statement runs. */
static Oid
find_database_to_clear(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			return find_owned_database(((DropdbStmt *) stmt)->dbname);
		case T_CreatedbStmt:
			return find_source_database((CreatedbStmt *) stmt);
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				return find_owned_database(((RenameStmt *) stmt)->subname);
			return InvalidOid;
		case T_AlterDatabaseStmt:
			if (find_option(((AlterDatabaseStmt *) stmt)->options,
							"tablespace") != NULL)
				return find_owned_database(((AlterDatabaseStmt *) stmt)->dbname);
			return InvalidOid;
		default:
			return InvalidOid;
	}
}

static void
process_next(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
			 ProcessUtilityContext context, ParamListInfo params,
			 QueryEnvironment *query_env, DestReceiver *dest,
			 QueryCompletion *completion)
{
	ProcessUtility_hook_type next = next_process_utility;

	if (next == NULL)
		next = standard_ProcessUtility;
	next(pstmt, query_string, read_only_tree, context, params, query_env, dest,
		 completion);
}

/*
 * A transaction prepared elsewhere may have changed the configuration, or made
 * or dropped the extension (had: as which sequence it was there before); its
 * invalidations have been sent by now, but nobody was woken.
 */
static void
wake_for_prepared(Oid had)
{
	Oid			has;

	if (!accord_shmem_ready())
		return;
	AcceptInvalidationMessages();
	has = accord_db_relid_if_any("commit_seq");
	if (has != had)
		accord_shmem_relaunch_at_commit();
	else if (OidIsValid(has))
		accord_shmem_wake_dispatchers();
}

/* COPY does without the executor: the outbox is told of it here. */
static void
look_at_copy(Node *stmt)
{
	if (IsA(stmt, CopyStmt) && ((CopyStmt *) stmt)->is_from &&
		SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		accord_outbox_refuse_replica(RangeVarGetRelid(((CopyStmt *) stmt)->relation,
													  NoLock, true));
}

/*
 * What is prepared is known by its name; what was prepared gets its place in
 * the log, drawn before it commits, and written right after.
 */
static void
process_two_phase(PlannedStmt *pstmt, const char *query_string,
				  bool read_only_tree, ProcessUtilityContext context,
				  ParamListInfo params, QueryEnvironment *query_env,
				  DestReceiver *dest, QueryCompletion *completion)
{
	TransactionStmt *stmt = (TransactionStmt *) pstmt->utilityStmt;
	bool		commits = stmt->kind == TRANS_STMT_COMMIT_PREPARED;
	Oid			had = InvalidOid;

	if (commits)
	{
		had = accord_db_relid_if_any("commit_seq");
		accord_prepared_before(stmt->gid);
	}
	else
		accord_log_preparing(stmt->gid);
	process_next(pstmt, query_string, read_only_tree, context, params,
				 query_env, dest, completion);
	if (!commits)
		return;
	accord_prepared_after();
	wake_for_prepared(had);
}

static bool
is_two_phase(Node *stmt)
{
	return IsA(stmt, TransactionStmt) &&
		(((TransactionStmt *) stmt)->kind == TRANS_STMT_PREPARE ||
		 ((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED);
}

static void
process_utility(PlannedStmt *pstmt, const char *query_string,
				bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *query_env,
				DestReceiver *dest, QueryCompletion *completion)
{
	volatile Oid database;

	if (is_two_phase(pstmt->utilityStmt))
	{
		process_two_phase(pstmt, query_string, read_only_tree, context, params,
						  query_env, dest, completion);
		return;
	}
	database = find_database_to_clear(pstmt->utilityStmt);
	if (!OidIsValid(database))
	{
		bool		concerned = accord_captured_concerns(pstmt->utilityStmt);

		look_at_copy(pstmt->utilityStmt);
		if (concerned)
			accord_captured_follow(true);
		process_next(pstmt, query_string, read_only_tree, context, params,
					 query_env, dest, completion);
		accord_captured_note_made(pstmt->utilityStmt);
		accord_captured_follow(concerned);
		return;
	}
	PG_TRY();
	{
		accord_shmem_database_clear(database);
		process_next(pstmt, query_string, read_only_tree, context, params,
					 query_env, dest, completion);
	}
	PG_CATCH();
	{
		accord_shmem_database_release(database);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Our extension is being dropped, by whatever statement. */
static void
notice_access(ObjectAccessType access, Oid class_id, Oid object_id,
			  int sub_id, void *arg)
{
	if (next_object_access != NULL)
		next_object_access(access, class_id, object_id, sub_id, arg);
	if (access == OAT_DROP && class_id == TriggerRelationId)
		accord_captured_note_drop(object_id);
	if (access == OAT_DROP && class_id == ExtensionRelationId)
	{
		char	   *name = get_extension_name(object_id);

		if (name != NULL && strcmp(name, ACCORD_EXTENSION) == 0)
			accord_shmem_relaunch_at_commit();
	}
}

/*
 * accord.launch(): gives this database its dispatchers, new ones if it has
 * any. The last statement of the installation script.
 */
Datum
accord_launch(PG_FUNCTION_ARGS)
{
	if (accord_shmem_ready())
		accord_shmem_relaunch_at_commit();
	else
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_accord is not preloaded: events can be neither "
						"written nor delivered"),
				 errhint("Add pg_accord to shared_preload_libraries in "
						 "postgresql.conf and restart the server.")));
	PG_RETURN_VOID();
}

void
accord_lifecycle_init(void)
{
	next_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	next_object_access = object_access_hook;
	object_access_hook = notice_access;
}
