#!/usr/bin/env python3
"""stub.py: the external channel of the tests, a scripted HTTP/1.1 server.

It listens on 127.0.0.1, prints its port as the first line of standard output
and lives until standard input closes or SIGTERM arrives, so that it never
outlives the test that started it.

  --port N         listen there (default: any free port)
  --cert, --key    speak TLS
  --client-ca F    ... with those who show a certificate that this one signed
  --log FILE       append every request as a line of JSON, when it arrives
  --idempotent     honour Idempotency-Key (see below)
  --stay           do not end when standard input closes
  --pulse          measure how late this process itself runs: counter "late"

Every request is answered 200 {} unless a rule says otherwise. Control is by
requests under /_stub/, which are neither logged nor counted:

  POST /_stub/script   a JSON list of rules; replaces the earlier ones
  POST /_stub/gate     {"name": "g", "open": true}
  GET  /_stub/log      requests as lines of JSON; ?after=N: only later ones
  GET  /_stub/count    counters; ?at_least=N&timeout_ms=T waits for N requests,
                       ?answered=N&timeout_ms=T for N answers
  GET  /_stub/applied  what --idempotent took effect
  POST /_stub/reset    forgets rules, log, counters and keys; opens all gates

A rule is {"match": {...}, "do": {...}}; the first that matches is used.

  match  path_regex  searched in the target, query included
         method
         header      {"Name": "regex", ...}
         body_regex
         times       the rule is used up after so many requests
  do     status, reason, headers (an object; a list for a repeated name)
         body (a string, or any JSON value), body_base64
         big_body_bytes n    a body of so many letters
         nul, invalid_utf8   a body that holds such bytes
         redirect url        302 with that Location
         chunked             chunked transfer coding
         delay_ms n          answer so much later
         gate name           answer when that gate is opened
         hang                never answer
         close_before_response, reset    close, or RST, instead of an answer
         garbage             bytes that are not HTTP
         endless_headers     headers without end
         stall_after_bytes n   so much of the body, then silence
         cut_after_bytes n     so much of the body, then a close
         stream_bytes n        a body of so many bytes, made as it is sent
         raw                   these bytes (a string of latin-1), then a close
         drip {bytes, every_ms}   the body in small pieces
         apply bool          for --idempotent: whether the request takes effect
                             (default: when the status is below 300)
         limit {amount, period, hints, retry_after}
                             a server's own rate limit: amount requests in a
                             window of period seconds, which begins with its
                             first request; each one more is refused, 429, and
                             counted. One window for each rule and what the
                             group of path_regex matched. hints: x (headers
                             X-RateLimit-*), epoch (the same, reset at a time),
                             plain (RateLimit-*), draft (RateLimit: r=, t=).
                             retry_after: seconds (the rest of the window) or
                             date

delay_ms and gate combine with all others.

A line of the log has the time of arrival ("time") and that at which the answer
was given or given up ("ended"). /_stub/count also has what the rate limits let
pass and refused, summed over all of them.

With --idempotent the first request under a key takes effect and its answer is
kept, whether or not it could be sent; a repetition gets the kept answer and
Idempotent-Replayed: true, 409 while the first is still being answered, and
422 when its method, path or body differ. An answer that took no effect is not
kept. Requests without a key always take effect.
"""
import argparse
import asyncio
import base64
import hashlib
import json
import math
import os
import re
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

REASONS = {s.value: s.phrase for s in HTTPStatus}
SLOW = ("delay_ms", "gate", "hang", "endless_headers", "stall_after_bytes",
        "drip", "big_body_bytes", "stream_bytes")
KNOWN_DO = set(SLOW) | {
    "status", "reason", "headers", "body", "body_base64", "nul",
    "invalid_utf8", "redirect", "chunked", "close_before_response", "reset",
    "garbage", "cut_after_bytes", "apply", "raw", "limit"}
KNOWN_MATCH = {"path_regex", "method", "header", "body_regex", "times"}


class Request:
    """One request as it arrived, and what became of it."""
    __slots__ = ("n", "time", "method", "path", "headers", "body", "answered",
                 "ended", "connection")

    def __init__(self, n, method, path, headers, body, connection):
        self.n = n
        self.time = time.time()
        self.method = method
        self.path = path
        self.headers = headers      # lower-case names
        self.body = body
        self.answered = None        # the status, once it was sent whole
        self.ended = None           # when it was over
        self.connection = connection

    def as_json(self):
        row = {"n": self.n, "time": self.time, "method": self.method,
               "path": self.path, "headers": self.headers,
               "answered": self.answered, "ended": self.ended,
               "connection": self.connection}
        try:
            row["body"] = self.body.decode("utf-8")
        except UnicodeDecodeError:
            row["body_base64"] = base64.b64encode(self.body).decode("ascii")
        return json.dumps(row)


class Rule:
    """A line of the script."""

    def __init__(self, spec):
        match, do = spec.get("match", {}), spec.get("do", {})
        unknown = (set(spec) - {"match", "do"} | set(match) - KNOWN_MATCH
                   | set(do) - KNOWN_DO)
        if unknown:
            raise ValueError("unknown word in rule: %s" % sorted(unknown))
        self.path = re.compile(match.get("path_regex", ""))
        self.method = match.get("method")
        self.header = {name.lower(): re.compile(pattern) for name, pattern
                       in match.get("header", {}).items()}
        body = match.get("body_regex")
        self.body = re.compile(body.encode("utf-8")) if body else None
        self.left = match.get("times", -1)
        self.do = do

    def takes(self, request):
        found = self.path.search(request.path)
        if (self.left == 0
                or self.method and self.method != request.method
                or not found
                or self.body and not self.body.search(request.body)):
            return False
        for name, pattern in self.header.items():
            value = request.headers.get(name)
            if value is None or not pattern.search(value):
                return False
        self.left -= 1
        self.group = found.group(1) if self.path.groups else None
        return True


class Window:
    """What one rate limit has seen in its current window."""

    def __init__(self, spec):
        unknown = set(spec) - {"amount", "period", "hints", "retry_after"}
        if unknown:
            raise ValueError("unknown word in limit: %s" % sorted(unknown))
        self.spec = spec
        self.end = 0
        self.used = 0

    def take(self):
        """Whether one more may pass now, and the headers that say how many."""
        now = time.time()
        if now >= self.end:
            self.end = now + self.spec["period"]
            self.used = 0
        amount = self.spec["amount"]
        passed = self.used < amount
        self.used += passed
        remaining = amount - self.used
        rest = math.ceil(self.end - now)
        hints = self.spec.get("hints")
        headers = []
        if hints in ("x", "epoch", "plain"):
            prefix = "RateLimit-" if hints == "plain" else "X-RateLimit-"
            reset = math.ceil(self.end) if hints == "epoch" else rest
            headers = [(prefix + "Limit", amount),
                       (prefix + "Remaining", remaining),
                       (prefix + "Reset", reset)]
        elif hints == "draft":
            headers = [("RateLimit-Policy", '"default";q=%d;w=%d'
                        % (amount, math.ceil(self.spec["period"]))),
                       ("RateLimit", '"default";r=%d;t=%d'
                        % (remaining, rest))]
        if not passed and self.spec.get("retry_after") == "seconds":
            headers.append(("Retry-After", rest))
        elif not passed and self.spec.get("retry_after") == "date":
            headers.append(("Retry-After",
                            formatdate(math.ceil(self.end), usegmt=True)))
        return passed, headers


class Answer:
    """Status, headers and body, apart from how they are sent."""
    __slots__ = ("status", "reason", "headers", "body")

    def __init__(self, status=200, headers=(), body=b"{}", reason=None):
        self.status = status
        self.reason = reason or REASONS.get(status, "Unknown")
        self.headers = list(headers)
        self.body = body

    def head(self, chunked=False):
        lines = ["HTTP/1.1 %d %s" % (self.status, self.reason)]
        names = {name.lower() for name, _ in self.headers}
        if "content-type" not in names:
            lines.append("Content-Type: application/json")
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.status != 204 and "content-length" not in names:
            lines.append("Content-Length: %d" % len(self.body))
        lines.extend("%s: %s" % header for header in self.headers)
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


PLAIN = Answer()


def make_answer(do):
    """The answer that a rule's do part describes."""
    if not do:
        return PLAIN
    headers = []
    for name, value in do.get("headers", {}).items():
        for one in value if isinstance(value, list) else [value]:
            headers.append((name, one))
    status = do.get("status", 302 if "redirect" in do else 200)
    if "redirect" in do:
        headers.append(("Location", do["redirect"]))
    if "big_body_bytes" in do:
        body = b"x" * do["big_body_bytes"]
    elif "body_base64" in do:
        body = base64.b64decode(do["body_base64"])
    elif do.get("nul"):
        body = b'{"nul": "a\0b"}'
    elif do.get("invalid_utf8"):
        body = b'{"bytes": "\xc3\x28 \xff\xfe \xed\xa0\x80"}'
    elif isinstance(do.get("body"), str):
        body = do["body"].encode("utf-8")
    elif "body" in do:
        body = json.dumps(do["body"]).encode("utf-8")
    else:
        body = b"" if status == 204 else b"{}"
    return Answer(status, headers, body, do.get("reason"))


class Kept:
    """What is kept under an idempotency key."""
    __slots__ = ("fingerprint", "answer", "busy", "replays")

    def __init__(self, fingerprint, answer):
        self.fingerprint = fingerprint
        self.answer = answer
        self.busy = True
        self.replays = 0


class Stub:
    """Everything the connections share."""

    def __init__(self, idempotent=False, log=None):
        self.idempotent = idempotent
        self.log_file = log
        self.open = 0
        self.late = 0
        self.gates = {}
        self.waiters = set()
        self.reset()

    def reset(self):
        self.rules = []
        self.log = []
        self.answered = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.connections = 0
        self.kept = {}
        self.anonymous = 0
        self.windows = {}
        self.passed = 0
        self.refused = 0
        for gate in self.gates.values():
            gate.set()
        self.gates = {}

    def record(self, method, path, headers, body, connection):
        request = Request(len(self.log) + 1, method, path, headers, body,
                          connection)
        self.log.append(request)
        self.in_flight += 1
        if self.in_flight > self.max_in_flight:
            self.max_in_flight = self.in_flight
        if self.log_file:
            self.log_file.write(request.as_json() + "\n")
            self.log_file.flush()
        self.tell()
        return request

    def finish(self, request, status):
        """The request is over: answered with status, or, None, without."""
        # A request of before a reset counts no longer.
        if request.n > len(self.log) or self.log[request.n - 1] is not request:
            return
        self.in_flight -= 1
        request.ended = time.time()
        if status is not None:
            request.answered = status
            self.answered += 1
            self.tell()

    async def pulse(self):
        """Watches for times during which this process did not run."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            self.late = max(self.late, time.monotonic() - before - 0.005)

    def tell(self):
        for waiter in self.waiters:
            waiter.set()

    def gate(self, name):
        return self.gates.setdefault(name, asyncio.Event())

    def decide(self, request):
        """What to do, the answer, and the key that is kept busy meanwhile."""
        for rule in self.rules:
            if rule.takes(request):
                do = rule.do
                break
        else:
            do = {}
        answer = make_answer(do)
        if "limit" in do:
            answer = self.decide_limit(rule, answer)
        if not self.idempotent:
            return do, answer, None
        return self.decide_idempotent(request, do, answer)

    def decide_limit(self, rule, answer):
        """The answer, or a refusal, with what the limit has to say."""
        # Not of the rule itself: it lasts when the script is replaced.
        spec = rule.do["limit"]
        name = (rule.path.pattern, json.dumps(spec, sort_keys=True),
                rule.group)
        window = self.windows.get(name)
        if window is None:
            window = self.windows[name] = Window(spec)
        passed, headers = window.take()
        self.passed += passed
        self.refused += not passed
        if not passed:
            answer = Answer(429, body=b'{"error": "too many requests"}')
        return Answer(answer.status, answer.headers + headers, answer.body,
                      answer.reason)

    def decide_idempotent(self, request, do, answer):
        apply = do.get("apply", answer.status < 300)
        key = request.headers.get("idempotency-key")
        if key is None:
            self.anonymous += apply
            return do, answer, None
        fingerprint = hashlib.sha256(b"\0".join(
            [request.method.encode(), request.path.encode(), request.body]))
        fingerprint = fingerprint.digest()
        kept = self.kept.get(key)
        if kept is None:
            if apply:
                kept = self.kept[key] = Kept(fingerprint, answer)
            return do, answer, kept
        if kept.fingerprint != fingerprint:
            return {}, Answer(422, body=b'{"error": "key reused"}'), None
        if kept.busy:
            return {}, Answer(409, body=b'{"error": "in flight"}'), None
        kept.replays += 1
        first = kept.answer
        headers = first.headers + [("Idempotent-Replayed", "true")]
        return do, Answer(first.status, headers, first.body,
                          first.reason), None

    def counters(self):
        return {"count": len(self.log), "answered": self.answered,
                "in_flight": self.in_flight, "connections": self.connections,
                "max_in_flight": self.max_in_flight, "open": self.open,
                "passed": self.passed, "refused": self.refused,
                "late": self.late}

    async def wait_for(self, counter, wanted, timeout_ms):
        """Waits until the counter has come so far; never longer than told."""
        waiter = asyncio.Event()
        self.waiters.add(waiter)
        deadline = time.monotonic() + timeout_ms / 1000
        try:
            while self.counters()[counter] < wanted:
                waiter.clear()
                await asyncio.wait_for(waiter.wait(),
                                       deadline - time.monotonic())
        except asyncio.TimeoutError:
            pass
        finally:
            self.waiters.discard(waiter)

    async def control(self, method, path, body):
        """A request under /_stub/: its answer."""
        url = urlsplit(path)
        query = {name: int(values[0])
                 for name, values in parse_qs(url.query).items()}
        what = (method, url.path[len("/_stub/"):])
        if what == ("POST", "script"):
            self.rules = [Rule(spec) for spec in json.loads(body)]
        elif what == ("POST", "gate"):
            spec = json.loads(body)
            gate = self.gate(spec["name"])
            if spec.get("open", True):
                gate.set()
            else:
                gate.clear()
        elif what == ("POST", "reset"):
            self.reset()
        elif what == ("GET", "log"):
            rows = self.log[query.get("after", 0):]
            text = "".join(row.as_json() + "\n" for row in rows)
            return Answer(headers=[("Content-Type", "application/x-ndjson")],
                          body=text.encode("utf-8"))
        elif what == ("GET", "count"):
            timeout_ms = query.get("timeout_ms", 0)
            if "at_least" in query:
                await self.wait_for("count", query["at_least"], timeout_ms)
            if "answered" in query:
                await self.wait_for("answered", query["answered"], timeout_ms)
            return Answer(body=json.dumps(self.counters()).encode())
        elif what == ("GET", "applied"):
            keys = {key: {"replays": kept.replays}
                    for key, kept in self.kept.items()}
            return Answer(body=json.dumps(
                {"keys": keys, "anonymous": self.anonymous}).encode())
        else:
            return Answer(404, body=b'{"error": "no such control"}')
        return Answer()


class Connection(asyncio.Protocol):
    """One client. Requests are read one at a time, so that the answers of
    pipelined ones keep their order."""

    def __init__(self, stub):
        self.stub = stub
        self.buffer = bytearray()
        self.task = None            # a slow answer in the making
        self.request = None         # ... to this
        self.kept = None
        self.continued = False

    def connection_made(self, transport):
        self.transport = transport
        self.stub.connections += 1
        self.stub.open += 1
        self.number = self.stub.connections
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_lost(self, exc):
        self.stub.open -= 1
        self.writable.set()
        if self.task:
            self.task.cancel()

    def pause_writing(self):
        self.writable.clear()

    def resume_writing(self):
        self.writable.set()

    def data_received(self, data):
        self.buffer += data
        self.serve()

    def serve(self):
        """Answers what can be answered; stops at the first slow one."""
        while self.task is None and not self.transport.is_closing():
            try:
                parsed = self.parse()
            except ValueError as error:
                body = json.dumps({"error": str(error)}).encode()
                answer = Answer(400, [("Connection", "close")], body)
                self.transport.write(answer.head() + body)
                self.transport.close()
                return
            if parsed is None:
                return
            method, path, headers, body = parsed
            if path.startswith("/_stub/"):
                self.start(self.answer_control(method, path, headers, body))
            else:
                self.answer(method, path, headers, body)

    def parse(self):
        """The next whole request, taken out of the buffer, or None."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise ValueError("bad request line")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError("bad header line")
            name = name.lower()
            value = value.strip()
            if name in headers:
                value = headers[name] + ", " + value
            headers[name] = value
        start = end + 4
        if headers.get("transfer-encoding", "").lower() == "chunked":
            whole = self.parse_chunks(start)
        else:
            stop = start + int(headers.get("content-length", 0))
            whole = None
            if len(self.buffer) >= stop:
                whole = bytes(self.buffer[start:stop]), stop
        if whole is None:
            if headers.get("expect") == "100-continue" and not self.continued:
                self.continued = True
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self.continued = False
        body, stop = whole
        del self.buffer[:stop]
        return parts[0], parts[1], headers, body

    def parse_chunks(self, start):
        """A chunked body that begins there: the body and its end, or None."""
        body = bytearray()
        while True:
            line = self.buffer.find(b"\r\n", start)
            if line < 0:
                return None
            size = int(self.buffer[start:line].split(b";")[0], 16)
            stop = line + 2 + size + 2
            if len(self.buffer) < stop:
                return None
            if size == 0:
                return bytes(body), stop
            body += self.buffer[line + 2:stop - 2]
            start = stop

    def answer(self, method, path, headers, body):
        request = self.stub.record(method, path, headers, body, self.number)
        do, answer, self.kept = self.stub.decide(request)
        self.request = request
        for word in SLOW:
            if word in do:
                self.start(self.answer_slowly(do, answer))
                return
        self.send(do, answer)

    def start(self, coroutine):
        self.task = asyncio.get_running_loop().create_task(coroutine)
        self.task.add_done_callback(self.task_done)

    def task_done(self, task):
        self.task = None
        if not task.cancelled() and task.exception():
            raise task.exception()
        self.over(None)
        self.serve()

    def over(self, status):
        """The current request is over, if it was not already."""
        if self.kept:
            self.kept.busy = False
            self.kept = None
        if self.request:
            self.stub.finish(self.request, status)
            self.request = None

    async def answer_control(self, method, path, headers, body):
        try:
            answer = await self.stub.control(method, path, body)
        except (ValueError, KeyError, TypeError, re.error) as error:
            answer = Answer(400, body=json.dumps(
                {"error": repr(error)}).encode())
        self.transport.write(answer.head() + answer.body)
        if headers.get("connection", "").lower() == "close":
            self.transport.close()

    def send(self, do, answer):
        """Sends an answer, or what the rule wants instead, at once."""
        if do.get("reset"):
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                            struct.pack("ii", 1, 0))
            self.over(None)
            self.transport.abort()
        elif do.get("close_before_response"):
            self.over(None)
            self.transport.close()
        elif do.get("garbage"):
            self.over(None)
            self.transport.write(b"\x16\x03\x01 this is not HTTP \0\xff\r\n" * 9)
            self.transport.close()
        elif "raw" in do:
            self.over(None)
            self.transport.write(do["raw"].encode("latin-1"))
            self.transport.close()
        elif "cut_after_bytes" in do:
            self.over(None)
            body = answer.body.ljust(do["cut_after_bytes"] + 1)
            whole = Answer(answer.status, answer.headers, body, answer.reason)
            self.transport.write(whole.head() + body[:do["cut_after_bytes"]])
            self.transport.close()
        else:
            self.send_whole(do, answer)

    def send_whole(self, do, answer):
        body = b"" if self.request.method == "HEAD" else answer.body
        closing = self.request.headers.get("connection", "").lower() == "close"
        # Counted before the bytes leave: whoever has the answer finds it so.
        self.over(answer.status)
        if do.get("chunked"):
            half = len(body) // 2 or len(body)
            pieces = [piece for piece in (body[:half], body[half:]) if piece]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece)
                            for piece in pieces) + b"0\r\n\r\n"
        self.transport.write(answer.head(bool(do.get("chunked"))) + body)
        if closing:
            self.transport.close()

    async def answer_slowly(self, do, answer):
        """The same with waiting; cancelled when the client goes away."""
        if "gate" in do:
            await self.stub.gate(do["gate"]).wait()
        if "delay_ms" in do:
            await asyncio.sleep(do["delay_ms"] / 1000)
        if do.get("hang"):
            await asyncio.Event().wait()
        elif do.get("endless_headers"):
            await self.send_endless_headers()
        elif "stall_after_bytes" in do:
            body = answer.body.ljust(do["stall_after_bytes"] + 1)
            whole = Answer(answer.status, answer.headers, body, answer.reason)
            self.transport.write(whole.head() + body[:do["stall_after_bytes"]])
            await asyncio.Event().wait()
        elif "stream_bytes" in do:
            await self.send_stream(do["stream_bytes"], answer)
        elif "drip" in do:
            await self.send_drop_by_drop(do["drip"], answer)
        else:
            self.send(do, answer)

    async def send_endless_headers(self):
        self.transport.write(b"HTTP/1.1 200 OK\r\n")
        number = 0
        while not self.transport.is_closing():
            await self.writable.wait()
            self.transport.write(b"X-Endless-%d: %s\r\n" % (number, b"y" * 900))
            number += 1
            await asyncio.sleep(0)

    async def send_stream(self, left, answer):
        answer.headers.append(("Content-Length", str(left)))
        self.transport.write(answer.head())
        piece = b"z" * 65536
        while left > 0 and not self.transport.is_closing():
            await self.writable.wait()
            self.transport.write(piece[:left])
            left -= len(piece)
            await asyncio.sleep(0)
        if left <= 0:
            self.over(answer.status)

    async def send_drop_by_drop(self, drip, answer):
        size = drip.get("bytes", 1)
        self.transport.write(answer.head())
        for at in range(0, len(answer.body), size):
            await asyncio.sleep(drip.get("every_ms", 10) / 1000)
            self.transport.write(answer.body[at:at + size])
        self.over(answer.status)


def stop_when_stdin_closes(loop, stop):
    """In a thread, because not every kind of standard input can be polled."""
    def drain():
        while os.read(sys.stdin.fileno(), 4096):
            pass                # not buffered: its lock would outlive us
        loop.call_soon_threadsafe(stop.set)
    threading.Thread(target=drain, daemon=True).start()


async def run(args):
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    log = open(args.log, "a", encoding="utf-8") if args.log else None
    stub = Stub(args.idempotent, log)
    context = None
    if args.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(args.cert, args.key)
        if args.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(args.client_ca)
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1",
                                      args.port, ssl=context, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    pulse = loop.create_task(stub.pulse()) if args.pulse else None
    if not args.stay:
        stop_when_stdin_closes(loop, stop)
    await stop.wait()
    if pulse:
        pulse.cancel()
    server.close()


def main():
    parser = argparse.ArgumentParser(description="scripted HTTP server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cert")
    parser.add_argument("--client-ca")
    parser.add_argument("--key")
    parser.add_argument("--log")
    parser.add_argument("--idempotent", action="store_true")
    parser.add_argument("--stay", action="store_true")
    parser.add_argument("--pulse", action="store_true")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
