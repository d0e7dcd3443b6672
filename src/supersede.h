/*
 * supersede.h: exports of supersede.c
 *
 * Layer 1, pure: when a newer event makes an older one superfluous, and what
 * it takes over from it.
 */
#ifndef ACCORD_SUPERSEDE_H
#define ACCORD_SUPERSEDE_H

#include "datatype/timestamp.h"

/* What counts of an unsent event of a kind. Times are 0 where there is none. */
typedef struct AccordStanding
{
	int64		route;
	TimestampTz expires_at;
	TimestampTz first_at;		/* when the oldest it stands for was owed */
	TimestampTz not_before;		/* what it must wait for, besides limits */
	TimestampTz limit_at;		/* its turn at a limit by event */
	bool		tried;			/* it may have reached the channel */
	bool		is_insert;		/* stands for an insert nobody was told of */
	bool		is_delete;
	bool		is_undone;		/* a delete of what nobody was told of */
} AccordStanding;

/* Whether the newer of two unsent events of one kind may go instead. */
extern bool accord_supersede_may(const AccordStanding *newer,
								 const AccordStanding *older);

/*
 * The newer one goes instead: what the older one had to wait for, it waits
 * for; how long it was owed, and that nobody was told of its insert, is now
 * true of the newer one. Of several the newest is given first.
 */
extern void accord_supersede_inherit(AccordStanding *newer,
									 const AccordStanding *older);

/* When its kind has been still for long enough. owed_since is its own. */
extern TimestampTz accord_supersede_quiet(const AccordStanding *standing,
										  TimestampTz owed_since,
										  int64 quiet_us,
										  int64 quiet_max_us);

#endif							/* ACCORD_SUPERSEDE_H */
