/*
 * digest.c: what the rows of the log come to: digests of events and commits.
 *
 * Runs in the application's backends as events are appended, and wherever
 * they are verified. Rows are encoded (version 1) so that equal rows have
 * equal encodings in every session, server version, architecture and after
 * every restore: integers and times big-endian, text in UTF-8 with its length
 * before it, jsonb as its text (whose order of members and form of numbers
 * PostgreSQL defines), addresses and uuids as they are written, nulls marked.
 *
 *   content  0x02, 'P', version, salt, payload, before, headers
 *   event    0x00, 'E', version, the other columns, content
 *   commit   0x00, 'C', version, the columns, the Merkle root of its events
 *   gap      0x00, 'G', version
 *
 * The content is a digest of its own, so that it can be erased and the
 * event's still be computed. Not covered are slot, which says where a row
 * lies, and what is known only afterwards (salt's check, erased, erased_by).
 *
 * Invariants: whatever encodes differently is another version; the encodings
 * of a version never change.
 *
 * On failure (out of memory, the library of hashes refuses) it raises.
 */
#include "postgres.h"

#include <openssl/evp.h>

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "accord.h"
#include "buffer.h"
#include "digest.h"
#include "json.h"

#define ENCODING_VERSION 1
#define PREFIX_CONTENT 0x02
#define BUFFER_KEPT 8192		/* a larger buffer is given back */

typedef enum Kind
{
	KIND_INT16,
	KIND_INT32,
	KIND_INT64,
	KIND_UUID,
	KIND_TEXT,
	KIND_TEXTS,
	KIND_INET
} Kind;

typedef struct Field
{
	int			column;
	Kind		kind;
} Field;

static const Field event_fields[] = {
	{ACCORD_EVENT_TX_ID, KIND_INT64},
	{ACCORD_EVENT_ORD, KIND_INT32},
	{ACCORD_EVENT_PRIORITY, KIND_INT16},
	{ACCORD_EVENT_EVENT_ID, KIND_UUID},
	{ACCORD_EVENT_OCCURRED_AT, KIND_INT64},
	{ACCORD_EVENT_RECORDED_AT, KIND_INT64},
	{ACCORD_EVENT_DELIVER_AT, KIND_INT64},
	{ACCORD_EVENT_EXPIRES_AT, KIND_INT64},
	{ACCORD_EVENT_TABLE_ID, KIND_INT32},
	{ACCORD_EVENT_TOPIC, KIND_TEXT},
	{ACCORD_EVENT_KEY, KIND_TEXT},
	{ACCORD_EVENT_OP, KIND_TEXT},
	{ACCORD_EVENT_SOURCE, KIND_TEXT},
	{ACCORD_EVENT_ACCOUNT, KIND_TEXT},
	{ACCORD_EVENT_CHANNELS, KIND_TEXTS},
	{ACCORD_EVENT_IDEMPOTENCY_KEY, KIND_TEXT}
};

static const Field commit_fields[] = {
	{ACCORD_COMMIT_SEQ, KIND_INT64},
	{ACCORD_COMMIT_TX_ID, KIND_INT64},
	{ACCORD_COMMIT_COMMITTED_AT, KIND_INT64},
	{ACCORD_COMMIT_ROLE, KIND_INT32},
	{ACCORD_COMMIT_EVENTS, KIND_INT32},
	{ACCORD_COMMIT_ACTOR, KIND_TEXT},
	{ACCORD_COMMIT_APPLICATION_NAME, KIND_TEXT},
	{ACCORD_COMMIT_CLIENT_ADDR, KIND_INET},
	{ACCORD_COMMIT_REASON, KIND_TEXT},
	{ACCORD_COMMIT_CORRELATION_ID, KIND_TEXT}
};

static const AccordEventColumn content_columns[] = {
	ACCORD_EVENT_PAYLOAD, ACCORD_EVENT_BEFORE, ACCORD_EVENT_HEADERS
};

static StringInfoData buffer = {.data = NULL};

static void
refuse_digest(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("could not compute the digest of an event"),
			 errhint("Check the server's cryptographic library.")));
}

/* One context serves the process. */
void
accord_digest_ready(void)
{
	static bool ready = false;
	AccordHash	nothing;

	if (ready)
		return;
	if (!accord_merkle_use(EVP_MD_CTX_new()))
		refuse_digest();
	accord_digest_gap(&nothing);
	accord_digest_finish();
	ready = true;
}

void
accord_digest_finish(void)
{
	if (!accord_merkle_intact())
		refuse_digest();
}

static void
begin_encoding(char prefix, char type)
{
	if (buffer.data != NULL && buffer.maxlen > BUFFER_KEPT)
	{
		pfree(buffer.data);
		buffer.data = NULL;
	}
	if (buffer.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&buffer);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&buffer);
	accord_buffer_char(&buffer, prefix);
	accord_buffer_char(&buffer, type);
	accord_buffer_char(&buffer, ENCODING_VERSION);
}

static void
put_int16(int16 value)
{
	uint16		wire = pg_hton16((uint16) value);

	accord_buffer_bytes(&buffer, &wire, sizeof(wire));
}

static void
put_int32(int32 value)
{
	uint32		wire = pg_hton32((uint32) value);

	accord_buffer_bytes(&buffer, &wire, sizeof(wire));
}

static void
put_int64(int64 value)
{
	uint64		wire = pg_hton64((uint64) value);

	accord_buffer_bytes(&buffer, &wire, sizeof(wire));
}

static void
put_bytes(const char *bytes, int len)
{
	char	   *wire = pg_server_to_any(bytes, len, PG_UTF8);

	if (wire != bytes)
		len = strlen(wire);
	put_int32(len);
	accord_buffer_bytes(&buffer, wire, len);
	if (wire != bytes)
		pfree(wire);
}

static void
put_text(Datum value)
{
	text	   *packed = DatumGetTextPP(value);

	put_bytes(VARDATA_ANY(packed), VARSIZE_ANY_EXHDR(packed));
	if ((Pointer) packed != DatumGetPointer(value))
		pfree(packed);
}

static void
put_texts(Datum value)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, &nulls, &n);
	put_int32(n);
	for (int i = 0; i < n; i++)
	{
		accord_buffer_char(&buffer, nulls[i] ? 0 : 1);
		if (!nulls[i])
			put_text(elements[i]);
	}
}

static void
put_inet(Datum value)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(inet_out, value));

	put_bytes(text, strlen(text));
	pfree(text);
}

static void
put_field(Kind kind, Datum value)
{
	switch (kind)
	{
		case KIND_INT16:
			put_int16(DatumGetInt16(value));
			break;
		case KIND_INT32:
			put_int32(DatumGetInt32(value));
			break;
		case KIND_INT64:
			put_int64(DatumGetInt64(value));
			break;
		case KIND_UUID:
			accord_buffer_bytes(&buffer, DatumGetUUIDP(value)->data, UUID_LEN);
			break;
		case KIND_TEXT:
			put_text(value);
			break;
		case KIND_TEXTS:
			put_texts(value);
			break;
		case KIND_INET:
			put_inet(value);
			break;
	}
}

static void
put_fields(const Field *fields, int n, const Datum *values, const bool *nulls)
{
	for (int i = 0; i < n; i++)
	{
		int			column = fields[i].column;

		accord_buffer_char(&buffer, nulls[column - 1] ? 0 : 1);
		if (!nulls[column - 1])
			put_field(fields[i].kind, values[column - 1]);
	}
}

/* What is encoded last was written by the server: in UTF-8, with its length. */
static void
finish_text(int start)
{
	uint32		wire;

	if (GetDatabaseEncoding() != PG_UTF8)
	{
		char	   *text = pnstrdup(buffer.data + start + sizeof(wire),
									buffer.len - start - sizeof(wire));

		buffer.len = start;
		put_bytes(text, strlen(text));
		pfree(text);
		return;
	}
	wire = pg_hton32((uint32) (buffer.len - start - sizeof(wire)));
	memcpy(buffer.data + start, &wire, sizeof(wire));
}

/* As PostgreSQL itself prints it, without a copy. */
static void
put_json(Datum value)
{
	Jsonb	   *json = DatumGetJsonbP(value);
	int			start = buffer.len;

	put_int32(0);
	accord_json_append(&buffer, json);
	Assert(strcmp(buffer.data + start + sizeof(int32),
				  JsonbToCString(NULL, &json->root, VARSIZE(json))) == 0);
	finish_text(start);
	if ((Pointer) json != DatumGetPointer(value))
		pfree(json);
}

void
accord_digest_content(const Datum *values, const bool *nulls,
					  const uint8 *salt, AccordHash *content)
{
	begin_encoding(PREFIX_CONTENT, 'P');
	accord_buffer_bytes(&buffer, salt, ACCORD_SALT_RANDOM);
	for (int i = 0; i < lengthof(content_columns); i++)
	{
		int			column = content_columns[i];

		accord_buffer_char(&buffer, nulls[column - 1] ? 0 : 1);
		if (!nulls[column - 1])
			put_json(values[column - 1]);
	}
	accord_merkle_hash(buffer.data, buffer.len, content);
}

void
accord_digest_event(const Datum *values, const bool *nulls,
					const AccordHash *content, AccordHash *event)
{
	begin_encoding(ACCORD_MERKLE_LEAF, 'E');
	put_fields(event_fields, lengthof(event_fields), values, nulls);
	accord_buffer_bytes(&buffer, content->bytes, ACCORD_HASH_BYTES);
	accord_merkle_hash(buffer.data, buffer.len, event);
}

void
accord_digest_commit(const Datum *values, const bool *nulls,
					 const AccordHash *events, AccordHash *commit)
{
	begin_encoding(ACCORD_MERKLE_LEAF, 'C');
	put_fields(commit_fields, lengthof(commit_fields), values, nulls);
	accord_buffer_bytes(&buffer, events->bytes, ACCORD_HASH_BYTES);
	accord_merkle_hash(buffer.data, buffer.len, commit);
}

void
accord_digest_gap(AccordHash *gap)
{
	const char	data[] = {ACCORD_MERKLE_LEAF, 'G', ENCODING_VERSION};

	accord_merkle_hash(data, sizeof(data), gap);
}

bool
accord_digest_erased(const Datum *values, const bool *nulls,
					 AccordErased *erased)
{
	bytea	   *stored;

	if (nulls[ACCORD_EVENT_ERASED - 1])
		return false;
	stored = DatumGetByteaPP(values[ACCORD_EVENT_ERASED - 1]);
	if (VARSIZE_ANY_EXHDR(stored) != sizeof(AccordErased))
		return false;
	memcpy(erased, VARDATA_ANY(stored), sizeof(AccordErased));
	return true;
}

bool
accord_digest_stored(const Datum *values, const bool *nulls,
					 AccordHash *event, bool *agrees)
{
	AccordErased erased;
	const uint8 *check = erased.check;

	if (!nulls[ACCORD_EVENT_SALT - 1])
	{
		const uint8 *salt =
		DatumGetUUIDP(values[ACCORD_EVENT_SALT - 1])->data;

		accord_digest_content(values, nulls, salt, &erased.content);
		check = salt + ACCORD_SALT_RANDOM;
	}
	else if (!accord_digest_erased(values, nulls, &erased) ||
			 !nulls[ACCORD_EVENT_PAYLOAD - 1] ||
			 !nulls[ACCORD_EVENT_BEFORE - 1] ||
			 !nulls[ACCORD_EVENT_HEADERS - 1])
		return false;
	accord_digest_event(values, nulls, &erased.content, event);
	*agrees = memcmp(check, event->bytes, ACCORD_SALT_CHECK) == 0;
	return true;
}
