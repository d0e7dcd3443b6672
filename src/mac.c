/*
 * mac.c: digests and keyed digests of bytes in memory, and how they are
 * written.
 *
 * Runs in dispatchers, also outside transactions, and in any backend. The
 * server's own interface to the cryptographic library needs a resource owner,
 * which there is none of outside a transaction; so this calls OpenSSL itself.
 *
 * Invariants: pure, nothing kept, nothing raised but for want of memory.
 *
 * On failure of the library (an algorithm it does not offer) false is
 * returned.
 */
#include "postgres.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "mac.h"

static const struct
{
	size_t		length;
	const		EVP_MD *(*function) (void);
}			hashes[] = {
	[ACCORD_MAC_SHA1] = {20, EVP_sha1},
	[ACCORD_MAC_SHA256] = {32, EVP_sha256},
	[ACCORD_MAC_SHA512] = {64, EVP_sha512}
};

size_t
accord_mac_length(AccordMac hash)
{
	return hashes[hash].length;
}

bool
accord_mac_digest(AccordMac hash, const void *bytes, size_t len,
				  uint8 *digest)
{
	return EVP_Digest(bytes, len, digest, NULL, hashes[hash].function(),
					  NULL) == 1;
}

bool
accord_mac_hmac(AccordMac hash, const void *key, size_t key_len,
				const void *bytes, size_t len, uint8 *digest)
{
	return HMAC(hashes[hash].function(), key, (int) key_len, bytes, len,
				digest, NULL) != NULL;
}

char	   *
accord_mac_hex(const void *bytes, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	const uint8 *in = bytes;
	char	   *text = palloc(2 * len + 1);

	for (size_t i = 0; i < len; i++)
	{
		text[2 * i] = digits[in[i] >> 4];
		text[2 * i + 1] = digits[in[i] & 0xF];
	}
	text[2 * len] = '\0';
	return text;
}

char	   *
accord_mac_base64(const void *bytes, size_t len)
{
	char	   *text = palloc(4 * ((len + 2) / 3) + 1);

	EVP_EncodeBlock((unsigned char *) text, bytes, (int) len);
	return text;
}

static int
hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

uint8	   *
accord_mac_from_hex(const char *text, size_t *len)
{
	size_t		digits = strlen(text);
	uint8	   *bytes = palloc(digits / 2 + 1);

	if (digits % 2 != 0)
		return NULL;
	for (size_t i = 0; i < digits; i += 2)
	{
		int			high = hex_value(text[i]);
		int			low = hex_value(text[i + 1]);

		if (high < 0 || low < 0)
			return NULL;
		bytes[i / 2] = (uint8) (high << 4 | low);
	}
	*len = digits / 2;
	return bytes;
}

static int
base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	if (c == '+' || c == '-')
		return 62;
	return c == '/' || c == '_' ? 63 : -1;
}

uint8	   *
accord_mac_from_base64(const char *text, size_t *len)
{
	size_t		digits = strlen(text);
	uint8	   *bytes;
	uint32		held = 0;
	int			bits = 0;

	while (digits > 0 && text[digits - 1] == '=')
		digits--;
	if (digits % 4 == 1 || strlen(text) - digits > 2)
		return NULL;
	bytes = palloc(digits / 4 * 3 + 3);
	*len = 0;
	for (size_t i = 0; i < digits; i++)
	{
		int			value = base64_value(text[i]);

		if (value < 0)
			return NULL;
		held = held << 6 | (uint32) value;
		bits += 6;
		if (bits < 8)
			continue;
		bits -= 8;
		bytes[(*len)++] = (uint8) (held >> bits);
	}
	return bytes;
}
