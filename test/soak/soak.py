#!/usr/bin/env python3
"""soak.py: moderate, mixed load for an hour, and whether anything grows meanwhile.

Run by test/soak/run, which says what is needed. One process: sessions that write (to channels that work, fail now and
then, are away for a third of every minute, take batches, want OAuth tokens), receive, change a captured table, replay,
and change and reload the configuration; sites.py plays the channels, feeds and token server. Every ten seconds the
server's processes are looked at from outside (/proc) and its tables from inside.

What is judged is the median of the last quarter against that of the second one: the first is for caches, pools and rings
to fill. Memory is the processes' anonymous memory: shared buffers they touch do not count. BOUNDS says what may grow by
how much. At the end everything must have been delivered. Prints a table in Markdown; the exit status is 0 when nothing
grew. Samples are kept in samples.csv.
"""
import argparse
import csv
import glob
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
from sites import Sites                         # noqa: E402
from writers import Connection, Refused         # noqa: E402

ROLES = ("pg_accord launcher", "pg_accord dispatcher", "pg_accord keeper", "pg_accord clerk", "writer")
# what: (share that it may grow by, or this much in absolute terms)
BOUNDS = {"memory": (0.05, 1024), "descriptors": (0, 2), "files": (0.10, 16), "sockets": (0, 2), "sessions": (0, 1), "tables": (0.10, 2048),
          "catalogue": (0.05, 1024), "owed": (0, 500)}
UNITS = {"memory": "kB", "tables": "kB", "seal": "kB", "catalogue": "kB"}


class Session(threading.Thread):
    """A session that does something again and again; what is refused is counted."""

    def __init__(self, args, stopping, name, every, work):
        super().__init__(daemon=True)
        self.args, self.stopping, self.name, self.every, self.work = args, stopping, name, every, work
        self.dice = random.Random(name)
        self.done, self.refused = 0, Counter()
        self.lost = None

    def run(self):
        connection = Connection(self.args, self.name)
        due = time.monotonic()
        try:
            while True:
                due = max(due + self.dice.uniform(0.5, 1.5) * self.every, time.monotonic() - 1)
                if self.stopping.wait(max(0, due - time.monotonic())):
                    break
                try:
                    self.work(connection, self.dice, self.done)
                    self.done += 1
                except Refused as error:
                    self.refused[str(error)] += 1
                    if connection.in_transaction:
                        connection.query("ROLLBACK")
        except OSError as error:
            self.lost = error
        connection.close()


def event(topic, key, account=None, n=0):
    return f"('{topic}', '{key}', {repr(account) if account else 'NULL'}, '{{\"key\": \"{key}\", \"n\": {n}}}')"


def write(connection, dice, n):
    """A transaction of some events: half of them of keys that come again, half of keys that never do."""
    rows = []
    for i in range(dice.randint(1, 7)):
        key = f"k{dice.randrange(500)}" if dice.random() < 0.5 else f"n{dice.getrandbits(48)}"
        topic = dice.choice(("rate", "rate", "rate", "batch", "order", "token", "/flap"))
        rows.append(event(topic, key, f"a{dice.randrange(20)}" if topic == "rate" else None, n))
    connection.query("BEGIN")
    connection.query("SAVEPOINT s")
    connection.query("INSERT INTO accord.outbox (topic, key, account, payload) VALUES " + ", ".join(rows))
    connection.query("ROLLBACK" if dice.random() < 0.05 else "COMMIT")


def receive(connection, dice, n):
    key = f"r{dice.randrange(200)}"
    for _ in range(dice.randint(1, 2)):         # the second one is a duplicate
        connection.query(f"SELECT accord.receive('outside', 'm{n}', target => 'booking', key => '{key}', "
                         f"changes => '{{\"nights\": {n % 30}}}')")
    connection.query(f"SELECT accord.receive('outside', 'e{n}', 'note', '{key}', '{{\"n\": {n}}}')")


def change(connection, dice, n):
    """The captured table, by its application; sometimes looked at as it was."""
    connection.query(f"UPDATE room SET price = {n}, note = repeat('x', {dice.randrange(400)}) WHERE id = {dice.randrange(100)}")
    if n % 20 == 0:
        connection.query("SELECT count(*) FROM accord.history('room', 7)")


def replay(connection, dice, _):
    connection.query("SELECT accord.replay('rates', since => (now() - interval '20 s')::text, "
                     f"mode => '{dice.choice(('resend', 'rekey', 'state'))}', topic => 'rate')")


def reload(connection, dice, n):
    """Configuration comes, changes and goes: by rows, and by the server's file."""
    if n % 4 == 3:
        connection.query("SELECT accord.turn_rings(true)")  # also those that turn by size, which an hour does not reach
    elif n % 3 == 0:
        connection.query(f"ALTER SYSTEM SET accord.settle_delay = '{dice.randint(3, 8)}ms'")
        connection.query("SELECT pg_reload_conf()")
    elif n % 3 == 1:
        connection.query(f"UPDATE accord.channel SET description = 'turn {n}'")
        connection.query(f"UPDATE accord.account SET vars = '{{\"turn\": {n}}}' WHERE name = 'a{n % 20}'")
    else:
        connection.query("DELETE FROM accord.channel WHERE name = 'passing'")
        connection.query("INSERT INTO accord.channel (name, base_url) SELECT 'passing', base_url FROM accord.channel "
                         "WHERE name = 'rates'")
        connection.query("INSERT INTO accord.route (channel, topic) VALUES ('passing', 'passing')")
        connection.query("INSERT INTO accord.outbox (topic, key) VALUES ('passing', 'p')")


def set_up(connection, sites):
    def channel(name, path, **columns):
        columns = {"retry_base": "'50 ms'", "retry_cap": "'2 s'", "max_attempts": "10000", "timeout": "'5 s'",
                   "breaker_cooldown": "'500 ms'", "breaker_cap": "'2 s'", "connect_timeout": "'2 s'", **columns}
        connection.query(f"INSERT INTO accord.channel (name, base_url, {', '.join(columns)}) VALUES ('{name}', "
                         f"'http://127.0.0.1:{sites.port}{path}', {', '.join(columns.values())})")

    def route(name, topic, **columns):
        columns = {"path": "'/{key}'", **columns}
        connection.query(f"INSERT INTO accord.route (channel, topic, {', '.join(columns)}) VALUES ('{name}', '{topic}', "
                         f"{', '.join(columns.values())})")

    oauth = {"type": "oauth2", "token_url": f"http://127.0.0.1:{sites.port}/token", "client_id": "soak", "secret": "client"}
    connection.query("CREATE EXTENSION pg_accord")
    connection.query("CREATE TABLE room (id integer PRIMARY KEY, price integer, note text)")
    connection.query("INSERT INTO room SELECT g FROM generate_series(0, 99) g")
    connection.query("CREATE TABLE booking (id text PRIMARY KEY, nights integer)")
    connection.query("CREATE TABLE stay (id text PRIMARY KEY, arrival date, departure date)")
    connection.query("SELECT accord.capture('room'), accord.capture('booking')")
    connection.query("INSERT INTO accord.source (name) VALUES ('outside')")
    connection.query("INSERT INTO accord.secret (name, value) VALUES ('client', 'soak-soak')")
    channel("rates", "/ok")
    connection.query("INSERT INTO accord.account (channel, name) SELECT 'rates', 'a' || g FROM generate_series(0, 19) g")
    connection.query("INSERT INTO accord.rate_limit (channel, bucket, amount, period) VALUES ('rates', '{account}', 1000, '1 s')")
    channel("plain", "/ok")
    channel("pulled", "")
    channel("shaky", "/shaky")
    channel("flap", "/flap")
    channel("batches", "/ok")
    channel("tokens", "/bearer", auth="'" + json.dumps(oauth) + "'")
    route("rates", "rate")
    for topic in ("room", "booking", "note"):
        route("plain", topic)
    route("shaky", "order", mode="'command'", ambiguous="'retry'")
    route("shaky", "room")
    route("flap", "/flap", coalesce="NULL")
    route("batches", "batch", path="''", batch_size="20", batch_wait="'200 ms'")
    route("tokens", "token")
    connection.query("INSERT INTO accord.feed (name, channel, every, path, mode, item_key, mapping) VALUES ('list', 'pulled', "
                     "'2 s', '/list', 'snapshot', '$.id', '{\"topic\": \"listed\", \"key\": \"$.id\", \"changes\": \"$\"}')")
    connection.query("INSERT INTO accord.feed (name, channel, every, path, format, mode, mapping) VALUES ('calendar', 'pulled', "
                     "'5 s', '/calendar', 'ical', 'snapshot', '{\"target\": \"public.stay\", \"key\": \"$.key\", "
                     "\"changes\": {\"arrival\": \"$.start\", \"departure\": \"$.end\"}}')")


def processes(postmaster):
    """The server's processes: {pid: title}."""
    with open(f"/proc/{postmaster}/task/{postmaster}/children", encoding="ascii") as file:
        pids = file.read().split()
    titles = {}
    for pid in pids:
        try:
            titles[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            pass
    return titles


def of_process(pid):
    """Its anonymous memory in kB, its descriptors but for the server's files, those, and how many sockets there are."""
    memory = 0
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Anonymous:"):
                memory = int(line.split()[1])
    links = []
    for name in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            links.append(os.readlink(name))
        except OSError:
            pass
    files = sum("/base/" in link or "/pg_wal/" in link or "/global/" in link for link in links)
    return memory, len(links) - files, files, sum(link.startswith("socket:") for link in links)


SIZES = """
    SELECT (SELECT sum(pg_total_relation_size(c.oid)) / 1024 FROM pg_class c
            WHERE c.relnamespace = 'accord'::regnamespace AND c.relkind = 'r' AND c.relname NOT LIKE 'seal%'),
           (SELECT sum(pg_total_relation_size(c.oid)) / 1024 FROM pg_class c
            WHERE c.relnamespace = 'accord'::regnamespace AND c.relkind = 'r' AND c.relname LIKE 'seal%'),
           (SELECT sum(pg_total_relation_size(c.oid)) / 1024 FROM pg_class c
            WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r'),
           (SELECT count(*) FROM pg_stat_activity),
           (SELECT count(*) FROM accord.owed())"""


def sample(postmaster, connection):
    """{(what, whose): value}"""
    values = Counter()
    for pid, title in processes(postmaster).items():
        role = next((role for role in ROLES if role in title), None)
        if role is None:
            continue
        try:
            found = of_process(pid)
        except OSError:
            continue
        for what, value in zip(("memory", "descriptors", "files", "sockets"), found):
            values[(what, role)] += value
    numbers = connection.query(SIZES)[0]
    for what, value in zip(("tables", "seal", "catalogue", "sessions", "owed"), numbers):
        values[(what, "server")] = float(value)
    return values


def judge(samples):
    """Rows of (what, whose, early, late, verdict); what was not there in half of the samples is not judged."""
    quarter = len(samples) // 4
    early, late = samples[quarter:2 * quarter], samples[-quarter:]
    rows = []
    for what, whose in sorted({name for one in samples for name in one}):
        a, b = ([one[(what, whose)] for one in part if (what, whose) in one] for part in (early, late))
        if len(a) < quarter / 2 or len(b) < quarter / 2:
            rows.append((what, whose, median(a) if a else None, median(b) if b else None, "now and then: not judged"))
            continue
        a, b = median(a), median(b)
        if what == "seal":
            rows.append((what, whose, a, b, "for good, by design: not judged"))
            continue
        share, least = BOUNDS[what]
        rows.append((what, whose, a, b, "flat" if b - a <= max(share * a, least) else "GROWS"))
    return rows


def table(rows):
    print("\n| | whose | second quarter | last quarter | |\n|---|---|---|---|---|")
    for what, whose, a, b, verdict in rows:
        unit = UNITS.get(what, "")
        words = ["-" if value is None else f"{value:,.0f} {unit}".strip() for value in (a, b)]
        print(f"| {what} | {whose} | {words[0]} | {words[1]} | {verdict} |")


def begin_sessions(args, stopping):
    # 4 events to a transaction, and what is received, captured and pulled is a fifth of all
    sessions = [Session(args, stopping, "writer", 4 * 2 / (args.rate * 0.8), write) for _ in range(2)]
    sessions += [Session(args, stopping, "writer", 20 / args.rate, receive),
                 Session(args, stopping, "writer", 20 / args.rate, change),
                 Session(args, stopping, "replay", 60, replay), Session(args, stopping, "reload", 20, reload)]
    for number, session in enumerate(sessions):
        session.dice.seed(number)
        session.start()
    return sessions


def watch(args, monitor):
    """Samples, until the time is over; kept in samples.csv, too."""
    postmaster = int(Path(args.scratch, "data/postmaster.pid").read_text(encoding="ascii").split()[0])
    interval = min(10.0, args.seconds / 40)
    begin = time.monotonic()
    samples = []
    with open(f"{args.scratch}/samples.csv", "w", newline="", encoding="ascii") as file:
        out = csv.writer(file)
        while (seconds := time.monotonic() - begin) < args.seconds:
            time.sleep(interval)
            values = sample(postmaster, monitor)
            samples.append(values)
            out.writerows((round(seconds + interval), *name, value) for name, value in sorted(values.items()))
            file.flush()
            if len(samples) % 30 == 0:
                print(f"{seconds + interval:.0f} s: " + ", ".join(f"{role} {values[('memory', role)]} kB" for role in ROLES) +
                      f", owed {values[('owed', 'server')]:.0f}", flush=True)
    return samples


def still_owed(monitor):
    """What is not delivered two minutes after nothing fails any more, in words."""
    deadline = time.monotonic() + 120
    while (owed := int(monitor.query("SELECT count(*) FROM accord.owed()")[0][0])) and time.monotonic() < deadline:
        time.sleep(0.5)
    if not owed:
        return []
    return [f"{owed} deliveries are still owed"] + [str(row) for row in monitor.query(
        "SELECT channel, state, count(*), max(error) FROM accord.owed() LEFT JOIN accord.backlog USING (channel, state) "
        "GROUP BY 1, 2 LIMIT 10")]


def complaints(sessions, refused, sites):
    """What keeps this from having been the load that it says it is."""
    bad = [f"a session was lost: {session.lost}" for session in sessions if session.lost]
    if sum(refused.values()) > 0.001 * sum(session.done for session in sessions) + 3:
        bad.append(f"refused: {dict(refused)}")
    bad += [f"nothing was ever asked for at {name}"
            for name in ("/ok", "/shaky", "/flap", "/bearer", "/token", "/list", "/calendar") if not sites.answered[name, 200]]
    return bad


def main():
    parser = argparse.ArgumentParser(description="an hour of load, and whether anything grows")
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rate", type=float, default=200, help="events a second, about")
    args = parser.parse_args()
    args.host, args.port, args.user, args.db = args.scratch, 54329, "postgres", "postgres"

    sites = Sites()
    sites.start()
    sites.ready.wait()
    monitor = Connection(args, "monitor")
    set_up(monitor, sites)
    begin = time.monotonic()
    stopping = threading.Event()
    sessions = begin_sessions(args, stopping)
    samples = watch(args, monitor)
    stopping.set()
    for session in sessions:
        session.join()
    sites.well = True
    refused = sum((session.refused for session in sessions), Counter())
    bad = still_owed(monitor) + complaints(sessions, refused, sites)
    print(f"\n{time.monotonic() - begin:.0f} s: {sum(session.done for session in sessions)} transactions, {sites.tokens} tokens, answers: " +
          ", ".join(f"{name} {status}: {n}" for (name, status), n in sorted(sites.answered.items())) +
          f"; refused: {dict(refused)}")
    print("rings turned: " + ", ".join(f"{log} {n}" for log, n in monitor.query(
        "SELECT log, count(*) FROM accord.retirement WHERE truncated_at IS NOT NULL GROUP BY 1 ORDER BY 1")))
    rows = judge(samples)
    table(rows)
    bad.extend(f"{what} of {whose} grows" for what, whose, _, _, verdict in rows if verdict == "GROWS")
    for line in bad:
        print(line)
    print("\nnothing grows" if not bad else "\nFAILED")
    sys.exit(1 if bad else 0)


main()
