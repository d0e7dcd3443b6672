#!/usr/bin/env python3
"""chaos.py: minutes of mixed load under everything that goes wrong in operation, and an account of every event.

Run by test/chaos/run, which says what is needed. One process: writers and a source (ledger.py), channels and a failing
network (channels.py), and the storm itself. When the storm is over, everybody is well again and all is delivered, what
each channel was owed is compared with what it has had, as Jepsen's set and queue checkers do. Prints a table in
Markdown; the exit status is 0 when nothing is lost, unexpected, unexplained or reordered.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

from channels import Network
from ledger import ACKNOWLEDGED, FAILED, UNSAFE, Connection, Refused, Sender, Tally, Writer, account

CHANNELS = ("steady", "shaky", "customers", "commands", "once")
MAX_IN_FLIGHT = 8
PATIENCE = 10                   # s: a dispatcher settles what was answered within this, however busy the machine
AFTERMATH = 0.5                 # s: what a kill sets off has then come to everybody


class Server:
    """The server in the storm: kept up, looked into, and damaged."""

    def __init__(self, args):
        self.args = args
        self.data = f"{args.disk}/data"
        self.clock = f"{args.scratch}/clock"
        self.environment = dict(os.environ, LD_PRELOAD=args.faketime, FAKETIME_TIMESTAMP_FILE=self.clock,
                                FAKETIME_NO_CACHE="1", DONT_FAKE_MONOTONIC="1") if args.faketime else dict(os.environ)
        self.set_clock(0)

    def set_clock(self, offset):
        """All of the server's processes have a clock that is so many seconds off."""
        with open(self.clock + ".new", "w", encoding="ascii") as file:
            file.write(f"{offset:+d}s\n")
        os.replace(self.clock + ".new", self.clock)

    def pg_ctl(self, *arguments):
        return subprocess.run([f"{self.args.bindir}/pg_ctl", "-D", self.data, "-l", f"{self.args.scratch}/server.log",
                               "-w", "-t", "60", *arguments], env=self.environment, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, check=False).returncode == 0

    def pid(self):
        """The postmaster's, or None."""
        try:
            with open(f"{self.data}/postmaster.pid", encoding="ascii") as file:
                pid = int(file.readline())
            os.kill(pid, 0)
            return pid
        except (OSError, ValueError):
            return None

    def children(self):
        """Of the postmaster: {pid: title}."""
        titles = {}
        postmaster = self.pid()
        listing = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(postmaster or 0)], capture_output=True,
                                 text=True, check=False).stdout
        for line in listing.splitlines():
            pid, _, title = line.strip().partition(" ")
            titles[int(pid)] = title
        return titles

    def keep_up(self):
        """Starts it again until it runs and takes questions."""
        while True:
            if self.pid() is None:
                self.pg_ctl("start")
            try:
                self.ask("SELECT 1")
                return
            except (OSError, Refused):
                time.sleep(0.2)

    def ask(self, sql):
        connection = Connection(self.args, "storm")
        try:
            return connection.query(sql)
        finally:
            connection.close()

    def insist(self, sql):
        """Asks until there is an answer."""
        while True:
            try:
                return self.ask(sql)
            except OSError:
                self.keep_up()


class Storm:
    """What goes wrong. Each trouble is noted with its time, since it may explain a repetition."""

    def __init__(self, args, server, network):
        self.args, self.server, self.network = args, server, network
        self.dice = random.Random(f"{args.seed}/storm")
        self.troubles = []              # (from, to, channel or None, name)
        self.counts = Counter()

    def run(self, seconds):
        actions = [(6, self.kill_dispatcher), (2, self.kill_accord), (3, self.kill_backend), (2, self.kill_auxiliary),
                   (2, self.kill_postmaster), (1, self.restart), (2, self.freeze_dispatcher), (8, self.break_network),
                   (2, self.exhaust_connections), (2, self.hold_snapshot), (2, self.change_dispatchers),
                   (2, self.switch_channel)]
        if self.args.faketime:
            actions.append((3, self.jump_clock))
        if self.args.limited:
            actions.append((2, self.fill_disk))
        choices = [action for weight, action in actions for _ in range(weight)]
        end = time.monotonic() + seconds
        # each of them at least once, in a random order; then as it comes
        plan = [action for _, action in actions]
        self.dice.shuffle(plan)
        while time.monotonic() < end or plan:
            time.sleep(self.dice.uniform(0.3, 2.5))
            action = plan.pop() if plan else self.dice.choice(choices)
            begin = time.monotonic()
            channel = action()
            self.server.keep_up()
            self.troubles.append((begin, time.monotonic() + AFTERMATH, channel, action.__name__))

    def of(self, channel):
        return [(begin, end) for begin, end, whose, _ in self.troubles if whose in (None, channel)]

    def kill(self, what, matches, signum=signal.SIGKILL):
        pids = [pid for pid, title in self.server.children().items() if matches(title)]
        if pids:
            os.kill(self.dice.choice(pids), signum)
            self.counts[what] += 1

    def kill_dispatcher(self):
        self.kill("kill -9 of a dispatcher", lambda title: "pg_accord dispatcher" in title)

    def kill_accord(self):
        """The keeper, or the launcher."""
        self.kill("kill -9 of the launcher or a keeper",
                  lambda title: "pg_accord" in title and "dispatcher" not in title)

    def kill_backend(self):
        self.kill("kill -9 of a session", lambda title: "writer" in title or " postgres postgres [local]" in title)

    def kill_auxiliary(self):
        self.kill("kill -9 of a server process",
                  lambda title: any(name in title for name in ("checkpointer", "walwriter", "background writer")))

    def kill_postmaster(self):
        """Its children find out by themselves; a new one cannot start before they have."""
        pid = self.server.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self.counts["kill -9 of the postmaster"] += 1

    def restart(self):
        self.server.pg_ctl("stop", "-m", self.dice.choice(["fast", "immediate"]))
        self.counts["stop and start"] += 1

    def freeze_dispatcher(self):
        pids = [pid for pid, title in self.server.children().items() if "pg_accord dispatcher" in title]
        if not pids:
            return
        pid = self.dice.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.dice.uniform(0.5, 3))
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
        self.counts["dispatcher frozen"] += 1

    def break_network(self):
        channel = self.dice.choice(CHANNELS[1:])
        fault = self.dice.choice(Network.FAULTS)
        self.network.faults[channel] = fault
        time.sleep(self.dice.uniform(0.2, 3))
        del self.network.faults[channel]
        self.counts[f"network: {fault}"] += 1
        return channel

    def exhaust_connections(self):
        held = []
        try:
            while True:
                held.append(Connection(self.args, "crowd"))
        except (OSError, Refused):
            pass
        time.sleep(self.dice.uniform(0.5, 2))
        for connection in held:
            connection.close()
        self.counts["out of connections"] += 1

    def hold_snapshot(self):
        try:
            connection = Connection(self.args, "snapshot")
            connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.query("SELECT count(*) FROM pg_class")
            threading.Timer(self.dice.uniform(5, 15), connection.close).start()
            self.counts["snapshot held"] += 1
        except OSError:
            pass

    def change_dispatchers(self):
        number = self.dice.randint(1, 3)
        self.server.insist(f"ALTER SYSTEM SET accord.dispatchers = {number}")
        self.server.insist("SELECT pg_reload_conf()")
        # all of them end, and others begin: until then it may be the reason of a repetition
        end = time.monotonic() + 10
        while (sum("pg_accord dispatcher" in title for title in self.server.children().values()) != number and
               time.monotonic() < end):
            time.sleep(0.1)
        time.sleep(0.5)
        self.counts["dispatchers changed"] += 1

    def switch_channel(self):
        channel = self.dice.choice(CHANNELS)
        self.server.insist(f"UPDATE accord.channel SET enabled = NOT enabled WHERE name = '{channel}'")
        time.sleep(self.dice.uniform(0.2, 2))
        self.server.insist(f"UPDATE accord.channel SET enabled = true WHERE name = '{channel}'")
        self.counts["channel disabled"] += 1

    def jump_clock(self):
        self.server.set_clock(self.dice.choice([-3600, -60, -2, 2, 60, 3600]))
        time.sleep(self.dice.uniform(0.5, 5))
        self.server.set_clock(0)
        self.counts["clock stepped, and back"] += 1

    def fill_disk(self):
        ballast = f"{self.args.disk}/ballast"
        with open(ballast, "wb") as file:
            try:
                while True:
                    file.write(b"\0" * (1 << 20))
                    file.flush()
            except OSError:
                pass
        time.sleep(self.dice.uniform(0.5, 3))
        os.unlink(ballast)
        self.counts["disk full"] += 1


def set_up(server, network):
    server.insist("CREATE EXTENSION pg_accord")
    server.insist("CREATE TABLE rate (key text PRIMARY KEY, n integer)")
    server.insist("SELECT accord.capture('rate', topic => 'w')")
    server.insist("INSERT INTO accord.source (name) VALUES ('outside')")
    for name in CHANNELS:
        server.insist(f"""
            INSERT INTO accord.channel (name, base_url, max_in_flight, account_max_in_flight, retry_base, retry_cap,
                max_attempts, timeout, stall_timeout, connect_timeout, breaker_cooldown, breaker_cap, idempotency_header)
            VALUES ('{name}', 'http://127.0.0.1:{network.ports[name]}', {MAX_IN_FLIGHT}, {MAX_IN_FLIGHT}, '20 ms',
                '300 ms', 10000, '4 s', '2 s', '2 s', '100 ms', '500 ms',
                {"NULL" if name == "once" else "'Idempotency-Key'"});
            INSERT INTO accord.route (channel, topic, path, coalesce, mode)
            VALUES ('{name}', '{"w" if name != "steady" else "*"}', '/{{key}}', NULL,
                '{"command" if name in ("once", "commands") else "state"}')""")
    server.insist("INSERT INTO accord.account (channel, name) SELECT 'customers', 'a' || n FROM generate_series(0, 2) n")
    # what is captured has no account, and so is not the customers'
    server.insist("UPDATE accord.route SET ops = '{event}' WHERE channel = 'customers'")


def settle_down(server, seconds):
    """All is well again. What nobody knows of a command is given up by hand; the rest must be delivered by itself."""
    server.insist("UPDATE accord.channel SET enabled = true")
    given_up = []
    end = time.monotonic() + seconds
    while True:
        for row in server.insist("SELECT o.seq, o.ord FROM accord.owed() o WHERE o.state = 'held'"):
            given_up.append((int(row[0]), int(row[1])))
        server.insist("SELECT accord.discard('once', state => 'held')")
        owed = int(server.insist("SELECT count(*) FROM accord.owed()")[0][0])
        if owed == 0:
            return given_up, 0
        if time.monotonic() > end:
            return given_up, owed
        time.sleep(0.3)


def stored_events(server):
    """What the log holds: {(key, n): [op, seq, ord]}, of writers, and the numbers of what the source sent."""
    rows = server.insist("SELECT e.key, e.payload ->> 'n', e.op, c.seq, e.ord, e.topic FROM accord.event_log e "
                         "JOIN accord.commit_log c USING (tx_id) WHERE e.topic IN ('w', 'r')")
    written, received = {}, Counter()
    for key, n, op, seq, ord_, topic in rows:
        if topic == "r":
            received[int(n)] += 1
        else:
            written[(key, int(n))] = (op, int(seq), int(ord_))
    return written, received


def judge(server, storm, network, writers, sender, given_up):
    """A tally for each channel, one for the log, and one for what came in; and what was committed unsafely."""
    written, received = stored_events(server)
    fates = {event: word for writer in writers for event, word in writer.fate.items()}
    captured = {event for writer in writers for event in writer.of_table}
    closed = {event for event, (_, seq, ord_) in written.items() if (seq, ord_) in set(given_up)}
    bodies = [(arrival, json.loads(arrival.body)["key"][0]) for arrival in network.arrivals]
    tallies = {}
    for channel in CHANNELS:
        not_owed = captured if channel == "customers" else set()
        tallies[channel] = account(
            channel, {event: word for event, word in fates.items() if event not in not_owed},
            set(written) - not_owed, [arrival for arrival, kind in bodies if arrival.channel == channel and kind == "w"],
            closed if channel == "once" else set(), storm.of(channel), PATIENCE)
    log = tallies["the log"] = Tally()
    log.row["arrived"] = len(written)
    for event, word in fates.items():
        log.row["acknowledged"] += word == ACKNOWLEDGED
        if word == ACKNOWLEDGED and event not in written:
            log.fault("lost", event)
        if word == FAILED and event in written:
            log.fault("unexpected", event)
    incoming = tallies["received"] = Tally()
    forwarded = {json.loads(arrival.body)["n"] for arrival, kind in bodies if kind == "r"}
    incoming.row["acknowledged"] = len(sender.sent)
    incoming.row["arrived"] = len(received)
    for number in sender.sent:
        if number not in received or number not in forwarded:
            incoming.fault("lost", number)
    for number, times in received.items():
        if times > 1:
            incoming.fault("unexplained", (number, times))
    unsafe = [event for event, word in fates.items() if word == UNSAFE]
    return tallies, len(unsafe), sum(event not in written for event in unsafe)


def report(args, storm, tallies, unsafe, undone, owed, verdicts):
    print(f"\nseed {args.seed}, {args.seconds} s: " +
          ", ".join(f"{name} {n}" for name, n in sorted(storm.counts.items())) + "\n")
    print("| | " + " | ".join(Tally.COLUMNS) + " |")
    print("|---|" + "---|" * len(Tally.COLUMNS))
    for name, tally in tallies.items():
        print(f"| {name} | " + " | ".join(str(tally.row[column]) for column in Tally.COLUMNS) + " |")
    print(f"\ncommitted with synchronous_commit = off: {unsafe}; of these undone by a crash: {undone}")
    bad = sum(tally.row[what] for tally in tallies.values() for what in ("lost", "unexpected", "unexplained",
                                                                        "reordered"))
    for name, tally in tallies.items():
        for example in tally.examples:
            print(f"{name}: {example}")
    for verdict in verdicts:
        print(verdict)
    if bad:
        for begin, end, channel, name in storm.troubles:
            print(f"{begin:.3f} .. {end:.3f} {name} {channel or ''}")
    if owed:
        print(f"{owed} deliveries are still owed")
    return bad + owed + len(verdicts)


def main():
    parser = argparse.ArgumentParser(description="a storm, and an account of it")
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--disk", required=True, help="where the data is")
    parser.add_argument("--limited", action="store_true", help="... which may be filled up")
    parser.add_argument("--bindir", required=True)
    parser.add_argument("--faketime", default="")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--rate", type=float, default=20, help="transactions a second of each client")
    args = parser.parse_args()
    args.host, args.port, args.user, args.db = args.scratch, 54329, "postgres", "postgres"

    network = Network(CHANNELS, args.seed)
    network.start()
    network.ready.wait()
    server = Server(args)
    server.keep_up()
    set_up(server, network)
    stopping = threading.Event()
    writers = [Writer(args, number, stopping) for number in range(args.clients)]
    sender = Sender(args, stopping)
    for thread in writers + [sender]:
        thread.start()
    storm = Storm(args, server, network)
    storm.run(args.seconds)
    stopping.set()
    for thread in writers + [sender]:
        thread.join()
    for row in server.insist("SELECT gid FROM pg_prepared_xacts"):
        server.insist(f"ROLLBACK PREPARED '{row[0]}'")      # whoever prepared it does not know what became of it
    given_up, owed = settle_down(server, 180)
    tallies, unsafe, undone = judge(server, storm, network, writers, sender, given_up)
    verdicts = []
    for row in server.insist("SELECT problem, tx_id FROM accord.verify()"):
        verdicts.append(f"accord.verify(): {row}")
    repeated = [a for a in network.arrivals if a.channel == "once"]
    if len({a.body for a in repeated}) < len(repeated):
        verdicts.append("a command without an idempotency key was sent twice")
    bad = report(args, storm, tallies, unsafe, undone, owed, verdicts)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
