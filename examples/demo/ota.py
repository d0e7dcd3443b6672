"""ota.py JOURNAL PORT-FILE HOOK-URL: a stand-in for an online travel agency's API for rates, availability and bookings.

    PUT /v1/listings/{listing}/rates/{night}    sets a night's price and availability; answers what it had before
    GET /v1/listings/{listing}/rates/{night}    what is set
    DELETE ...                                  takes it away
    GET /v1/rates                               every night, with all that was ever applied to it, in that order
    GET /v1/nights?page=N                       what is set, by pages
    GET /v1/changes?since=N                     bookings made, changed and cancelled here since then, by pages
    GET /v1/bookings                            all of them, as they stand
    POST /v1/close                              no more of them; answers the number of the last change
    POST /v1/meddle                             changes, removes and adds rates behind everybody's back

It wants a bearer token, allows so many requests a second, and misbehaves by plan. Guests book here, too: each second some
bookings are made, changed or cancelled, and now and then a signed webhook says that there is news.
"""
import hashlib
import hmac
import json
import random
import re
import sys
import threading
import time
import urllib.request
from urllib.parse import parse_qs, urlsplit

import stand_in

PATH = re.compile(r'/v1/listings/(\d+)/rates/(\d{4}-\d\d-\d\d)')
FIELDS = ('price', 'available', 'version')

PAGE = 100

lock = threading.Lock()
journal = stand_in.Journal(sys.argv[1])
rates = {}          # (listing, night): all that was applied, in that order
meddled = {}        # (listing, night): what it was changed to here; None: removed
changes = stand_in.Journal(sys.argv[1] + '.bookings')
closed = threading.Event()
limit = stand_in.Limit(rate=300, burst=150)
plan = stand_in.Plan(seed=20270101,
                     odds={'error': 0.01, 'busy': 0.002, 'silence': 0.002, 'stall': 0.003, 'cut': 0.01, 'drop': 0.005},
                     spells=('unavailable', 'error', 'busy', 'stall'))


def apply_entry(entry):
    """Returns what was set before."""
    applied = rates.setdefault((entry['listing'], entry['night']), [])
    applied.append({field: entry[field] for field in FIELDS})
    return applied[-2] if len(applied) > 1 else None


def nights():
    """What is set, as a client sees it."""
    now = {night: applied[-1] for night, applied in rates.items()} | meddled
    return [{'id': f'{listing}/{night}', 'listing': listing, 'night': night} | now[listing, night]
            for listing, night in sorted(now) if now[listing, night] is not None]


def meddle():
    """Somebody works at the site itself: 24 prices, 8 nights taken away, 4 that nobody asked for."""
    dice = random.Random(20270103)
    chosen = dice.sample(sorted(rates), 32)
    for night in chosen[:24]:
        meddled[night] = rates[night][-1] | {'price': 1.5}
    meddled.update({night: None for night in chosen[24:]})
    meddled.update({(99, f'2027-01-0{day}'): {'price': 1, 'available': 1, 'version': 1} for day in range(1, 5)})
    return len(chosen) + 4


# ---- guests ---------------------------------------------------------------------------------------------------------

def bookings():
    return {change['id']: change for change in changes.entries}


def change_booking(dice):
    """A guest books, changes his mind, or cancels."""
    alive = [b for b in bookings().values() if b['status'] == 'confirmed']
    if len(alive) < 5 or dice.random() < 0.5:
        start = dice.randrange(1, 27)
        booking = {'id': f'S{len(bookings()) + 1}', 'listing': dice.randrange(1, 13), 'guest': f'Güest; {dice.randrange(1000)}',
                   'arrives': f'2027-02-{start:02}', 'leaves': f'2027-02-{start + dice.randrange(1, 3):02}',
                   'status': 'confirmed', 'version': 1}
    else:
        booking = dict(dice.choice(alive))
        booking['version'] += 1
        if dice.random() < 0.3:
            booking['status'] = 'cancelled'
        else:
            booking['guest'] = f'Güest; {dice.randrange(1000)}'
    changes.append(booking | {'seq': len(changes.entries) + 1})


def notify(number):
    """A webhook: nothing but that there is news. One that fails is not sent again: there is the feed."""
    body = json.dumps({'type': 'news', 'id': f'n{number}'}).encode()
    signature = hmac.new(stand_in.HOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()
    request = urllib.request.Request(sys.argv[3], body, {'X-Signature': 'sha256=' + signature})
    try:
        with urllib.request.urlopen(request, timeout=5):
            pass
    except OSError:
        pass


def live():
    dice = random.Random(len(changes.entries))
    while not closed.is_set():
        with lock:
            change_booking(dice)
            number = len(changes.entries)
        if number % 5 == 0:
            notify(number)
        time.sleep(0.25)


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
            meddled.pop((listing, night), None)
        self.confirm(fault, 200, {'applied': entry, 'before': before})

    def do_DELETE(self):
        match = PATH.fullmatch(self.path)
        if not self.is_authorized():
            return
        with lock:
            found = match and meddled.pop((int(match[1]), match[2]), None)
        self.answer(200 if found else 404, {})

    def do_POST(self):
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        if not self.is_authorized():
            return
        with lock:
            if self.path == '/v1/close':
                closed.set()
                self.answer(200, len(changes.entries))
            elif self.path == '/v1/meddle':
                self.answer(200, meddle())
            else:
                self.answer(404, {'error': 'no such path'})

    def get_page(self, url):
        """The lists that go by pages: None when it is none of them."""
        number = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
        with lock:
            if url.path == '/v1/nights':
                first = (number['page'] - 1) * PAGE
                return nights()[first:first + PAGE]
            if url.path == '/v1/changes':
                page = changes.entries[number['since']:number['since'] + PAGE]
                return {'changes': page, 'last': number['since'] + len(page)}
            if url.path == '/v1/bookings':
                return list(bookings().values())
        return None

    def do_GET(self):
        match = PATH.fullmatch(self.path)
        if not self.is_authorized():
            return
        page = self.get_page(urlsplit(self.path))
        if page is not None:
            fault = plan.draw() if self.path.startswith('/v1/changes') else None
            if fault in stand_in.UNDONE:
                self.refuse(fault)
            else:
                self.confirm(fault, 200, page)
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
threading.Thread(target=live, daemon=True).start()
stand_in.serve(Ota, sys.argv[2])
