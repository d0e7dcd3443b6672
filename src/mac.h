/*
 * mac.h: exports of mac.c
 *
 * Layer 1, pure: digests and keyed digests of bytes in memory, and how they
 * are written.
 */
#ifndef ACCORD_MAC_H
#define ACCORD_MAC_H

typedef enum AccordMac
{
	ACCORD_MAC_SHA1,
	ACCORD_MAC_SHA256,
	ACCORD_MAC_SHA512
} AccordMac;

/* Bytes of the longest digest. */
#define ACCORD_MAC_BYTES 64

extern size_t accord_mac_length(AccordMac hash);

/* False when the cryptographic library will not (FIPS refuses SHA-1). */
extern bool accord_mac_digest(AccordMac hash, const void *bytes, size_t len,
							  uint8 *digest);

/* HMAC (RFC 2104); the same. */
extern bool accord_mac_hmac(AccordMac hash, const void *key, size_t key_len,
							const void *bytes, size_t len, uint8 *digest);

/* As text, palloc'd. */
extern char *accord_mac_hex(const void *bytes, size_t len);
extern char *accord_mac_base64(const void *bytes, size_t len);

/*
 * The bytes that a text stands for, palloc'd; NULL when it is none. Of base64
 * both alphabets are taken, with and without padding.
 */
extern uint8 *accord_mac_from_hex(const char *text, size_t *len);
extern uint8 *accord_mac_from_base64(const char *text, size_t *len);

#endif							/* ACCORD_MAC_H */
