"""channels.py: the other side of the storm: channels that write down what arrives, and a network that fails.

A channel answers every request with 200 at once and never forgets one. The network is a proxy between it and the
dispatcher, one listening port for each channel, so that a fault is the network's alone: the channel knows nothing of
it. Both live in one event loop in a thread of their own.
"""
import asyncio
import random
import socket
import struct
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
from http_site import HttpConnection           # noqa: E402


class Arrival:
    """A request that a channel has had, whole."""
    __slots__ = ("at", "channel", "path", "key", "body")

    def __init__(self, channel, path, key, body):
        self.at = time.monotonic()
        self.channel, self.path, self.key, self.body = channel, path, key, body


class Channel(HttpConnection):
    """One connection to a channel."""

    def __init__(self, network, name):
        super().__init__()
        self.network, self.name = network, name

    def received(self, target, headers, body):
        self.network.arrivals.append(Arrival(self.name, target, headers.get("idempotency-key"), body))
        return 200, b"{}"


class Side(asyncio.Protocol):
    """One end of a proxied connection; what it reads, the other writes."""

    def __init__(self, network, name, other=None):
        self.network, self.name, self.other = network, name, other
        self.client = other is None     # the dispatcher's end
        self.early = bytearray()        # came before the channel's end stood
        self.dead = False               # a hole in the network: nothing passes any more
        self.slow_until = 0             # what was delayed comes in its order
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        if not self.client:
            self.other.other = self
            transport.write(bytes(self.other.early))
            return
        fault = self.network.fault_of(self.name)
        if fault == "refuse":
            self.reset()
        elif fault == "blackhole":
            self.dead = True
        else:
            asyncio.ensure_future(self.connect())

    async def connect(self):
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: Side(self.network, self.name, self), "127.0.0.1",
                                         self.network.inner[self.name])
        except OSError:
            self.reset()

    def data_received(self, data):
        fault = self.network.fault_of(self.name)
        if fault == "blackhole" or self.dead:
            self.dead = True
            return
        if fault == "cut" and self.network.dice.random() < 0.3:
            self.hand_over(data[:self.network.dice.randrange(len(data))])
            self.reset()
        elif fault == "swallow" and not self.client:
            self.reset()                # the channel has answered; nobody hears it
        else:
            loop = asyncio.get_running_loop()
            if fault == "slow":
                self.slow_until = max(self.slow_until, loop.time() + self.network.dice.uniform(0, 1.5))
            if self.slow_until > loop.time():
                loop.call_at(self.slow_until, self.hand_over, data)
            else:
                self.hand_over(data)

    def hand_over(self, data):
        if self.dead:
            return
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        elif self.client:
            self.early += data

    def reset(self):
        for side in (self, self.other):
            if side is not None and side.transport is not None:
                sock = side.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.transport.abort()

    def connection_lost(self, exc):
        """What was delayed is lost with its connection: it must not arrive after its own repetition."""
        self.dead = True
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Network(threading.Thread):
    """All channels and the network before them. faults: {channel: fault}; a channel without one works."""

    FAULTS = ("refuse", "blackhole", "cut", "swallow", "slow")

    def __init__(self, names, seed):
        super().__init__(daemon=True)
        self.names = names
        self.dice = random.Random(f"{seed}/network")
        self.arrivals = []
        self.faults = {}
        self.inner = {}                 # ports of the channels themselves
        self.ports = {}                 # ... and of the network before them
        self.ready = threading.Event()

    def fault_of(self, name):
        return self.faults.get(name)

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        loop = asyncio.get_running_loop()
        for name in self.names:
            server = await loop.create_server(lambda n=name: Channel(self, n), "127.0.0.1", 0, backlog=1024)
            self.inner[name] = server.sockets[0].getsockname()[1]
            proxy = await loop.create_server(lambda n=name: Side(self, n), "127.0.0.1", 0, backlog=1024)
            self.ports[name] = proxy.sockets[0].getsockname()[1]
        self.ready.set()
        await asyncio.Event().wait()
