/*
 * trace.h: exports of trace.c
 *
 * Layer 4: the trace that a transaction is a part of goes along with its
 * events (W3C Trace Context).
 */
#ifndef ACCORD_TRACE_H
#define ACCORD_TRACE_H

/*
 * Puts the session's accord.traceparent and accord.tracestate among the
 * headers of an event, a row of event_log, unless it has a traceparent of its
 * own.
 */
extern void accord_trace_event(Datum *values, bool *nulls);

#endif							/* ACCORD_TRACE_H */
