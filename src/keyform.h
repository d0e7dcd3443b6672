/*
 * keyform.h: exports of keyform.c
 *
 * Layer 1: what idempotency keys a channel takes.
 */
#ifndef ACCORD_KEYFORM_H
#define ACCORD_KEYFORM_H

/* How the hash of a key is written, the first that the channel takes. */
typedef enum AccordKeyForm
{
	ACCORD_KEY_UUID,			/* of version 8: 122 bits */
	ACCORD_KEY_HEX				/* up to 64 digits, as many as may be */
} AccordKeyForm;

/* A UUID of version 8 (RFC 9562) of these bits; palloc'd. */
extern char *accord_keyform_uuid(uint64 high, uint64 low);

/*
 * Whether a key is visible ASCII, no longer than max (0: any length), and
 * matches the pattern, a regular expression, unless that is NULL.
 */
extern bool accord_keyform_fits(const char *key, int max,
								const char *pattern);

/* The form of a hash that fits; false: none does. */
extern bool accord_keyform_find(int max, const char *pattern,
								AccordKeyForm *form);

/* The hash (SHA-256) of a text in that form; palloc'd. */
extern char *accord_keyform_hash(const char *text, AccordKeyForm form,
								 int max);

#endif							/* ACCORD_KEYFORM_H */
