/*
 * supersede.c: of several unsent events of one kind, which one goes.
 *
 * Pure: no I/O, no clock, no memory; tested in test/unit over random
 * schedules. Runs in dispatchers, for coalesce.c, which knows what is unsent.
 *
 * Invariants, for a channel that is told of inserts, updates and deletes as
 * they happen: the last state arrives; none arrives after a newer one; a delete
 * is left out only when nobody can have been told of what it deletes; nothing
 * is sent earlier than what it stands for, nor waits for ever because newer
 * ones keep coming.
 *
 * Nothing here fails.
 */
#include "postgres.h"

#include "supersede.h"

bool
accord_supersede_may(const AccordStanding *newer, const AccordStanding *older)
{
	/* another route makes another request; but after a delete none matters */
	if (newer->route != older->route && !newer->is_delete)
		return false;
	/* what is of use for less time cannot stand for the other */
	return newer->expires_at == 0 ||
		(older->expires_at != 0 && newer->expires_at >= older->expires_at);
}

void
accord_supersede_inherit(AccordStanding *newer, const AccordStanding *older)
{
	bool		unknown = older->is_insert && !older->tried;

	newer->not_before = Max(newer->not_before, older->not_before);
	newer->limit_at = Max(newer->limit_at, older->limit_at);
	newer->first_at = Min(newer->first_at, older->first_at);
	/* the oldest decides: what an insert follows, the channel may have */
	newer->is_insert = unknown && !newer->is_delete;
	newer->is_undone = unknown && newer->is_delete;
}

TimestampTz
accord_supersede_quiet(const AccordStanding *standing, TimestampTz owed_since,
					   int64 quiet_us, int64 quiet_max_us)
{
	TimestampTz end = owed_since + quiet_us;

	if (quiet_max_us > 0)
		end = Min(end, standing->first_at + quiet_max_us);
	return end;
}
