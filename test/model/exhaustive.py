"""Every small set of changes, in every order and with every repetition, through the extension's own merge.

For each strategy: all sets of up to so many changes out of a small universe of them. The extension merges each set in all
orders, and in each with one change repeated at the end (accord.fold_orders), and must come to the same; and to what the
model says (accord.fold). Connects by psql as the environment says. Prints what differs, and a tally.

    exhaustive.py [--database NAME] [STRATEGY...]
"""
import argparse
import itertools
import json
import subprocess
import sys

from model import Change, outcome

SOURCES = ('guest', 'ota')
STATES = ['asked', 'confirmed', 'cancelled', 'in']
TRANSITIONS = {'asked': ['confirmed', 'cancelled'], 'confirmed': ['in', 'cancelled']}
CLOCK = 800000000000000                 # 2025: a change's clock is this and a little


def changes_of(values, sources=SOURCES, clocks=(1, 2), op='update', bases=(None,), revisions=(None,)):
    result = []
    for source, clock, value, base, revision in itertools.product(sources, clocks, values, bases, revisions):
        result.append(Change(source, 'e%d' % len(result), clock, revision, op, {'v': value},
                             None if base is None else {'v': base[0]}))
    return result


def renumber(changes):
    return [c._replace(event='e%02d' % i) for i, c in enumerate(changes)]


# name: (column type, strategy, options of the extension, options of the model, universe, largest set, delete wins)
CASES = {
    'latest': ('integer', 'latest', {}, {}, changes_of([1, None], ('guest', 'ota', 'engine')), 3, False),
    'latest, revisions': ('integer', 'latest', {}, {},
                          changes_of([1], ('guest',), (1, 2, 3)) + changes_of([2], ('ota',), (1, 3), revisions=(None, 1, 2))
                          + changes_of([3], ('engine',), (2, 3), revisions=(1, 2)), 4, False),
    'first': ('integer', 'first', {}, {}, changes_of([1, 2, None], ('guest', 'ota', 'engine')), 3, False),
    'first, revisions': ('integer', 'first', {}, {},
                         changes_of([1], ('guest',), (1, 2, 3)) + changes_of([2], ('ota',), (1, 3), revisions=(None, 1, 2)),
                         4, False),
    'priority': ('integer', 'priority', {'order': ['guest', 'ota']}, {'order': ['guest', 'ota']},
                 changes_of([1, 2], ('guest', 'ota', 'engine', 'x')), 3, False),
    'priority, revisions': ('integer', 'priority', {'order': ['ota']}, {'order': ['ota']},
                            changes_of([1], ('guest', 'engine'), (1, 3)) + changes_of([2], ('ota', 'x'), (1, 2), revisions=(1, 2)),
                            4, False),
    'owner': ('integer', 'owner', {'owner': 'guest'}, {'owner': 'guest'},
              changes_of([1, 2], ('guest', 'ota', 'engine')) + changes_of([3], ('ota', 'guest'), op='insert'), 3, False),
    'max': ('integer', 'max', {}, {}, changes_of([1, 2, 3, None]), 3, False),
    'min': ('integer', 'min', {}, {}, changes_of([1, 2, 3, None]), 3, False),
    'counter': ('integer', 'counter', {}, {},
                changes_of([3, {'add': -2}, None]) + changes_of([7], bases=((4,), (None,))), 4, False),
    'set': ('integer[]', 'set', {}, {},
            changes_of([{'add': [1]}, {'remove': [1]}, {'add': [2], 'remove': [1]}])
            + changes_of([{'remove': [1], 'seen': CLOCK + 1}], clocks=(3,)) + changes_of([[2, 3]], bases=(([1],),)), 3, False),
    'set, remove wins': ('integer[]', 'set', {'wins': 'remove'}, {'wins': 'remove'},
                         changes_of([{'add': [1]}, {'remove': [1]}, {'add': [2], 'remove': [1]}])
                         + changes_of([{'add': [1], 'seen': CLOCK + 1}], clocks=(3,)) + changes_of([[2, 3]], bases=(([1],),)),
                         3, False),
    'json': ('jsonb', 'json', {}, {},
             changes_of([{'a': 1}, {'a': None}, {'a': {'b': 2}}, {'a': {'b': None, 'c': 3}}, {'b': [1]}, {}])
             + changes_of([{'a': {'x': 1}, 'n': None}], bases=(({'a': {'b': 2}},), ({},))), 3, False),
    'three-way': ('integer', 'three-way', {}, {'kind': 'scalar'},
                  changes_of([1, 2], ('guest', 'ota'), bases=(None, (1,))), 3, False),
    'three-way, json': ('jsonb', 'three-way', {}, {'kind': 'json'},
                        changes_of([{'a': 1}, {'a': 2, 'b': 1}], bases=(({'a': 1},), None)), 3, False),
    'three-way, set': ('integer[]', 'three-way', {}, {'kind': 'set'},
                       changes_of([[1], [1, 2]], bases=(([1],), ([2],), None)), 3, False),
    'state': ('text', 'state', {'transitions': TRANSITIONS}, {'states': STATES}, changes_of(STATES + [None]), 3, False),
    'custom': ('jsonb', 'custom', {'function': 'model.say'}, {}, changes_of([1, 2], ('guest', 'ota', 'engine')), 4, False),
    'park': ('integer', 'park', {}, {}, changes_of([1, 2], ('guest', 'ota', 'engine'), (1, 2, 3)), 3, False),
}
LIFE = (changes_of([1], ('guest', 'ota'), (1, 2, 3)) + changes_of([2], ('guest', 'ota'), (1, 3), op='insert')
        + [Change(s, '', c, None, 'delete', {}) for s in ('guest', 'ota') for c in (1, 2, 3)])
CASES['update wins'] = ('integer', 'latest', {}, {}, LIFE, 4, False)
CASES['delete wins'] = ('integer', 'latest', {}, {}, LIFE, 4, True)
CASES['update wins, by rank'] = ('integer', 'priority', {'order': ['ota']}, {'order': ['ota']}, LIFE, 4, False)

BIRTH = Change('0', 'birth', 0, None, 'insert', {}, None)     # of rows that are not about being there


def encode(change):
    return {'op': change.op, 'source': change.source, 'event_id': change.event, 'clock': CLOCK + change.clock,
            'revision': change.revision, 'changes': change.changes if change.op != 'delete' else None, 'base': change.base}


def sets_of(case):
    universe, largest = renumber(case[4]), case[5]
    is_life = any(c.op == 'delete' for c in universe)
    for size in range(1, largest + 1):
        for changes in itertools.combinations(universe, size):
            yield changes if is_life else (BIRTH,) + changes


def shifted(change):
    """As the model sees it: clocks as in the extension, since "seen" is one."""
    return change._replace(clock=CLOCK + change.clock)


def psql(database, text, script=None):
    command = ['psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', database]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit('psql failed: ' + done.stderr[-2000:])
    return done.stdout


def prepare(name, case):
    """The table, its policies, and a statement that merges every set it is given."""
    kind, strategy, options = case[:3]
    row = "SELECT accord.set_policy('model.t', '*', 'latest', '{\"delete\": \"delete-wins\"}');" if case[6] else ''
    return """
SET client_min_messages = error;
DROP SCHEMA IF EXISTS model CASCADE;
CREATE SCHEMA model;
CREATE FUNCTION model.say(value jsonb, change jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT jsonb_build_array(value, change -> 'value') $$;
CREATE TABLE model.t (k integer PRIMARY KEY, v %s);
\\o /dev/null
%s
SELECT accord.set_policy('model.t', 'v', '%s', '%s');
\\o
CREATE TEMPORARY TABLE history (n integer, changes jsonb);
COPY history FROM STDIN;
""" % (kind, row, strategy, json.dumps(options))


FOLD = """\\.
SELECT accord.fold('model.t', NULL, NULL, NULL, NULL, changes) -> 'row',
       coalesce(accord.fold_orders('model.t', NULL, NULL, NULL, NULL, changes, 0, 0)::text, '')
FROM history ORDER BY n;
SET client_min_messages = error;
DROP SCHEMA model CASCADE;
"""


def run_case(database, name, case):
    histories = list(sets_of(case))
    rows = ''.join('%d\t%s\n' % (n, json.dumps([encode(c) for c in changes]).replace('\\', '\\\\'))
                   for n, changes in enumerate(histories))
    answers = psql(database, prepare(name, case) + rows + FOLD).splitlines()
    assert len(answers) == len(histories), (name, len(answers), len(histories))
    wrong = 0
    for changes, answer in zip(histories, answers):
        row, counterexample = answer.split('|', 1)
        got = json.loads(row)
        got = (False, None) if got is None else (True, got['v'])
        wanted = outcome([shifted(c) for c in changes], 'v', case[1], case[3], case[6])
        if got != wanted or counterexample:
            wrong += 1
            if wrong <= 3:
                print('FAILED  %s: of %s the extension makes %s, the model %s %s'
                      % (name, [tuple(c) for c in changes], got, wanted, counterexample))
    return len(histories), wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--database', default='postgres')
    parser.add_argument('cases', nargs='*')
    arguments = parser.parse_args()
    passed = failed = 0
    for name, case in CASES.items():
        if arguments.cases and name not in arguments.cases:
            continue
        tried, wrong = run_case(arguments.database, name, case)
        print('%-24s %6d sets, %d wrong' % (name, tried, wrong))
        passed, failed = passed + (wrong == 0), failed + (wrong > 0)
    print('%d passed, %d failed' % (passed, failed))
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
