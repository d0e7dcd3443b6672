/*
 * server.h: the server, as far as the pure modules ask it, for programs that
 * are linked with them but not with it: the database is one in UTF-8, and
 * raising an error, or asking for anything else, ends the program.
 */
static void
fail(const char *what)
{
	printf("FAILED  %s was called\n", what);
	exit(1);
}

int
GetDatabaseEncoding(void)
{
	return PG_UTF8;
}

char *
pg_server_to_any(const char *s, int len, int encoding)
{
	return unconstify(char *, s);
}

int
pg_mbstrlen_with_len(const char *mbstr, int limit)
{
	int			n = 0;

	for (int i = 0; i < limit; i++)
		n += ((unsigned char) mbstr[i] & 0xC0) != 0x80;
	return n;
}

bool
errstart_cold(int elevel, const char *domain)
{
	fail("ereport()");
	return false;
}

bool
errstart(int elevel, const char *domain)
{
	fail("ereport()");
	return false;
}

/* Of containers and of accord.expand(), which test/sql/template.sql tests. */
#define UNUSED(result, name, arguments) \
	result name arguments { fail(#name); abort(); }

UNUSED(char *, JsonbToCString, (StringInfo out, JsonbContainer *in, int len))
UNUSED(bool, JsonbExtractScalar, (JsonbContainer *container, JsonbValue *res))
UNUSED(JsonbValue *, getIthJsonbValueFromContainer,
	   (JsonbContainer *container, uint32 i))
UNUSED(Datum, numeric_out, (PG_FUNCTION_ARGS))
UNUSED(Datum, DirectFunctionCall1Coll,
	   (PGFunction function, Oid collation, Datum argument))
UNUSED(Jsonb *, JsonbValueToJsonb, (JsonbValue *value))
UNUSED(JsonbIterator *, JsonbIteratorInit, (JsonbContainer *container))
UNUSED(JsonbIteratorToken, JsonbIteratorNext,
	   (JsonbIterator **it, JsonbValue *value, bool skip))
UNUSED(uint32, getJsonbOffset, (const JsonbContainer *container, int index))
UNUSED(void, check_stack_depth, (void))
UNUSED(int, pg_ulltoa_n, (uint64 value, char *a))
UNUSED(JsonbValue *, getKeyJsonValueFromContainer,
	   (JsonbContainer *container, const char *key, int len, JsonbValue *res))
UNUSED(struct varlena *, pg_detoast_datum, (struct varlena *datum))
UNUSED(struct varlena *, pg_detoast_datum_packed, (struct varlena *datum))
UNUSED(char *, text_to_cstring, (const text *t))
UNUSED(text *, cstring_to_text, (const char *s))

/* Of conversions to another encoding than UTF-8, before 16 and since. */
MemoryContext CurrentMemoryContext;
sigjmp_buf *PG_exception_stack;
ErrorContextCallback *error_context_stack;
volatile uint32 InterruptHoldoffCount;

bool		pg_unicode_to_server_noerror(pg_wchar c, unsigned char *s);

UNUSED(void, FlushErrorState, (void))
UNUSED(void, pg_unicode_to_server, (pg_wchar c, unsigned char *s))
UNUSED(bool, pg_unicode_to_server_noerror, (pg_wchar c, unsigned char *s))

/* Of ereport(), which has ended the program by then. */
UNUSED(int, errcode, (int sqlerrcode))
UNUSED(int, errmsg, (const char *fmt,...))
UNUSED(int, errmsg_internal, (const char *fmt,...))
UNUSED(int, errhint, (const char *fmt,...))
UNUSED(void, errfinish, (const char *file, int line, const char *function))
