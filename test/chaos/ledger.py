"""ledger.py: sessions that write through the storm, and what became of everything they wrote.

Each writer has keys of its own and numbers the events of each, so it alone knows, without asking the database, which
were acknowledged (its COMMIT was answered), which failed (it was refused or rolled back), and of which nobody knows
(the connection was lost in between).
"""
import json
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
from writers import Connection, Refused      # noqa: E402

ACKNOWLEDGED, FAILED, UNKNOWN, UNSAFE = "acknowledged", "failed", "unknown", "unsafe"


class Writer(threading.Thread):
    """One client: a transaction after the other, about so many a second."""

    def __init__(self, args, number, stopping):
        super().__init__(daemon=True)
        self.args, self.number, self.stopping = args, number, stopping
        self.dice = random.Random(f"{args.seed}/writer{number}")
        self.next = Counter()
        self.fate = {}                  # (key, n) -> word
        self.of_table = set()           # those that are changes of a captured table
        self.connection = None
        self.kinds = [self.plain] * 6 + [self.several] * 3 + [self.undone, self.captured, self.captured,
                                                              self.asynchronous, self.two_phase]

    def run(self):
        while not self.stopping.wait(self.dice.expovariate(self.args.rate)):
            self.pending = []
            try:
                if self.connection is None:
                    self.connection = Connection(self.args, "writer")
                self.dice.choice(self.kinds)()
            except Refused:
                self.settle(FAILED)
                try:
                    if self.connection.in_transaction:
                        self.connection.query("ROLLBACK")
                except OSError:
                    self.drop()
            except OSError:
                self.settle(UNKNOWN)
                self.drop()
                self.stopping.wait(0.1)

    def drop(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def settle(self, word):
        for event in self.pending:
            self.fate[event] = word
        self.pending = []

    def event(self):
        """The next event of one of our keys: key and number."""
        key = f"w{self.number}k{self.dice.randrange(self.args.keys)}"
        self.next[key] += 1
        self.pending.append((key, self.next[key]))
        return self.pending[-1]

    def insert(self):
        key, n = self.event()
        self.connection.query("INSERT INTO accord.outbox (topic, key, account, payload) VALUES "
                              f"('w', '{key}', 'a{int(key[-1]) % 3}', '{{\"key\": \"{key}\", \"n\": {n}}}')")

    def plain(self):
        self.connection.query("SET synchronous_commit = on")
        self.insert()
        self.settle(ACKNOWLEDGED)

    def several(self):
        self.connection.query("SET synchronous_commit = on; BEGIN")
        for _ in range(self.dice.randint(2, 6)):
            self.insert()
        self.connection.query("COMMIT")
        self.settle(ACKNOWLEDGED)

    def undone(self):
        self.connection.query("BEGIN")
        self.insert()
        self.connection.query("ROLLBACK")
        self.settle(FAILED)

    def two_phase(self):
        """A key of its own: what a crash leaves without a place in between gets a later one."""
        self.next["two-phase"] += 1
        key = f"w{self.number}p{self.next['two-phase']}"
        self.pending.append((key, 1))
        self.connection.query(
            f"SET synchronous_commit = on; BEGIN; INSERT INTO accord.outbox (topic, key, account, payload) VALUES "
            f"('w', '{key}', 'a0', '{{\"key\": \"{key}\", \"n\": 1}}'); PREPARE TRANSACTION '{key}'")
        self.connection.query(f"COMMIT PREPARED '{key}'")
        self.settle(ACKNOWLEDGED)

    def asynchronous(self):
        """A crash may undo what was answered: UNSAFE."""
        self.connection.query("SET synchronous_commit = off")
        self.insert()
        self.settle(UNSAFE)

    def captured(self):
        key, n = self.event()
        self.of_table.add((key, n))
        self.connection.query(
            "SET synchronous_commit = on; "
            f"INSERT INTO rate VALUES ('{key}', {n}) ON CONFLICT (key) DO UPDATE SET n = EXCLUDED.n")
        self.settle(ACKNOWLEDGED)


class Sender(threading.Thread):
    """A source: sends each message until it is acknowledged, and then, now and then, once more."""

    def __init__(self, args, stopping):
        super().__init__(daemon=True)
        self.args, self.stopping = args, stopping
        self.dice = random.Random(f"{args.seed}/sender")
        self.sent = []

    def run(self):
        connection, number, times = None, 0, 0
        while not (self.stopping.wait(self.dice.expovariate(self.args.rate)) and times == 0):
            try:
                if connection is None:
                    connection = Connection(self.args, "sender")
                connection.query(f"SELECT accord.receive('outside', 'm{number}', 'r', 'r{number % 50}', "
                                 f"'{{\"key\": \"r{number % 50}\", \"n\": {number}}}')")
                if times == 0 or self.dice.random() < 0.7:
                    self.sent.append(number)
                    number, times = number + 1, 0
                else:
                    times += 1
            except (OSError, Refused):
                times += 1
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.1)


class Tally:
    """What one channel was owed against what it has had."""
    COLUMNS = ("acknowledged", "arrived", "lost", "unexpected", "repeated", "unexplained", "reordered", "given up")

    def __init__(self):
        self.row = dict.fromkeys(self.COLUMNS, 0)
        self.examples = []

    def fault(self, what, example):
        self.row[what] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{what}: {example}")


def account(channel, fates, stored, arrivals, given_up, troubles, patience):
    """
    fates: {(key, n): word}; stored: those the log holds; arrivals: of this channel, in the order of their arrival;
    given_up: those that a person gave up, the outcome being unknown; troubles: [(from, to)] of everything that may
    have made a dispatcher repeat. A repetition is explained when one of them took place after the first arrival was
    answered, at most "patience" seconds later.
    """
    tally = Tally()
    first, last = {}, defaultdict(int)
    for arrival in arrivals:
        body = json.loads(arrival.body)
        event = (body["key"], body["n"])
        if event not in stored or fates.get(event) == FAILED:
            tally.fault("unexpected", event)
        if event not in first:
            first[event] = arrival
            tally.row["arrived"] += 1
            if event[1] < last[event[0]]:
                tally.fault("reordered", (event, last[event[0]]))
        else:
            tally.row["repeated"] += 1
            before = first[event]
            if not any(begin <= min(arrival.at, before.at + patience) and end >= before.at
                       for begin, end in troubles):
                tally.fault("unexplained", (event, before.at, arrival.at))
            if event[1] < last[event[0]]:
                tally.fault("reordered", (event, last[event[0]]))
        last[event[0]] = max(last[event[0]], event[1])
    for event, fate in fates.items():
        if fate == ACKNOWLEDGED:
            tally.row["acknowledged"] += 1
        if (fate == ACKNOWLEDGED or event in stored) and event not in first:
            if event in given_up:
                tally.row["given up"] += 1
            else:
                tally.fault("lost", event)
    return tally
