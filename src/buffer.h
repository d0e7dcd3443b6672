/*
 * buffer.h: appending to a StringInfo without a call while there is room
 *
 * Layer 0. For what is written for every event: many short pieces. What these
 * leave behind is terminated only by accord_buffer_end(), or by an append of
 * PostgreSQL's own.
 */
#ifndef ACCORD_BUFFER_H
#define ACCORD_BUFFER_H

#include "lib/stringinfo.h"

/* Where so many bytes may be written, and a terminator; the length stays. */
static inline char *
accord_buffer_room(StringInfo buffer, int n)
{
	if (unlikely(buffer->maxlen - buffer->len <= n))
		enlargeStringInfo(buffer, n);
	return buffer->data + buffer->len;
}

static inline void
accord_buffer_bytes(StringInfo buffer, const void *bytes, int n)
{
	memcpy(accord_buffer_room(buffer, n), bytes, n);
	buffer->len += n;
}

static inline void
accord_buffer_char(StringInfo buffer, char c)
{
	*accord_buffer_room(buffer, 1) = c;
	buffer->len++;
}

static inline void
accord_buffer_end(StringInfo buffer)
{
	*accord_buffer_room(buffer, 0) = '\0';
}

#endif							/* ACCORD_BUFFER_H */
