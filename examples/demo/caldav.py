"""A CalDAV client, as far as the demo needs one: calendars are made, and their entries read back.

    caldav.py URL COUNT     makes the calendars listing-1 to listing-COUNT
"""
import base64
import re
import sys
import urllib.request
import xml.etree.ElementTree as xml

USER, PASSWORD = 'host', 'demo-password'
QUERY = b'''<?xml version="1.0" encoding="utf-8"?>
<C:calendar-query xmlns:D="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav">
<D:prop><C:calendar-data/></D:prop>
<C:filter><C:comp-filter name="VCALENDAR"/></C:filter>
</C:calendar-query>'''
NAMES = {'D': 'DAV:', 'C': 'urn:ietf:params:xml:ns:caldav'}


def request(method, url, body=None, headers=()):
    credentials = base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()
    message = urllib.request.Request(url, body, {'Authorization': 'Basic ' + credentials,
                                                 'Content-Type': 'application/xml', **dict(headers)}, method=method)
    with urllib.request.urlopen(message, timeout=30) as response:
        return response.read()


def make_calendar(base, listing):
    request('MKCALENDAR', f'{base}/{USER}/listing-{listing}/')


def unescape(text):
    return re.sub(r'\\(.)', lambda match: '\n' if match[1] in 'nN' else match[1], text)


def parse_entry(text):
    """The properties of the one VEVENT, without their parameters."""
    lines = re.sub(r'\r?\n[ \t]', '', text).splitlines()
    inside = lines[lines.index('BEGIN:VEVENT') + 1:lines.index('END:VEVENT')]
    pairs = (line.split(':', 1) for line in inside)
    return {name.split(';')[0]: unescape(value) for name, value in pairs}


def read_calendar(base, listing):
    """All entries of a calendar: [(name of the object, its properties)]"""
    answer = request('REPORT', f'{base}/{USER}/listing-{listing}/', QUERY, [('Depth', '1')])
    entries = []
    for response in xml.fromstring(answer).findall('D:response', NAMES):
        data = response.find('.//C:calendar-data', NAMES)
        if data is not None:
            entries.append((response.find('D:href', NAMES).text.rsplit('/', 1)[1], parse_entry(data.text)))
    return entries


if __name__ == '__main__':
    for number in range(1, int(sys.argv[2]) + 1):
        make_calendar(sys.argv[1], number)
