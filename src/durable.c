/*
 * durable.c: only what a crash, or a failover, cannot take back is sent.
 *
 * Runs in dispatchers. A commit is visible before it is on disk when
 * synchronous_commit is off, and before it is on a standby's disk when it is
 * off or local, when somebody cancelled the wait for the standby, and when the
 * server restarted meanwhile. So WAL is flushed up to the last commit with
 * events; and with accord.dispatch_after = standby the synchronous standbys
 * must have flushed it, too.
 *
 * Where that was reached is what walsenders note for those who wait in
 * COMMIT, whether or not anybody waits. A dispatcher must not wait itself, as
 * its answers would wait with it: it remembers a number and the WAL that this
 * number needs, and asks again a few milliseconds later. It asks no further
 * before that one is reached, lest it never is under a flood of commits.
 *
 * Invariants: the number is read first, the WAL position after it: every
 * commit up to the number ends at or before the position.
 *
 * On failure: a standby that does not come keeps events from being sent, and
 * one line in ten minutes says so.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "durable.h"
#include "guc.h"
#include "log.h"
#include "shmem.h"

#define ASK_EVERY 5				/* ms */
#define TELL_AFTER 10000		/* ms */
#define TELL_EVERY 600000		/* ms */

static int64 reached = 0;		/* this much may be sent */
static int64 awaited = 0;		/* ... and this much when awaited_lsn is */
static XLogRecPtr awaited_lsn = InvalidXLogRecPtr;	/* invalid: nothing is */
static TimestampTz awaited_since = 0;
static TimestampTz told_at = 0;

/*
 * Where WAL ended when this was first asked: what was committed before the
 * server started, and is visible, ends there at the latest. An empty page's
 * header belongs to nobody: it is not flushed yet.
 */
static XLogRecPtr
wal_at_start(void)
{
	static XLogRecPtr end = InvalidXLogRecPtr;

	if (XLogRecPtrIsInvalid(end))
	{
		XLogRecPtr	header;

		end = GetXLogInsertRecPtr();
		header = end % XLOG_BLCKSZ;
		if (header == SizeOfXLogShortPHD || header == SizeOfXLogLongPHD)
			end -= header;
	}
	return end;
}

/* Up to where the synchronous standbys have flushed WAL. */
static XLogRecPtr
flushed_by_standbys(void)
{
	XLogRecPtr	flushed;

	LWLockAcquire(SyncRepLock, LW_SHARED);
	flushed = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
	LWLockRelease(SyncRepLock);
	return flushed;
}

/* Says that events wait for a standby, when they have for long. */
static void
tell(TimestampTz now)
{
	if (!TimestampDifferenceExceeds(awaited_since, now, TELL_AFTER) ||
		(told_at != 0 &&
		 !TimestampDifferenceExceeds(told_at, now, TELL_EVERY)))
		return;
	told_at = now;
	ereport(LOG,
			(errmsg("events wait for the synchronous standbys to flush them"),
			 errdetail("accord.dispatch_after is standby, and "
					   "synchronous_standby_names is \"%s\".",
					   SyncRepStandbyNames),
			 errhint("Look at pg_stat_replication.")));
}

int64
accord_durable_seq(void)
{
	int64		safe = accord_log_safe_seq();
	XLogRecPtr	lsn = accord_shmem_commit_lsn();
	bool		ask = accord_dispatch_after == ACCORD_AFTER_STANDBY &&
	max_wal_senders > 0 && SyncRepStandbyNames != NULL &&
	SyncRepStandbyNames[0] != '\0';
	XLogRecPtr	flushed;

	if (ask)
		lsn = Max(lsn, wal_at_start());
	XLogFlush(lsn);
	if (!ask)
	{
		awaited_lsn = InvalidXLogRecPtr;
		reached = safe;
		return reached;
	}
	flushed = flushed_by_standbys();
	if (!XLogRecPtrIsInvalid(awaited_lsn) && awaited_lsn <= flushed)
	{
		reached = awaited;
		awaited_lsn = InvalidXLogRecPtr;
	}
	if (lsn <= flushed)
		reached = safe;
	else if (XLogRecPtrIsInvalid(awaited_lsn) && safe > reached)
	{
		awaited = safe;
		awaited_lsn = lsn;
		awaited_since = GetCurrentTimestamp();
	}
	if (!XLogRecPtrIsInvalid(awaited_lsn))
		tell(GetCurrentTimestamp());
	return reached;
}

long
accord_durable_timeout(void)
{
	return XLogRecPtrIsInvalid(awaited_lsn) ? -1 : ASK_EVERY;
}
