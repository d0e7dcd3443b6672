/*
 * inquiry.h: exports of inquiry.c
 *
 * Layer 2: a question that a backend asks a dispatcher, and its answer.
 */
#ifndef ACCORD_INQUIRY_H
#define ACCORD_INQUIRY_H

#include "storage/lwlock.h"

/* What is asked: to call an endpoint, and what is to be called. */
typedef struct AccordInquiry
{
	char		channel[64];
	char		account[1024];	/* empty: the channel itself */
	char		path[2048];		/* template */
} AccordInquiry;

/* What came of it; for people. */
typedef struct AccordFinding
{
	bool		ok;
	int			status;			/* 0: no answer */
	double		duration_ms;	/* negative: none */
	char		verdict[32];
	char		detail[1024];
	char		url[3072];
} AccordFinding;

/* Which inquiry; stale when its asker has gone. */
typedef struct AccordInquiryId
{
	int			slot;
	uint32		generation;
} AccordInquiryId;

/* For shmem.c: the size of its memory; its start. */
extern Size accord_inquiry_size(void);
extern void accord_inquiry_start(LWLock *lock);

/* The asker's side: false when too many ask. Wakes the dispatchers. */
extern bool accord_inquiry_ask(const AccordInquiry *inquiry,
							   AccordInquiryId *id);

/* Whether there is an answer; whether somebody has taken the question. */
extern bool accord_inquiry_answered(AccordInquiryId id,
									AccordFinding *finding, bool *taken);

/* Nobody waits for it any more. */
extern void accord_inquiry_forget(AccordInquiryId id);

/*
 * The dispatcher's side: the next question for this database about a channel
 * that is its own; false: there is none. Costs one read where nobody asks.
 */
extern bool accord_inquiry_next(bool (*owns) (const char *channel, void *arg),
								void *arg, AccordInquiry *inquiry,
								AccordInquiryId *id);

/* Answers, and wakes who asked. */
extern void accord_inquiry_answer(AccordInquiryId id,
								  const AccordFinding *finding);

#endif							/* ACCORD_INQUIRY_H */
