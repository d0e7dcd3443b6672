/*
 * ical.c: loads pg_accord_ical.
 *
 * Runs wherever a calendar is read. The library is apart because libical
 * brings ICU and the C++ runtime with it: 30 MB that neither the postmaster,
 * which preloads us, nor servers without such feeds need; and because the rest
 * of pg_accord is to be built without it.
 *
 * On failure (it was not built) it raises.
 */
#include "postgres.h"

#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"

#include "ical.h"

void	   *
accord_ical_load(void)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), "%s/pg_accord_ical%s", pkglib_path, DLSUFFIX);
	if (access(path, R_OK) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("iCalendars cannot be read: pg_accord was built "
						"without libical"),
				 errhint("Install libical (Debian: libical-dev), then build "
						 "and install pg_accord again.")));
	return load_external_function(path, "accord_ical_read", true, NULL);
}
