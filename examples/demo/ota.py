"""ota.py JOURNAL PORT-FILE: a stand-in for an online travel agency's API for rates and availability.

    PUT /v1/listings/{listing}/rates/{night}    sets a night's price and availability; answers what it had before
    GET /v1/listings/{listing}/rates/{night}    what is set
    GET /v1/rates                               every night, with all that was ever applied to it, in that order

It wants a bearer token, allows so many requests a second, and misbehaves by plan.
"""
import re
import sys
import threading

import stand_in

PATH = re.compile(r'/v1/listings/(\d+)/rates/(\d{4}-\d\d-\d\d)')
FIELDS = ('price', 'available', 'version')

lock = threading.Lock()
journal = stand_in.Journal(sys.argv[1])
rates = {}          # (listing, night): all that was applied, in that order
limit = stand_in.Limit(rate=300, burst=150)
plan = stand_in.Plan(seed=20270101,
                     odds={'error': 0.01, 'busy': 0.002, 'silence': 0.002, 'stall': 0.003, 'cut': 0.01, 'drop': 0.005},
                     spells=('unavailable', 'error', 'busy', 'stall'))


def apply_entry(entry):
    """Returns what was set before."""
    applied = rates.setdefault((entry['listing'], entry['night']), [])
    applied.append({field: entry[field] for field in FIELDS})
    return applied[-2] if len(applied) > 1 else None


class Ota(stand_in.Handler):
    def is_authorized(self):
        if self.headers.get('Authorization') == 'Bearer ' + stand_in.OTA_TOKEN:
            return True
        self.answer(401, {'error': 'no valid token'}, [('WWW-Authenticate', 'Bearer')])
        return False

    def do_PUT(self):
        document = self.read_json()
        match = PATH.fullmatch(self.path)
        if not self.is_authorized():
            return
        if not match:
            self.answer(404, {'error': 'no such path'})
        elif document is None or any(not isinstance(document.get(field), (int, float)) for field in FIELDS):
            self.answer(422, {'error': 'price, available and version must be numbers'})
        elif not limit.take():
            self.refuse('busy')
        else:
            self.set_rate(int(match[1]), match[2], document)

    def set_rate(self, listing, night, document):
        fault = plan.draw()
        if fault in stand_in.UNDONE:
            self.refuse(fault)
            return
        entry = {'listing': listing, 'night': night} | {field: document[field] for field in FIELDS}
        with lock:
            journal.append(entry)
            before = apply_entry(entry)
        self.confirm(fault, 200, {'applied': entry, 'before': before})

    def do_GET(self):
        match = PATH.fullmatch(self.path)
        if not self.is_authorized():
            return
        with lock:
            everything = [{'listing': listing, 'night': night, 'applied': list(applied)}
                          for (listing, night), applied in rates.items()]
            one = rates.get((int(match[1]), match[2])) if match else None
        if self.path == '/v1/rates':
            self.answer(200, everything)
        elif one:
            self.answer(200, one[-1])
        else:
            self.answer(404, {'error': 'no such path or rate'})


for accepted in journal.entries:
    apply_entry(accepted)
stand_in.serve(Ota, sys.argv[2])
