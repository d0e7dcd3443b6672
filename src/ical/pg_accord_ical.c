/*
 * pg_accord_ical.c: iCalendars become JSON.
 *
 * A library of its own, loaded by ical.c in the process that reads a calendar.
 * Runs in clerks and in backends.
 *
 * Invariants
 *   - What libical allocated is freed whatever happens: nothing of PostgreSQL
 *     that may raise is called but within the PG_TRY of accord_ical_read().
 *   - DTEND is exclusive, as RFC 5545 has it: of an event of whole days "end"
 *     is the day after the last. A day has no time zone: such an event has no
 *     start_at and no end_at. Nor has one in floating time.
 *   - A key names an event: its UID, and of one occurrence of a repeating event
 *     its RECURRENCE-ID besides, a day or a time in UTC (a floating time as it
 *     is).
 *
 * On failure it raises: the text is no calendar, ends early, or repeats without
 * measure.
 */
#include "postgres.h"

#include <libical/ical.h>

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "../ical.h"

#define MAX_STEPS 1000000		/* of one event's rules */
#define MAX_OCCURRENCES 100000	/* of one calendar */

PG_MODULE_MAGIC;

PGDLLEXPORT void accord_ical_read(const char *calendar,
								  const AccordIcalBounds *bounds,
								  AccordIcalEmit emit, void *arg);

typedef struct Entry
{
	char	   *key;
	bool		own;			/* not made of a rule: overrides what is */
	int			sequence;
	int			place;			/* in the calendar */
	char	   *json;
} Entry;

typedef struct Reading
{
	const AccordIcalBounds *bounds;
	Entry	   *entries;
	int			n;
	int			size;
} Reading;

/* ---- times ---- */

static bool
is_floating(icaltimetype time)
{
	return !time.is_date && !icaltime_is_utc(time) && time.zone == NULL;
}

static icaltimetype
to_utc(icaltimetype time)
{
	return is_floating(time) || time.is_date ? time :
		icaltime_convert_to_zone(time, icaltimezone_get_utc_timezone());
}

/* As PostgreSQL reads it: 2026-12-01, 2026-12-01T10:00:00, or with a Z. */
static char *
time_text(icaltimetype time)
{
	if (time.is_date)
		return psprintf("%04d-%02d-%02d", time.year, time.month, time.day);
	return psprintf("%04d-%02d-%02dT%02d:%02d:%02d%s", time.year, time.month,
					time.day, time.hour, time.minute, time.second,
					icaltime_is_utc(time) ? "Z" : "");
}

/* As keys have it. */
static char *
key_text(icaltimetype time)
{
	icaltimetype utc = to_utc(time);

	if (utc.is_date)
		return psprintf("%04d%02d%02d", utc.year, utc.month, utc.day);
	return psprintf("%04d%02d%02dT%02d%02d%02d%s", utc.year, utc.month, utc.day,
					utc.hour, utc.minute, utc.second,
					icaltime_is_utc(utc) ? "Z" : "");
}

static TimestampTz
instant(icaltimetype time)
{
	return ((TimestampTz) icaltime_as_timet(to_utc(time)) -
			(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY) *
		USECS_PER_SEC;
}

/* Where an event ends that begins at start. */
static icaltimetype
end_of(icalcomponent * event, icaltimetype start)
{
	icaltimetype end = icalcomponent_get_dtend(event);

	if (!icaltime_is_null_time(end))
		return end;
	if (start.is_date)
		icaltime_adjust(&start, 1, 0, 0, 0);
	return start;
}

/* ---- JSON ---- */

static void
add_name(StringInfo json, const char *name)
{
	if (json->len > 1)
		appendStringInfoChar(json, ',');
	escape_json(json, name);
	appendStringInfoChar(json, ':');
}

/* Nothing when it is NULL; bytes that are no UTF-8 are the caller's trouble. */
static void
add_text(StringInfo json, const char *name, const char *value)
{
	if (value == NULL)
		return;
	add_name(json, name);
	escape_json(json, value);
}

static void
add_bool(StringInfo json, const char *name, bool value)
{
	add_name(json, name);
	appendStringInfoString(json, value ? "true" : "false");
}

static void
add_time(StringInfo json, const char *name, icalcomponent * event,
		 icalproperty_kind kind)
{
	icalproperty *property = icalcomponent_get_first_property(event, kind);

	if (property != NULL)
		add_text(json, name,
				 time_text(icalproperty_get_datetime_with_component(property,
																	event)));
}

/* A property's value as the calendar has it, unescaped where it is text. */
static const char *
property_text(icalproperty * property)
{
	icalvalue  *value = property ? icalproperty_get_value(property) : NULL;

	if (value == NULL)
		return NULL;
	if (icalvalue_isa(value) == ICAL_TEXT_VALUE)
		return icalvalue_get_text(value);
	return icalproperty_get_value_as_string(property);
}

static void
add_property(StringInfo json, const char *name, icalcomponent * event,
			 icalproperty_kind kind)
{
	add_text(json, name,
			 property_text(icalcomponent_get_first_property(event, kind)));
}

/* All of a kind, as an array. */
static void
add_properties(StringInfo json, const char *name, icalcomponent * event,
			   icalproperty_kind kind)
{
	icalproperty *property = icalcomponent_get_first_property(event, kind);
	bool		first = true;

	if (property == NULL)
		return;
	add_name(json, name);
	appendStringInfoChar(json, '[');
	for (; property != NULL;
		 property = icalcomponent_get_next_property(event, kind))
	{
		const char *text = property_text(property);

		if (text == NULL)
			continue;
		if (!first)
			appendStringInfoChar(json, ',');
		first = false;
		escape_json(json, text);
	}
	appendStringInfoChar(json, ']');
}

/* Those of others: an object, by their names. */
static void
add_extensions(StringInfo json, icalcomponent * event)
{
	icalproperty *property =
	icalcomponent_get_first_property(event, ICAL_X_PROPERTY);
	StringInfoData object;

	if (property == NULL)
		return;
	initStringInfo(&object);
	appendStringInfoChar(&object, '{');
	for (; property != NULL;
		 property = icalcomponent_get_next_property(event, ICAL_X_PROPERTY))
		add_text(&object, icalproperty_get_x_name(property),
				 property_text(property));
	add_name(json, "x");
	appendStringInfo(json, "%s}", object.data);
}

static bool
is_cancelled(icalcomponent * event)
{
	return icalcomponent_get_status(event) == ICAL_STATUS_CANCELLED;
}

/* ---- events ---- */

static void
keep(Reading *reading, char *key, bool own, int sequence, char *json)
{
	if (reading->n == reading->size)
	{
		reading->size = Max(reading->size * 2, 64);
		reading->entries = reading->entries == NULL ?
			palloc(reading->size * sizeof(Entry)) :
			repalloc_huge(reading->entries, reading->size * sizeof(Entry));
	}
	reading->entries[reading->n].key = key;
	reading->entries[reading->n].own = own;
	reading->entries[reading->n].sequence = sequence;
	reading->entries[reading->n].place = reading->n;
	reading->entries[reading->n].json = json;
	reading->n++;
}

static char *
key_of(icalcomponent * event, icaltimetype start, const char *recurrence)
{
	const char *uid = icalcomponent_get_uid(event);
	const char *summary = icalcomponent_get_summary(event);

	/* it must have one; what has none is known by what it is */
	if (uid == NULL || uid[0] == '\0')
		uid = psprintf("%s %s", key_text(start), summary ? summary : "");
	return recurrence == NULL ? pstrdup(uid) :
		psprintf("%s/%s", uid, recurrence);
}

/* One event, or one occurrence of it, from start to end. */
static void
add_event(Reading *reading, icalcomponent * event, icaltimetype start,
		  icaltimetype end, const char *recurrence, bool occurrence)
{
	char	   *key = key_of(event, start, recurrence);
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	add_text(&json, "key", key);
	add_property(&json, "uid", event, ICAL_UID_PROPERTY);
	add_text(&json, "recurrence_id", recurrence);
	add_name(&json, "sequence");
	appendStringInfo(&json, "%d", icalcomponent_get_sequence(event));
	add_property(&json, "status", event, ICAL_STATUS_PROPERTY);
	add_bool(&json, "cancelled", is_cancelled(event));
	add_bool(&json, "all_day", start.is_date);
	add_text(&json, "start", time_text(start));
	add_text(&json, "end", time_text(end));
	if (!start.is_date && !is_floating(start))
	{
		add_text(&json, "start_at", time_text(to_utc(start)));
		add_text(&json, "end_at", time_text(to_utc(end)));
	}
	if (start.zone != NULL && !icaltime_is_utc(start))
		add_text(&json, "tzid", icaltime_get_tzid(start));
	add_property(&json, "summary", event, ICAL_SUMMARY_PROPERTY);
	add_property(&json, "description", event, ICAL_DESCRIPTION_PROPERTY);
	add_property(&json, "location", event, ICAL_LOCATION_PROPERTY);
	add_property(&json, "url", event, ICAL_URL_PROPERTY);
	add_property(&json, "organizer", event, ICAL_ORGANIZER_PROPERTY);
	add_property(&json, "transparency", event, ICAL_TRANSP_PROPERTY);
	add_properties(&json, "attendees", event, ICAL_ATTENDEE_PROPERTY);
	add_properties(&json, "categories", event, ICAL_CATEGORIES_PROPERTY);
	if (!occurrence)
	{
		add_property(&json, "rrule", event, ICAL_RRULE_PROPERTY);
		add_properties(&json, "rdate", event, ICAL_RDATE_PROPERTY);
		add_properties(&json, "exdate", event, ICAL_EXDATE_PROPERTY);
	}
	add_time(&json, "created", event, ICAL_CREATED_PROPERTY);
	add_time(&json, "last_modified", event, ICAL_LASTMODIFIED_PROPERTY);
	add_time(&json, "dtstamp", event, ICAL_DTSTAMP_PROPERTY);
	add_extensions(&json, event);
	appendStringInfoChar(&json, '}');
	keep(reading, key, !occurrence, icalcomponent_get_sequence(event),
		 json.data);
}

static bool
is_excepted(icalcomponent * event, icaltimetype start)
{
	icalproperty *property =
	icalcomponent_get_first_property(event, ICAL_EXDATE_PROPERTY);

	for (; property != NULL;
		 property = icalcomponent_get_next_property(event,
													ICAL_EXDATE_PROPERTY))
	{
		icaltimetype except =
		icalproperty_get_datetime_with_component(property, event);

		if (strcmp(key_text(except), key_text(start)) == 0)
			return true;
	}
	return false;
}

/* One occurrence, if it is within bounds and not excepted. */
static void
add_occurrence(Reading *reading, icalcomponent * event, icaltimetype start,
			   struct icaldurationtype length)
{
	icaltimetype end = icaltime_add(start, length);

	if (instant(end) <= reading->bounds->after || is_excepted(event, start))
		return;
	if (reading->n >= MAX_OCCURRENCES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the calendar has more than %d events",
						MAX_OCCURRENCES),
				 errhint("Expand less of the future.")));
	add_event(reading, event, start, end, key_text(start), true);
}

/* The occurrences of one rule. */
static void
expand_rule(Reading *reading, icalcomponent * event, icalproperty * rule,
			icaltimetype first, struct icaldurationtype length)
{
	icalrecur_iterator *iterator =
	icalrecur_iterator_new(icalproperty_get_rrule(rule), first);
	int			steps = 0;

	if (iterator == NULL)
		return;
	PG_TRY();
	{
		icaltimetype start = icalrecur_iterator_next(iterator);

		for (; !icaltime_is_null_time(start) &&
			 instant(start) < reading->bounds->before;
			 start = icalrecur_iterator_next(iterator))
		{
			if (steps++ >= MAX_STEPS)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("an event of the calendar repeats too often: "
								"%s", icalcomponent_get_uid(event)),
						 errhint("Leave \"expand\" null to keep the rule.")));
			add_occurrence(reading, event, start, length);
		}
	}
	PG_FINALLY();
	{
		icalrecur_iterator_free(iterator);
	}
	PG_END_TRY();
}

/*
 * The properties of a kind. Not one after the other, while something else is
 * asked of the event: libical remembers one place in it, no more.
 */
static int
collect(icalcomponent * event, icalproperty_kind kind, icalproperty * **found)
{
	int			n = icalcomponent_count_properties(event, kind);
	icalproperty *property = icalcomponent_get_first_property(event, kind);

	*found = palloc(Max(n, 1) * sizeof(icalproperty *));
	for (int i = 0; i < n; i++)
	{
		(*found)[i] = property;
		property = icalcomponent_get_next_property(event, kind);
	}
	return n;
}

/* All occurrences of a repeating event that begin within bounds. */
static void
expand_event(Reading *reading, icalcomponent * event, icaltimetype first,
			 icaltimetype end)
{
	struct icaldurationtype length = icaltime_subtract(end, first);
	icalproperty **found;
	int			n = collect(event, ICAL_RRULE_PROPERTY, &found);

	/* without a rule the first one is given by DTSTART */
	if (n == 0 && instant(first) < reading->bounds->before)
		add_occurrence(reading, event, first, length);
	for (int i = 0; i < n; i++)
		expand_rule(reading, event, found[i], first, length);
	n = collect(event, ICAL_RDATE_PROPERTY, &found);
	for (int i = 0; i < n; i++)
	{
		icaltimetype start = icalproperty_get_rdate(found[i]).time;

		if (icaltime_is_null_time(start))
			continue;
		start.zone = first.zone;
		if (instant(start) < reading->bounds->before)
			add_occurrence(reading, event, start, length);
	}
}

static bool
repeats(icalcomponent * event)
{
	return icalcomponent_get_first_property(event, ICAL_RRULE_PROPERTY) ||
		icalcomponent_get_first_property(event, ICAL_RDATE_PROPERTY);
}

static void
read_event(Reading *reading, icalcomponent * event)
{
	icalproperty *property =
	icalcomponent_get_first_property(event, ICAL_RECURRENCEID_PROPERTY);
	icaltimetype start = icalcomponent_get_dtstart(event);
	icaltimetype end = end_of(event, start);
	char	   *recurrence = NULL;

	if (property != NULL)
		recurrence = key_text(icalproperty_get_datetime_with_component(property,
																	   event));
	if (reading->bounds->expand && recurrence == NULL && repeats(event) &&
		!is_cancelled(event))
		expand_event(reading, event, start, end);
	else
		add_event(reading, event, start, end, recurrence, false);
}

/* Of all calendars in it; how many there are. */
static int
read_calendars(Reading *reading, icalcomponent * root)
{
	icalcompiter place;
	icalcomponent *child;
	int			n = 0;

	if (icalcomponent_isa(root) == ICAL_VCALENDAR_COMPONENT)
	{
		place = icalcomponent_begin_component(root, ICAL_VEVENT_COMPONENT);
		for (child = icalcompiter_deref(&place); child != NULL;
			 child = icalcompiter_next(&place))
			read_event(reading, child);
		return 1;
	}
	place = icalcomponent_begin_component(root, ICAL_VCALENDAR_COMPONENT);
	for (child = icalcompiter_deref(&place); child != NULL;
		 child = icalcompiter_next(&place))
		n += read_calendars(reading, child);
	return n;
}

/* ---- the whole ---- */

/* By key, and of one key the one that counts last. */
static int
compare_entries(const void *a, const void *b)
{
	const Entry *one = a;
	const Entry *other = b;
	int			order = strcmp(one->key, other->key);

	if (order != 0)
		return order;
	if (one->own != other->own)
		return one->own ? 1 : -1;
	if (one->sequence != other->sequence)
		return one->sequence < other->sequence ? -1 : 1;
	return one->place < other->place ? -1 : 1;
}

/* One that was cut off must not look like one from which events are gone. */
static bool
is_complete(const char *calendar)
{
	static const char ending[] = "END:VCALENDAR";
	size_t		len = strlen(calendar);

	while (len > 0 && (unsigned char) calendar[len - 1] <= ' ')
		len--;
	return len >= strlen(ending) &&
		pg_strncasecmp(calendar + len - strlen(ending), ending,
					   strlen(ending)) == 0;
}

static void
refuse(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("%s", what),
			 errhint("Look at what the address gives.")));
}

void
accord_ical_read(const char *calendar, const AccordIcalBounds *bounds,
				 AccordIcalEmit emit, void *arg)
{
	Reading		reading = {.bounds = bounds};
	icalcomponent *root;

	icalerror_set_errors_are_fatal(false);
	if (!is_complete(calendar))
		refuse("the text is not an iCalendar, or ends early");
	root = icalparser_parse_string(calendar);
	if (root == NULL)
		refuse("the text is not an iCalendar");
	PG_TRY();
	{
		if (read_calendars(&reading, root) == 0)
			refuse("the text is not an iCalendar");
	}
	PG_FINALLY();
	{
		icalcomponent_free(root);
	}
	PG_END_TRY();
	qsort(reading.entries, reading.n, sizeof(Entry), compare_entries);
	for (int i = 0; i < reading.n; i++)
		if (i + 1 == reading.n ||
			strcmp(reading.entries[i].key, reading.entries[i + 1].key) != 0)
			emit(reading.entries[i].json, arg);
}
