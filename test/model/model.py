"""What a set of changes makes of a row, as formulas over the set.

The extension merges one change after the other, in the order in which they come. Here nothing comes after anything: a
row's state is a function of the set of its changes, so it cannot depend on their order or number. What the two say is
compared by exhaustive.py and shuffle.py.

A change has source, event, clock, revision (or None), op (insert, update, upsert, delete), changes (by column) and base
(what its author saw, by column, or None).
"""
import collections

Change = collections.namedtuple('Change', 'source event clock revision op changes base', defaults=(None, 'update', {}, None))


def own_order(change):
    """The order of one source's own changes: by revision where there are any, else by clock."""
    if change.revision is not None:
        return (1, change.revision, change.event)
    return (0, change.clock, change.event)


def creates(change):
    return change.op in ('insert', 'upsert')


def candidates(changes, column, sign=1):
    """Of each source its highest revision, at the latest time it has given (sign -1: its lowest, at the earliest)."""
    best = max if sign > 0 else min
    result = []
    for source in {c.source for c in changes}:
        own = [c for c in changes if c.source == source]
        top = best(own, key=own_order)
        result.append((best(c.clock for c in own), source, top.event, top.changes[column]))
    return result


def ranked(changes, column, options):
    """The winner: (rank, clock, source, event, value), or None."""
    order = options.get('order', [])
    rank = {s: len(order) - i for i, s in enumerate(order)}
    found = [(rank.get(source, 0), clock, source, event, value)
             for clock, source, event, value in candidates(changes, column)]
    return max(found, key=lambda f: f[:4], default=None)


def latest(changes, column, options):
    winner = ranked(changes, column, options)
    return winner[4] if winner else None


def first(changes, column, options):
    found = candidates([c for c in changes if c.changes[column] is not None], column, -1)
    return min(found, key=lambda f: f[:3])[3] if found else None


def owner(changes, column, options):
    return latest([c for c in changes if c.source == options['owner'] or creates(c)], column,
                  {'order': [options['owner']]})


def largest(changes, column, options):
    values = [c.changes[column] for c in changes if c.changes[column] is not None]
    return max(values) if values else None


def smallest(changes, column, options):
    values = [c.changes[column] for c in changes if c.changes[column] is not None]
    return min(values) if values else None


def counter(changes, column, options):
    if not changes:
        return None
    total = 0
    for change in {(c.source, c.event, c.clock): c for c in changes}.values():
        value = change.changes[column]
        if isinstance(value, dict):
            total += value['add']
        else:
            total += (value or 0) - (change.base[column] or 0 if change.base and column in change.base else 0)
    return total


def set_of(changes, column, options):
    added, removed, add_saw, remove_saw = {}, {}, {}, {}
    for change in changes:
        value, base = change.changes[column], (change.base or {}).get(column) or []
        if isinstance(value, dict):
            seen = min(value.get('seen', change.clock), change.clock)
            adds, removes = value.get('add', []), value.get('remove', [])
        else:
            seen = change.clock
            adds = [e for e in value or [] if e not in base]
            removes = [e for e in base if e not in (value or [])]
        for element in adds:
            added[element] = max(added.get(element, change.clock), change.clock)
            add_saw[element] = max(add_saw.get(element, seen), seen)
        for element in removes:
            removed[element] = max(removed.get(element, change.clock), change.clock)
            remove_saw[element] = max(remove_saw.get(element, seen), seen)
    if options.get('wins') == 'remove':
        present = [e for e in added if e not in removed or add_saw[e] >= removed[e]]
    else:
        present = [e for e in added if e not in removed or added[e] > remove_saw[e]]
    return sorted(present) if any(c.changes[column] is not None or c.base for c in changes) else None


def write(document, path, value):
    """The document with a path set; REMOVED takes it away."""
    if not path:
        return value
    if not isinstance(document, dict):
        document = {}
    child = write(document.get(path[0], REMOVED), path[1:], value)
    document = {k: v for k, v in document.items() if k != path[0]}
    return document if child is REMOVED else {**document, path[0]: child}


REMOVED = object()


def flatten(value, path=()):
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in flatten(v, path + (k,))]
    return [(path, value)]


def patch(value, path=()):
    """A merge patch: null removes, objects are descended into."""
    if value is None and path:
        return [(path, REMOVED)]
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in patch(v, path + (k,))]
    return [(path, value)]


def difference(base, value, path=()):
    if base == value:
        return []
    if not (isinstance(base, dict) and base and isinstance(value, dict) and value):
        return flatten(value, path)
    leaves = []
    for k, v in value.items():
        leaves += difference(base[k], v, path + (k,)) if k in base else flatten(v, path + (k,))
    return leaves + [(path + (k,), REMOVED) for k in base if k not in value]


def json_of(changes, column, options):
    """Every change is done in full, in the order of the stamps; nothing is left out as outdated."""
    document = REMOVED
    for change in sorted(changes, key=lambda c: (c.clock, c.source, c.event)):
        value = change.changes[column]
        if change.base is not None and column in change.base:
            leaves = difference(change.base[column], value)
        else:
            leaves = flatten(value) if creates(change) else patch(value)
        for path, leaf in sorted(leaves, key=lambda l: l[0]):
            document = write(document, path, leaf)
    return None if document is REMOVED else document


def three_way(changes, column, options):
    changed = [c for c in changes
               if c.base is None or column not in c.base or c.base[column] != c.changes[column]]
    return {'scalar': latest, 'json': json_of, 'set': set_of}[options['kind']](changed, column, options)


def state(changes, column, options):
    order = options['states']
    places = [order.index(c.changes[column]) for c in changes if c.changes[column] is not None]
    return order[max(places)] if places else None


def custom(changes, column, options):
    """A function that is neither commutative nor associative: what it has said so far, and the change."""
    value = None
    for change in sorted(changes, key=lambda c: (c.clock, c.source, c.event)):
        value = [value, change.changes[column]]
    return value


def park(changes, column, options):
    holder = min(((min(c.clock for c in changes if c.source == s), s) for s in {c.source for c in changes}),
                 default=None)
    if holder is None:
        return None
    return max((c for c in changes if c.source == holder[1]), key=own_order).changes[column]


STRATEGIES = {'latest': latest, 'first': first, 'priority': latest, 'owner': owner, 'max': largest, 'min': smallest,
              'counter': counter, 'set': set_of, 'json': json_of, 'three-way': three_way, 'state': state,
              'custom': custom, 'park': park}


def alive(changes, winner, delete_wins):
    """winner: the change that gives the column its value; it alone can keep a row, or bring it back."""
    inserts = [c for c in changes if creates(c)]
    deletes = [c for c in changes if c.op == 'delete']
    if not inserts:
        return False
    if not deletes:
        return True
    if delete_wins:
        stamp = lambda c: (c.clock, c.source, c.event)
        return max(map(stamp, inserts)) > max(map(stamp, deletes))
    newest = max([c.clock for c in inserts] + ([winner[1]] if winner else []))
    return newest > max(c.clock for c in deletes)


def outcome(changes, column, strategy, options, delete_wins=False):
    """(whether the row is there, the column's value). Deletes are for strategies that choose one of the values."""
    changes = list({(c.source, c.event, c.clock): c for c in changes}.values())      # repeated ones are the same
    given = [c for c in changes if column in c.changes]
    there = alive(changes, ranked(given, column, options), delete_wins)
    return (there, STRATEGIES[strategy](given, column, options) if there else None)
