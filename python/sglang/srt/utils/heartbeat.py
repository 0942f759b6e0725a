"""Heartbeats: a child's loop counts its turns where its parent can see it, so that one that hangs is noticed whatever
it hangs in. A beat is one write to shared memory: no system call, no message.
"""

import mmap
import os
import struct

IDLE_SECONDS = 0.5  # a loop with nothing to do turns this often
_COUNT = struct.Struct("<Q")


class Heartbeat:
    """One counter in a file of the private directory. The parent makes it (`create`) and reads, the child beats."""

    def __init__(self, ipc_dir: str, name: str, create: bool = False):
        path = os.path.join(ipc_dir, f"{name}.beat")
        fd = os.open(path, os.O_RDWR | os.O_CREAT * create, 0o600)
        try:
            if create:
                os.truncate(fd, _COUNT.size)
            self._map = mmap.mmap(fd, _COUNT.size)
        finally:
            os.close(fd)
        self._count = 0

    def beat(self) -> None:
        self._count += 1
        _COUNT.pack_into(self._map, 0, self._count)

    def read(self) -> int:
        """Beats so far; 0 until the loop has begun."""
        return _COUNT.unpack_from(self._map)[0]


class Silence:
    """For how long a heart has not beaten, told by a watcher that looks now and then. Time in which the watcher itself
    did not run (the whole machine stood still) does not count."""

    LONGEST_LOOK = 1.0

    def __init__(self, heart: Heartbeat):
        self._heart = heart
        self._seen = 0
        self.seconds = 0.0

    def look(self, elapsed: float) -> None:
        """`elapsed` seconds have gone since the last look."""
        count = self._heart.read()
        beaten = count != self._seen or count == 0
        self._seen = count
        self.seconds = 0.0 if beaten else self.seconds + min(elapsed, self.LONGEST_LOOK)
