/*
 * secret.h: exports of secret.c
 *
 * Layer 1: values that are sealed at rest, by keys that are not in the
 * database.
 */
#ifndef ACCORD_SECRET_H
#define ACCORD_SECRET_H

/* Bytes of a value that can be sealed. */
#define ACCORD_MAX_SECRET 65536

/* The keys at hand, the one that seals first. Opaque. */
typedef struct AccordSecretKeys AccordSecretKeys;

/*
 * Reads the keys that accord.secret_key_file or accord.secret_key_command
 * gives; what the command printed before will do, unless fresh. NULL with
 * *error null: none is configured; NULL with *error set: they cannot be read,
 * and why. Never raises. palloc'd; give it back with accord_secret_forget(),
 * which wipes it.
 */
extern AccordSecretKeys *accord_secret_keys(bool fresh, const char **error);
extern void accord_secret_forget(AccordSecretKeys *keys);

/* Whether a stored value has the form of a sealed one. */
extern bool accord_secret_is_sealed(const char *stored);

/* Whether the key that sealed it is at hand; keys may be NULL. */
extern bool accord_secret_has_key(const AccordSecretKeys *keys,
								  const char *stored);

/* Whether it was sealed by the key that seals now. */
extern bool accord_secret_is_current(const AccordSecretKeys *keys,
									 const char *stored);

/*
 * Seals a value for the row named "name": AES-256-GCM (NIST SP 800-38D) under
 * a random 96-bit nonce, with the name as additional data, so that a sealed
 * value is of no use in another row. palloc'd. Raises when the library fails.
 */
extern char *accord_secret_seal(const AccordSecretKeys *keys,
								const char *name, const char *value);

/*
 * The value of a stored one, palloc'd; one that is not sealed is its own.
 * NULL when it cannot be opened, *error says why. keys may be NULL. Never
 * raises.
 */
extern char *accord_secret_open(const AccordSecretKeys *keys,
								const char *name, const char *stored,
								const char **error);

#endif							/* ACCORD_SECRET_H */
