/*
 * message.h: exports of message.c
 *
 * Layer 5: a message from outside, as accord.receive() takes it.
 */
#ifndef ACCORD_MESSAGE_H
#define ACCORD_MESSAGE_H

#include "access/htup_details.h"
#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

/* Members of a message, in the order of type accord.message. */
typedef enum AccordMessageMember
{
	ACCORD_MESSAGE_EVENT_ID,
	ACCORD_MESSAGE_TOPIC,
	ACCORD_MESSAGE_TARGET,
	ACCORD_MESSAGE_KEY,
	ACCORD_MESSAGE_OP,
	ACCORD_MESSAGE_CHANGES,
	ACCORD_MESSAGE_OCCURRED_AT,
	ACCORD_MESSAGE_REVISION,
	ACCORD_MESSAGE_ACCOUNT,
	ACCORD_MESSAGE_BASE,
	ACCORD_MESSAGE_MEMBERS
} AccordMessageMember;

/* NULL: not given. */
typedef struct AccordMessage
{
	text	   *event_id;		/* the sender's */
	text	   *topic;
	Oid			target;			/* table; InvalidOid: none */
	text	   *key;
	text	   *op;
	Jsonb	   *changes;
	bool		has_occurred_at;
	TimestampTz occurred_at;
	Numeric		revision;
	text	   *account;
	Jsonb	   *base;			/* what its author saw before the changes */
} AccordMessage;

/* Of values in the order of AccordMessageMember. */
extern void accord_message_from_values(AccordMessage *message,
									   const Datum *values, const bool *nulls);

/* Of a JSON object with those members; raises what is wrong with one. */
extern void accord_message_from_json(AccordMessage *message,
									 JsonbValue *object);

/*
 * Gives one member, out of a JSON value, which is read as the member's type
 * wants it: a time is an ISO 8601 string, or a number of seconds (from 1e11
 * on: of milliseconds) since 1970.
 */
extern void accord_message_set(AccordMessage *message,
							   AccordMessageMember member, JsonbValue *value);

/* The member of that name; -1: there is none. */
extern int	accord_message_member(const char *name, int len);

/* Raises unless it has an id, and either a topic or a target. */
extern void accord_message_check(const AccordMessage *message);

/* What tells its content from another's: everything but event_id. */
extern void accord_message_fingerprint(const AccordMessage *message,
									   uint8 *fingerprint);

#endif							/* ACCORD_MESSAGE_H */
