"""A replica that merges one change after the other, with switches that break it; and proof that the checks notice.

The replica is the same idea as the extension's, in a few lines: a register for the value, one for whether the row
lives, an inbox. Each switch is a mistake that somebody could make. check() tries all orders, and all repetitions, of all
small sets of changes on two replicas, and compares with the model. It must find nothing wrong with the replica as it is,
and something wrong with each of the broken ones.
"""
import itertools
import sys

from model import Change, outcome

SWITCHES = ['no tie-break', 'tie-break by the applying node', 'arrival order', 'tombstones skipped', 'inbox forgotten',
            'priority inside a window', 'revision instead of time', 'update brings back what was deleted',
            'rank forgotten', 'source forgotten in the stamp']
ORDER = {'guest': 2, 'ota': 1}


class Replica:
    def __init__(self, node, strategy, broken=None):
        self.node, self.strategy, self.broken = node, strategy, broken
        self.won, self.value, self.total = None, None, 0
        self.holder = None              # whose value it is
        self.candidates = {}
        self.inserted = self.deleted = None
        self.inbox = set()

    def stamp(self, c, clock):
        rank = ORDER.get(c.source, 0) if self.strategy == 'priority' and self.broken != 'rank forgotten' else 0
        if self.broken == 'no tie-break':
            return (rank, clock)
        if self.broken == 'tie-break by the applying node':
            return (rank, clock, self.node if c.source != self.node else '~')
        if self.broken == 'source forgotten in the stamp':
            return (rank, clock, c.event)
        return (rank, clock, c.source, c.event)

    def wins(self, new, old, c):
        if self.broken == 'arrival order':
            return True
        if self.broken == 'priority inside a window' and self.strategy == 'priority':
            # who is close in time is compared by rank, who is not by time
            return new[0] >= old[0] if abs(new[1] - old[1]) <= 1 else new[1] > old[1]
        return new >= old

    def apply(self, c):
        if c.op == 'delete':
            if self.broken == 'tombstones skipped' and self.inserted is None:
                return
            self.deleted = max(self.deleted or (), (c.clock, c.source, c.event))
            if self.broken == 'tombstones skipped':
                self.won = self.value = self.inserted = self.deleted = None
                self.candidates = {}
            return
        if c.op == 'insert':
            self.inserted = max(self.inserted or (), (c.clock, c.source, c.event))
        if self.broken == 'update brings back what was deleted':
            self.deleted = None
        if self.strategy == 'counter':
            if (c.source, c.event) not in self.inbox or self.broken == 'inbox forgotten':
                self.total += c.changes['v']
            self.inbox.add((c.source, c.event))
            return
        clock, value, own = c.clock, c.changes['v'], ((c.revision or 0), 0 if c.revision else c.clock, c.event)
        if c.source in self.candidates and self.broken != 'revision instead of time':
            other, held, stamped = self.candidates[c.source]
            clock, (own, value) = max(clock, stamped), max((own, value), (other, held), key=lambda o: o[0])
        self.candidates[c.source] = (own, value, clock)
        new = self.stamp(c._replace(event=own[2]), clock)
        if self.broken == 'revision instead of time' and c.revision:
            new = (new[0], 1000 + c.revision) + new[2:]
        is_own = self.holder == c.source        # joined with its own before already
        if self.won is None or is_own or self.wins(new, self.won, c):
            self.won, self.value, self.holder = new, value, c.source

    def outcome(self):
        value = self.total if self.strategy == 'counter' else self.value
        if self.inserted is None or (self.deleted is not None and
                                     max(self.inserted[0], self.won[1] if self.won else self.inserted[0])
                                     <= self.deleted[0]):
            return (False, None)
        return (True, value)


def universe(strategy):
    sources = ('guest', 'ota', 'engine')
    revisions = (None,) if strategy == 'counter' else (None, 1, 2)
    n = 0
    changes = []
    for source, clock in itertools.product(sources, (1, 2, 4)):
        for revision in revisions if source == 'ota' else (None,):
            n += 1
            changes.append(Change(source, str(n), clock, revision, 'insert' if source == 'engine' else 'update', {'v': n}))
    if strategy != 'counter':
        changes += [Change('guest', 'd1', 2, op='delete'), Change('ota', 'd2', 3, op='delete')]
    return changes


def check(broken, largest=3):
    """The first set, order and replica that differ from the model; None when there is none."""
    tried = 0
    for strategy in ('latest', 'priority', 'counter'):
        options = {'order': ['guest', 'ota']} if strategy == 'priority' else {}
        for size in range(1, largest + 1):
            for changes in itertools.combinations(universe(strategy), size):
                wanted = outcome(changes, 'v', strategy, options)
                for order in itertools.permutations(changes):
                    for again in [None, *order]:
                        for node in ('guest', 'ota'):
                            replica = Replica(node, strategy, broken)
                            for change in order + ((again,) if again else ()):
                                replica.apply(change)
                            tried += 1
                            if replica.outcome() != wanted:
                                return (strategy, order, again, node, replica.outcome(), wanted), tried
    return None, tried


def main():
    passed = failed = 0
    for broken in [None] + SWITCHES:
        found, tried = check(broken)
        right = (found is None) == (broken is None)
        passed, failed = passed + right, failed + (not right)
        if not right:
            print('FAILED  %s: %s (%d orders)' % (broken or 'the replica as it is', found, tried))
    print('%d passed, %d failed' % (passed, failed))
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
