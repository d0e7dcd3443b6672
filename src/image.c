/*
 * image.c: a row, or some of its columns, as a jsonb object.
 *
 * Runs in the application's backends, once or twice for every row of a
 * captured table that changes. The object is written in jsonb's stored form
 * at once, without a tree in between: the names, their order and their
 * lengths are known beforehand, so what a row costs is its values.
 *
 * Invariants
 *   - What is written equals to_jsonb() of the same columns, byte for byte;
 *     test/sql/capture.sql compares them over every type.
 *   - It does not depend on the session: where an output function looks at a
 *     setting (DateStyle, IntervalStyle, extra_float_digits, bytea_output,
 *     TimeZone; search_path and lc_monetary for the types that look at those)
 *     it is called with the server's default, so that the text always reads
 *     back to the same value.
 *   - No catalogue is looked at for a row, but by what PostgreSQL does itself
 *     for a composite type, an enum, or a type with a cast to json.
 *
 * On failure (a value that jsonb cannot hold, such as a json text with \u0000
 * in it) the statement raises; settings are put back.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/numeric.h"

#include "buffer.h"
#include "image.h"
#include "image_private.h"
#include "json.h"
#include "whole.h"

int
accord_image_columns(const AccordImage *image)
{
	return image->n;
}

int
accord_image_index(const AccordImage *image, int i)
{
	return image->columns[i].index;
}

/* ---- values -------------------------------------------------------------- */

/* Numbers and containers begin at a multiple of four. */
static inline void
put_padding(StringInfo buffer)
{
	int			n = INTALIGN(buffer->len) - buffer->len;

	memset(accord_buffer_room(buffer, ALIGNOF_INT), 0, ALIGNOF_INT);
	buffer->len += n;
}

static uint32
put_string(StringInfo buffer, const char *bytes, int len)
{
	if (len > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a value of %d bytes is too long to be captured", len),
				 errhint("Exclude its column from the capture.")));
	accord_buffer_bytes(buffer, bytes, len);
	return JENTRY_ISSTRING;
}

static uint32
put_numeric(StringInfo buffer, Numeric value)
{
	put_padding(buffer);
	accord_buffer_bytes(buffer, value, VARSIZE(value));
	return JENTRY_ISNUMERIC;
}

static inline uint32
put_integer(StringInfo buffer, int64 value)
{
	put_padding(buffer);
	buffer->len += accord_whole_write(accord_buffer_room(buffer,
														 ACCORD_WHOLE_BYTES),
									  value);
	return JENTRY_ISNUMERIC;
}

/* What numbers cannot be in JSON is a string: NaN, Infinity. */
static uint32
put_numeric_datum(StringInfo buffer, Datum value)
{
	Numeric		number = DatumGetNumeric(value);

	if (numeric_is_nan(number) || numeric_is_inf(number))
	{
		char	   *text =
		DatumGetCString(DirectFunctionCall1(numeric_out, value));

		return put_string(buffer, text, strlen(text));
	}
	return put_numeric(buffer, number);
}

static uint32
put_float(StringInfo buffer, double value, bool is_single)
{
	char		text[DOUBLE_SHORTEST_DECIMAL_LEN];

	if (isnan(value) || isinf(value))
	{
		const char *name = isnan(value) ? "NaN" :
		value > 0 ? "Infinity" : "-Infinity";

		return put_string(buffer, name, strlen(name));
	}
	if (is_single)
		float_to_shortest_decimal_buf((float) value, text);
	else
		double_to_shortest_decimal_buf(value, text);
	return put_numeric(buffer,
					   DatumGetNumeric(DirectFunctionCall3(numeric_in,
														   CStringGetDatum(text),
														   ObjectIdGetDatum(InvalidOid),
														   Int32GetDatum(-1))));
}

static uint32
put_jsonb(StringInfo buffer, Jsonb *value)
{
	JsonbValue	scalar;

	if (!JB_ROOT_IS_SCALAR(value))
	{
		put_padding(buffer);
		appendBinaryStringInfo(buffer, VARDATA(value), VARSIZE(value) - VARHDRSZ);
		return JENTRY_ISCONTAINER;
	}
	JsonbExtractScalar(&value->root, &scalar);
	switch (scalar.type)
	{
		case jbvNull:
			return JENTRY_ISNULL;
		case jbvBool:
			return scalar.val.boolean ? JENTRY_ISBOOL_TRUE :
				JENTRY_ISBOOL_FALSE;
		case jbvNumeric:
			return put_numeric(buffer, scalar.val.numeric);
		default:
			Assert(scalar.type == jbvString);
			return put_string(buffer, scalar.val.string.val,
							  scalar.val.string.len);
	}
}

static uint32
put_text(StringInfo buffer, Datum value)
{
	text	   *plain = PG_DETOAST_DATUM_PACKED(value);

	return put_string(buffer, VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));
}

/* Days since 2000-01-01: of the years 1 to 9999. */
#define FIRST_DAY (-730119)
#define LAST_DAY 2921939

/*
 * A point in time of those years, which is nearly all there are, as
 * JsonEncodeDateTime() writes it, at half the cost. 0: it is something else.
 */
static int
write_time(char *text, Timestamp value, bool with_zone)
{
	int64		days = value / USECS_PER_DAY;
	int64		left = value % USECS_PER_DAY;
	char	   *at = text;
	int			year;
	int			month;
	int			day;

	if (left < 0)
	{
		left += USECS_PER_DAY;
		days--;
	}
	if (days < FIRST_DAY || days > LAST_DAY)
		return 0;
	j2date((int) days + POSTGRES_EPOCH_JDATE, &year, &month, &day);
	at = pg_ultostr_zeropad(at, year, 4);
	*at++ = '-';
	at = pg_ultostr_zeropad(at, month, 2);
	*at++ = '-';
	at = pg_ultostr_zeropad(at, day, 2);
	*at++ = 'T';
	at = pg_ultostr_zeropad(at, left / USECS_PER_HOUR, 2);
	*at++ = ':';
	at = pg_ultostr_zeropad(at, left / USECS_PER_MINUTE % MINS_PER_HOUR, 2);
	*at++ = ':';
	at = pg_ultostr_zeropad(at, left / USECS_PER_SEC % SECS_PER_MINUTE, 2);
	left %= USECS_PER_SEC;
	if (left > 0)
	{
		*at++ = '.';
		at = pg_ultostr_zeropad(at, left, 6);
		while (at[-1] == '0')
			at--;
	}
	if (with_zone)
	{
		memcpy(at, "+00:00", 6);
		at += 6;
	}
	return at - text;
}

static uint32
put_date_time(StringInfo buffer, Oid type, Datum value)
{
	char		text[MAXDATELEN + 1];
	int			utc = 0;
	int			len = 0;

	if (type != DATEOID)
		len = write_time(text, DatumGetTimestamp(value),
						 type == TIMESTAMPTZOID);
	if (len == 0)
	{
		JsonEncodeDateTime(text, value, type, &utc);
		len = strlen(text);
	}
	return put_string(buffer, text, len);
}

static uint32 put_array(StringInfo buffer, ImageType *element, Datum value);

/* Appends a value that is not null; returns the type its entry is to have. */
static uint32
put_value(StringInfo buffer, ImageType *type, Datum value)
{
	char	   *chars;

	switch (type->kind)
	{
		case IMAGE_BOOL:
			return DatumGetBool(value) ? JENTRY_ISBOOL_TRUE :
				JENTRY_ISBOOL_FALSE;
		case IMAGE_INT2:
			return put_integer(buffer, DatumGetInt16(value));
		case IMAGE_INT4:
			return put_integer(buffer, DatumGetInt32(value));
		case IMAGE_INT8:
			return put_integer(buffer, DatumGetInt64(value));
		case IMAGE_FLOAT4:
			return put_float(buffer, DatumGetFloat4(value), true);
		case IMAGE_FLOAT8:
			return put_float(buffer, DatumGetFloat8(value), false);
		case IMAGE_NUMERIC:
			return put_numeric_datum(buffer, value);
		case IMAGE_DATE_TIME:
			return put_date_time(buffer, type->type, value);
		case IMAGE_JSONB:
			return put_jsonb(buffer, DatumGetJsonbP(value));
		case IMAGE_JSON:
			chars = TextDatumGetCString(value);
			return put_jsonb(buffer,
							 DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																CStringGetDatum(chars))));
		case IMAGE_TEXT:
			return put_text(buffer, value);
		case IMAGE_OUTPUT:
			chars = OutputFunctionCall(&type->function, value);
			return put_string(buffer, chars, strlen(chars));
		case IMAGE_ARRAY:
			return put_array(buffer, type->element, value);
		case IMAGE_TO_JSONB:
			return put_jsonb(buffer,
							 DatumGetJsonbP(FunctionCall1(&type->function,
														  value)));
	}
	elog(ERROR, "unknown kind of column %d", type->kind);
	return 0;
}

/* Notes what was appended since start, at place i of a container's entries. */
static inline void
set_entry(StringInfo buffer, int entries, int i, uint32 kind, int start,
		  int data)
{
	JEntry		entry = accord_image_entry(i, kind, buffer->len - start,
										   buffer->len - data);

	if (buffer->len - data > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a row is too large to be captured"),
				 errhint("Exclude its large columns from the capture.")));
	memcpy(buffer->data + entries + i * sizeof(JEntry), &entry,
		   sizeof(JEntry));
}

/* Reserves room for a container's entries; returns where it is. */
static int
put_header(StringInfo buffer, uint32 flags, uint32 count, int n_entries)
{
	uint32		header = flags | count;
	int			entries;

	appendBinaryStringInfo(buffer, (char *) &header, sizeof(header));
	entries = buffer->len;
	enlargeStringInfo(buffer, n_entries * sizeof(JEntry));
	buffer->len += n_entries * sizeof(JEntry);
	return entries;
}

/* One dimension of an array; *next is the next element to be written. */
static uint32
put_dimension(StringInfo buffer, ImageType *element, int n_dims,
			  const int *dims, Datum *values, bool *nulls, int *next)
{
	int			n = n_dims > 0 ? dims[0] : 0;
	int			entries;
	int			data;

	check_stack_depth();
	put_padding(buffer);
	entries = put_header(buffer, JB_FARRAY, n, n);
	data = buffer->len;
	for (int i = 0; i < n; i++)
	{
		int			start = buffer->len;
		uint32		kind;

		if (n_dims > 1)
			kind = put_dimension(buffer, element, n_dims - 1, dims + 1,
								 values, nulls, next);
		else if (nulls[*next])
			kind = JENTRY_ISNULL;
		else
			kind = put_value(buffer, element, values[*next]);
		if (n_dims == 1)
			(*next)++;
		set_entry(buffer, entries, i, kind, start, data);
	}
	return JENTRY_ISCONTAINER;
}

static uint32
put_array(StringInfo buffer, ImageType *element, Datum value)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	Datum	   *values;
	bool	   *nulls;
	int			n;
	int			next = 0;

	deconstruct_array(array, ARR_ELEMTYPE(array), element->len,
					  element->byval, element->align, &values, &nulls, &n);
	return put_dimension(buffer, element, ARR_NDIM(array), ARR_DIMS(array),
						 values, nulls, &next);
}

/* ---- rows ---------------------------------------------------------------- */

static int
count_wanted(const AccordImage *image, const bool *wanted)
{
	int			n = 0;

	for (int i = 0; i < image->n; i++)
		n += (wanted == NULL || wanted[i]);
	return n;
}

/*
 * An object's header, room for its entries, those of the names filled in, and
 * the names. Returns where the data begins.
 */
static int
put_names(StringInfo buffer, const AccordImage *image, int n,
		  const bool *wanted)
{
	int			entries = put_header(buffer, JB_FOBJECT, n, 2 * n);
	int			data = buffer->len;
	int			at = 0;

	for (int i = 0; i < image->n; i++)
	{
		const ImageColumn *column = &image->columns[i];
		int			start = buffer->len;

		if (wanted != NULL && !wanted[i])
			continue;
		accord_buffer_bytes(buffer, column->name, column->name_len);
		set_entry(buffer, entries, at++, JENTRY_ISSTRING, start, data);
	}
	return data;
}

static Jsonb *
write_object(AccordImage *image, const Datum *values, const bool *nulls,
			 const bool *wanted)
{
	StringInfoData buffer;
	int			n = count_wanted(image, wanted);
	int			at = n;
	int			data;

	initStringInfo(&buffer);
	buffer.len = VARHDRSZ;
	if (n == image->n)
	{
		data = buffer.len + sizeof(uint32) + 2 * n * (int) sizeof(JEntry);
		accord_buffer_bytes(&buffer, image->head, image->head_len);
	}
	else
		data = put_names(&buffer, image, n, wanted);
	for (int i = 0; i < image->n; i++)
	{
		ImageColumn *column = &image->columns[i];
		int			start = buffer.len;
		uint32		kind = JENTRY_ISNULL;

		if (wanted != NULL && !wanted[i])
			continue;
		if (!nulls[column->index])
			kind = put_value(&buffer, &column->type, values[column->index]);
		set_entry(&buffer, data - 2 * n * (int) sizeof(JEntry), at++, kind,
				  start, data);
	}
	SET_VARSIZE(buffer.data, buffer.len);
	return (Jsonb *) buffer.data;
}

void
accord_image_in_style(void (*work) (void *arg), void *arg)
{
	int			date_style = DateStyle;
	int			date_order = DateOrder;
	int			interval_style = IntervalStyle;
	int			float_digits = extra_float_digits;
	int			bytea_style = bytea_output;
	pg_tz	   *zone = session_timezone;

	PG_TRY();
	{
		DateStyle = USE_ISO_DATES;
		DateOrder = DATEORDER_MDY;
		IntervalStyle = INTSTYLE_POSTGRES;
		extra_float_digits = 1;
		bytea_output = BYTEA_OUTPUT_HEX;
		session_timezone = pg_tzset("GMT");
		work(arg);
	}
	PG_FINALLY();
	{
		DateStyle = date_style;
		DateOrder = date_order;
		IntervalStyle = interval_style;
		extra_float_digits = float_digits;
		bytea_output = bytea_style;
		session_timezone = zone;
	}
	PG_END_TRY();
}

/* A row to be written, and what it came to. */
typedef struct Writing
{
	AccordImage *image;
	const Datum *values;
	const bool *nulls;
	const bool *wanted;
	Jsonb	   *result;
} Writing;

static void
write_row(void *arg)
{
	Writing    *writing = arg;

	writing->result = write_object(writing->image, writing->values,
								   writing->nulls, writing->wanted);
}

static Jsonb *
write_in_style(AccordImage *image, const Datum *values, const bool *nulls,
			   const bool *wanted)
{
	Writing		writing = {image, values, nulls, wanted, NULL};

	accord_image_in_style(write_row, &writing);
	return writing.result;
}

static void
set_here(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

Jsonb	   *
accord_image_build(AccordImage *image, const Datum *values, const bool *nulls,
				   const bool *wanted)
{
	Jsonb	   *result;
	int			level;

	if (image->guard == GUARD_NONE)
		return write_object(image, values, nulls, wanted);
	if (image->guard == GUARD_STYLE)
		return write_in_style(image, values, nulls, wanted);
	/* an error puts these back with the transaction */
	level = NewGUCNestLevel();
	set_here("search_path", "pg_catalog");
	set_here("lc_monetary", "C");
	result = write_in_style(image, values, nulls, wanted);
	AtEOXact_GUC(true, level);
	return result;
}

/* ---- comparison ---------------------------------------------------------- */

/*
 * Whether two variable-length values are the same. Where they are stored out
 * of line and no statement has touched them, both are the same pointer: then
 * nothing is fetched.
 */
static bool
same_varlena(Datum a, Datum b)
{
	struct varlena *left = (struct varlena *) DatumGetPointer(a);
	struct varlena *right = (struct varlena *) DatumGetPointer(b);
	Size		len = VARSIZE_ANY(left);

	if (len == VARSIZE_ANY(right) && memcmp(left, right, len) == 0)
		return true;
	if (toast_raw_datum_size(a) != toast_raw_datum_size(b))
		return false;
	left = PG_DETOAST_DATUM_PACKED(a);
	right = PG_DETOAST_DATUM_PACKED(b);
	return VARSIZE_ANY_EXHDR(left) == VARSIZE_ANY_EXHDR(right) &&
		memcmp(VARDATA_ANY(left), VARDATA_ANY(right),
			   VARSIZE_ANY_EXHDR(left)) == 0;
}

static bool
same_value(const ImageType *type, Datum a, Datum b)
{
	if (type->byval)
		return a == b;
	if (type->len == -1)
		return same_varlena(a, b);
	return datumIsEqual(a, b, false, type->len);
}

int
accord_image_compare(const AccordImage *image, const Datum *old_values,
					 const bool *old_nulls, const Datum *new_values,
					 const bool *new_nulls, bool *changed)
{
	int			n = 0;

	for (int i = 0; i < image->n; i++)
	{
		int			at = image->columns[i].index;

		changed[i] = old_nulls[at] != new_nulls[at] ||
			(!old_nulls[at] &&
			 !same_value(&image->columns[i].type, old_values[at],
						 new_values[at]));
		n += changed[i];
	}
	return n;
}

char	   *
accord_image_text(Jsonb *object, const char *column)
{
	JsonbValue	found;

	if (getKeyJsonValueFromContainer(&object->root, column, strlen(column),
									 &found) == NULL)
		return NULL;
	return accord_json_text(&found);
}

static char *
integer_text(int64 value)
{
	char	   *text = palloc(MAXINT8LEN + 1);

	pg_lltoa(value, text);
	return text;
}

char	   *
accord_image_column_text(const AccordImage *image, int i, Jsonb *object,
						 const Datum *values, const bool *nulls)
{
	const ImageColumn *column = &image->columns[i];
	Datum		value = values[column->index];

	if (nulls[column->index])
		return NULL;
	switch (column->type.kind)
	{
		case IMAGE_INT2:
			return integer_text(DatumGetInt16(value));
		case IMAGE_INT4:
			return integer_text(DatumGetInt32(value));
		case IMAGE_INT8:
			return integer_text(DatumGetInt64(value));
		case IMAGE_TEXT:
			return TextDatumGetCString(value);
		default:
			return accord_image_text(object, column->name);
	}
}
