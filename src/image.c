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
#include "catalog/pg_collation_d.h"
#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/float.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/typcache.h"

#include "image.h"
#include "json.h"

/* How a value of a type is written. */
typedef enum ImageKind
{
	IMAGE_BOOL,
	IMAGE_INT2,
	IMAGE_INT4,
	IMAGE_INT8,
	IMAGE_FLOAT4,
	IMAGE_FLOAT8,
	IMAGE_NUMERIC,
	IMAGE_DATE_TIME,			/* date and timestamps, ISO 8601 */
	IMAGE_JSONB,
	IMAGE_JSON,
	IMAGE_TEXT,					/* a varlena that holds the text itself */
	IMAGE_OUTPUT,				/* the type's output function */
	IMAGE_ARRAY,				/* of any of the above */
	IMAGE_TO_JSONB				/* composites, casts to json, arrays of them:
								 * PostgreSQL's to_jsonb() */
} ImageKind;

/* Settings that an output function looks at. */
typedef enum ImageGuard
{
	GUARD_NONE,					/* none */
	GUARD_STYLE,				/* variables of the server, set and put back */
	GUARD_PATH					/* search_path, lc_monetary: set as settings */
} ImageGuard;

typedef struct ImageType
{
	ImageKind	kind;
	ImageGuard	guard;
	Oid			type;			/* domains are looked through */
	FmgrInfo	function;		/* of IMAGE_OUTPUT, IMAGE_TO_JSONB */
	struct ImageType *element;	/* of IMAGE_ARRAY */
	int16		len;
	bool		byval;
	char		align;
} ImageType;

typedef struct ImageColumn
{
	int			index;			/* in values and nulls */
	const char *name;
	int			name_len;
	ImageType	type;
} ImageColumn;

struct AccordImage
{
	ImageGuard	guard;			/* the strictest of its columns */
	int			n;
	ImageColumn *columns;		/* in the order of keys in a jsonb object */
};

/* Types whose output looks at no setting, besides those with a kind. */
static bool
is_plain_type(Oid type)
{
	switch (type)
	{
		case UUIDOID:
		case NAMEOID:
		case CHAROID:
		case OIDOID:
		case XIDOID:
		case XID8OID:
		case CIDOID:
		case TIDOID:
		case TIMEOID:
		case TIMETZOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case BITOID:
		case VARBITOID:
		case XMLOID:
		case TSVECTOROID:
		case TSQUERYOID:
		case PG_LSNOID:
		case INT4RANGEOID:
		case INT8RANGEOID:
		case NUMRANGEOID:
		case INT4MULTIRANGEOID:
		case INT8MULTIRANGEOID:
		case NUMMULTIRANGEOID:
			return true;
		default:
			return type_is_enum(type);
	}
}

/* Types, or parts of types, that name objects or look at the locale. */
static bool
wants_path(Oid type)
{
	Oid			element;

	switch (type)
	{
		case MONEYOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			return true;
		default:
			break;
	}
	type = getBaseType(type);
	element = get_element_type(type);
	if (OidIsValid(element))
		return wants_path(element);
	if (type_is_rowtype(type) && type != RECORDOID)
	{
		TupleDesc	desc = lookup_rowtype_tupdesc_copy(type, -1);

		for (int i = 0; i < desc->natts; i++)
			if (!TupleDescAttr(desc, i)->attisdropped &&
				wants_path(TupleDescAttr(desc, i)->atttypid))
				return true;
	}
	return false;
}

/* Has the type a cast to json, as to_jsonb() would use it? */
static bool
has_json_cast(Oid type)
{
	Oid			function;

	return type >= FirstNormalObjectId &&
		find_coercion_pathway(JSONOID, type, COERCION_EXPLICIT,
							  &function) == COERCION_PATH_FUNC &&
		OidIsValid(function);
}

/* to_jsonb() learns the type of its argument from the call. */
static void
prepare_to_jsonb(ImageType *result, Oid type)
{
	Const	   *argument = makeNullConst(type, -1, InvalidOid);

	result->kind = IMAGE_TO_JSONB;
	result->guard = wants_path(type) ? GUARD_PATH : GUARD_STYLE;
	fmgr_info_cxt(F_TO_JSONB, &result->function, CurrentMemoryContext);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID,
											 list_make1(argument),
											 InvalidOid, InvalidOid,
											 COERCE_EXPLICIT_CALL),
					   &result->function);
}

static void
prepare_output(ImageType *result)
{
	Oid			output;
	bool		varlena;

	result->kind = IMAGE_OUTPUT;
	result->guard = wants_path(result->type) ? GUARD_PATH :
		is_plain_type(result->type) ? GUARD_NONE : GUARD_STYLE;
	getTypeOutputInfo(result->type, &output, &varlena);
	fmgr_info_cxt(output, &result->function, CurrentMemoryContext);
}

static void prepare_type(ImageType *result, Oid type);

static void
prepare_array(ImageType *result, Oid element)
{
	ImageType  *of = palloc0(sizeof(ImageType));

	prepare_type(of, element);
	if (of->kind == IMAGE_TO_JSONB || of->kind == IMAGE_ARRAY)
	{
		prepare_to_jsonb(result, result->type);
		return;
	}
	result->kind = IMAGE_ARRAY;
	result->guard = of->guard;
	result->element = of;
	get_typlenbyvalalign(element, &of->len, &of->byval, &of->align);
}

/* The same cases as PostgreSQL's to_jsonb() distinguishes. */
static void
prepare_type(ImageType *result, Oid type)
{
	Oid			base = getBaseType(type);
	Oid			element = get_element_type(base);

	result->type = base;
	result->guard = GUARD_NONE;
	switch (base)
	{
		case BOOLOID:
			result->kind = IMAGE_BOOL;
			return;
		case INT2OID:
			result->kind = IMAGE_INT2;
			return;
		case INT4OID:
			result->kind = IMAGE_INT4;
			return;
		case INT8OID:
			result->kind = IMAGE_INT8;
			return;
		case FLOAT4OID:
			result->kind = IMAGE_FLOAT4;
			return;
		case FLOAT8OID:
			result->kind = IMAGE_FLOAT8;
			return;
		case NUMERICOID:
			result->kind = IMAGE_NUMERIC;
			return;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			result->kind = IMAGE_DATE_TIME;
			return;
		case JSONBOID:
			result->kind = IMAGE_JSONB;
			return;
		case JSONOID:
			result->kind = IMAGE_JSON;
			return;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			result->kind = IMAGE_TEXT;
			return;
		default:
			break;
	}
	if (OidIsValid(element))
		prepare_array(result, element);
	else if (type_is_rowtype(base) || has_json_cast(type))
		prepare_to_jsonb(result, type);
	else
		prepare_output(result);
}

/* The order of keys in a jsonb object: by length, then by bytes. */
static int
compare_columns(const void *a, const void *b)
{
	const ImageColumn *left = a;
	const ImageColumn *right = b;

	if (left->name_len != right->name_len)
		return left->name_len < right->name_len ? -1 : 1;
	return memcmp(left->name, right->name, left->name_len);
}

AccordImage *
accord_image_prepare(TupleDesc desc, const Bitmapset *columns)
{
	AccordImage *image = palloc0(sizeof(AccordImage));

	image->columns = palloc0(Max(desc->natts, 1) * sizeof(ImageColumn));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		ImageColumn *column = &image->columns[image->n];

		if (attribute->attisdropped ||
			(columns != NULL && !bms_is_member(i + 1, columns)))
			continue;
		column->index = i;
		column->name = pstrdup(NameStr(attribute->attname));
		column->name_len = strlen(column->name);
		prepare_type(&column->type, attribute->atttypid);
		column->type.len = attribute->attlen;
		column->type.byval = attribute->attbyval;
		image->guard = Max(image->guard, column->type.guard);
		image->n++;
	}
	qsort(image->columns, image->n, sizeof(ImageColumn), compare_columns);
	return image;
}

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
static void
put_padding(StringInfo buffer)
{
	while (buffer->len % ALIGNOF_INT != 0)
		appendStringInfoCharMacro(buffer, '\0');
}

static uint32
put_string(StringInfo buffer, const char *bytes, int len)
{
	if (len > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a value of %d bytes is too long to be captured", len),
				 errhint("Exclude its column from the capture.")));
	appendBinaryStringInfo(buffer, bytes, len);
	return JENTRY_ISSTRING;
}

static uint32
put_numeric(StringInfo buffer, Numeric value)
{
	put_padding(buffer);
	appendBinaryStringInfo(buffer, (char *) value, VARSIZE(value));
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

static uint32
put_date_time(StringInfo buffer, Oid type, Datum value)
{
	char		text[MAXDATELEN + 1];
	int			utc = 0;

	JsonEncodeDateTime(text, value, type, &utc);
	return put_string(buffer, text, strlen(text));
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
			return put_numeric(buffer, int64_to_numeric(DatumGetInt16(value)));
		case IMAGE_INT4:
			return put_numeric(buffer, int64_to_numeric(DatumGetInt32(value)));
		case IMAGE_INT8:
			return put_numeric(buffer, int64_to_numeric(DatumGetInt64(value)));
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

/*
 * Notes what was appended since start, at place i of a container's entries.
 * Every 32nd entry tells where it ends, the others how long they are.
 */
static void
set_entry(StringInfo buffer, int entries, int i, uint32 kind, int start,
		  int data)
{
	int			len = buffer->len - start;
	JEntry		entry = kind | (JEntry) len;

	if (buffer->len - data > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a row is too large to be captured"),
				 errhint("Exclude its large columns from the capture.")));
	if (i % JB_OFFSET_STRIDE == 0)
		entry = kind | JENTRY_HAS_OFF | (JEntry) (buffer->len - data);
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

static Jsonb *
write_object(AccordImage *image, const Datum *values, const bool *nulls,
			 const bool *wanted)
{
	StringInfoData buffer;
	int			n = 0;
	int			entries;
	int			data;
	int			at = 0;

	for (int i = 0; i < image->n; i++)
		n += (wanted == NULL || wanted[i]);
	initStringInfo(&buffer);
	buffer.len = VARHDRSZ;
	entries = put_header(&buffer, JB_FOBJECT, n, 2 * n);
	data = buffer.len;
	for (int i = 0; i < image->n; i++)
	{
		ImageColumn *column = &image->columns[i];
		int			start = buffer.len;

		if (wanted != NULL && !wanted[i])
			continue;
		appendBinaryStringInfo(&buffer, column->name, column->name_len);
		set_entry(&buffer, entries, at++, JENTRY_ISSTRING, start, data);
	}
	for (int i = 0; i < image->n; i++)
	{
		ImageColumn *column = &image->columns[i];
		int			start = buffer.len;
		uint32		kind = JENTRY_ISNULL;

		if (wanted != NULL && !wanted[i])
			continue;
		if (!nulls[column->index])
			kind = put_value(&buffer, &column->type, values[column->index]);
		set_entry(&buffer, entries, at++, kind, start, data);
	}
	SET_VARSIZE(buffer.data, buffer.len);
	return (Jsonb *) buffer.data;
}

/* With the server's variables as they are by default. */
static Jsonb *
write_in_style(AccordImage *image, const Datum *values, const bool *nulls,
			   const bool *wanted)
{
	int			date_style = DateStyle;
	int			date_order = DateOrder;
	int			interval_style = IntervalStyle;
	int			float_digits = extra_float_digits;
	int			bytea_style = bytea_output;
	pg_tz	   *zone = session_timezone;
	Jsonb	   *result = NULL;

	PG_TRY();
	{
		DateStyle = USE_ISO_DATES;
		DateOrder = DATEORDER_MDY;
		IntervalStyle = INTSTYLE_POSTGRES;
		extra_float_digits = 1;
		bytea_output = BYTEA_OUTPUT_HEX;
		session_timezone = pg_tzset("GMT");
		result = write_object(image, values, nulls, wanted);
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
	return result;
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
			return psprintf("%d", DatumGetInt16(value));
		case IMAGE_INT4:
			return psprintf("%d", DatumGetInt32(value));
		case IMAGE_INT8:
			return psprintf(INT64_FORMAT, DatumGetInt64(value));
		case IMAGE_TEXT:
			return TextDatumGetCString(value);
		default:
			return accord_image_text(object, column->name);
	}
}
