"""Connections of the HTTP process: the listening socket, how many there may be, and how long their headers may take.

It knows no requests. What a body may do is gate.py's.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import time

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

DESCRIPTORS = 65536  # wanted of the system
OWN_DESCRIPTORS = 96  # of them for files, sockets between processes, pipes
HEADER_SECONDS = 10.0  # from a connection's start, or a request's first byte, to the end of its headers
LEFTOVER_SECONDS = 2.0  # for the rest of a body whose request is answered already
SPARE_SECONDS = 0.5  # a connection that is idle or sends headers for so long gives way to a new one
SLOW_SECONDS = 2.0  # one that sends a body for so long, too
RETRY_SECONDS = 0.05
ACCEPT_AT_ONCE = 64  # then others have a turn
COMPLAINT_SECONDS = 60.0  # between two log lines about the same trouble
NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def bind(host: str, port: int) -> socket.socket:
    """The listening address, taken before anything slow. Raises OSError that says what is wrong with it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as e:
        raise OSError(f"--host {host}: {e.strerror}") from e
    # With TCP by name asyncio turns Nagle's algorithm off, which would hold back tokens.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as e:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {e.strerror}; choose another --host or --port") from e
    return listener


def raise_descriptor_limit() -> int:
    """Let this process and its children open more files, as far as the system lets them; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def choose_max_connections(asked: int | None) -> int:
    """The bound of open connections: what was asked for, or what the descriptors allow. Raises ValueError if it was
    more than that."""
    allowed = max(1, raise_descriptor_limit() - OWN_DESCRIPTORS)
    if asked is not None and asked > allowed:
        raise ValueError(
            f"--max-connections {asked}: the system's limit of open files (ulimit -n) allows {allowed}; raise it"
        )
    return asked or allowed


class Connection(H11Protocol):
    """uvicorn's protocol with deadlines for what it has none for: headers, and bodies that nobody waits for."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.since = time.monotonic()  # when it was last new, had sent headers, or was answered
        self.lost = asyncio.Event()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def data_received(self, data: bytes) -> None:
        if self._timer is None and self.is_spare:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._too_late)
        super().data_received(data)
        if self._timer is not None and not self.is_spare:
            self._stop_timer()
            self.since = time.monotonic()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.since = time.monotonic()
        if self.conn.their_state is h11.SEND_BODY and self._timer is None:
            self._timer = self.loop.call_later(LEFTOVER_SECONDS, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self.lost.set()

    @property
    def is_spare(self) -> bool:
        """Whether nobody works for it: it is idle, sends its headers, or the rest of a body that is not wanted."""
        return self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE

    @property
    def may_be_closed(self) -> bool:
        """Whether it may give way to a new one."""
        age = time.monotonic() - self.since
        return age >= SPARE_SECONDS and (
            self.is_spare or (self.conn.their_state is h11.SEND_BODY and age >= SLOW_SECONDS)
        )

    def _too_late(self) -> None:
        self._timer = None
        if self.is_spare:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Front(uvicorn.Server):
    """uvicorn with a bounded number of connections. At the bound the longest idle or slowest one gives way to a new
    one; if all are at work, new ones wait in the system's queue. Signals are the caller's."""

    def __init__(self, config: uvicorn.Config, max_connections: int):
        super().__init__(config)
        self.max_connections = max_connections
        self._accepting: asyncio.Task | None = None
        self._complained = -COMPLAINT_SECONDS

    @contextlib.contextmanager
    def capture_signals(self):
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        (listener,) = sockets
        await super().startup(sockets=[])
        self._accepting = asyncio.ensure_future(self._accept(listener))
        self._accepting.add_done_callback(self._accepting_ended)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._accepting.cancel()
        await super().shutdown(sockets)

    def _accepting_ended(self, accepting: asyncio.Task) -> None:
        if not accepting.cancelled():  # a server that nobody can reach must not live on
            logger.error("connections cannot be accepted any more", exc_info=accepting.exception())
            self.should_exit = True

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            room = self.max_connections - len(self.server_state.connections)
            if room <= 0:
                self._complain("all %d connections are in use (--max-connections)", self.max_connections)
                await self._make_room()
                continue
            try:
                accepted = [(await loop.sock_accept(listener))[0]]
            except OSError as e:
                if e.errno in NO_RESOURCES:
                    self._complain("cannot accept a connection: %s", e.strerror)
                    await self._make_room()
                continue  # else that client alone has gone
            with contextlib.suppress(OSError):  # nobody else waits; what else is wrong shows the next time
                while len(accepted) < min(room, ACCEPT_AT_ONCE):
                    accepted.append(listener.accept()[0])
            await asyncio.gather(*map(self._open, accepted))

    async def _open(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, accepted)
        except OSError:
            accepted.close()

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def _make_room(self) -> None:
        """Close the connection that has been of no use for longest, or wait for a moment."""
        closable = (c for c in self.server_state.connections if c.may_be_closed)
        oldest = min(closable, key=lambda c: (not c.is_spare, c.since), default=None)
        if oldest is None:
            await asyncio.sleep(RETRY_SECONDS)
            return
        oldest.transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(oldest.lost.wait(), RETRY_SECONDS)

    def _complain(self, *message: object) -> None:
        if time.monotonic() - self._complained >= COMPLAINT_SECONDS:
            self._complained = time.monotonic()
            logger.warning(*message)
