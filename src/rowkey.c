/*
 * rowkey.c: the key of a captured row, made of its key columns.
 *
 * Runs in the application's backends, for every event of a captured table,
 * and in whoever calls accord.row_key().
 *
 * Invariant: keys of the same number of parts are equal only if all their
 * parts are.
 *
 * On failure only out-of-memory, or a missing SHA-256, can raise.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "accord.h"
#include "rowkey.h"

PG_FUNCTION_INFO_V1(accord_row_key);

/* "sha256:" and the digest in hexadecimal. */
static char *
digest_of(const char *text, size_t len)
{
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	StringInfoData result;

	if (hash == NULL || pg_cryptohash_init(hash) < 0 ||
		pg_cryptohash_update(hash, (const uint8 *) text, len) < 0 ||
		pg_cryptohash_final(hash, digest, sizeof(digest)) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute the digest of a row's key"),
				 errhint("Check the server's cryptographic library.")));
	pg_cryptohash_free(hash);
	initStringInfo(&result);
	appendStringInfoString(&result, "sha256:");
	for (int i = 0; i < sizeof(digest); i++)
		appendStringInfo(&result, "%02x", digest[i]);
	return result.data;
}

static void
append_part(StringInfo key, const char *part)
{
	if (part == NULL)
	{
		appendStringInfoString(key, "\\N");
		return;
	}
	for (const char *p = part; *p != '\0'; p++)
	{
		if (*p == ',' || *p == '\\')
			appendStringInfoChar(key, '\\');
		appendStringInfoChar(key, *p);
	}
}

char	   *
accord_rowkey_make(int n, char **parts)
{
	StringInfoData key;

	if (n == 1 && (parts[0] == NULL || strlen(parts[0]) <= ACCORD_MAX_KEY))
		return parts[0];
	initStringInfo(&key);
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoChar(&key, ',');
		if (n == 1)
			appendStringInfoString(&key, parts[0]);
		else
			append_part(&key, parts[i]);
	}
	return key.len <= ACCORD_MAX_KEY ? key.data : digest_of(key.data, key.len);
}

/* accord.row_key(VARIADIC parts text[]) */
Datum
accord_row_key(PG_FUNCTION_ARGS)
{
	Datum	   *values;
	bool	   *nulls;
	char	  **parts;
	char	   *key;
	int			n;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, &nulls, &n);
	parts = palloc((n + 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
		parts[i] = nulls[i] ? NULL : TextDatumGetCString(values[i]);
	key = n == 0 ? NULL : accord_rowkey_make(n, parts);
	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(key));
}
