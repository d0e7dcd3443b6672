/*
 * network.c: which addresses of the network may be called.
 *
 * Runs in dispatchers (each address about to be connected to) and in any
 * backend (checks of a setting or of a URL). A channel's address is written by
 * people who may configure channels, and names resolve to whatever their
 * owner likes; neither shall reach the machines behind the firewall that the
 * database server can reach.
 *
 * Invariants: pure, no I/O, nothing raised, nothing kept. Every address is
 * handled in its 16-byte form, IPv4 as IPv4-mapped IPv6, so that the two
 * notations of one address cannot be judged differently. Of IPv6 only the
 * part handed out for global unicast is public, so what is not known is
 * refused.
 *
 * On failure (malformed list, no memory) parsing says so and the caller is
 * left with no allowed network, which is the safe side.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "network.h"

#define V4_BITS 96				/* of the prefix of IPv4-mapped addresses */

#define V4(a, b, c, d) \
	{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, (a), (b), (c), (d)}}
#define V6(a, b, c, d, e, f) {{(a), (b), (c), (d), (e), (f)}}

static const AccordNetwork v4_mapped = {V4(0, 0, 0, 0), V4_BITS};
static const AccordNetwork v4_compatible = {V6(0, 0, 0, 0, 0, 0), 96};
static const AccordNetwork nat64 = {V6(0, 0x64, 0xff, 0x9b, 0, 0), 96};
static const AccordNetwork six_to_four = {V6(0x20, 0x02, 0, 0, 0, 0), 16};
static const AccordNetwork global_unicast = {V6(0x20, 0, 0, 0, 0, 0), 3};

/* From IANA's registries of special-purpose addresses. */
static const AccordNetwork special[] = {
	{V4(0, 0, 0, 0), V4_BITS + 8},	/* this network */
	{V4(10, 0, 0, 0), V4_BITS + 8}, /* private */
	{V4(100, 64, 0, 0), V4_BITS + 10},	/* carrier-grade NAT */
	{V4(127, 0, 0, 0), V4_BITS + 8},	/* loopback */
	{V4(169, 254, 0, 0), V4_BITS + 16}, /* link-local, cloud metadata */
	{V4(172, 16, 0, 0), V4_BITS + 12},	/* private */
	{V4(192, 0, 0, 0), V4_BITS + 24},	/* protocol assignments */
	{V4(192, 0, 2, 0), V4_BITS + 24},	/* documentation */
	{V4(192, 88, 99, 0), V4_BITS + 24}, /* 6to4 relays, gone */
	{V4(192, 168, 0, 0), V4_BITS + 16}, /* private */
	{V4(198, 18, 0, 0), V4_BITS + 15},	/* benchmarks */
	{V4(198, 51, 100, 0), V4_BITS + 24},	/* documentation */
	{V4(203, 0, 113, 0), V4_BITS + 24}, /* documentation */
	{V4(224, 0, 0, 0), V4_BITS + 4},	/* multicast */
	{V4(240, 0, 0, 0), V4_BITS + 4},	/* reserved, broadcast */
	{V6(0x20, 0x01, 0, 0, 0, 0), 23},	/* protocol assignments, Teredo */
	{V6(0x20, 0x01, 0x0d, 0xb8, 0, 0), 32}, /* documentation */
	{V6(0x3f, 0xff, 0, 0, 0, 0), 20}	/* documentation */
};

static bool
is_within(const AccordAddress *address, const AccordNetwork *network)
{
	int			whole = network->bits / 8;
	int			rest = network->bits % 8;
	int			mask = 0xff & (0xff << (8 - rest));

	if (memcmp(address->bytes, network->base.bytes, whole) != 0)
		return false;
	return rest == 0 ||
		((address->bytes[whole] ^ network->base.bytes[whole]) & mask) == 0;
}

static void
map_v4(const unsigned char *v4, AccordAddress *address)
{
	*address = v4_mapped.base;
	memcpy(address->bytes + 12, v4, 4);
}

/* The address that packets to this one end up at, as far as it can be seen. */
static AccordAddress
unwrap_address(const AccordAddress *address)
{
	AccordAddress inner = *address;

	if (is_within(address, &v4_compatible) || is_within(address, &nat64))
		map_v4(address->bytes + 12, &inner);
	else if (is_within(address, &six_to_four))
		map_v4(address->bytes + 2, &inner);
	return inner;
}

static bool
is_public(const AccordAddress *address)
{
	if (!is_within(address, &v4_mapped) &&
		!is_within(address, &global_unicast))
		return false;
	for (int i = 0; i < lengthof(special); i++)
	{
		if (is_within(address, &special[i]))
			return false;
	}
	return true;
}

/* An IPv6 network wider than all of IPv4 does not mean IPv4's addresses. */
static bool
is_allowed(const AccordAddress *address, const AccordNetwork *allowed, int n)
{
	bool		v4 = is_within(address, &v4_mapped);

	for (int i = 0; i < n; i++)
	{
		if (v4 && allowed[i].bits < V4_BITS)
			continue;
		if (is_within(address, &allowed[i]))
			return true;
	}
	return false;
}

bool
accord_network_refused(const AccordAddress *address,
					   const AccordNetwork *allowed, int n_allowed)
{
	AccordAddress inner = unwrap_address(address);

	return !is_public(&inner) &&
		!is_allowed(address, allowed, n_allowed) &&
		!is_allowed(&inner, allowed, n_allowed);
}

bool
accord_network_address(const struct sockaddr *sockaddr,
					   AccordAddress *address)
{
	if (sockaddr->sa_family == AF_INET)
	{
		const struct sockaddr_in *v4 = (const struct sockaddr_in *) sockaddr;

		map_v4((const unsigned char *) &v4->sin_addr, address);
		return true;
	}
	if (sockaddr->sa_family == AF_INET6)
	{
		const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *) sockaddr;

		memcpy(address->bytes, &v6->sin6_addr, sizeof(address->bytes));
		return true;
	}
	return false;
}

bool
accord_network_address_text(const char *text, AccordAddress *address)
{
	unsigned char v4[4];

	if (inet_pton(AF_INET, text, v4) == 1)
	{
		map_v4(v4, address);
		return true;
	}
	return inet_pton(AF_INET6, text, address->bytes) == 1;
}

void
accord_network_format(const AccordAddress *address, char *text, size_t size)
{
	if (is_within(address, &v4_mapped))
		inet_ntop(AF_INET, address->bytes + 12, text, size);
	else
		inet_ntop(AF_INET6, address->bytes, text, size);
}

/* Whether no bit is set past the network's prefix. */
static bool
is_base(const AccordNetwork *network)
{
	for (int bit = network->bits; bit < 128; bit++)
	{
		if (network->base.bytes[bit / 8] & (0x80 >> (bit % 8)))
			return false;
	}
	return true;
}

/* "24" to at most max, digits only. */
static bool
parse_bits(const char *text, int max, int *bits)
{
	size_t		len = strlen(text);

	if (len < 1 || len > 3 || strspn(text, "0123456789") != len)
		return false;
	*bits = atoi(text);
	return *bits <= max;
}

/* One network, as the list has it between commas, white space taken off. */
static bool
parse_network(const char *start, size_t len, AccordNetwork *network)
{
	char		text[INET6_ADDRSTRLEN + 4];
	char	   *slash;
	bool		v4;

	if (len >= sizeof(text))
		return false;
	memcpy(text, start, len);
	text[len] = '\0';
	slash = strchr(text, '/');
	if (slash != NULL)
		*slash = '\0';
	if (!accord_network_address_text(text, &network->base))
		return false;
	v4 = strchr(text, ':') == NULL;
	network->bits = v4 ? 32 : 128;
	if (slash != NULL && !parse_bits(slash + 1, network->bits, &network->bits))
		return false;
	if (v4)
		network->bits += V4_BITS;
	return is_base(network);
}

static int
count_commas(const char *list)
{
	int			n = 0;

	for (; *list != '\0'; list++)
		n += (*list == ',');
	return n;
}

/* All networks of a list that is not blank, into an array of n. */
static bool
parse_networks(const char *list, AccordNetwork *networks, int n)
{
	static const char blank[] = " \t\r\n";

	for (int i = 0; i < n; i++)
	{
		size_t		len;

		list += strspn(list, blank);
		len = strcspn(list, ", \t\r\n");
		if (!parse_network(list, len, &networks[i]))
			return false;
		list += len;
		list += strspn(list, blank);
		if (*list != (i < n - 1 ? ',' : '\0'))
			return false;
		list++;
	}
	return true;
}

int
accord_network_parse(const char *list, AccordNetwork **networks)
{
	int			n = count_commas(list) + 1;

	*networks = NULL;
	if (list[strspn(list, " \t\r\n")] == '\0')
		return 0;
	*networks = malloc(n * sizeof(AccordNetwork));
	if (*networks == NULL)
		return -1;
	if (parse_networks(list, *networks, n))
		return n;
	free(*networks);
	*networks = NULL;
	return -1;
}
