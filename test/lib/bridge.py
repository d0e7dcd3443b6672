#!/usr/bin/env python3
"""Hands what one database delivers over HTTP to accord.receive() of another one, as a bad network would.

    bridge.py SOURCE DATABASE BEHAVIOUR

SOURCE is who the messages come from; DATABASE how psql connects to the receiving database; BEHAVIOUR a file that is read
for every request, an object of: partition (true: nothing gets through), fail (a part of requests that are answered
with an error, half of them after they took effect), twice (a part that takes effect twice), delay (seconds, at most).
Prints its port, and lives until its standard input ends. The body of a request is the object that accord.receive_batch()
takes as a message.
"""
import http.server
import json
import random
import subprocess
import sys
import threading
import time

source, database, behaviour_file = sys.argv[1:4]


def behaviour():
    with open(behaviour_file) as file:
        return json.load(file)


def receive(body):
    statement = "SELECT accord.receive_batch(:'source', :'messages')"
    done = subprocess.run(['psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'source=' + source, '-v', 'messages=[' + body + ']',
                           '-d', database], input=statement, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
    return done.returncode == 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0))).decode()
        now = behaviour()
        time.sleep(random.random() * now.get('delay', 0))
        dice = random.random()
        fails = now.get('partition') or dice < now.get('fail', 0)
        done = True
        if not fails or not now.get('partition') and dice < now.get('fail', 0) / 2:
            done = receive(body)
            if random.random() < now.get('twice', 0):
                done = receive(body) and done
        self.send_response(503 if fails or not done else 200)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
