/*
 * invalidation.c: who wants to know that a relation changed.
 *
 * Runs in every process. PostgreSQL has room for ten relation cache callbacks
 * in a process, whoever registers them, and ends the process that wants an
 * eleventh. Others need some, too (Citus takes five): so all of ours share a
 * single one, and are called by it in the order they were registered.
 *
 * Invariants: who is called takes a note, and nothing else: it neither raises
 * nor looks into a catalogue. Nobody is ever taken off the list.
 *
 * On failure: there is nothing that fails; the list is as long as the number
 * of those who register in this library.
 */
#include "postgres.h"

#include "accord.h"
#include "invalidation.h"

typedef struct Listener
{
	RelcacheCallbackFunction function;
	Datum		argument;
} Listener;

static Listener listeners[16];
static int	n_listeners = 0;

static void
tell_listeners(Datum arg, Oid relid)
{
	for (int i = 0; i < n_listeners; i++)
		listeners[i].function(listeners[i].argument, relid);
}

void
accord_invalidation_heed(RelcacheCallbackFunction function, Datum argument)
{
	if (n_listeners == lengthof(listeners))
		elog(ERROR, "too many listeners to relation cache invalidations");
	if (n_listeners == 0)
		CacheRegisterRelcacheCallback(tell_listeners, (Datum) 0);
	listeners[n_listeners].function = function;
	listeners[n_listeners].argument = argument;
	n_listeners++;
}
