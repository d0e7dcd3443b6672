/*
 * unit_supersede.c: what supersede.c decides, over random schedules.
 *
 * A thing is created, changed and deleted in a database; each change is an
 * event that waits in a list, oldest first, may be superseded by newer ones,
 * and is sent to a channel when the clock lets it. Attempts fail, with or
 * without having had their effect, and are repeated. The database is the model:
 * whatever the schedule, the channel has to agree with it in the end.
 *
 * Runs by itself, without a server. The seed is fixed; SEED=... chooses
 * another, and a failure says which it was.
 *
 * Prints every check that failed, then a tally (of schedules), and fails if any
 * did.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "supersede.h"

#define ROUNDS 20000
#define MAX_EVENTS 40
#define SECOND USECS_PER_SEC

static int	passed;
static int	failed;
static pg_prng_state dice;
static uint64 seed = 20260615;

static void
check(bool right, const char *what)
{
	if (!right && ++failed <= 20)
		printf("FAILED  %s (SEED=%llu)\n", what, (unsigned long long) seed);
}

static int64
below(int64 limit)
{
	return limit <= 0 ? 0 : (int64) (pg_prng_double(&dice) * (double) limit);
}

static bool
one_in(int n)
{
	return below(n) == 0;
}

typedef struct Event
{
	AccordStanding standing;
	int			version;		/* of the thing, by the database */
	TimestampTz owed_since;
	TimestampTz due_at;			/* of a retry; 0: none */
} Event;

/* One thing, its unsent events, and what the channel has of it. */
typedef struct World
{
	TimestampTz now;
	int			routes;
	int64		quiet;			/* of its route; 0: none */
	int64		quiet_max;
	bool		exists;			/* in the database */
	int			version;
	Event		unsent[MAX_EVENTS];
	int			n;
	bool		there;			/* at the channel */
	int			seen;			/* version */
	int			highest;		/* version the channel was ever told of */
	bool		told;			/* of anything, since it was last deleted */
	int			sent;
} World;

/* Left out: nobody may have been told of what it deletes. */
static void
leave_out(World *world)
{
	check(!world->there && !world->told,
		  "a delete is left out only of what nobody was told of");
}

static void
remove_at(World *world, int i)
{
	memmove(world->unsent + i, world->unsent + i + 1,
			(world->n - i - 1) * sizeof(Event));
	world->n--;
}

/* What the older one waits for, as coalesce.c sees it. */
static AccordStanding
left_of(const Event *older)
{
	AccordStanding left = older->standing;

	left.not_before = older->due_at;
	return left;
}

/* As accord_coalesce_owe() does it. */
static void
owe(World *world, Event event)
{
	TimestampTz first = event.owed_since;
	TimestampTz wait = 0;

	event.standing.first_at = event.owed_since;
	while (world->n > 0 &&
		   accord_supersede_may(&event.standing,
								&world->unsent[world->n - 1].standing))
	{
		Event	   *older = &world->unsent[world->n - 1];
		AccordStanding left = left_of(older);

		check(event.standing.expires_at == 0 ||
			  (left.expires_at != 0 &&
			   event.standing.expires_at >= left.expires_at),
			  "what stands for another is of use for as long");
		first = Min(first, older->standing.first_at);
		wait = Max(wait, older->due_at);
		accord_supersede_inherit(&event.standing, &left);
		world->n--;
	}
	check(event.standing.first_at == first, "as old as the oldest it stands for");
	check(event.standing.not_before >= wait, "it waits for what that waited for");
	if (event.standing.is_undone)
	{
		check(event.standing.is_delete, "only a delete is left out");
		leave_out(world);
		return;
	}
	if (world->quiet > 0)
	{
		TimestampTz end = accord_supersede_quiet(&event.standing,
												 event.owed_since,
												 world->quiet,
												 world->quiet_max);

		check(end <= event.owed_since + world->quiet, "still for no longer");
		check(world->quiet_max == 0 || end <= first + world->quiet_max,
			  "at the latest so long after the first");
		check(end == event.owed_since + world->quiet ||
			  (world->quiet_max > 0 && end == first + world->quiet_max),
			  "and not earlier");
		event.standing.not_before = Max(event.standing.not_before, end);
	}
	event.due_at = event.standing.not_before;
	world->unsent[world->n++] = event;
}

/* The database changes, and says so. */
static void
change(World *world, bool may_expire)
{
	Event		event;

	memset(&event, 0, sizeof(event));
	if (!world->exists)
	{
		event.standing.is_insert = true;
		world->exists = true;
	}
	else if (one_in(3))
	{
		event.standing.is_delete = true;
		world->exists = false;
	}
	event.version = ++world->version;
	event.standing.route = one_in(4) ? world->routes : 1;
	event.owed_since = world->now;
	/* a delete that expires leaves at the channel what was there: as it is to */
	if (may_expire && one_in(4) && !event.standing.is_delete)
		event.standing.expires_at = world->now + 1 + below(20 * SECOND);
	owe(world, event);
}

/* The request has its effect. */
static void
apply(World *world, const Event *event)
{
	check(event->version >= world->highest, "none arrives after a newer one");
	world->highest = Max(world->highest, event->version);
	world->seen = event->version;
	world->there = !event->standing.is_delete;
	world->told = world->there;
}

/* Sends the oldest, if it may be; false: nothing may. */
static bool
send(World *world)
{
	Event	   *event = &world->unsent[0];

	if (world->n == 0 || event->due_at > world->now)
		return false;
	if (event->standing.expires_at != 0 &&
		event->standing.expires_at <= world->now)
	{
		remove_at(world, 0);
		return true;
	}
	/* one of another priority, or one that could not before, may go instead */
	if (world->n > 1 &&
		accord_supersede_may(&world->unsent[1].standing, &event->standing))
	{
		Event	   *newer = &world->unsent[1];
		AccordStanding left = left_of(event);

		accord_supersede_inherit(&newer->standing, &left);
		remove_at(world, 0);
		if (world->unsent[0].standing.is_undone)
		{
			leave_out(world);
			remove_at(world, 0);
		}
		return true;
	}
	world->sent++;
	world->told = true;
	if (!one_in(3))
	{
		apply(world, event);
		remove_at(world, 0);
		return true;
	}
	/* it failed; nobody knows whether it was carried out */
	if (one_in(2))
		apply(world, event);
	event->standing.tried = true;
	event->due_at = world->now + 1 + below(10 * SECOND);
	return true;
}

/* The clock runs until nothing is left. */
static void
drain(World *world)
{
	while (world->n > 0)
		if (!send(world))
			world->now = Max(world->now + 1, world->unsent[0].due_at);
}

static void
try_schedule(bool may_expire)
{
	World		world;
	int			events = 1 + below(MAX_EVENTS - 1);
	bool		last_expires = false;

	memset(&world, 0, sizeof(world));
	world.now = SECOND;
	world.routes = 2;
	world.quiet = one_in(3) ? 1 + below(5 * SECOND) : 0;
	world.quiet_max = world.quiet > 0 && one_in(2) ?
		world.quiet + below(10 * SECOND) : 0;
	for (int i = 0; i < events; i++)
	{
		change(&world, may_expire);
		last_expires = world.n > 0 &&
			world.unsent[world.n - 1].standing.expires_at != 0;
		if (one_in(2))
			world.now += below(3 * SECOND);
		while (one_in(2) && send(&world))
			;
	}
	drain(&world);
	check(world.sent == 0 || world.highest > 0 || may_expire,
		  "what is sent arrives");
	if (last_expires)
		return;
	check(world.there == world.exists, "the channel has it if it exists");
	if (world.exists)
		check(world.seen == world.version, "... in its last state");
}

/* Nothing can be sent while they are made: one request at most comes of it. */
static void
try_outage(void)
{
	World		world;
	int			events = 1 + below(MAX_EVENTS - 1);

	memset(&world, 0, sizeof(world));
	world.now = SECOND;
	world.routes = 1;
	for (int i = 0; i < events; i++)
	{
		change(&world, false);
		world.now += below(SECOND);
		check(world.n <= 1, "of one route only the newest waits");
	}
	if (!world.exists)
		check(world.n == 0, "created and deleted: nothing is sent");
	drain(&world);
	check(world.there == world.exists, "after an outage: as it is");
	check(world.highest == (world.exists ? world.version : 0),
		  "... told of nothing but that");
}

int
main(void)
{
	if (getenv("SEED") != NULL)
		seed = strtoull(getenv("SEED"), NULL, 10);
	pg_prng_seed(&dice, seed);
	for (int i = 0; i < ROUNDS; i++)
	{
		int			before = failed;

		try_schedule(false);
		try_schedule(true);
		try_outage();
		passed += failed == before;
	}
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
