"""One thread count for Numba and BLAS together, so that neither starts more threads than asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from sparsekit.checks import require_integer


def available_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Within the context Numba kernels and BLAS use `threads` threads each (they never run at the same time).

    Raises
    ------
    InputError
        If `threads` is not between 1 and Numba's own limit, the number of processors it found at import.
    """
    import numba
    import numba.core.config

    limit: int = numba.core.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
    threads = require_integer("threads", threads, 1, limit)
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        numba.set_num_threads(before)
