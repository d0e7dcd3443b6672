/*
 * identity.c: whether this database is the one its data was dispatched from.
 *
 * Runs in dispatchers, and in backends that restore a dump. A clone, a
 * restored dump or a file copy holds the same events, positions and channels
 * as its original; were it to dispatch them, the real world would hear
 * everything twice. So the cluster's system identifier and the database's OID
 * are kept beside the data; where a row is found that is not ours, nothing is
 * sent until accord.adopt() is called.
 *
 * Invariants: restored rows of the log become visible together with a row of
 * identity that is nobody's, whatever the order in which a restore brings the
 * tables.
 *
 * On failure the transaction's error ends the dispatcher, or the restore's
 * statement.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "db.h"
#include "identity.h"

static bool registered = false;
static bool stale = true;
static bool here = false;

static void
forget_identity(Datum arg, Oid relid)
{
	/* any relation: the look is cheap, and the OID may have changed */
	if (!OidIsValid(relid) || relid == DatumGetObjectId(arg))
		stale = true;
}

bool
accord_identity_stale(void)
{
	return stale;
}

/* Rows of accord.identity: ours, and others'. */
static void
count_rows(int *ours, int *others)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum((int64) GetSystemIdentifier()),
	ObjectIdGetDatum(MyDatabaseId)};

	*ours = *others = 0;
	if (SPI_execute_with_args("SELECT system_identifier = $1 AND "
							  "database = $2 FROM accord.identity",
							  2, types, values, NULL, true, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not read accord.identity");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		if (DatumGetBool(SPI_getbinval(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, 1, &isnull)))
			(*ours)++;
		else
			(*others)++;
	}
	if (*ours == 0 && *others == 0 &&
		SPI_execute_with_args("INSERT INTO accord.identity "
							  "(system_identifier, database) VALUES ($1, $2)",
							  2, types, values, NULL, false, 0) !=
		SPI_OK_INSERT)
		elog(ERROR, "could not insert into accord.identity");
}

bool
accord_identity_here(void)
{
	int			ours;
	int			others;

	if (!stale)
		return here;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(forget_identity,
									  ObjectIdGetDatum(accord_db_relid("identity")));
		registered = true;
	}
	stale = false;
	SPI_connect();
	count_rows(&ours, &others);
	SPI_finish();
	here = others == 0;
	if (!here)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("database holds the events of another one: nothing is "
						"dispatched"),
				 errdetail("accord.identity names a cluster or database that "
						   "is not this one, so this is a copy."),
				 errhint("If it is to take the original's place, run SELECT "
						 "accord.adopt().")));
	return here;
}

void
accord_identity_mark_copy(void)
{
	static TimestampTz marked_in = 0;	/* transaction, by its start */
	static SubTransactionId marked_by = InvalidSubTransactionId;
	Oid			user;
	int			context;

	if (marked_in == GetCurrentTransactionStartTimestamp() &&
		marked_by == GetCurrentSubTransactionId())
		return;
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(accord_db_owner(),
						   context | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();
	if (SPI_execute("INSERT INTO accord.identity (system_identifier, "
					"database) SELECT 0, 0 WHERE NOT EXISTS (SELECT FROM "
					"accord.identity WHERE system_identifier "
					"OPERATOR(pg_catalog.=) 0)", false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert into accord.identity");
	SPI_finish();
	SetUserIdAndSecContext(user, context);
	marked_in = GetCurrentTransactionStartTimestamp();
	marked_by = GetCurrentSubTransactionId();
}
