/*
 * value.c: jsonb values one by one.
 *
 * Runs in the application's backends. What a change says, what a row holds
 * and what is kept of either are jsonb; here is all that takes such values
 * apart and puts them together.
 *
 * Invariant: no comparison here looks at a collation or at a setting.
 *
 * On failure only out-of-memory, or a value too large for jsonb, can raise.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "json.h"
#include "value.h"

/* The value as a JsonbValue: a scalar, or a container in its stored form. */
static void
unpack(Jsonb *value, JsonbValue *result)
{
	if (value == NULL)
		result->type = jbvNull;
	else if (!JB_ROOT_IS_SCALAR(value))
	{
		result->type = jbvBinary;
		result->val.binary.data = &value->root;
		result->val.binary.len = VARSIZE(value) - VARHDRSZ;
	}
	else
		JsonbExtractScalar(&value->root, result);
}

bool
accord_value_is_null(Jsonb *value)
{
	JsonbValue	unpacked;

	unpack(value, &unpacked);
	return unpacked.type == jbvNull;
}

bool
accord_value_is_object(Jsonb *value)
{
	return value != NULL && JB_ROOT_IS_OBJECT(value);
}

bool
accord_value_is_array(Jsonb *value)
{
	return value != NULL && JB_ROOT_IS_ARRAY(value) &&
		!JB_ROOT_IS_SCALAR(value);
}

/* Kinds in order: null, boolean, number, string, array, object. */
static int
kind_of(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return 0;
		case jbvBool:
			return 1;
		case jbvNumeric:
			return 2;
		case jbvString:
			return 3;
		default:
			return JsonContainerIsArray(value->val.binary.data) ? 4 : 5;
	}
}

static int
compare_bytes(const char *a, int a_len, const char *b, int b_len)
{
	int			order = memcmp(a, b, Min(a_len, b_len));

	if (order != 0)
		return order < 0 ? -1 : 1;
	return (a_len > b_len) - (a_len < b_len);
}

/* Of containers only whether they are equal has a meaning beyond the order. */
static int
compare_containers(Jsonb *a, Jsonb *b)
{
	AccordValueScan left;
	AccordValueScan right;

	check_stack_depth();
	accord_value_scan(&left, a);
	accord_value_scan(&right, b);
	for (;;)
	{
		bool		more = accord_value_next(&left);
		int			order;

		if (more != accord_value_next(&right))
			return more ? 1 : -1;
		if (!more)
			return 0;
		if (left.name != NULL)
		{
			order = strcmp(left.name, right.name);
			if (order != 0)
				return order < 0 ? -1 : 1;
		}
		order = accord_value_compare(left.value, right.value);
		if (order != 0)
			return order;
	}
}

int
accord_value_compare(Jsonb *a, Jsonb *b)
{
	JsonbValue	left;
	JsonbValue	right;

	unpack(a, &left);
	unpack(b, &right);
	if (kind_of(&left) != kind_of(&right))
		return kind_of(&left) < kind_of(&right) ? -1 : 1;
	switch (left.type)
	{
		case jbvNull:
			return 0;
		case jbvBool:
			return (left.val.boolean > right.val.boolean) -
				(left.val.boolean < right.val.boolean);
		case jbvNumeric:
			return DatumGetInt32(DirectFunctionCall2(numeric_cmp,
													 NumericGetDatum(left.val.numeric),
													 NumericGetDatum(right.val.numeric)));
		case jbvString:
			return compare_bytes(left.val.string.val, left.val.string.len,
								 right.val.string.val, right.val.string.len);
		default:
			return compare_containers(a, b);
	}
}

bool
accord_value_equal(Jsonb *a, Jsonb *b)
{
	return accord_value_compare(a, b) == 0;
}

static uint32
mix(uint32 hash, uint32 more)
{
	return hash_combine(hash, more);
}

uint32
accord_value_hash(Jsonb *value)
{
	JsonbValue	unpacked;
	AccordValueScan scan;
	uint32		hash;
	Datum		number;

	unpack(value, &unpacked);
	hash = hash_bytes_uint32(kind_of(&unpacked));
	switch (unpacked.type)
	{
		case jbvNull:
			return hash;
		case jbvBool:
			return mix(hash, unpacked.val.boolean);
		case jbvNumeric:
			number = DirectFunctionCall1(hash_numeric,
										 NumericGetDatum(unpacked.val.numeric));
			return mix(hash, DatumGetUInt32(number));
		case jbvString:
			return mix(hash, hash_bytes((unsigned char *) unpacked.val.string.val,
										unpacked.val.string.len));
		default:
			break;
	}
	check_stack_depth();
	accord_value_scan(&scan, value);
	while (accord_value_next(&scan))
	{
		if (scan.name != NULL)
			hash = mix(hash, hash_bytes((unsigned char *) scan.name,
										strlen(scan.name)));
		hash = mix(hash, accord_value_hash(scan.value));
	}
	return hash;
}

Jsonb	   *
accord_value_of(JsonbValue *value)
{
	return JsonbValueToJsonb(value);
}

Jsonb	   *
accord_value_string(const char *text)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) text;
	value.val.string.len = strlen(text);
	return accord_value_of(&value);
}

Jsonb	   *
accord_value_member(Jsonb *object, const char *name)
{
	JsonbValue	found;

	if (!accord_value_is_object(object) ||
		getKeyJsonValueFromContainer(&object->root, name, strlen(name),
									 &found) == NULL)
		return NULL;
	return accord_value_of(&found);
}

Jsonb	   *
accord_value_element(Jsonb *array, int i)
{
	JsonbValue *found;

	if (i >= accord_value_length(array))
		return NULL;
	found = getIthJsonbValueFromContainer(&array->root, i);
	return found == NULL || found->type == jbvNull ? NULL :
		accord_value_of(found);
}

int
accord_value_length(Jsonb *array)
{
	return accord_value_is_array(array) ?
		JsonContainerSize(&array->root) : 0;
}

char	   *
accord_value_text(Jsonb *value)
{
	JsonbValue	unpacked;

	unpack(value, &unpacked);
	return accord_json_text(&unpacked);
}

int64
accord_value_int(Jsonb *value, int64 otherwise)
{
	JsonbValue	unpacked;

	unpack(value, &unpacked);
	if (unpacked.type != jbvNumeric)
		return otherwise;
	return DatumGetInt64(DirectFunctionCall1(numeric_int8,
											 NumericGetDatum(unpacked.val.numeric)));
}

void
accord_value_scan(AccordValueScan *scan, Jsonb *container)
{
	JsonbValue	ignored;

	memset(scan, 0, sizeof(*scan));
	if (container == NULL || JB_ROOT_IS_SCALAR(container))
		return;
	scan->iterator = JsonbIteratorInit(&container->root);
	scan->is_object = JB_ROOT_IS_OBJECT(container);
	JsonbIteratorNext(&scan->iterator, &ignored, true);
}

bool
accord_value_next(AccordValueScan *scan)
{
	JsonbValue	value;
	JsonbIteratorToken token;

	if (scan->iterator == NULL)
		return false;
	token = JsonbIteratorNext(&scan->iterator, &value, true);
	if (token == WJB_KEY)
	{
		scan->name = pnstrdup(value.val.string.val, value.val.string.len);
		token = JsonbIteratorNext(&scan->iterator, &value, true);
	}
	if (token != WJB_VALUE && token != WJB_ELEM)
		return false;
	scan->value = accord_value_of(&value);
	return true;
}

void
accord_build_begin(AccordBuild *build)
{
	memset(build, 0, sizeof(*build));
}

void
accord_build_object(AccordBuild *build)
{
	accord_jsonb_push(build, WJB_BEGIN_OBJECT, NULL);
}

void
accord_build_array(AccordBuild *build)
{
	accord_jsonb_push(build, WJB_BEGIN_ARRAY, NULL);
}

void
accord_build_end_object(AccordBuild *build)
{
	accord_jsonb_push(build, WJB_END_OBJECT, NULL);
}

void
accord_build_end_array(AccordBuild *build)
{
	accord_jsonb_push(build, WJB_END_ARRAY, NULL);
}

/* Within an object a value follows its key; else it is an array's element. */
static void
push(AccordBuild *build, JsonbValue *value)
{
	accord_jsonb_push(build, accord_jsonb_in_object(build) ? WJB_VALUE :
					  WJB_ELEM, value);
}

void
accord_build_key(AccordBuild *build, const char *name)
{
	JsonbValue	key;

	key.type = jbvString;
	key.val.string.val = (char *) name;
	key.val.string.len = strlen(name);
	accord_jsonb_push(build, WJB_KEY, &key);
}

void
accord_build_value(AccordBuild *build, Jsonb *value)
{
	JsonbValue	unpacked;

	unpack(value, &unpacked);
	push(build, &unpacked);
}

void
accord_build_text(AccordBuild *build, const char *text)
{
	JsonbValue	value;

	value.type = text == NULL ? jbvNull : jbvString;
	if (text != NULL)
	{
		value.val.string.val = (char *) text;
		value.val.string.len = strlen(text);
	}
	push(build, &value);
}

void
accord_build_int(AccordBuild *build, int64 number)
{
	JsonbValue	value;

	value.type = jbvNumeric;
	value.val.numeric = int64_to_numeric(number);
	push(build, &value);
}

void
accord_build_decimal(AccordBuild *build, const char *number)
{
	JsonbValue	value;

	if (number == NULL)
	{
		accord_build_text(build, NULL);
		return;
	}
	value.type = jbvNumeric;
	value.val.numeric =
		DatumGetNumeric(DirectFunctionCall3(numeric_in,
											CStringGetDatum(number),
											ObjectIdGetDatum(InvalidOid),
											Int32GetDatum(-1)));
	push(build, &value);
}

Jsonb	   *
accord_build_done(AccordBuild *build)
{
	return JsonbValueToJsonb(build->result);
}
