/*
 * agree_row.c: rows of managed tables, and of their partitions, taken apart.
 *
 * Runs in the application's backends, within agree.c's triggers. A partition
 * may have its columns in another order: here alone that makes a difference.
 *
 * Invariant: nothing is kept; results are allocated where the caller is.
 *
 * On failure the statement raises.
 */
#include "postgres.h"

#include "access/htup_details.h"

#include "accord.h"
#include "agree_private.h"
#include "rowkey.h"
#include "value.h"

/* The row's columns as the managed table has them. */
static void
read_columns(const AccordAgreeTable *table, HeapTuple tuple,
			 AccordAgreeRow *row)
{
	int			natts = table->managed->natts;
	TupleDesc	desc = RelationGetDescr(table->rel);
	Datum	   *values = palloc(Max(natts, desc->natts) * sizeof(Datum));
	bool	   *nulls = palloc(Max(natts, desc->natts) * sizeof(bool));

	heap_deform_tuple(tuple, desc, values, nulls);
	row->values = values;
	row->nulls = nulls;
	if (table->columns == NULL)
		return;
	row->values = palloc0(natts * sizeof(Datum));
	row->nulls = palloc(natts * sizeof(bool));
	for (int i = 0; i < natts; i++)
	{
		int			at = table->columns[i] - 1;

		row->nulls[i] = at < 0 || nulls[at];
		if (!row->nulls[i])
			row->values[i] = values[at];
	}
}

void
accord_agree_row(const AccordAgreeTable *table, HeapTuple tuple,
				 AccordAgreeRow *row)
{
	AccordManaged *managed = table->managed;
	bool	   *wanted = palloc0(managed->n_columns * sizeof(bool));
	char	   *parts[INDEX_MAX_KEYS];
	Jsonb	   *image;

	row->managed = managed;
	read_columns(table, tuple, row);
	for (int i = 0; i < managed->n_keys; i++)
		wanted[managed->columns[managed->keys[i]].image_index] = true;
	image = accord_image_build(managed->image, row->values, row->nulls,
							   wanted);
	for (int i = 0; i < managed->n_keys; i++)
		parts[i] = accord_image_text(image,
									 managed->columns[managed->keys[i]].name);
	row->key = accord_rowkey_make(managed->n_keys, parts);
	if (row->key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("a row of managed table %s has no key", managed->name),
				 errhint("Give the columns of its key.")));
}

Jsonb	   *
accord_agree_image(const AccordAgreeRow *row, const bool *wanted)
{
	return accord_image_build(row->managed->image, row->values, row->nulls,
							  wanted);
}

Jsonb	   *
accord_agree_column(Jsonb *image, const AccordColumn *column)
{
	Jsonb	   *value = accord_value_member(image, column->name);

	return accord_value_is_null(value) ? NULL : value;
}

int
accord_agree_changed(const AccordAgreeRow *old_row,
					 const AccordAgreeRow *new_row, bool *changed)
{
	AccordManaged *managed = old_row->managed;
	int			n = 0;

	accord_image_compare(managed->image, old_row->values, old_row->nulls,
						 new_row->values, new_row->nulls, changed);
	for (int i = 0; i < managed->n_columns; i++)
	{
		const AccordColumn *column = &managed->columns[i];

		if (column->is_key || column->is_generated)
			changed[column->image_index] = false;
		n += changed[column->image_index];
	}
	return n;
}

HeapTuple
accord_agree_replace(const AccordAgreeTable *table, HeapTuple tuple,
					 const AccordAgreeRow *row,
					 const bool *replaced)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	Datum	   *values = palloc0(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc0(desc->natts * sizeof(bool));
	bool	   *replace = palloc0(desc->natts * sizeof(bool));

	for (int i = 0; i < table->managed->natts; i++)
	{
		int			at = table->columns == NULL ? i : table->columns[i] - 1;

		if (at < 0 || !replaced[i])
			continue;
		values[at] = row->values[i];
		nulls[at] = row->nulls[i];
		replace[at] = true;
	}
	return heap_modify_tuple(tuple, desc, values, nulls, replace);
}
