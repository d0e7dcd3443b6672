"""http_site.py: the least of an HTTP server, for tests that play a channel: one connection of an asyncio server.

Requests have a Content-Length where they have a body, as the dispatcher's do; they may come one behind the other.
"""
import asyncio


class HttpConnection(asyncio.Protocol):
    """What is answered is said by received(), which whoever uses this defines."""

    def __init__(self):
        self.buffer = bytearray()

    def received(self, target, headers, body):
        """A request, whole; names of headers in lower case. Returns (status, body); status 0 cuts the connection."""
        raise NotImplementedError

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            stop = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < stop:
                return
            body = bytes(self.buffer[end + 4:stop])
            del self.buffer[:stop]
            status, answer = self.received(lines[0].split(" ")[1], headers, body)
            if not status:
                self.transport.abort()
                return
            self.transport.write(b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n" % (status, len(answer)) + answer)
