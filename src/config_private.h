/*
 * config_private.h: what config.c and its parts share
 *
 * Layer 3. Included by those only.
 */
#ifndef ACCORD_CONFIG_PRIVATE_H
#define ACCORD_CONFIG_PRIVATE_H

#include "utils/jsonb.h"

#include "config.h"
#include "secret.h"

/* config_column.c: within SPI. Of a row of SPI_tuptable, by a column's name. */

/* Runs a query; what is palloc'd next comes from "context". How many rows. */
extern uint64 accord_column_query(const char *query, MemoryContext context);

extern Datum accord_column(int row, const char *name, bool *isnull);

/* Copies; NULL when null. The path is a jsonpath. */
extern char *accord_column_text(int row, const char *name);
extern Jsonb *accord_column_json(int row, const char *name);
extern void *accord_column_path(int row, const char *name);

/* False, or 0, when null. */
extern bool accord_column_bool(int row, const char *name);
extern int	accord_column_int(int row, const char *name);
extern int64 accord_column_int64(int row, const char *name);
extern double accord_column_real(int row, const char *name);

/* An interval in micro- or milliseconds, months being 30 days; 0 when null. */
extern int64 accord_column_us(int row, const char *name);
extern int64 accord_column_ms(int row, const char *name);

/* config_channel.c: within SPI, in this order */

/*
 * The secrets that channels and accounts name are opened with "keys"; when
 * there are none, fault says why. They are kept in "context" as they are
 * stored, until the end.
 */
extern void accord_config_load_secrets(const AccordSecretKeys *keys,
									   const char *fault,
									   MemoryContext context);
extern void accord_config_load_channels(AccordConfig *config);
extern void accord_config_load_accounts(AccordConfig *config);
extern void accord_config_forget_secrets(void);

/* The table config->accounts, empty. */
extern HTAB *accord_config_create_accounts(MemoryContext context);

/* config_route.c: within SPI, after those */
extern void accord_config_load_routes(AccordConfig *config);
extern void accord_config_load_limits(AccordConfig *config);
extern void accord_config_load_rules(AccordConfig *config);
extern void accord_config_load_pauses(AccordConfig *config);

#endif							/* ACCORD_CONFIG_PRIVATE_H */
