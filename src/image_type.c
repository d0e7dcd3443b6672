/*
 * image_type.c: how the columns of a table are to be written as jsonb.
 *
 * Runs in the application's backends, once per session and table, or whenever
 * the table has changed. All that image.c then needs to know of a type is
 * found out here.
 *
 * Invariant: the cases are those that PostgreSQL's to_jsonb() distinguishes.
 *
 * On failure only a type that is gone, or out-of-memory, can raise.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "parser/parse_coerce.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "image.h"
#include "image_private.h"

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

/* Writes what all objects of these columns begin with. */
static void
make_head(AccordImage *image)
{
	uint32		header = JB_FOBJECT | image->n;
	int			names = sizeof(header) + 2 * image->n * sizeof(JEntry);
	int			end = 0;

	for (int i = 0; i < image->n; i++)
		end += image->columns[i].name_len;
	image->head_len = names + end;
	image->head = palloc0(image->head_len);
	memcpy(image->head, &header, sizeof(header));
	end = 0;
	for (int i = 0; i < image->n; i++)
	{
		const ImageColumn *column = &image->columns[i];
		JEntry		entry;

		memcpy(image->head + names + end, column->name, column->name_len);
		end += column->name_len;
		entry = accord_image_entry(i, JENTRY_ISSTRING, column->name_len, end);
		memcpy(image->head + sizeof(header) + i * sizeof(JEntry), &entry,
			   sizeof(entry));
	}
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
	make_head(image);
	return image;
}
