"""Memory for large arrays that come and go in every step of training.

The system zeroes each page that it hands out, which can take longer than the pass that fills it. So memory is
kept here when its array is gone, and handed to the next one: the lowest place where it fits, in a few regions
that are far larger than an array. Pages of a region that were never written to cost nothing.
"""

import math
from bisect import insort
from collections import deque
from threading import Lock

import numpy as np

_REGION = 256 << 20  # bytes of a region; one for a larger array is as large as that
_UNIT = 4096  # bytes; sizes are multiples of it


class Pool:
    """Hands out blocks of memory, each until nothing refers to it any more; safe to use in several threads."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._lock = Lock()
        # Blocks that came back. The garbage collector may return one at any moment, within `take` too, so that
        # only this is done there.
        self._returned: deque[tuple[_Region, int, int]] = deque()

    def take(self, n_bytes: int) -> np.ndarray:
        """Uninitialised uint8 (n_bytes,) that starts on a cache line."""
        size = math.ceil(max(1, n_bytes) / _UNIT) * _UNIT
        with self._lock:
            while self._returned:
                region, start, length = self._returned.popleft()
                region.release(start, length)
            region, start = self._place(size)
        return np.asarray(_Lease(self, region, start, size))[:n_bytes]

    @property
    def n_bytes(self) -> int:
        """Bytes of all regions, written to or not."""
        return sum(region.memory.size for region in self._regions)

    def give_back(self, region: "_Region", start: int, size: int) -> None:
        """Called when a block is no longer referred to."""
        self._returned.append((region, start, size))

    def _place(self, size: int) -> "tuple[_Region, int]":
        for region in self._regions:
            start = region.place(size)
            if start is not None:
                return region, start
        self._regions = [region for region in self._regions if not region.is_free]
        region = _Region(size)
        self._regions.append(region)
        start = region.place(size)
        assert start is not None  # it was made for it
        return region, start


class _Region:
    """A stretch of memory and what of it is free: (start, end) in ascending order, no two of them touching."""

    def __init__(self, at_least: int) -> None:
        try:
            self.memory = _pages(max(at_least, _REGION))
        except MemoryError:  # a limit on the process; what is needed may still be there
            self.memory = _pages(at_least)
        self.free = [(0, self.memory.size)]

    @property
    def is_free(self) -> bool:
        return self.free == [(0, self.memory.size)]

    def place(self, size: int) -> int | None:
        """Where the lowest free place of this size begins, no longer free; None if there is none."""
        for k, (start, end) in enumerate(self.free):
            if end - start >= size:
                self.free[k : k + 1] = [(start + size, end)] if end - start > size else []
                return start
        return None

    def release(self, start: int, size: int) -> None:
        """Make a place free again, one with its free neighbours."""
        insort(self.free, (start, start + size))
        merged: list[tuple[int, int]] = []
        for low, high in self.free:
            if merged and merged[-1][1] == low:
                merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        self.free = merged


class _Lease:
    """Keeps a block out of the pool for as long as an array lies in it."""

    def __init__(self, pool: Pool, region: _Region, start: int, size: int) -> None:
        self._pool, self._place = pool, (region, start, size)
        self.__array_interface__ = region.memory[start : start + size].__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(*self._place)


def _pages(n_bytes: int) -> np.ndarray:
    """Memory that starts on a page; NumPy asks the system for large pages."""
    buffer = np.empty(n_bytes + _UNIT, dtype=np.uint8)
    start = -buffer.__array_interface__["data"][0] % _UNIT
    return buffer[start : start + n_bytes]
