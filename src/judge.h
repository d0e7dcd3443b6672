/*
 * judge.h: exports of judge.c
 *
 * Layer 5: what an answer means for a delivery: by its channel's rules, else by
 * its status.
 */
#ifndef ACCORD_JUDGE_H
#define ACCORD_JUDGE_H

#include "config.h"
#include "http.h"

typedef struct AccordJudgement
{
	AccordOutcome outcome;
	AccordSent	sent;			/* how far its effect got, for the verdict */
	int64		rule;			/* that decided; 0: a built-in one */
	int64		pause_ms;		/* not before that; -1: none asked for */
	bool		per_item;		/* of a batch: see each result */
	bool		gone;			/* what it is about is not there */
	bool		free;			/* costs no attempt */
	bool		decided;		/* the verdict is given, not found */
	AccordVerdict verdict;		/* ... this one */
	TimestampTz due_at;			/* when it is tried or asked again; 0: after
								 * the usual delay */
	Jsonb	   *keep;			/* with its row; NULL: nothing */
	const char *error;			/* for people; NULL: none */
} AccordJudgement;

/* An answer's body as JSON, palloc'd; NULL: it is none, or was cut off. */
extern Jsonb *accord_judge_json(const AccordHttpResponse *response);

/* What is found by a jsonpath, as text, palloc'd; NULL: nothing, or null. */
extern char *accord_judge_text(Jsonb *json, const void *path, Jsonb *vars);

/* The answer to a request of a route (NULL: it is gone). */
extern AccordJudgement accord_judge_answer(const AccordChannel *channel,
										   const AccordRoute *route,
										   const AccordHttpResponse *response);

/* By its status alone. */
extern AccordJudgement accord_judge_plain(const AccordHttpResponse *response);

/*
 * One result of a batch's answer (NULL: there is none), which has that status
 * (0: none of its own) and says that error (NULL: none).
 */
extern AccordJudgement accord_judge_item(const AccordRoute *route,
										 const AccordHttpResponse *response,
										 Jsonb *result, int status,
										 const char *error);

#endif							/* ACCORD_JUDGE_H */
