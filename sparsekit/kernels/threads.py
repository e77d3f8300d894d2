"""One thread count for Numba and BLAS together, so that neither starts more threads than asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController, threadpool_limits

from sparsekit.checks import require_integer


def default_threads() -> int:
    """Processors this process may use, or fewer where Numba was limited to fewer."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, _numba_limit())


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Within the context Numba kernels and BLAS use `threads` threads each (they never run at the same time).

    Raises
    ------
    InputError
        If `threads` is not between 1 and Numba's own limit, the number of processors it found at import.
    """
    import numba

    threads = require_integer("threads", threads, 1, _numba_limit())
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        numba.set_num_threads(before)


def _numba_limit() -> int:
    from numba.core import config

    return config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the context BLAS uses one thread, and Numba kernels as many as before.

    After a product BLAS lets its threads spin for a while, waiting for more. In a network of mixed layers they
    would hold the processors that the sparse kernels need next: measured, an epoch takes ten times as long.
    """
    with _threadpools().limit(limits=1, user_api="blas"):
        yield


@cache
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()
