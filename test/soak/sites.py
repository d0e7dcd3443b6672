"""sites.py: what is on the other side of the soak: one server that plays all channels, by the first part of the path.

/ok takes everything; /shaky fails one time in ten, by status or by hanging up; /flap is away for 20 s of every minute;
/bearer wants a token that is younger than a minute, which /token grants; /list and /calendar are what feeds ask for, and
change every few seconds. It is one event loop in a thread of its own.
"""
import asyncio
import datetime
import json
import random
import threading
import time
from collections import Counter

from http_site import HttpConnection

LIFETIME = 60       # s, of a token


class Site(HttpConnection):
    """One connection."""

    def __init__(self, sites):
        super().__init__()
        self.sites = sites

    def received(self, target, headers, _):
        name = "/" + target.split("/")[1].split("?")[0]
        status, answer = self.sites.answer(name, headers)
        self.sites.answered[name, status] += 1
        return status, answer.encode()


class Sites(threading.Thread):
    """answered: {(name, status): how often}; status 0 is a connection that was cut."""

    def __init__(self):
        super().__init__(daemon=True)
        self.dice = random.Random(7)
        self.answered = Counter()
        self.granted = {}               # token: when
        self.tokens = 0
        self.well = False               # nothing fails any more
        self.port = None
        self.ready = threading.Event()

    def answer(self, name, headers):
        now = time.monotonic()
        if name == "/shaky" and not self.well and self.dice.random() < 0.1:
            return self.dice.choice((0, 503, 429, 500)), "{}"
        if name == "/flap" and not self.well and now % 60 < 20:
            return self.dice.choice((0, 503)), "{}"
        if name == "/bearer" and now - self.granted.get(headers.get("authorization"), -1e9) > LIFETIME:
            return 401, "{}"
        if name == "/token":
            self.tokens += 1
            self.granted = {token: at for token, at in self.granted.items() if now - at <= LIFETIME}
            self.granted[f"Bearer t{self.tokens}"] = now
            return 200, json.dumps({"access_token": f"t{self.tokens}", "token_type": "Bearer", "expires_in": LIFETIME})
        turn = int(now / 4)
        if name == "/list":
            return 200, json.dumps([{"id": f"i{n}", "n": turn if n % 5 == turn % 5 else 0} for n in range(turn % 3, 50)])
        if name == "/calendar":
            return 200, calendar(turn)
        return 200, "{}"

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Site(self), "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await asyncio.Event().wait()


def calendar(turn):
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//soak//EN"]
    for n in range(turn % 2, 30):
        day = datetime.date(2030, 1, 1) + datetime.timedelta(days=10 * n + turn % 7)
        lines += ["BEGIN:VEVENT", f"UID:u{n}", "DTSTAMP:20260101T000000Z", f"DTSTART;VALUE=DATE:{day:%Y%m%d}",
                  f"DTEND;VALUE=DATE:{day + datetime.timedelta(days=3):%Y%m%d}", "SUMMARY:Reserved", "END:VEVENT"]
    return "\r\n".join(lines + ["END:VCALENDAR", ""])
