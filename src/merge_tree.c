/*
 * merge_tree.c: columns that are merged by their parts: set, json.
 *
 * Runs in the application's backends, on values in memory.
 *
 * Invariants
 *   - Set: of every element is kept when it was last added, and up to where
 *     its removals have seen additions ("seen"; a removal that does not tell
 *     has seen what is before it). Where additions win, an element is there
 *     if it was added after all that removals have seen; where removals win,
 *     if an addition has seen the last removal. The column holds the elements
 *     in order of their values, so that equal sets are equal columns.
 *   - Json: of every path to something that is no object is kept who set or
 *     removed it last. The document is what comes of doing these in the order
 *     of their stamps; so a value set in the place of an object removes what
 *     was below it before, and nothing that came after.
 *   - Objects are merged, all else is replaced; arrays as a whole.
 *
 * On failure (a change in none of the known forms) it raises.
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "merge.h"

/* ---- set ----------------------------------------------------------------- */

typedef struct Element
{
	Jsonb	   *value;
	int64		added;
	int64		removed;
	int64		add_saw;		/* the removals that its additions have seen */
	int64		remove_saw;		/* the additions that its removals have seen */
	int			asked;			/* by this change: 1 to add, -1 to remove */
} Element;

typedef struct Elements
{
	int			n;
	int			room;
	Element    *items;
} Elements;

static Element *
find_element(Elements *set, Jsonb *value)
{
	Element    *item;

	for (int i = 0; i < set->n; i++)
		if (accord_value_equal(set->items[i].value, value))
			return &set->items[i];
	if (set->n == set->room)
	{
		set->room *= 2;
		set->items = repalloc(set->items, set->room * sizeof(Element));
	}
	item = &set->items[set->n++];
	item->value = value;
	item->added = item->removed = ACCORD_CLOCK_NONE;
	item->add_saw = item->remove_saw = ACCORD_CLOCK_NONE;
	item->asked = 0;
	return item;
}

static bool
is_there(const Element *item, bool remove_wins)
{
	if (item->added == ACCORD_CLOCK_NONE)
		return false;
	if (item->removed == ACCORD_CLOCK_NONE)
		return true;
	return remove_wins ? item->add_saw >= item->removed :
		item->added > item->remove_saw;
}

/* What is kept; and what the column holds of which nothing is kept yet. */
static void
read_elements(Elements *set, const AccordRegister *r, Jsonb *value)
{
	Jsonb	   *kept = accord_value_member(r->extra, "elements");
	AccordValueScan scan;

	set->n = 0;
	set->room = 16;
	set->items = palloc(set->room * sizeof(Element));
	accord_value_scan(&scan, kept);
	while (accord_value_next(&scan))
	{
		Element    *item = find_element(set, accord_value_element(scan.value, 0));

		item->added = accord_value_int(accord_value_element(scan.value, 1),
									   ACCORD_CLOCK_NONE);
		item->removed = accord_value_int(accord_value_element(scan.value, 2),
										 ACCORD_CLOCK_NONE);
		item->add_saw = accord_value_int(accord_value_element(scan.value, 3),
										 ACCORD_CLOCK_NONE);
		item->remove_saw = accord_value_int(accord_value_element(scan.value, 4),
											ACCORD_CLOCK_NONE);
	}
	if (kept != NULL)
		return;
	/* there from before anybody counted: a clock above none */
	accord_value_scan(&scan, value);
	while (accord_value_next(&scan))
	{
		Element    *item = find_element(set, scan.value);

		item->added = r->known && r->won.clock != ACCORD_CLOCK_NONE ?
			r->won.clock : ACCORD_CLOCK_NONE + 1;
		item->add_saw = item->added;
	}
}

static void
write_clock(AccordBuild *build, int64 clock)
{
	if (clock == ACCORD_CLOCK_NONE)
		accord_build_text(build, NULL);
	else
		accord_build_int(build, clock);
}

static int
compare_elements(const void *a, const void *b)
{
	return accord_value_compare(((const Element *) a)->value,
								((const Element *) b)->value);
}

/* Writes what is kept, without what was removed before the horizon. */
static void
write_elements(AccordRegister *r, const Elements *set, int64 horizon,
			   bool remove_wins)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "elements");
	accord_build_array(&build);
	for (int i = 0; i < set->n; i++)
	{
		const Element *item = &set->items[i];

		if (!is_there(item, remove_wins) &&
			Max(item->added, item->removed) < r->won.clock - horizon)
			continue;
		accord_build_array(&build);
		accord_build_value(&build, item->value);
		write_clock(&build, item->added);
		write_clock(&build, item->removed);
		write_clock(&build, item->add_saw);
		write_clock(&build, item->remove_saw);
		accord_build_end_array(&build);
	}
	accord_build_end_array(&build);
	accord_build_end_object(&build);
	r->extra = accord_build_done(&build);
}

static Jsonb *
present_elements(const Elements *set, bool remove_wins)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_array(&build);
	for (int i = 0; i < set->n; i++)
		if (is_there(&set->items[i], remove_wins))
			accord_build_value(&build, set->items[i].value);
	accord_build_end_array(&build);
	return accord_build_done(&build);
}

static void
add_element(Elements *set, Jsonb *value, int64 clock, int64 saw)
{
	Element    *item = find_element(set, value);

	item->added = Max(item->added, clock);
	item->add_saw = Max(item->add_saw, saw);
	item->asked = 1;
}

static void
remove_element(Elements *set, Jsonb *value, int64 clock, int64 saw)
{
	Element    *item = find_element(set, value);

	item->removed = Max(item->removed, clock);
	item->remove_saw = Max(item->remove_saw, saw);
	item->asked = -1;
}

static bool
has_element(Jsonb *array, Jsonb *value)
{
	AccordValueScan scan;

	accord_value_scan(&scan, array);
	while (accord_value_next(&scan))
		if (accord_value_equal(scan.value, value))
			return true;
	return false;
}

/* {"add": [...], "remove": [...], "seen": clock} */
static void
apply_explicit(Elements *set, const AccordIncoming *in)
{
	int64		clock = in->stamp.clock;
	int64		saw = accord_value_int(accord_value_member(in->raw, "seen"),
									   clock);
	AccordValueScan scan;

	saw = Min(saw, clock);
	accord_value_scan(&scan, accord_value_member(in->raw, "add"));
	while (accord_value_next(&scan))
		add_element(set, scan.value, clock, saw);
	accord_value_scan(&scan, accord_value_member(in->raw, "remove"));
	while (accord_value_next(&scan))
		remove_element(set, scan.value, clock, saw);
}

/* A whole set against what its author saw: the difference. */
static void
apply_difference(Elements *set, const AccordIncoming *in, Jsonb *base,
				 int64 saw)
{
	int64		clock = in->stamp.clock;
	AccordValueScan scan;

	accord_value_scan(&scan, in->value);
	while (accord_value_next(&scan))
		if (!has_element(base, scan.value))
			add_element(set, scan.value, clock, saw);
	accord_value_scan(&scan, base);
	while (accord_value_next(&scan))
		if (!has_element(in->value, scan.value))
			remove_element(set, scan.value, clock, saw);
}

static void
refuse_form(const AccordColumn *column, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("change of column \"%s\" is in none of the forms that its "
					"policy knows", column->name),
			 errhint("%s", hint)));
}

/* What the change asked for and did not get. */
static void
judge_elements(const Elements *set, const AccordRegister *r, Jsonb *value,
			   bool remove_wins, const AccordIncoming *in,
			   AccordVerdict *verdict)
{
	for (int i = 0; i < set->n; i++)
	{
		const Element *item = &set->items[i];
		bool		there = is_there(item, remove_wins);

		if ((item->asked > 0 && !there) || (item->asked < 0 && there))
		{
			accord_merge_note(verdict, value, r->won,
							  in->raw != NULL ? in->raw : in->value,
							  in->stamp);
			return;
		}
	}
}

void
accord_merge_set(AccordManaged *managed, int column, AccordRegister *r,
				 Jsonb **value, AccordIncoming *in, AccordVerdict *verdict)
{
	AccordColumn *c = &managed->columns[column];
	bool		remove_wins = c->policy->remove_wins;
	Jsonb	   *before = *value;
	Elements	set;

	if (in->raw != NULL && !accord_value_is_null(in->raw) &&
		!accord_value_is_object(in->raw) && !accord_value_is_array(in->raw))
		refuse_form(c, "Give an array, or {\"add\": [...], \"remove\": "
					"[...]}.");
	if (accord_value_is_null(in->raw) && !in->has_base && !in->is_local)
		return;					/* says nothing */
	read_elements(&set, r, *value);
	if (accord_value_is_object(in->raw))
		apply_explicit(&set, in);
	else if (in->is_local)
		apply_difference(&set, in, *value,
						 r->known ? r->won.clock : ACCORD_CLOCK_NONE + 1);
	else
		apply_difference(&set, in, in->has_base ? in->base : NULL,
						 in->stamp.clock);
	qsort(set.items, set.n, sizeof(Element), compare_elements);
	if (!r->known || accord_stamp_compare(&in->stamp, &r->won) > 0)
		r->won = in->stamp;
	r->known = true;
	r->has_base = false;
	write_elements(r, &set, c->policy->horizon_us, remove_wins);
	*value = accord_policy_normalize(managed, column,
									 present_elements(&set, remove_wins));
	verdict->took = !accord_value_equal(before, *value);
	judge_elements(&set, r, *value, remove_wins, in, verdict);
}

/* ---- json ---------------------------------------------------------------- */

typedef struct Path
{
	char	   *name;			/* a JSON pointer */
	AccordStamp stamp;
	Jsonb	   *value;			/* NULL: removed */
	bool		removed;
} Path;

/* Parts of a change that met those of another source. */
typedef struct Parts
{
	AccordBuild given;			/* by path */
	AccordBuild standing;
	AccordStamp other;			/* of the first of them */
	int			n;
} Parts;

typedef struct Paths
{
	int			n;
	int			room;
	Path	   *items;
	const AccordIncoming *in;
	Jsonb	   *before;			/* the document */
	Parts		won;
	Parts		lost;
} Paths;

static Path *
find_path(Paths *paths, const char *name)
{
	Path	   *path;

	for (int i = 0; i < paths->n; i++)
		if (strcmp(paths->items[i].name, name) == 0)
			return &paths->items[i];
	if (paths->n == paths->room)
	{
		paths->room *= 2;
		paths->items = repalloc(paths->items, paths->room * sizeof(Path));
	}
	path = &paths->items[paths->n++];
	path->name = pstrdup(name);
	path->stamp = accord_register_stamp(ACCORD_CLOCK_NONE, NULL, NULL, NULL);
	path->value = NULL;
	path->removed = true;
	return path;
}

/* A step of a path appended, with ~ and / escaped as pointers have it. */
static char *
child_path(const char *parent, const char *step)
{
	StringInfoData path;

	initStringInfo(&path);
	appendStringInfoString(&path, parent);
	appendStringInfoChar(&path, '/');
	for (const char *p = step; *p != '\0'; p++)
	{
		if (*p == '~')
			appendStringInfoString(&path, "~0");
		else if (*p == '/')
			appendStringInfoString(&path, "~1");
		else
			appendStringInfoChar(&path, *p);
	}
	return path.data;
}

/* Takes the first step off a path; NULL: there is none. */
static char *
first_step(const char *path, const char **rest)
{
	StringInfoData step;

	if (path[0] == '\0')
		return NULL;
	initStringInfo(&step);
	for (path++; *path != '\0' && *path != '/'; path++)
	{
		if (*path == '~' && path[1] != '\0')
			appendStringInfoChar(&step, *++path == '1' ? '/' : '~');
		else
			appendStringInfoChar(&step, *path);
	}
	*rest = path;
	return step.data;
}

static Jsonb *
value_at(Jsonb *document, const char *path)
{
	char	   *step;

	while ((step = first_step(path, &path)) != NULL)
		document = accord_value_member(document, step);
	return document;
}

/* What is given at one path meets what stands at the same, or another, one. */
static void
note_part(Parts *parts, const char *name, Jsonb *given, const Path *path)
{
	if (parts->n++ == 0)
	{
		accord_build_begin(&parts->given);
		accord_build_begin(&parts->standing);
		accord_build_object(&parts->given);
		accord_build_object(&parts->standing);
		parts->other = path->stamp;
	}
	accord_build_key(&parts->given, name);
	accord_build_value(&parts->given, given);
	accord_build_key(&parts->standing, path->name);
	accord_build_value(&parts->standing, path->value);
}

/* Whether who makes the change knows what stands at the path. */
static bool
saw_path(const Paths *paths, const Path *path)
{
	const AccordIncoming *in = paths->in;

	return in->is_local ||
		(in->has_base && accord_value_equal(value_at(in->base, path->name),
											path->value));
}

/* Whether what was said of the path is in the document. */
static bool
stands(const Paths *paths, const Path *path)
{
	return accord_value_equal(value_at(paths->before, path->name),
							  path->value);
}

static bool
is_below(const char *name, const char *parent)
{
	size_t		length = strlen(parent);

	return strncmp(name, parent, length) == 0 && name[length] == '/';
}

/* Whether a value that has something set below it is gone. */
static bool
is_replaced(Jsonb *value)
{
	return value != NULL && !accord_value_is_null(value) &&
		!accord_value_is_object(value);
}

/* What is set above or below a path in place of what somebody else said. */
static void
note_covered(Paths *paths, const char *name, const AccordStamp *stamp,
			 Jsonb *value)
{
	for (int i = 0; i < paths->n; i++)
	{
		const Path *path = &paths->items[i];
		bool		above = is_below(name, path->name);
		bool		below = is_below(path->name, name);

		if ((!above && !below) ||
			accord_stamp_same_source(stamp, &path->stamp))
			continue;
		if (accord_stamp_compare(stamp, &path->stamp) < 0)
		{
			if (above ? value != NULL : is_replaced(value))
			{
				note_part(&paths->lost, name, value, path);
				return;
			}
		}
		else if ((below ? path->value != NULL : is_replaced(path->value)) &&
				 stands(paths, path) && !saw_path(paths, path))
			note_part(&paths->won, name, value, path);
	}
}

/* Sets a path if the stamp is later than the one it has. */
static void
put_path(Paths *paths, const char *name, const AccordStamp *stamp,
		 Jsonb *value, bool removed)
{
	Path	   *path = find_path(paths, name);
	bool		is_new = path->stamp.clock == ACCORD_CLOCK_NONE;
	int			order = is_new ? 1 : accord_stamp_compare(stamp, &path->stamp);

	if (order > 0 && paths->in != NULL)
		note_covered(paths, name, stamp, value);
	if (!is_new && order != 0 && paths->in != NULL &&
		!accord_value_equal(path->value, value) &&
		!accord_stamp_same_source(stamp, &path->stamp) &&
		(order < 0 || (stands(paths, path) && !saw_path(paths, path))))
		note_part(order > 0 ? &paths->won : &paths->lost, name, value, path);
	if (order <= 0)
		return;
	path->stamp = *stamp;
	path->value = value;
	path->removed = removed;
}

/* Whether a value is replaced as a whole. */
static bool
is_leaf(Jsonb *value)
{
	return !accord_value_is_object(value) ||
		JsonContainerSize(&value->root) == 0;
}

static void
flatten(Paths *paths, const char *parent, Jsonb *value,
		const AccordStamp *stamp)
{
	AccordValueScan scan;

	check_stack_depth();
	if (is_leaf(value))
	{
		put_path(paths, parent, stamp, value, false);
		return;
	}
	accord_value_scan(&scan, value);
	while (accord_value_next(&scan))
		flatten(paths, child_path(parent, scan.name), scan.value, stamp);
}

/* A merge patch (RFC 7396): null removes. */
static void
patch(Paths *paths, const char *parent, Jsonb *value,
	  const AccordStamp *stamp)
{
	AccordValueScan scan;

	check_stack_depth();
	if (accord_value_is_null(value) && parent[0] != '\0')
	{
		put_path(paths, parent, stamp, NULL, true);
		return;
	}
	if (is_leaf(value))
	{
		put_path(paths, parent, stamp, value, false);
		return;
	}
	accord_value_scan(&scan, value);
	while (accord_value_next(&scan))
		patch(paths, child_path(parent, scan.name), scan.value, stamp);
}

/* A document against what its author saw: the difference. */
static void
difference(Paths *paths, const char *parent, Jsonb *base, Jsonb *value,
		   const AccordStamp *stamp)
{
	AccordValueScan scan;

	check_stack_depth();
	if (accord_value_equal(base, value))
		return;
	if (is_leaf(value) || is_leaf(base))
	{
		flatten(paths, parent, value, stamp);
		return;
	}
	accord_value_scan(&scan, value);
	while (accord_value_next(&scan))
	{
		Jsonb	   *old = accord_value_member(base, scan.name);

		if (old == NULL)
			flatten(paths, child_path(parent, scan.name), scan.value, stamp);
		else
			difference(paths, child_path(parent, scan.name), old, scan.value,
					   stamp);
	}
	accord_value_scan(&scan, base);
	while (accord_value_next(&scan))
		if (accord_value_member(value, scan.name) == NULL)
			put_path(paths, child_path(parent, scan.name), stamp, NULL, true);
}

/* A null within a document, which is there, unlike a member that is not. */
static Jsonb *
json_null(void)
{
	JsonbValue	null;

	null.type = jbvNull;
	return accord_value_of(&null);
}

/* What is kept; or, when nothing is, what the column holds. */
static void
read_paths(Paths *paths, const AccordRegister *r, Jsonb *value)
{
	Jsonb	   *kept = accord_value_member(r->extra, "paths");
	AccordValueScan scan;

	memset(paths, 0, sizeof(*paths));
	paths->room = 16;
	paths->items = palloc(paths->room * sizeof(Path));
	accord_value_scan(&scan, kept);
	while (accord_value_next(&scan))
	{
		Path	   *path = find_path(paths, scan.name);

		path->stamp =
			accord_register_stamp(accord_value_int(accord_value_element(scan.value, 0),
												   ACCORD_CLOCK_NONE + 1),
								  accord_value_text(accord_value_element(scan.value, 1)),
								  accord_value_text(accord_value_element(scan.value, 2)),
								  NULL);
		path->removed = accord_value_length(scan.value) < 4;
		path->value = accord_value_element(scan.value, 3);
		if (!path->removed && path->value == NULL)
			path->value = json_null();
	}
	if (kept == NULL && !accord_value_is_null(value))
	{
		AccordStamp stamp = r->won;

		if (stamp.clock == ACCORD_CLOCK_NONE)
			stamp.clock++;
		flatten(paths, "", value, &stamp);
	}
}

static void
write_paths(AccordRegister *r, const Paths *paths, int64 horizon)
{
	AccordBuild build;

	accord_build_begin(&build);
	accord_build_object(&build);
	accord_build_key(&build, "paths");
	accord_build_object(&build);
	for (int i = 0; i < paths->n; i++)
	{
		const Path *path = &paths->items[i];

		if (path->removed && path->stamp.clock < r->won.clock - horizon)
			continue;
		accord_build_key(&build, path->name);
		accord_build_array(&build);
		accord_build_int(&build, path->stamp.clock);
		accord_build_text(&build, path->stamp.source);
		accord_build_text(&build, path->stamp.event);
		if (!path->removed)
			accord_build_value(&build, path->value);
		accord_build_end_array(&build);
	}
	accord_build_end_object(&build);
	accord_build_end_object(&build);
	r->extra = accord_build_done(&build);
}

static int
compare_paths(const void *a, const void *b)
{
	const Path *left = a;
	const Path *right = b;
	int			order = accord_stamp_compare(&left->stamp, &right->stamp);

	return order != 0 ? order : strcmp(left->name, right->name);
}

/* What lost, and what was replaced unseen. */
static void
judge_paths(Paths *paths, const AccordIncoming *in, AccordVerdict *verdict)
{
	AccordVerdict *at = verdict;

	if (paths->lost.n > 0)
	{
		accord_build_end_object(&paths->lost.given);
		accord_build_end_object(&paths->lost.standing);
		accord_merge_note(at, accord_build_done(&paths->lost.standing),
						  paths->lost.other,
						  accord_build_done(&paths->lost.given), in->stamp);
	}
	if (paths->won.n == 0)
		return;
	if (paths->lost.n > 0)
	{
		at = verdict->also = palloc0(sizeof(AccordVerdict));
		at->rule = verdict->rule;
	}
	accord_build_end_object(&paths->won.given);
	accord_build_end_object(&paths->won.standing);
	accord_merge_note(at, accord_build_done(&paths->won.given), in->stamp,
					  accord_build_done(&paths->won.standing),
					  paths->won.other);
}

/*
 * The document with a path set, or removed; NULL: nothing is left of it. As in
 * a merge patch, what is in the way becomes an object, also for a removal:
 * whether there was something to remove must not matter.
 */
static Jsonb *
set_path(Jsonb *document, const char *path, Jsonb *value, bool remove)
{
	const char *rest;
	char	   *step = first_step(path, &rest);
	AccordBuild build;
	AccordValueScan scan;
	Jsonb	   *child;

	check_stack_depth();
	if (step == NULL)
		return remove ? NULL : value;
	if (!accord_value_is_object(document))
		document = NULL;
	child = set_path(accord_value_member(document, step), rest, value, remove);
	accord_build_begin(&build);
	accord_build_object(&build);
	accord_value_scan(&scan, document);
	while (accord_value_next(&scan))
	{
		if (strcmp(scan.name, step) == 0)
			continue;
		accord_build_key(&build, scan.name);
		accord_build_value(&build, scan.value);
	}
	if (child != NULL)
	{
		accord_build_key(&build, step);
		accord_build_value(&build, child);
	}
	accord_build_end_object(&build);
	return accord_build_done(&build);
}

void
accord_merge_json(AccordManaged *managed, int column, AccordRegister *r,
				  Jsonb **value, AccordIncoming *in, AccordVerdict *verdict)
{
	AccordColumn *c = &managed->columns[column];
	Jsonb	   *before = *value;
	Jsonb	   *document = NULL;
	Paths		paths;
	AccordStamp stamp = in->stamp;

	stamp.rank = 0;
	read_paths(&paths, r, *value);
	paths.in = in;
	paths.before = before;
	if (in->is_local)
		difference(&paths, "", *value, in->value, &stamp);
	else if (in->has_base)
		difference(&paths, "", in->base, in->value, &stamp);
	else if (in->creates)
		flatten(&paths, "", in->value, &stamp);
	else
		patch(&paths, "", in->value, &stamp);
	qsort(paths.items, paths.n, sizeof(Path), compare_paths);
	for (int i = 0; i < paths.n; i++)
		document = set_path(document, paths.items[i].name,
							paths.items[i].value, paths.items[i].removed);
	if (!r->known || accord_stamp_compare(&stamp, &r->won) > 0)
		r->won = stamp;
	r->known = true;
	r->has_base = false;
	write_paths(r, &paths, c->policy->horizon_us);
	*value = accord_value_is_null(document) ? NULL : document;
	verdict->took = !accord_value_equal(before, *value);
	judge_paths(&paths, in, verdict);
}
