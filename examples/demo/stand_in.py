"""What the demo's stand-ins have in common: an HTTP server that misbehaves as real APIs do.

A stand-in keeps what it accepted in a journal, one JSON document a line, written before it answers, and reads it back
when it starts. How each request is treated is drawn from a seeded plan; the misbehaviours are:

    error          500, and nothing was done
    late_error     500, although it was done
    busy           429 with Retry-After in seconds; nothing was done
    unavailable    503 with Retry-After as a date; nothing was done
    silence        no answer at all; nothing was done
    stall          done; half of the answer, and then nothing more
    cut            done; half of the answer, and the connection is closed
    drop           done; the connection is closed without an answer

What is done is done before the answer, never after it: so a request whose client has gone does nothing late.
"""
import email.utils
import json
import os
import random
import select
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The credentials the demo's channels are configured with (channels.sql).
OTA_TOKEN = 'demo-token'
MESSAGING_KEY = 'demo-key'
HOOK_SECRET = 'demo-hook-secret'

UNDONE = ('error', 'busy', 'unavailable', 'silence')
PATIENCE = 15       # seconds a silent connection is kept at most


class Plan:
    """Which request meets what. odds: of each misbehaviour; spells: that now and then one of them holds for a while."""

    def __init__(self, seed, odds, spells=()):
        self.dice = random.Random(seed)
        self.kinds = [None, *odds]
        self.weights = [1 - sum(odds.values()), *odds.values()]
        self.spells = spells
        self.lock = threading.Lock()
        self.kind = None
        self.until = self.begins = 0
        if spells:
            self.plan_spell(time.monotonic())

    def plan_spell(self, now):
        self.kind = self.dice.choice(self.spells)
        self.begins = now + self.dice.uniform(4, 8)
        self.until = self.begins + self.dice.uniform(0.8, 1.6)

    def draw(self):
        with self.lock:
            now = time.monotonic()
            if self.spells and now >= self.until:
                self.plan_spell(now)
            if self.spells and now >= self.begins:
                return self.kind
            return self.dice.choices(self.kinds, self.weights)[0]


class Limit:
    """A token bucket: so many requests a second, and a burst."""

    def __init__(self, rate, burst):
        self.rate, self.burst = rate, burst
        self.tokens, self.at = burst, time.monotonic()
        self.lock = threading.Lock()

    def take(self):
        with self.lock:
            now = time.monotonic()
            self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
            self.at = now
            if self.tokens < 1:
                return False
            self.tokens -= 1
            return True


class Journal:
    """What was accepted, for good."""

    def __init__(self, path):
        self.entries = []
        if os.path.exists(path):
            with open(path, encoding='utf-8') as file:
                self.entries = [json.loads(line) for line in file]
        self.file = open(path, 'a', encoding='utf-8')

    def append(self, entry):
        self.file.write(json.dumps(entry) + '\n')
        self.file.flush()
        self.entries.append(entry)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        pass        # a client that has gone away


class Handler(BaseHTTPRequestHandler):
    """A request handler with answers that can go wrong."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    wbufsize = 65536

    def log_message(self, *arguments):
        pass

    def read_json(self):
        """The request's body; None when it is not a JSON object."""
        try:
            document = json.loads(self.rfile.read(int(self.headers.get('Content-Length', 0))))
        except ValueError:
            return None
        return document if isinstance(document, dict) else None

    def answer(self, status, document, headers=(), cut=False):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:len(body) // 2] if cut else body)
        self.wfile.flush()

    def refuse(self, fault):
        """Answers a request that nothing was done about."""
        if fault == 'error':
            self.answer(500, {'error': 'something broke'})
        elif fault == 'busy':
            self.answer(429, {'error': 'too many requests'}, [('Retry-After', '1')])
        elif fault == 'unavailable':
            self.answer(503, {'error': 'maintenance'},
                        [('Retry-After', email.utils.formatdate(time.time() + 1, usegmt=True))])
        else:
            self.wait_for_client()

    def confirm(self, fault, status, document, headers=()):
        """Answers a request that was done; or fails to."""
        if fault is None:
            self.answer(status, document, headers)
        elif fault == 'late_error':
            self.answer(500, {'error': 'something broke'})
        elif fault == 'drop':
            self.close_connection = True
        else:
            self.answer(status, document, headers, cut=True)
            if fault == 'stall':
                self.wait_for_client()
            self.close_connection = True

    def wait_for_client(self):
        """Says nothing more until the client gives up."""
        select.select([self.connection], [], [], PATIENCE)
        self.close_connection = True


def serve(handler, port_file):
    """Serves for ever on 127.0.0.1: on a free port, whose number is written to a file once it is open; or on the port
    it had before, when there is that file."""
    port = 0
    if os.path.exists(port_file):
        with open(port_file, encoding='ascii') as file:
            port = int(file.read())
    with Server(('127.0.0.1', port), handler) as server:
        with open(port_file + '.new', 'w', encoding='ascii') as file:
            file.write(str(server.server_address[1]))
        os.rename(port_file + '.new', port_file)
        server.serve_forever()
