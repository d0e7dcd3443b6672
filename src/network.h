/*
 * network.h: exports of network.c
 *
 * Layer 1, pure: which addresses of the network may be called. No I/O, no
 * name resolution.
 */
#ifndef ACCORD_NETWORK_H
#define ACCORD_NETWORK_H

#include <sys/socket.h>

/* An address: 16 bytes as IPv6 has them; IPv4 as ::ffff:a.b.c.d. */
typedef struct AccordAddress
{
	unsigned char bytes[16];
} AccordAddress;

/* The addresses whose first "bits" bits are those of base. */
typedef struct AccordNetwork
{
	AccordAddress base;
	int			bits;
} AccordNetwork;

/*
 * Reads a comma-separated list of networks in CIDR notation (a plain address
 * is a network of one). Returns how many, with *networks malloc'd (NULL when
 * there are none), or -1 when the list is malformed or memory ran out.
 * Never raises.
 */
extern int	accord_network_parse(const char *list, AccordNetwork **networks);

/* False when the socket address is neither IPv4 nor IPv6. */
extern bool accord_network_address(const struct sockaddr *sockaddr,
								   AccordAddress *address);

/* False when the text is not an address as inet_ntop() would write it. */
extern bool accord_network_address_text(const char *text,
										AccordAddress *address);

/*
 * Whether an address is not one of the public network (private, loopback,
 * link-local, multicast, reserved; also by an IPv4 address embedded in it)
 * and none of the allowed networks contains it.
 */
extern bool accord_network_refused(const AccordAddress *address,
								   const AccordNetwork *allowed,
								   int n_allowed);

/* Writes an address as text; size at least INET6_ADDRSTRLEN. */
extern void accord_network_format(const AccordAddress *address, char *text,
								  size_t size);

#endif							/* ACCORD_NETWORK_H */
