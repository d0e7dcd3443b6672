/*
 * pg_accord.c: the library's beginning.
 *
 * Loaded by the postmaster through shared_preload_libraries, everything is
 * set up: settings, shared memory, hooks, the launcher. Loaded by a single
 * session, only the settings are; whatever needs more says so when it is used.
 *
 * On failure at preload the server does not start, and says why.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "capture.h"
#include "counter.h"
#include "guc.h"
#include "http.h"
#include "launcher.h"
#include "lifecycle.h"
#include "outbox.h"
#include "shmem.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	accord_guc_init(accord_http_networks_valid);
	if (!process_shared_preload_libraries_in_progress)
		return;
	accord_shmem_init();
	accord_counter_init();
	accord_lifecycle_init();
	accord_outbox_init();
	accord_capture_init();
	accord_launcher_init();
}
