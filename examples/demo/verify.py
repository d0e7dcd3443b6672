"""verify.py OTA-URL CALENDAR-URL MESSAGING-URL: whether each channel holds exactly the database's state.

The channels are asked through their own APIs, the database by the application's own tables. Exits with 1 when anything
differs. What is counted:

    missing      in the database, not at the channel
    extra        at the channel, not in the database
    different    at both, but not the same
    doubled      at the channel more often than in the database
    disordered   received in another order than committed
    rolled back  of a transaction or savepoint that was rolled back
"""
import collections
import json
import sys
import urllib.request

import caldav
import database
import stand_in

COUNTS = ('missing', 'extra', 'different', 'doubled', 'disordered', 'rolled back')
FIELDS = ('price', 'available', 'version')
# What load.sql writes only where it will be rolled back.
NEVER_PRICE, NEVER_GUEST = 6666, 'Nobody'


def get(url, header, value):
    with urllib.request.urlopen(urllib.request.Request(url, headers={header: value}), timeout=30) as response:
        return json.load(response)


def compare(wanted, found):
    """Counts how two dictionaries differ."""
    return {'objects': len(wanted), 'found': len(found),
            'missing': len(wanted.keys() - found.keys()),
            'extra': len(found.keys() - wanted.keys()),
            'different': sum(found[key] != value for key, value in wanted.items() if key in found)}


# ---- rates: each night's latest state, and all that was applied to it on the way --------------------------------------

def fields_of(rate):
    return tuple(rate[field] for field in FIELDS)


def count_going_back(versions):
    """How often an earlier version came after a later one: a state put twice in a row does no harm."""
    return sum(after < before for before, after in zip(versions, versions[1:]))


def check_rates(base):
    wanted = {(r['listing'], r['night']): fields_of(r) for r in database.rows('SELECT * FROM rate')}
    committed = {(r['listing'], r['night']) + fields_of(r) for r in database.rows('SELECT * FROM rate_history')}
    applied = {(r['listing'], r['night']): [fields_of(a) for a in r['applied']]
               for r in get(base + '/rates', 'Authorization', 'Bearer ' + stand_in.OTA_TOKEN)}
    # what is there now, page by page: whatever was put, and whatever somebody did to it there
    now, page = {}, None
    while page != []:
        page = get(f"{base}/nights?page={len(now) // 100 + 1}", 'Authorization', 'Bearer ' + stand_in.OTA_TOKEN)
        now.update({(int(n['id'].split('/')[0]), n['id'].split('/')[1]): fields_of(n) for n in page})
        if len(page) < 100:
            break
    result = compare(wanted, now)
    result['disordered'] = sum(count_going_back([state[2] for state in states]) for states in applied.values())
    result['rolled back'] = sum(night + state not in committed for night, states in applied.items() for state in states)
    result['note'] = 'ota applied {:,} changes, {:,} of them once more because its answer was lost'.format(
        sum(map(len, applied.values())),
        sum(before == after for states in applied.values() for before, after in zip(states, states[1:])))
    return result


# ---- the booking site's own bookings: as they stand there -------------------------------------------------------------

def check_site(base):
    names = ('listing', 'guest', 'arrives', 'leaves', 'status', 'version')
    there = {b['id']: tuple(b[name] for name in names)
             for b in get(base + '/bookings', 'Authorization', 'Bearer ' + stand_in.OTA_TOKEN)}
    here = {b['id']: tuple(b[name] for name in names) for b in database.rows('SELECT * FROM site_booking')}
    result = compare(there, here)
    counts = database.rows("""SELECT count(*) AS events, (SELECT count(*) FROM accord.inbox i JOIN accord.event_log e
        ON e.event_id = i.event WHERE e.topic LIKE 'ota%') AS webhooks FROM accord.event_log WHERE source = 'ota'""")[0]
    result['doubled'] = counts['events'] - counts['webhooks'] - sum(b[-1] for b in there.values())
    # the news is to have come by webhooks, not by the interval of the feed alone
    result['missing'] = result.get('missing', 0) + (counts['webhooks'] == 0)
    result['note'] = 'ota made {:,} bookings of its own and changed them {:,} times; {:,} webhooks told of news'.format(
        len(there), sum(b[-1] - 1 for b in there.values()), counts['webhooks'])
    return result


# ---- bookings: an entry each, none for a cancelled one ----------------------------------------------------------------

def check_bookings(base):
    bookings = database.rows("SELECT * FROM booking WHERE status = 'confirmed'")
    wanted = {(b['listing'], f"{b['id']}.ics"): {
        'UID': f"booking-{b['id']}", 'SUMMARY': b['guest'], 'DTSTART': b['arrives'].replace('-', ''),
        'DTEND': b['leaves'].replace('-', ''), 'SEQUENCE': str(b['revision'])} for b in bookings}
    names = ('UID', 'SUMMARY', 'DTSTART', 'DTEND', 'SEQUENCE')
    entries = [((listing['id'], name), {key: entry.get(key) for key in names})
               for listing in database.rows('SELECT id FROM listing')
               for name, entry in caldav.read_calendar(base, listing['id'])]
    result = compare(wanted, dict(entries))
    uids = collections.Counter(entry['UID'] for _, entry in entries)
    result['doubled'] = sum(count - 1 for count in uids.values())
    result['rolled back'] = sum(NEVER_GUEST in entry['SUMMARY'] for _, entry in entries)
    result['note'] = 'calendar holds {:,} bookings; {:,} were cancelled and are gone'.format(
        len(entries), database.ask("SELECT count(*) FROM booking WHERE status = 'cancelled'"))
    return result


# ---- messages: each once, in the order of writing ---------------------------------------------------------------------

def check_messages(base):
    written = database.rows('SELECT booking, no, body FROM message')
    wanted = {(m['booking'], m['no']): m['body'] for m in written}
    answer = get(base + '/messages', 'X-Api-Key', stand_in.MESSAGING_KEY)
    sent = answer['sent']
    times = collections.Counter((m['booking'], m['no']) for m in sent)
    by_booking = collections.defaultdict(list)
    for message in sent:
        by_booking[message['booking']].append(message['no'])
    result = compare(wanted, {(m['booking'], m['no']): m['body'] for m in sent})
    result['doubled'] = sum(count - 1 for count in times.values())
    result['disordered'] = sum(map(count_going_back, by_booking.values()))
    result['rolled back'] = sum(NEVER_GUEST in message['guest'] for message in sent)
    result['note'] = 'messaging sent {:,} messages, and knew {:,} repeats by their Idempotency-Key'.format(
        len(sent), answer['recognised'])
    return result


# ---- the log itself ---------------------------------------------------------------------------------------------------

EVENTS = """
SELECT (SELECT count(*) FROM accord.event_log WHERE topic NOT LIKE 'accord.%' AND source IS NULL
           AND channels IS NULL) AS events,
       (SELECT count(*) FROM rate_history) + (SELECT coalesce(sum(revision + 1), 0) FROM booking)
           + (SELECT count(*) FROM message) AS changes,
       (SELECT count(*) FROM accord.outbox) AS owed,
       (SELECT count(*) FROM accord.dead_letter) AS dead,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM abandoned) AS abandoned
"""
ATTEMPTS = """
SELECT channel, outcome, count(*) AS attempts, count(*) FILTER (WHERE sent = 'unknown') AS unknown
FROM accord.attempt_log GROUP BY channel, outcome ORDER BY channel, count(*) DESC
"""


def check_log():
    """Whether the log has an event for each change, and nothing is left over."""
    counts = database.rows(EVENTS)[0]
    print('\n{changes:,} changes in the application\'s tables, {events:,} events in the log; {abandoned:,} transactions '
          'and savepoints rolled back; {owed:,} deliveries owed, {dead:,} dead'.format(**counts))
    return counts['changes'] == counts['events'] and counts['owed'] == counts['dead'] == 0


def check_drift():
    """Whether what the site's people did to rates was found, and put right."""
    runs = database.rows("SELECT drifting, repaired FROM accord.reconcile_job ORDER BY id")
    print('reconciling found {} rates of ota that had drifted and corrected {}; afterwards {}'.format(
        runs[0]['drifting'], runs[0]['repaired'], runs[-1]['drifting']))
    return runs[0]['drifting'] == runs[0]['repaired'] == 36 and runs[-1]['drifting'] == 0


def print_attempts():
    attempts = collections.defaultdict(list)
    for row in database.rows(ATTEMPTS):
        attempts[row['channel']].append(f"{row['attempts']:,} {row['outcome']}")
    print('\nattempts, as accord.attempt_log has them')
    for channel, outcomes in attempts.items():
        print(f'{channel:<10} ' + ', '.join(outcomes))


def main():
    ota, calendar, messaging = sys.argv[1:4]
    results = {'ota': check_rates(ota), 'from ota': check_site(ota), 'calendar': check_bookings(calendar), 'messaging': check_messages(messaging)}
    print('{:<10} {:>12} {:>15}'.format('channel', 'in database', 'at the channel')
          + ''.join(f'{name:>13}' for name in COUNTS))
    for channel, result in results.items():
        print(f"{channel:<10} {result['objects']:>12,} {result['found']:>15,}"
              + ''.join(f'{result.get(name, 0):>13,}' for name in COUNTS))
    print()
    for result in results.values():
        print(result['note'])
    print_attempts()
    same = check_log() & check_drift()
    if any(result.get(name, 0) for result in results.values() for name in COUNTS) or not same:
        print('\nFAILED: the channels do not hold what the database holds')
        return 1
    print('\nnothing lost, nothing doubled: each channel holds exactly the database\'s state')
    return 0


sys.exit(main())
