"""Histories of many rows, for a real table: what comes to it in any order, and what the model says must be there.

    shuffle.py SEED ROWS        prints lines of JSON: {"row": k, "changes": [...], "there": bool, "values": {...}}

Every row has a few changes of three sources, about columns with different policies, some of them deletes. The changes
are those that accord.receive() takes.
"""
import json
import random
import sys

from model import Change, outcome, creates

STATES = ['asked', 'confirmed', 'cancelled', 'in']
COLUMNS = {
    'latest': ('latest', {}, lambda r: r.randint(1, 9)),
    'ranked': ('priority', {'order': ['guest', 'ota']}, lambda r: r.randint(1, 9)),
    'highest': ('max', {}, lambda r: r.choice([None, 1, 2, 3])),
    'counter': ('counter', {}, lambda r: {'add': r.randint(-3, 3)}),
    'tags': ('set', {}, lambda r: {'add': [r.choice('abc')], 'remove': [r.choice('abc')]}),
    'doc': ('json', {}, lambda r: {r.choice('xy'): r.choice([None, 1, {'z': 2}, {'z': None}])}),
    'state': ('state', {'states': STATES}, lambda r: r.choice(STATES)),
    'story': ('custom', {}, lambda r: r.randint(1, 9)),
    'parked': ('park', {}, lambda r: r.randint(1, 9)),
}
CLOCK = 1767225600000000                # 2026-01-01, in microseconds since 1970
MICROSECONDS_1970_TO_2000 = 946684800000000


def history(r, row):
    changes = [Change('birth', '%d-0' % row, 0, None, 'insert', {}, None)]
    for n in range(1, r.randint(3, 9)):
        source = r.choice(['guest', 'ota', 'engine'])
        clock = r.randint(1, 6) * 1000000
        event = '%d-%d' % (row, n)
        if r.random() < 0.15:
            changes.append(Change(source, event, clock, None, 'delete', {}))
            continue
        columns = r.sample(sorted(COLUMNS), r.randint(1, 4))
        changes.append(Change(source, event, clock, None, 'upsert' if r.random() < 0.2 else 'update',
                              {c: COLUMNS[c][2](r) for c in columns}))
    return changes


def there(changes):
    """As the model has it for one column; here any column's winner keeps the row."""
    return any(outcome(changes, c, s if s in ('latest', 'priority') else 'latest', o)[0]
               for c, (s, o, _) in COLUMNS.items()) if any(creates(c) for c in changes) else False


def main():
    r = random.Random(int(sys.argv[1]))
    for row in range(int(sys.argv[2])):
        # deletes only where the row's life is that of its latest change: the model knows that of single columns
        changes = history(r, row)
        has_delete = any(c.op == 'delete' for c in changes)
        if has_delete:
            changes = [c._replace(changes={k: v for k, v in c.changes.items() if k in ('latest', 'ranked')})
                       for c in changes]
            changes = [c for c in changes if c.changes or c.op in ('insert', 'upsert', 'delete')]
        shifted = [c._replace(clock=CLOCK - MICROSECONDS_1970_TO_2000 + c.clock) for c in changes]
        alive = there(shifted)
        values = {}
        for column, (strategy, options, _) in COLUMNS.items():
            given = [c for c in shifted if c.op != 'delete']
            values[column] = outcome(given, column, strategy, options)[1] if alive else None
        print(json.dumps({'row': row, 'there': alive, 'values': values, 'changes': [
            {'source': c.source, 'event_id': c.event, 'op': c.op, 'key': str(row), 'target': 'public.booking',
             'changes': c.changes if c.op != 'delete' else {}, 'occurred_at': (CLOCK + c.clock) / 1e6}
            for c in changes]}))


if __name__ == '__main__':
    main()
