/*
 * rule.h: exports of rule.c
 *
 * Layer 1, pure: which of a channel's rules an answer meets.
 */
#ifndef ACCORD_RULE_H
#define ACCORD_RULE_H

#include "retry.h"

#define ACCORD_RULE_RANGES 16	/* in one rule's status */

/* What a rule concludes; the words of rule.outcome. */
typedef enum AccordRuleOutcome
{
	ACCORD_RULE_DELIVERED,
	ACCORD_RULE_DUPLICATE,		/* it was done before */
	ACCORD_RULE_GONE,			/* what it is about is not there */
	ACCORD_RULE_ACCEPTED,		/* taken, but not done yet */
	ACCORD_RULE_CONFLICT,		/* it is there already, or has another version */
	ACCORD_RULE_RETRY,
	ACCORD_RULE_RETRY_AFTER,
	ACCORD_RULE_UNCLEAR,		/* it may or may not have been done */
	ACCORD_RULE_REJECTED,
	ACCORD_RULE_UNAUTHORIZED,
	ACCORD_RULE_PER_ITEM,		/* each of the batch by its own result */
	ACCORD_RULE_NONE			/* no such word */
} AccordRuleOutcome;

typedef struct AccordStatusRange
{
	int			low;
	int			high;
} AccordStatusRange;

/* A header, and a pattern for its value, in which * is any run of characters. */
typedef struct AccordRuleHeader
{
	char	   *name;
	char	   *pattern;
} AccordRuleHeader;

/* All conditions hold; one that is not given always does. */
typedef struct AccordRule
{
	int64		id;
	int64		route;			/* 0: all of its channel's */
	bool		item;			/* about one result of a batch's answer */
	AccordTransport transport;
	AccordStatusRange ranges[ACCORD_RULE_RANGES];
	int			n_ranges;
	AccordRuleHeader *headers;
	int			n_headers;
	void	   *body;			/* jsonpath; NULL: not asked */
	void	   *error;			/* jsonpath to what is told of it, or NULL */
	AccordRuleOutcome outcome;
	int64		pause_ms;		/* not before that; -1: none given */
} AccordRule;

/* An answer, as rules ask about it. Callbacks are asked last, and once each. */
typedef struct AccordRuleAnswer
{
	int64		route;
	bool		item;
	AccordTransport transport;
	int			status;			/* 0: none */
	const char *(*header) (const char *name, void *arg);	/* or NULL */
	bool		(*body) (const void *path, void *arg);
	void	   *arg;
} AccordRuleAnswer;

/* The first rule that an answer meets; NULL: none. */
extern const AccordRule *accord_rule_find(AccordRule *const *rules, int n,
										  const AccordRuleAnswer *answer);

/*
 * Reads "409", "4xx", "200-299" and lists of those, separated by commas. The
 * number of ranges; 0: it is no such list.
 */
extern int	accord_rule_status(const char *text, AccordStatusRange *ranges);

/* Whether text meets a pattern, in which * is any run of characters. */
extern bool accord_rule_glob(const char *pattern, const char *text);

extern AccordRuleOutcome accord_rule_outcome(const char *word);
extern const char *accord_rule_word(AccordRuleOutcome outcome);

/* How the transfer ended, as a rule calls it; false: no such word. */
extern bool accord_rule_transport(const char *word, AccordTransport *transport);

#endif							/* ACCORD_RULE_H */
