/*
 * keyform.c: what idempotency keys a channel takes, and what takes the place
 * of one that it does not.
 *
 * Runs in dispatchers, without a transaction, and in backends that configure a
 * channel.
 *
 * Invariants: a key that is too long, or has a character that the channel does
 * not take, is replaced by a hash of all of it, never cut. The form of the
 * hash is found out when the channel is configured; a channel that takes none
 * of them is refused then.
 *
 * On failure: a pattern that is no regular expression raises the server's
 * error.
 */
#include "postgres.h"

#include <openssl/sha.h>

#include "catalog/pg_collation.h"
#include "regex/regex.h"
#include "utils/builtins.h"

#include "keyform.h"

char	   *
accord_keyform_uuid(uint64 high, uint64 low)
{
	return psprintf("%08x-%04x-8%03x-%04x-%012llx",
					(uint32) (high >> 32), (uint32) (high >> 16) & 0xFFFF,
					(uint32) high & 0xFFF,
					((uint32) (low >> 48) & 0x3FFF) | 0x8000,
					(unsigned long long) (low & UINT64CONST(0xFFFFFFFFFFFF)));
}

static uint64
read_number(const unsigned char *bytes)
{
	uint64		number = 0;

	for (int i = 0; i < 8; i++)
		number = number << 8 | bytes[i];
	return number;
}

char	   *
accord_keyform_hash(const char *text, AccordKeyForm form, int max)
{
	unsigned char hash[SHA256_DIGEST_LENGTH];
	char	   *key;

	SHA256((const unsigned char *) text, strlen(text), hash);
	if (form == ACCORD_KEY_UUID)
		return accord_keyform_uuid(read_number(hash), read_number(hash + 8));
	key = palloc(2 * sizeof(hash) + 1);
	for (size_t i = 0; i < sizeof(hash); i++)
		sprintf(key + 2 * i, "%02x", hash[i]);
	if (max > 0 && max < 2 * sizeof(hash))
		key[max] = '\0';
	return key;
}

bool
accord_keyform_fits(const char *key, int max, const char *pattern)
{
	size_t		len = strlen(key);

	if (len == 0 || (max > 0 && len > max))
		return false;
	for (const char *c = key; *c != '\0'; c++)
		if ((unsigned char) *c <= ' ' || (unsigned char) *c >= 0x7F)
			return false;
	return pattern == NULL ||
		RE_compile_and_execute(cstring_to_text(pattern), (char *) key,
							   (int) len, REG_ADVANCED, C_COLLATION_OID, 0,
							   NULL);
}

bool
accord_keyform_find(int max, const char *pattern, AccordKeyForm *form)
{
	for (*form = ACCORD_KEY_UUID; *form <= ACCORD_KEY_HEX; (*form)++)
		if (accord_keyform_fits(accord_keyform_hash("", *form, max),
								max, pattern))
			return true;
	return false;
}
