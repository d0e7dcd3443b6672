#!/usr/bin/env python3
"""socks4a.py PORT NAME ADDRESS: a SOCKS4a proxy on 127.0.0.1, which alone knows that NAME is ADDRESS. Prints what it is
asked for: user, name or address, port, and the answer. Ends with its parent.
"""
import contextlib
import os
import socket
import socketserver
import sys
import threading


class Proxy(socketserver.StreamRequestHandler):
    def text(self):
        return b"".join(iter(lambda: self.rfile.read(1), b"\0")).decode()

    def handle(self):
        version, command, port = self.rfile.read(1), self.rfile.read(1), int.from_bytes(self.rfile.read(2), "big")
        address = self.rfile.read(4)
        user = self.text()
        named = address[:3] == b"\0\0\0" and address[3:] != b"\0"
        host = self.text() if named else socket.inet_ntoa(address)
        try:
            if (version, command) != (b"\x04", b"\x01"):
                raise OSError("not SOCKS4")
            upstream = socket.create_connection((sys.argv[3] if host == sys.argv[2] else host, port))
        except OSError as error:
            print(f"{user!r} {host} {port} {error}", flush=True)
            self.request.sendall(b"\0\x5b" + bytes(6))
            return
        print(f"{user!r} {host} {port} granted", flush=True)
        self.request.sendall(b"\0\x5a" + bytes(6))
        back = threading.Thread(target=pump, args=(upstream, self.request), daemon=True)
        back.start()
        pump(self.request, upstream)
        back.join()


def pump(source, target):
    """What comes, until it ends; then the other side hears of that."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main():
    server = Server(("127.0.0.1", int(sys.argv[1])), Proxy)
    server.timeout = 0.5
    parent = os.getppid()
    while os.getppid() == parent:
        server.handle_request()


main()
