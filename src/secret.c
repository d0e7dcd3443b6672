/*
 * secret.c: values that are sealed at rest.
 *
 * Runs in backends that set a secret, and in dispatchers that use it. The keys
 * are in a file, or printed by a command, and never in the database: a dump,
 * a replica's disk or a stolen backup holds sealed values only. The first key
 * seals; the others open what was sealed before it was put in front.
 *
 * A sealed value is text, "sealed:1:KEY:BOX": the key by the first 16
 * hexadecimal digits of its SHA-256, the box in base64: 12 bytes of nonce, the
 * ciphertext, 16 bytes of tag.
 *
 * Invariants: with keys configured nothing is ever stored in plain text for
 * want of them: sealing raises instead. Key bytes are wiped when they are
 * given back; no error shows a key or a value.
 *
 * On failure to read or open, the caller gets the reason: a dispatcher must
 * live on, a statement raises.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "common/base64.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "guc.h"
#include "secret.h"

#define PREFIX "sealed:1:"
#define KEY_BYTES 32
#define ID_DIGITS 16
#define NONCE_BYTES 12
#define TAG_BYTES 16
#define MAX_KEYS 16

struct AccordSecretKeys
{
	int			n;
	char		id[MAX_KEYS][ID_DIGITS + 1];
	uint8		key[MAX_KEYS][KEY_BYTES];
};

/* What a command printed is kept: it may be slow, or ask somebody. */
static AccordSecretKeys printed_keys;
static char *printed_by = NULL; /* the command; NULL: none was run */

/* The value of a hexadecimal digit; -1 for anything else. */
static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Writes the first digits of the key's SHA-256. */
static bool
name_key(const uint8 *key, char *id)
{
	static const char digits[] = "0123456789abcdef";
	uint8		hash[PG_SHA256_DIGEST_LENGTH];
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
	bool		done = context != NULL && pg_cryptohash_init(context) >= 0 &&
	pg_cryptohash_update(context, key, KEY_BYTES) >= 0 &&
	pg_cryptohash_final(context, hash, sizeof(hash)) >= 0;

	pg_cryptohash_free(context);
	for (int i = 0; done && i < ID_DIGITS; i++)
		id[i] = digits[(hash[i / 2] >> (i % 2 == 0 ? 4 : 0)) & 0xF];
	id[ID_DIGITS] = '\0';
	return done;
}

/* Takes one line in: a key, a comment or nothing. False when it is none. */
static bool
read_key_line(AccordSecretKeys *keys, char *line)
{
	size_t		length = strcspn(line, "\r\n#");

	while (length > 0 && (line[length - 1] == ' ' || line[length - 1] == '\t'))
		length--;
	if (length == 0)
		return true;
	if (length != 2 * KEY_BYTES || keys->n == MAX_KEYS)
		return false;
	for (int i = 0; i < KEY_BYTES; i++)
	{
		int			high = hex_digit(line[2 * i]);
		int			low = hex_digit(line[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		keys->key[keys->n][i] = (uint8) (high << 4 | low);
	}
	if (!name_key(keys->key[keys->n], keys->id[keys->n]))
		return false;
	keys->n++;
	return true;
}

/* NULL when the stream held keys and nothing else; else what is wrong. */
static const char *
read_keys(AccordSecretKeys *keys, FILE *stream)
{
	char		line[1024];
	const char *error = NULL;

	keys->n = 0;
	for (int number = 1; error == NULL &&
		 fgets(line, sizeof(line), stream) != NULL; number++)
		if (!read_key_line(keys, line))
			error = psprintf("line %d is not 64 hexadecimal digits, or one "
							 "key of more than %d", number, MAX_KEYS);
	explicit_bzero(line, sizeof(line));
	if (error == NULL && ferror(stream))
		error = "it could not be read to its end";
	if (error == NULL && keys->n == 0)
		error = "it holds no key";
	return error;
}

/* A key that others can read is none; the same rule as for a server's key. */
static const char *
check_mode(FILE *stream)
{
	struct stat st;

	if (fstat(fileno(stream), &st) != 0 || !S_ISREG(st.st_mode))
		return "it is not a regular file";
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return "it is owned by neither the server's user nor root";
	if ((st.st_uid == geteuid() && (st.st_mode & (S_IRWXG | S_IRWXO))) ||
		(st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO))))
		return "others may read it: chmod 0600 it, or 0640 when root owns it";
	return NULL;
}

static const char *
read_key_file(AccordSecretKeys *keys)
{
	FILE	   *stream = AllocateFile(accord_secret_key_file, "r");
	const char *error;

	if (stream == NULL)
		return psprintf("could not open file \"%s\": %s",
						accord_secret_key_file, strerror(errno));
	error = check_mode(stream);
	if (error == NULL)
		error = read_keys(keys, stream);
	FreeFile(stream);
	return error == NULL ? NULL :
		psprintf("file \"%s\" gives no keys: %s", accord_secret_key_file,
				 error);
}

static const char *
run_key_command(AccordSecretKeys *keys)
{
	FILE	   *stream = OpenPipeStream(accord_secret_key_command, "r");
	const char *error;
	int			status;

	if (stream == NULL)
		return psprintf("could not run accord.secret_key_command: %s",
						strerror(errno));
	error = read_keys(keys, stream);
	status = ClosePipeStream(stream);
	if (status != 0)
		error = "it failed";
	return error == NULL ? NULL :
		psprintf("accord.secret_key_command gives no keys: %s", error);
}

/* Runs the command, unless what it printed before will do. */
static const char *
read_key_command(AccordSecretKeys *keys, bool fresh)
{
	const char *error;

	if (fresh || printed_by == NULL ||
		strcmp(printed_by, accord_secret_key_command) != 0)
	{
		error = run_key_command(&printed_keys);
		if (error != NULL)
			return error;
		if (printed_by != NULL)
			pfree(printed_by);
		printed_by = MemoryContextStrdup(TopMemoryContext,
										 accord_secret_key_command);
	}
	memcpy(keys, &printed_keys, sizeof(*keys));
	return NULL;
}

AccordSecretKeys *
accord_secret_keys(bool fresh, const char **error)
{
	AccordSecretKeys *keys;
	bool		file = accord_secret_key_file != NULL &&
	accord_secret_key_file[0] != '\0';
	bool		command = accord_secret_key_command != NULL &&
	accord_secret_key_command[0] != '\0';

	*error = NULL;
	if (!file && !command)
		return NULL;
	keys = palloc0(sizeof(AccordSecretKeys));
	*error = file ? read_key_file(keys) :
		read_key_command(keys, fresh);
	if (*error == NULL)
		return keys;
	accord_secret_forget(keys);
	return NULL;
}

void
accord_secret_forget(AccordSecretKeys *keys)
{
	if (keys == NULL)
		return;
	explicit_bzero(keys, sizeof(*keys));
	pfree(keys);
}

bool
accord_secret_is_sealed(const char *stored)
{
	return strncmp(stored, PREFIX, strlen(PREFIX)) == 0;
}

/* The place of the key that sealed it; -1 when it is not at hand. */
static int
find_key(const AccordSecretKeys *keys, const char *stored)
{
	const char *id = stored + strlen(PREFIX);

	for (int i = 0; keys != NULL && i < keys->n; i++)
		if (strncmp(id, keys->id[i], ID_DIGITS) == 0 && id[ID_DIGITS] == ':')
			return i;
	return -1;
}

bool
accord_secret_has_key(const AccordSecretKeys *keys, const char *stored)
{
	return find_key(keys, stored) >= 0;
}

bool
accord_secret_is_current(const AccordSecretKeys *keys, const char *stored)
{
	return accord_secret_is_sealed(stored) && find_key(keys, stored) == 0;
}

/*
 * Encrypts, or decrypts, n bytes. The tag is written, or checked; false when
 * that fails, or the library does.
 */
static bool
run_cipher(bool encrypt, const uint8 *key, const uint8 *nonce,
		   const char *name, const uint8 *in, int n, uint8 *out, uint8 *tag)
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	int			length;
	bool		done;

	if (context == NULL)
		return false;
	done = EVP_CipherInit_ex(context, EVP_aes_256_gcm(), NULL, key, nonce,
							 encrypt) == 1 &&
		EVP_CipherUpdate(context, NULL, &length, (const uint8 *) name,
						 (int) strlen(name)) == 1 &&
		EVP_CipherUpdate(context, out, &length, in, n) == 1 &&
		(encrypt ||
		 EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, TAG_BYTES,
							 tag) == 1) &&
		EVP_CipherFinal_ex(context, out + length, &length) == 1 &&
		(!encrypt ||
		 EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, TAG_BYTES,
							 tag) == 1);
	EVP_CIPHER_CTX_free(context);
	return done;
}

char	   *
accord_secret_seal(const AccordSecretKeys *keys, const char *name,
				   const char *value)
{
	int			n = (int) strlen(value);
	int			size = NONCE_BYTES + n + TAG_BYTES;
	uint8	   *box = palloc(size);
	int			encoded = pg_b64_enc_len(size);
	char	   *sealed = palloc(strlen(PREFIX) + ID_DIGITS + 1 + encoded + 1);
	int			head;
	int			length;

	if (!pg_strong_random(box, NONCE_BYTES) ||
		!run_cipher(true, keys->key[0], box, name, (const uint8 *) value, n,
					box + NONCE_BYTES, box + NONCE_BYTES + n))
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not seal secret \"%s\"", name),
				 errhint("See whether this server's OpenSSL offers "
						 "AES-256-GCM.")));
	head = sprintf(sealed, "%s%s:", PREFIX, keys->id[0]);
	length = pg_b64_encode((void *) box, size, (void *) (sealed + head),
						   encoded);
	if (length < 0)
		elog(ERROR, "could not encode a sealed secret");
	sealed[head + length] = '\0';
	return sealed;
}

char	   *
accord_secret_open(const AccordSecretKeys *keys, const char *name,
				   const char *stored, const char **error)
{
	const char *encoded = stored + strlen(PREFIX) + ID_DIGITS + 1;
	int			key = -1;
	int			size;
	uint8	   *box;
	char	   *value;

	*error = NULL;
	if (!accord_secret_is_sealed(stored))
		return pstrdup(stored);
	if ((key = find_key(keys, stored)) < 0)
	{
		*error = psprintf("secret \"%s\" was sealed by a key that is not at "
						  "hand", name);
		return NULL;
	}
	box = palloc(pg_b64_dec_len((int) strlen(encoded)) + 1);
	size = pg_b64_decode(encoded, (int) strlen(encoded), (void *) box,
						 pg_b64_dec_len((int) strlen(encoded)));
	value = palloc0(Max(size, 0) + 1);
	if (size < NONCE_BYTES + TAG_BYTES ||
		!run_cipher(false, keys->key[key], box, name, box + NONCE_BYTES,
					size - NONCE_BYTES - TAG_BYTES, (uint8 *) value,
					box + size - TAG_BYTES))
	{
		*error = psprintf("secret \"%s\" cannot be opened: it was changed, or "
						  "sealed for another name", name);
		explicit_bzero(value, Max(size, 0) + 1);
		return NULL;
	}
	value[size - NONCE_BYTES - TAG_BYTES] = '\0';
	return value;
}
