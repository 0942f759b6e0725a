"""Sockets between the server's processes: one-way ZMQ queues on files in a private directory, msgpack on the wire.

It knows no message by name: a Receiver is told the union of types it may meet. Bytes that are none of them raise,
since both ends are ours: it means a version or programming error, and serving on would lose a request silently.
"""

import asyncio
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

logger = logging.getLogger(__name__)

TURN_BYTES = 100_000  # of messages that are handled on an event loop before others have their turn
MAX_PATH_BYTES = 107  # sockaddr_un.sun_path holds 108 with its final zero


def make_ipc_dir() -> str:
    """A new directory that only this user can enter, short enough for socket paths. The caller removes it."""
    path = tempfile.mkdtemp(prefix="sglang-")
    if len(os.fsencode(path)) + len("/detokenizer") > MAX_PATH_BYTES:
        shutil.rmtree(path)
        path = tempfile.mkdtemp(prefix="sglang-", dir="/tmp")  # TMPDIR is too long for a socket path
    return path


def _address(path: str) -> str:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ValueError(f"socket path has {len(os.fsencode(path))} bytes, at most {MAX_PATH_BYTES} work: {path}")
    return f"ipc://{path}"


class Receiver:
    """The reading end, bound to `path`. Any number of Senders may connect, before or after it exists."""

    def __init__(self, path: str, message_type: Any):
        self._path = path
        self._decoder = msgspec.msgpack.Decoder(message_type)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_address(path))
        self._loop: asyncio.AbstractEventLoop | None = None

    def receive_all(self, block: bool | float = False) -> list:
        """Every message that has come. `block`: True waits for one, a number waits that many seconds at most.

        Raises ValueError for bytes that are no message of the expected types.
        """
        if block is not False and not self._socket.poll(None if block is True else block * 1000):
            return []
        return self._receive(math.inf)[0]

    def _receive(self, most: float) -> tuple[list, bool]:
        """Messages that have come, of about `most` bytes, and whether there may be more."""
        messages, size = [], 0
        while size < most:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages, False
            messages.append(self._decode(data))
            size += len(data)
        return messages, True

    def _decode(self, data: bytes) -> Any:
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError as e:  # covers a wrong tag, which the text names
            raise ValueError(
                f"unreadable message on {os.path.basename(self._path)}: {e}; first bytes {data[:40]!r}"
            ) from e

    def attach(self, handle: Callable[[list], None], failed: Callable[[Exception], None]) -> None:
        """Call `handle` with messages as they come, on the running event loop. `failed` is called once, and nothing
        more, if bytes are unreadable or handling raises: messages are lost then, and those who wait for them."""

        def drain() -> None:
            if self._loop is None:
                return
            try:
                messages, more = self._receive(TURN_BYTES)
                if more:  # others on the event loop first
                    self._loop.call_soon(drain)
                if messages:
                    handle(messages)
            except Exception as e:  # any at all: see above
                logger.exception("messages on %s are lost", os.path.basename(self._path))
                self.detach()
                failed(e)

        self._loop = asyncio.get_running_loop()
        # ZMQ's descriptor signals changes only, so what came before must be fetched once by hand.
        self._loop.add_reader(self._socket.getsockopt(zmq.FD), drain)
        self._loop.call_soon(drain)

    def detach(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket.getsockopt(zmq.FD))
            self._loop = None

    def close(self) -> None:
        if not self._socket.closed:
            self.detach()
            self._socket.close()
            self._context.term()


class Sender:
    """A writing end. Messages sent before the Receiver exists wait for it; those unsent at close() are dropped."""

    def __init__(self, path: str):
        self._encoder = msgspec.msgpack.Encoder()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)  # ms; the other process is still starting
        self._socket.connect(_address(path))

    def send(self, message: Any) -> None:
        self._socket.send(self._encoder.encode(message), copy=False)

    def close(self) -> None:
        if not self._socket.closed:
            self._socket.close()
            self._context.term()
