"""How much a compressed file may unpack to.

A few kilobytes can unpack to more than any memory holds. Real images and tables unpack to a few times their size.
"""

from pathlib import Path

ALWAYS_ALLOWED = 1 << 30  # bytes
_MOST_TIMES = 200  # the size of the file


def most_unpacked_bytes(path: Path) -> int:
    """What a file of this size may unpack to: a GiB, or 200 times its size if that is more."""
    return max(ALWAYS_ALLOWED, _MOST_TIMES * path.stat().st_size)
