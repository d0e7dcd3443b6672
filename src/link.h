/*
 * link.h: exports of link.c
 *
 * Layer 1, pure: the Link header (RFC 8288).
 */
#ifndef ACCORD_LINK_H
#define ACCORD_LINK_H

/*
 * Finds the target of the first link of a relation type in the value of a
 * Link header, or of several joined by commas: *target is set to where it
 * begins in the value, as it stands (it may be relative), and *len to its
 * length. False: there is none. Links with an anchor are about something
 * else, and passed over; what is not well formed ends the search. The type is
 * given in lower case.
 */
extern bool accord_link_find(const char *value, const char *rel,
							 const char **target, size_t *len);

#endif							/* ACCORD_LINK_H */
