"""A small piece of shared memory that says what each worker is doing.

The pool and its workers both map it. Each call has a slot on it: the pool writes the call's number
there before it sends the call; the worker claims the slot with its process id before it starts.
So the pool can tell, without asking, which process to kill, and whether a call had begun when its
worker died. A slot holds four whole numbers: call, stop (the call that must not start any
more), claimed (the call that has begun), process id.
"""

import os
import struct
import tempfile
from mmap import mmap

_SLOT = struct.Struct("=QQQQ")
_CALL, _STOP, _CLAIMED, _PID = 0, 8, 16, 24
_NUMBER = struct.Struct("=Q")


class Board:
    """The shared memory.

    Args:
        memory: The mapping.
        descriptor: The file behind it, on the pool's side.
        path: Where a worker opens it.
    """

    def __init__(self, memory: mmap, descriptor: int = -1, path: str = "") -> None:
        self._memory = memory
        self._descriptor = descriptor
        self.path = path
        self.slots = len(memory) // _SLOT.size

    @classmethod
    def create(cls, slots: int) -> "Board":
        """Make a board for the pool's side."""
        size = slots * _SLOT.size
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("quantum_async")
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            descriptor, path = tempfile.mkstemp(prefix="quantum_async-")
        os.ftruncate(descriptor, size)
        return cls(mmap(descriptor, size), descriptor, path)

    @classmethod
    def open(cls, path: str) -> "Board":
        """Open the pool's board on the worker's side."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            return cls(mmap(descriptor, 0))
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of it, and of the file behind it."""
        self._memory.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self.path.startswith("/proc/"):
                os.unlink(self.path)

    # -- the pool's side --------------------------------------------------------------------

    def announce(self, slot: int, number: int) -> None:
        """Write that a call is about to be sent."""
        _SLOT.pack_into(self._memory, slot * _SLOT.size, number, 0, 0, 0)

    def forbid(self, slot: int, number: int) -> None:
        """Write that a call must not start any more."""
        self._put(slot, _STOP, number)

    def process(self, slot: int, number: int) -> int:
        """Return the id of the process that runs a call; 0 if it has not begun or has ended."""
        pid = self._get(slot, _PID)
        return pid if self._get(slot, _CLAIMED) == number else 0

    def has_begun(self, slot: int, number: int) -> bool:
        """Return whether a worker ever claimed the call."""
        return self._get(slot, _CLAIMED) == number

    # -- the worker's side ------------------------------------------------------------------

    def claim(self, slot: int, number: int, pid: int) -> bool:
        """Write that this process starts a call now; False if it must not."""
        if self._get(slot, _CALL) != number:
            return False
        self._put(slot, _PID, pid)
        self._put(slot, _CLAIMED, number)
        # After the claim: whoever forbids later sees the claim and kills.
        return self._get(slot, _STOP) != number

    def release(self, slot: int, number: int) -> None:
        """Write that a call has ended: this process must not be killed for it."""
        self._put(slot, _PID, 0)

    def _get(self, slot: int, field: int) -> int:
        number: int = _NUMBER.unpack_from(self._memory, slot * _SLOT.size + field)[0]
        return number

    def _put(self, slot: int, field: int, value: int) -> None:
        _NUMBER.pack_into(self._memory, slot * _SLOT.size + field, value)
