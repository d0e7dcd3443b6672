"""messaging.py JOURNAL PORT-FILE: a stand-in for a service that sends messages to guests.

    POST /messages    sends one; needs an Idempotency-Key
    GET /messages     everything that was sent, in that order, and how many repeats were recognised

A request with a key it knows gets the answer of the first one, and nothing is sent; with a known key and other content
it is refused (422). It wants an API key, and misbehaves by plan: above all, it sends and then fails to say so.
"""
import hashlib
import json
import sys
import threading

import stand_in

FIELDS = ('booking', 'no', 'guest', 'body')

lock = threading.Lock()
journal = stand_in.Journal(sys.argv[1])
answers = {entry['key']: entry for entry in journal.entries}
recognised = 0
plan = stand_in.Plan(seed=20270102, odds={'error': 0.03, 'late_error': 0.03, 'silence': 0.01, 'stall': 0.01,
                                          'cut': 0.02, 'drop': 0.03})


class Messaging(stand_in.Handler):
    def is_authorized(self):
        if self.headers.get('X-Api-Key') == stand_in.MESSAGING_KEY:
            return True
        self.answer(401, {'error': 'no valid key'})
        return False

    def do_POST(self):
        document = self.read_json()
        key = self.headers.get('Idempotency-Key')
        if not self.is_authorized():
            return
        if self.path != '/messages':
            self.answer(404, {'error': 'no such path'})
        elif not key:
            self.answer(400, {'error': 'Idempotency-Key is missing'})
        elif document is None or any(field not in document for field in FIELDS):
            self.answer(422, {'error': 'booking, no, guest and body must be given'})
        else:
            self.send_message(key, document)

    def send_message(self, key, document):
        fault = plan.draw()
        if fault in stand_in.UNDONE:
            self.refuse(fault)
            return
        content = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        entry, repeated = self.send_once(key, content, document)
        if entry['content'] != content:
            self.answer(422, {'error': 'this key was used with other content'})
        else:
            self.confirm(fault, 201, {'message': entry['id']}, [('Idempotent-Replayed', 'true')] if repeated else [])

    @staticmethod
    def send_once(key, content, document):
        """Returns the entry of the message, and whether it had been sent before."""
        global recognised
        with lock:
            entry = answers.get(key)
            if entry is not None:
                recognised += 1
                return entry, True
            entry = {'id': len(journal.entries) + 1, 'key': key, 'content': content} | {
                field: document[field] for field in FIELDS}
            journal.append(entry)
            answers[key] = entry
            return entry, False

    def do_GET(self):
        if not self.is_authorized():
            return
        with lock:
            sent = [{field: entry[field] for field in FIELDS} for entry in journal.entries]
        if self.path == '/messages':
            self.answer(200, {'sent': sent, 'recognised': recognised})
        else:
            self.answer(404, {'error': 'no such path'})


stand_in.serve(Messaging, sys.argv[2])
