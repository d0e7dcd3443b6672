/*
 * constraint.c: a table's own constraints, checked early and with a hint.
 *
 * Runs in whatever backend edits the configuration, in the BEFORE ROW triggers
 * of its tables. The limits of the columns are CHECKs, so that the catalog says
 * what holds; but the executor names only the constraint, without a hint, and
 * shows the whole row, which may be a secret. So they are evaluated here first.
 *
 * Invariants: the constraints are the catalog's, none is repeated here. The
 * hint is the constraint's comment, or its expression. A row that passes here
 * is checked by the executor once more, with what triggers have made of it.
 *
 * On failure the statement raises.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "nodes/bitmapset.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "constraint.h"

#define MAX_SHOWN 100			/* bytes of a value that are shown */

static void
check_not_null(Relation rel, HeapTuple row)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (column->attisdropped || !column->attnotnull ||
			!heap_attisnull(row, i + 1, desc))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("%s of accord.%s cannot be null",
						NameStr(column->attname), RelationGetRelationName(rel)),
				 errhint("%s", column->atthasdef || column->attidentity ?
						 "Give a value, or leave the column out: it has a "
						 "default." : "Give a value."),
				 errtablecol(rel, i + 1)));
	}
}

/* ' "VALUE"', or nothing where it is not to be seen, or too much. */
static char *
show_value(Relation rel, HeapTuple row, int number)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Form_pg_attribute column = TupleDescAttr(desc, number - 1);
	Oid			output;
	bool		varlena;
	bool		isnull;
	Datum		value = heap_getattr(row, number, desc, &isnull);
	char	   *text;

	if (isnull || column->atttypid == JSONBOID ||
		(strcmp(RelationGetRelationName(rel), "secret") == 0 &&
		 strcmp(NameStr(column->attname), "name") != 0))
		return "";
	getTypeOutputInfo(column->atttypid, &output, &varlena);
	text = OidOutputFunctionCall(output, value);
	if (strlen(text) > MAX_SHOWN)
		text = psprintf("%.*s...", pg_mbcliplen(text, strlen(text), MAX_SHOWN),
						text);
	return psprintf(" \"%s\"", text);
}

/* The columns that an expression is about, as they are said; *n of them. */
static char *
name_columns(Relation rel, HeapTuple row, Node *expression, int *n)
{
	Bitmapset  *numbers = NULL;
	StringInfoData names;
	int			member = -1;
	int			i = 0;

	pull_varattnos(expression, 1, &numbers);
	*n = bms_num_members(numbers);
	initStringInfo(&names);
	while ((member = bms_next_member(numbers, member)) >= 0)
	{
		int			number = member + FirstLowInvalidHeapAttributeNumber;

		if (i > 0)
			appendStringInfoString(&names, i < *n - 1 ? ", " : " and ");
		appendStringInfoString(&names,
							   NameStr(TupleDescAttr(RelationGetDescr(rel),
													 number - 1)->attname));
		if (*n == 1)
			appendStringInfoString(&names, show_value(rel, row, number));
		i++;
	}
	return names.data;
}

static char *
make_hint(Relation rel, const ConstrCheck *check)
{
	Oid			id = get_relation_constraint_oid(RelationGetRelid(rel),
												 check->ccname, true);
	char	   *comment = OidIsValid(id) ?
	GetComment(id, ConstraintRelationId, 0) : NULL;
	Datum		expression;

	if (comment != NULL)
		return comment;
	expression = DirectFunctionCall3(pg_get_expr_ext,
									 CStringGetTextDatum(check->ccbin),
									 ObjectIdGetDatum(RelationGetRelid(rel)),
									 BoolGetDatum(true));
	return psprintf("It must be so that %s.",
					TextDatumGetCString(expression));
}

static void
refuse(Relation rel, HeapTuple row, const ConstrCheck *check,
	   Node *expression)
{
	int			n;
	char	   *columns = name_columns(rel, row, expression, &n);

	ereport(ERROR,
			(errcode(ERRCODE_CHECK_VIOLATION),
			 errmsg("%s of accord.%s %s", columns,
					RelationGetRelationName(rel),
					n == 1 ? "is not allowed" : "do not go together"),
			 errhint("%s", make_hint(rel, check)),
			 errtableconstraint(rel, check->ccname)));
}

void
accord_constraint_check(Relation rel, HeapTuple row)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			n = desc->constr == NULL ? 0 : desc->constr->num_check;
	EState	   *estate = CreateExecutorState();
	ExprContext *context = GetPerTupleExprContext(estate);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);

	check_not_null(rel, row);
	ExecStoreHeapTuple(row, slot, false);
	context->ecxt_scantuple = slot;
	for (int i = 0; i < n; i++)
	{
		const ConstrCheck *check = &desc->constr->check[i];
		Node	   *expression = stringToNode(check->ccbin);

		if (!ExecCheck(ExecPrepareExpr((Expr *) expression, estate), context))
			refuse(rel, row, check, expression);
	}
	ExecDropSingleTupleTableSlot(slot);
	FreeExecutorState(estate);
}
