"""picture.py CAPTION-FILE: the live picture of the drain, until it is terminated.

On a terminal the picture is drawn over itself four times a second; elsewhere it is one line a second. What it shows
comes from SQL (accord.status and the logs), and its caption from a file that the show writes.
"""
import os
import shutil
import signal
import sys
import time

import database

QUERY = """
SELECT json_build_object(
    'channels', (SELECT json_agg(s ORDER BY s.place) FROM (
        SELECT channel, state, coalesce(owed, 0) AS owed, coalesce(retrying, 0) AS retrying, coalesce(held, 0) AS held,
               coalesce(dead, 0) AS dead, delivered, superseded,
               CASE WHEN last_error_at > now() - interval '5 s' THEN last_error END AS error,
               array_position(ARRAY['ota', 'calendar', 'messaging'], channel) AS place
        FROM accord.status, LATERAL (
            SELECT count(*) FILTER (WHERE outcome = 'delivered') AS delivered,
                   count(*) FILTER (WHERE outcome = 'superseded') AS superseded
            FROM accord.attempt_log a WHERE a.channel = status.channel) done) s),
    'commits', count(*), 'events', coalesce(sum(events), 0),
    'abandoned', (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM abandoned))
FROM accord.commit_log
"""
HEADING = ('channel', 'in step', 'state', 'delivered', 'superseded', 'owed', 'retrying', 'dead', 'latest trouble')
LAYOUT = '{:<10} {:<26} {:<9} {:>9} {:>10} {:>6} {:>8} {:>5}  {}'
BAR = 26


def ask_database():
    """None when the server is away."""
    try:
        return database.ask(QUERY)
    except RuntimeError:
        return None


def read_caption(path):
    try:
        with open(path, encoding='utf-8') as file:
            return file.read().strip()
    except FileNotFoundError:
        return ''


def draw_bar(delivered, owed):
    """Full exactly when nothing is owed."""
    total = delivered + owed
    full = BAR if owed == 0 else min(BAR - 1, BAR * delivered // total)
    return '#' * full + '.' * (BAR - full)


def describe_load(state):
    return '{commits:,} transactions committed with {events:,} events, {abandoned:,} rolled back'.format(**state)


class Terminal:
    """Draws over what it drew before."""

    pause = 0.25

    def __init__(self):
        self.height = 0
        self.colour = {'good': '\033[32m', 'busy': '\033[33m', 'bad': '\033[31m', 'bold': '\033[1m'}

    def paint(self, style, text):
        return self.colour[style] + text + '\033[0m'

    def row(self, channel, width):
        done = channel['delivered'] + channel['superseded']
        text = LAYOUT.format(channel['channel'], draw_bar(done, channel['owed']), channel['state'], channel['delivered'],
                             channel['superseded'], channel['owed'], channel['retrying'], channel['dead'],
                             ' '.join((channel['error'] or '').split()))[:width]
        style = 'bad' if channel['dead'] or channel['held'] else 'busy' if channel['owed'] else 'good'
        return self.paint(style, text)

    def show(self, elapsed, caption, state, away):
        width = shutil.get_terminal_size().columns - 1
        lines = [self.paint('bold', f'{elapsed:5.1f} s  {caption}'[:width])]
        if away:
            lines.append(self.paint('bad', 'the database server is not there'[:width]))
        else:
            lines.append(describe_load(state)[:width] if state else '')
        lines.append(LAYOUT.format(*HEADING)[:width])
        lines += [self.row(channel, width) for channel in (state or {}).get('channels') or ()]
        back = f'\033[{self.height}A' if self.height else ''
        sys.stdout.write('\033[?25l' + back + ''.join(f'\r{line}\033[K\n' for line in lines) + '\033[J')
        sys.stdout.flush()
        self.height = len(lines)

    def close(self):
        sys.stdout.write('\033[?25h')
        sys.stdout.flush()


class Lines:
    """One line a second, and one for each new caption."""

    pause = 1.0

    def __init__(self):
        self.caption = None

    def show(self, elapsed, caption, state, away):
        if caption != self.caption:
            print(f'---- {caption}', flush=True)
            self.caption = caption
        if away:
            parts = ['the database server is not there']
        else:
            parts = [self.describe(channel) for channel in (state or {}).get('channels') or ()]
        print(f'{elapsed:5.1f} s  ' + '   '.join(parts), flush=True)

    @staticmethod
    def describe(channel):
        text = f"{channel['channel']} {channel['delivered']} delivered, {channel['owed']} owed"
        if channel['state'] in ('broken', 'throttled'):
            text += f" ({channel['state']})"
        for name in ('superseded', 'retrying', 'held', 'dead'):
            if channel[name]:
                text += f', {channel[name]} {name}'
        return text

    def close(self):
        pass


def main():
    screen = Terminal() if sys.stdout.isatty() and os.environ.get('TERM', 'dumb') != 'dumb' else Lines()
    ended = False

    def end(_signal, _frame):
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun = time.monotonic()
    state = None
    turn = 0
    while True:
        last = ended
        now = ask_database()
        state = now or state
        screen.show(time.monotonic() - begun, read_caption(sys.argv[1]), state, now is None)
        if last:
            break
        turn += 1
        pause = begun + turn * screen.pause - time.monotonic()
        while pause > 0 and not ended:
            time.sleep(min(pause, 0.1))
            pause = begun + turn * screen.pause - time.monotonic()
        turn = max(turn, int((time.monotonic() - begun) / screen.pause))
    screen.close()


main()
