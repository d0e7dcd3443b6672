#!/usr/bin/env python3
"""writers.py: sessions that write events in every way a transaction can end.

Speaks PostgreSQL's protocol itself (simple queries over a Unix socket), so
that nothing needs to be installed and every session knows what became of its
COMMIT. Test::Writers (Writers.pm) makes the tables and functions used here.

  --host DIR --port N --user U --db D
  --clients N       sessions that write, each reconnecting when it is cut off
  --seed N          of everything random
  --keys N          how many keys they share
  --async PERCENT   of the transactions commit with synchronous_commit = off
  --kill MS         terminates a random session of them so often
  --read FILE       readers follow accord.read(), and note in FILE.0, FILE.1,
                    ... what they were given, by call
  --readers N       so many
  --after SEQ       they begin after this one

The end of standard input ends the writers, and then the readers when there is
nothing left to read. Counters go to standard output as a line of JSON, now and
then and at the end.

Every key's events are numbered by a row that is locked until the transaction
ends, so the numbers of what was committed follow each other without a gap in
commit order; what a transaction wrote it also writes into the table "truth".
"""
import argparse
import json
import random
import socket
import struct
import sys
import threading


class Refused(Exception):
    """The server answered with an error; its SQLSTATE is the message."""


class Connection:
    def __init__(self, args, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(f"{args.host}/.s.PGSQL.{args.port}")
        self.input = self.socket.makefile("rb")
        options = {"user": args.user, "database": args.db,
                   "application_name": name}
        body = b"".join(f"{k}\0{v}\0".encode() for k, v in options.items())
        body = struct.pack("!i", 196608) + body + b"\0"
        self.socket.sendall(struct.pack("!i", len(body) + 4) + body)
        self.in_transaction = False
        self.finish()

    def message(self):
        head = self.input.read(5)
        if len(head) < 5:
            raise ConnectionError("the server closed the connection")
        (length,) = struct.unpack("!i", head[1:])
        body = self.input.read(length - 4)
        if len(body) < length - 4:
            raise ConnectionError("the server closed the connection")
        return head[:1], body

    def finish(self):
        """Reads until the server is ready; the rows of the last result."""
        rows, error = [], None
        while True:
            kind, body = self.message()
            if kind == b"D":
                rows.append(self.row(body))
            elif kind == b"E":
                fields = dict((field[:1], field[1:].decode())
                              for field in body.split(b"\0") if field)
                if fields[b"S"] in ("FATAL", "PANIC"):
                    raise ConnectionError(fields[b"M"])
                error = fields[b"C"]
            elif kind == b"Z":
                self.in_transaction = body != b"I"
                if error:
                    raise Refused(error)
                return rows

    @staticmethod
    def row(body):
        (n,) = struct.unpack_from("!h", body)
        at, values = 2, []
        for _ in range(n):
            (length,) = struct.unpack_from("!i", body, at)
            at += 4
            values.append(None if length < 0 else
                          body[at:at + length].decode())
            at += max(length, 0)
        return values

    def query(self, sql):
        body = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        return self.finish()

    def close(self):
        self.input.close()
        self.socket.close()


class Writer(threading.Thread):
    """One client: transactions one after the other, each of a random kind."""

    def __init__(self, crowd, number):
        super().__init__(daemon=True)
        self.crowd = crowd
        self.args = crowd.args
        self.dice = random.Random(f"{self.args.seed}/{number}")

    def key(self):
        return f"k{self.dice.randrange(self.args.keys)}"

    def run(self):
        connection = None
        kinds = [self.single] * 6 + [self.several] * 4 + [
            self.savepoints, self.savepoints, self.savepoints, self.undone,
            self.undone, self.nothing_left, self.caught, self.serializable,
            self.at_commit]
        while not self.crowd.stopping.is_set():
            try:
                if connection is None:
                    connection = Connection(self.args, "writer")
                asynchronous = self.dice.randrange(100) < self.args.asynchronous
                connection.query("SET synchronous_commit = " +
                                 ("off" if asynchronous else "local"))
                self.dice.choice(kinds)(connection)
                self.crowd.count("done")
            except Refused as refusal:
                self.crowd.count(str(refusal))
                if connection.in_transaction:
                    self.roll_back(connection)
            except OSError:
                self.crowd.count("cut off")
                if connection is not None:
                    connection.close()
                connection = None
                self.crowd.stopping.wait(0.02)
        if connection is not None:
            connection.close()

    def roll_back(self, connection):
        try:
            connection.query("ROLLBACK")
        except OSError:
            pass                    # the next transaction will find out

    def write(self, connection):
        connection.query(f"SELECT write('{self.key()}')")

    def single(self, connection):
        self.write(connection)

    def several(self, connection):
        connection.query("BEGIN")
        for _ in range(self.dice.randint(1, 5)):
            self.write(connection)
        connection.query("COMMIT")

    def savepoints(self, connection):
        """A random walk through nested savepoints."""
        connection.query("BEGIN")
        open_ones = []
        for step in range(self.dice.randint(3, 12)):
            what = self.dice.choice("wwsskr")
            if what == "w":
                self.write(connection)
            elif what == "s":
                open_ones.append(f"s{step}")
                connection.query(f"SAVEPOINT s{step}")
            elif open_ones:
                at = self.dice.randrange(len(open_ones))
                if what == "k":
                    connection.query(f"RELEASE {open_ones[at]}")
                    del open_ones[at:]
                else:
                    connection.query(f"ROLLBACK TO {open_ones[at]}")
                    del open_ones[at + 1:]
        connection.query("COMMIT")

    def undone(self, connection):
        connection.query("BEGIN")
        self.write(connection)
        self.write(connection)
        connection.query("ROLLBACK")

    def nothing_left(self, connection):
        connection.query("BEGIN; SAVEPOINT s")
        self.write(connection)
        connection.query("ROLLBACK TO s; COMMIT")

    def caught(self, connection):
        connection.query(f"SELECT write('{self.key()}'), "
                         f"write_and_fail('{self.key()}')")

    def serializable(self, connection):
        connection.query("BEGIN ISOLATION LEVEL SERIALIZABLE")
        connection.query("SELECT sum(n) FROM skew")
        self.write(connection)
        connection.query("UPDATE skew SET n = n + 1 WHERE id = "
                         f"{self.dice.randint(1, 3)}")
        connection.query("COMMIT")

    def at_commit(self, connection):
        """A deferred trigger writes another event; now and then it fails."""
        explode = "true" if self.dice.randrange(2) else "false"
        connection.query("BEGIN")
        self.write(connection)
        connection.query("INSERT INTO deferred VALUES "
                         f"('{self.key()}', {explode})")
        connection.query("COMMIT")


class Reader(threading.Thread):
    """Remembers the last seq it was given, and asks for what follows it."""

    def __init__(self, crowd, number):
        super().__init__(daemon=True)
        self.crowd = crowd
        self.dice = random.Random(f"{crowd.args.seed}/reader{number}")
        self.number = number
        self.path = f"{crowd.args.read}.{number}"

    def run(self):
        connection = Connection(self.crowd.args, "reader")
        cursor, call = self.crowd.args.after, 0
        with open(self.path, "w", encoding="utf-8") as notes:
            while True:
                last = self.crowd.written.is_set()
                size = self.dice.choice([1, 2, 10, 100, 1000])
                rows = connection.query(
                    "SELECT seq, tx_id, ord, event_id, key, "
                    f"payload ->> 'n' FROM accord.read({cursor}, {size})")
                call += 1
                for row in rows:
                    notes.write("\t".join([str(call)] + row) + "\n")
                if rows:
                    cursor = int(rows[-1][0])
                    self.crowd.count(f"read by {self.number}", len(rows))
                elif last:
                    break
        connection.close()


class Crowd:
    def __init__(self, args):
        self.args = args
        self.stopping = threading.Event()   # writers end
        self.written = threading.Event()    # all writers have ended
        self.lock = threading.Lock()
        self.counters = {"done": 0}

    def count(self, what, n=1):
        with self.lock:
            self.counters[what] = self.counters.get(what, 0) + n

    def report(self):
        with self.lock:
            line = json.dumps(self.counters)
        print(line, flush=True)

    def terminate(self):
        """Ends random sessions, wherever they happen to be."""
        connection = Connection(self.args, "terminator")
        while not self.stopping.wait(self.args.kill / 1000):
            connection.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'writer' ORDER BY random() LIMIT 1")
        connection.close()

    def listen(self):
        sys.stdin.read()
        self.stopping.set()

    def run(self):
        writers = [Writer(self, n) for n in range(self.args.clients)]
        readers = [Reader(self, n) for n in range(self.args.readers)
                   ] if self.args.read else []
        others = [threading.Thread(target=self.listen, daemon=True)]
        if self.args.kill:
            others.append(threading.Thread(target=self.terminate, daemon=True))
        for thread in writers + readers + others:
            thread.start()
        while not self.stopping.wait(0.1):
            self.report()
        for thread in writers:
            thread.join()
        self.written.set()
        for thread in readers:
            thread.join()
        self.report()


def main():
    parser = argparse.ArgumentParser(description="concurrent writers")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--db", default="postgres")
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--async", type=int, default=0, dest="asynchronous")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--read")
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--after", type=int, default=0)
    Crowd(parser.parse_args()).run()


if __name__ == "__main__":
    main()
