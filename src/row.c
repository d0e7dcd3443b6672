/*
 * row.c: rows of a table made from their images in the log (image.c, in the
 * other direction).
 *
 * Runs in any backend that reads history. An image is the JSON object of a
 * row's columns; the row is made for the table as it is now, in one pass, with
 * everything about its types looked up once.
 *
 * Invariants: columns are found by name, those that they have or had. What a
 * column's output became in JSON its input makes a value of again: numbers,
 * strings and booleans by the type's input function (short cuts for the
 * commonest), JSON as it is, arrays and composites by PostgreSQL's own
 * jsonb_populate_record(). Columns that
 * the image lacks are null, those the table lacks are passed over.
 *
 * Input functions see the settings that images are written under, not the
 * session's.
 *
 * On failure an error of a type's input is raised anew with the column's and
 * the table's name, under its own code.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/typcache.h"

#include "compat.h"
#include "row.h"

typedef enum RowKind
{
	ROW_NOTHING,				/* the column was dropped */
	ROW_INPUT,					/* by the type's input function */
	ROW_TEXT,
	ROW_BOOL,
	ROW_INT4,
	ROW_INT8,
	ROW_NUMERIC,				/* any precision */
	ROW_JSON,
	ROW_JSONB,
	ROW_NESTED					/* arrays and composites */
} RowKind;

typedef struct RowColumn
{
	const char *name;
	int			length;			/* of the name */
	RowKind		kind;
	int32		typmod;
	Oid			ioparam;
	FmgrInfo	input;
} RowColumn;

struct AccordRowMaker
{
	TupleDesc	desc;
	Oid			rowtype;
	uint64		version;		/* of the type's columns */
	FmgrInfo	populate;		/* jsonb_populate_record() for this type */
	bool		money;			/* its input looks at lc_monetary */
	Datum	   *values;
	bool	   *nulls;
	int			current;		/* column being made */
	RowColumn	columns[FLEXIBLE_ARRAY_MEMBER];
};

PG_FUNCTION_INFO_V1(accord_row_of);

static RowKind
kind_of(Oid type, int32 typmod)
{
	switch (type)
	{
		case TEXTOID:
			return ROW_TEXT;
		case BOOLOID:
			return ROW_BOOL;
		case INT4OID:
			return ROW_INT4;
		case INT8OID:
			return ROW_INT8;
		case NUMERICOID:
			return typmod < 0 ? ROW_NUMERIC : ROW_INPUT;
		case JSONOID:
			return ROW_JSON;
		case JSONBOID:
			return ROW_JSONB;
		default:
			type = getBaseType(type);
			if (type_is_rowtype(type) || OidIsValid(get_element_type(type)))
				return ROW_NESTED;
			return type == JSONBOID || type == JSONOID ?
				ROW_NESTED : ROW_INPUT;
	}
}

static void
describe_column(RowColumn *column, Form_pg_attribute attribute)
{
	Oid			input;

	if (attribute->attisdropped)
		return;					/* ROW_NOTHING */
	column->name = pstrdup(NameStr(attribute->attname));
	column->length = strlen(column->name);
	column->typmod = attribute->atttypmod;
	column->kind = kind_of(attribute->atttypid, attribute->atttypmod);
	getTypeInputInfo(attribute->atttypid, &input, &column->ioparam);
	fmgr_info_cxt(input, &column->input, CurrentMemoryContext);
}

/* jsonb_populate_record() learns the row's type from the call's expression. */
static void
prepare_populate(FmgrInfo *populate, Oid rowtype)
{
	List	   *arguments = list_make2(makeNullConst(rowtype, -1, InvalidOid),
									   makeNullConst(JSONBOID, -1,
													 InvalidOid));

	fmgr_info_cxt(F_JSONB_POPULATE_RECORD, populate, CurrentMemoryContext);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_JSONB_POPULATE_RECORD, rowtype,
											 arguments, InvalidOid,
											 InvalidOid,
											 COERCE_EXPLICIT_CALL),
					   populate);
}

AccordRowMaker *
accord_row_prepare(Oid rowtype)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(rowtype, -1);
	AccordRowMaker *maker = palloc0(offsetof(AccordRowMaker, columns) +
									desc->natts * sizeof(RowColumn));

	maker->desc = desc;
	maker->rowtype = rowtype;
	maker->version = assign_record_type_identifier(rowtype, -1);
	maker->values = palloc(desc->natts * sizeof(Datum));
	maker->nulls = palloc(desc->natts * sizeof(bool));
	for (int i = 0; i < desc->natts; i++)
	{
		describe_column(&maker->columns[i], TupleDescAttr(desc, i));
		maker->money |= TupleDescAttr(desc, i)->atttypid == CASHOID;
	}
	prepare_populate(&maker->populate, rowtype);
	return maker;
}

bool
accord_row_prepared(AccordRowMaker *maker, Oid rowtype)
{
	return maker->rowtype == rowtype &&
		maker->version == assign_record_type_identifier(rowtype, -1);
}

static JsonbValue *
find_member(Jsonb *object, const char *name, int length, JsonbValue *value)
{
	if (object == NULL || !JB_ROOT_IS_OBJECT(object))
		return NULL;
	return getKeyJsonValueFromContainer(&object->root, name, length, value);
}

/* The text that a scalar, or JSON itself, is for an input function. */
static char *
value_text(JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return value->val.boolean ? "true" : "false";
		default:
			{
				Jsonb	   *json = JsonbValueToJsonb(value);

				return JsonbToCString(NULL, &json->root, VARSIZE(json));
			}
	}
}

/* JSON's text form, in which strings are quoted. */
static Datum
value_json(JsonbValue *value)
{
	Jsonb	   *json = JsonbValueToJsonb(value);

	return CStringGetTextDatum(JsonbToCString(NULL, &json->root,
											  VARSIZE(json)));
}

/*
 * Arrays, composites, and domains over them and over JSON: the rest of the
 * row is given as it is so far, as the columns' own domains would not take
 * nulls.
 */
static Datum
value_nested(AccordRowMaker *maker, int i, JsonbValue *value, bool *isnull)
{
	HeapTuple	base = heap_form_tuple(maker->desc, maker->values,
									   maker->nulls);
	AccordJsonbState state = {0};
	JsonbValue	name;
	Jsonb	   *object;
	HeapTupleData result;
	Datum		row;

	name.type = jbvString;
	name.val.string.val = unconstify(char *, maker->columns[i].name);
	name.val.string.len = maker->columns[i].length;
	accord_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	accord_jsonb_push(&state, WJB_KEY, &name);
	accord_jsonb_push(&state, WJB_VALUE, value);
	object = accord_jsonb_end(&state, WJB_END_OBJECT);

	row = FunctionCall2(&maker->populate,
						HeapTupleGetDatum(base),
						JsonbPGetDatum(object));
	result.t_data = DatumGetHeapTupleHeader(row);
	result.t_len = HeapTupleHeaderGetDatumLength(result.t_data);
	ItemPointerSetInvalid(&result.t_self);
	result.t_tableOid = InvalidOid;
	return heap_getattr(&result, i + 1, maker->desc, isnull);
}

static Datum
make_value(AccordRowMaker *maker, int i, JsonbValue *value, bool *isnull)
{
	RowColumn  *column = &maker->columns[i];

	*isnull = false;
	switch (column->kind)
	{
		case ROW_TEXT:
			if (value->type == jbvString)
				return PointerGetDatum(cstring_to_text_with_len(value->val.string.val,
																value->val.string.len));
			break;
		case ROW_BOOL:
			if (value->type == jbvBool)
				return BoolGetDatum(value->val.boolean);
			break;
		case ROW_INT4:
			if (value->type == jbvNumeric)
				return DirectFunctionCall1(numeric_int4,
										   NumericGetDatum(value->val.numeric));
			break;
		case ROW_INT8:
			if (value->type == jbvNumeric)
				return DirectFunctionCall1(numeric_int8,
										   NumericGetDatum(value->val.numeric));
			break;
		case ROW_NUMERIC:
			if (value->type == jbvNumeric)
				return NumericGetDatum(value->val.numeric);
			break;
		case ROW_JSON:
			return value_json(value);
		case ROW_JSONB:
			return JsonbPGetDatum(JsonbValueToJsonb(value));
		case ROW_NESTED:
			return value_nested(maker, i, value, isnull);
		default:
			break;
	}
	return InputFunctionCall(&column->input, value_text(value),
							 column->ioparam, column->typmod);
}

static void
make_values(AccordRowMaker *maker, char **names, Jsonb *over, Jsonb *under)
{
	for (int i = 0; i < maker->desc->natts; i++)
	{
		RowColumn  *column = &maker->columns[i];
		const char *name = names ? names[i] : column->name;
		int			length = names && name ? strlen(name) : column->length;
		JsonbValue	buffer;
		JsonbValue *value = NULL;

		maker->current = i;
		if (column->kind != ROW_NOTHING && name != NULL)
		{
			value = find_member(over, name, length, &buffer);
			if (value == NULL)
				value = find_member(under, name, length, &buffer);
		}
		if (value != NULL && value->type != jbvNull)
		{
			bool		isnull;

			maker->values[i] = make_value(maker, i, value, &isnull);
			maker->nulls[i] = isnull;
		}
	}
}

/* Says of an error of a type's input which column it is about. */
static void
rethrow(AccordRowMaker *maker, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
		ERRCODE_TO_CATEGORY(error->sqlerrcode) !=
		ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
		PG_RE_THROW();
	FlushErrorState();
	ereport(ERROR,
			(errcode(error->sqlerrcode),
			 errmsg("cannot restore column \"%s\" of type %s: %s",
					maker->columns[maker->current].name,
					format_type_be(maker->rowtype), error->message),
			 errdetail("The log has a value that the column, as it is now, "
					   "does not take."),
			 errhint("Read it as it was written: accord.history() shows "
					 "JSON.")));
}

HeapTuple
accord_row_make(AccordRowMaker *maker, char **names, Jsonb *over,
				Jsonb *under)
{
	MemoryContext context = CurrentMemoryContext;
	int			interval_style = IntervalStyle;
	int			level = maker->money ? NewGUCNestLevel() : 0;

	memset(maker->values, 0, maker->desc->natts * sizeof(Datum));
	memset(maker->nulls, true, maker->desc->natts * sizeof(bool));
	if (maker->money)
		(void) set_config_option("lc_monetary", "C", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	IntervalStyle = INTSTYLE_POSTGRES;
	PG_TRY();
	{
		make_values(maker, names, over, under);
	}
	PG_CATCH();
	{
		IntervalStyle = interval_style;
		rethrow(maker, context);
	}
	PG_END_TRY();
	IntervalStyle = interval_style;
	if (maker->money)
		AtEOXact_GUC(true, level);
	return heap_form_tuple(maker->desc, maker->values, maker->nulls);
}

/* accord.row_of(NULL::table, image) */
Datum
accord_row_of(PG_FUNCTION_ARGS)
{
	AccordRowMaker *maker = fcinfo->flinfo->fn_extra;
	Oid			rowtype = get_fn_expr_argtype(fcinfo->flinfo, 0);

	if (!OidIsValid(rowtype) || !type_is_rowtype(rowtype))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the first argument of accord.row_of() is not a "
						"row of a table"),
				 errhint("Give NULL::schema.table.")));
	if (PG_ARGISNULL(1))
		PG_RETURN_NULL();
	if (maker == NULL || !accord_row_prepared(maker, rowtype))
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		fcinfo->flinfo->fn_extra = maker = accord_row_prepare(rowtype);
		MemoryContextSwitchTo(old);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(accord_row_make(maker, NULL, NULL,
													  PG_GETARG_JSONB_P(1))));
}
