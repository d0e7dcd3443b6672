/*
 * config_column.c: columns of the rows that a query of the configuration gave.
 *
 * Runs in dispatchers, and in backends that need the configuration; within SPI
 * and a read of it (config.c), whose rows are SPI_tuptable.
 *
 * Invariant: results are copies, allocated where the caller is.
 *
 * On failure, which a catalogue that is not ours alone can cause, the error is
 * the caller's.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "config_private.h"

Datum
accord_column(int row, const char *name, bool *isnull)
{
	int			number = SPI_fnumber(SPI_tuptable->tupdesc, name);

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

char	   *
accord_column_text(int row, const char *name)
{
	bool		isnull;
	Datum		value = accord_column(row, name, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

bool
accord_column_bool(int row, const char *name)
{
	bool		isnull;

	return DatumGetBool(accord_column(row, name, &isnull));
}

int
accord_column_int(int row, const char *name)
{
	bool		isnull;
	Datum		value = accord_column(row, name, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

int64
accord_column_us(int row, const char *name)
{
	bool		isnull;
	Datum		value = accord_column(row, name, &isnull);
	Interval   *interval = DatumGetIntervalP(value);

	if (isnull)
		return 0;
	return interval->time +
		((int64) interval->month * DAYS_PER_MONTH + interval->day) *
		USECS_PER_DAY;
}

int64
accord_column_ms(int row, const char *name)
{
	return accord_column_us(row, name) / 1000;
}

int64
accord_column_int64(int row, const char *name)
{
	bool		isnull;
	Datum		value = accord_column(row, name, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

double
accord_column_real(int row, const char *name)
{
	bool		isnull;
	Datum		value = accord_column(row, name, &isnull);

	return isnull ? 0 : DatumGetFloat4(value);
}

Jsonb	   *
accord_column_json(int row, const char *name)
{
	bool		isnull;
	Datum		value = accord_column(row, name, &isnull);

	return isnull ? NULL : DatumGetJsonbPCopy(value);
}

uint64
accord_column_query(const char *query, MemoryContext context)
{
	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the configuration: %s", query);
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

void	   *
accord_column_path(int row, const char *name)
{
	bool		isnull;
	Datum		value = accord_column(row, name, &isnull);

	return isnull ? NULL : PG_DETOAST_DATUM_COPY(value);
}
