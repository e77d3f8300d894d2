"""One thread count for Numba and BLAS together, so that neither starts more threads than asked for."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache

from threadpoolctl import ThreadpoolController, threadpool_limits

from sparsekit.checks import require_integer

_SPINS = "16000"  # a few hundred microseconds
_lost_threads = False  # whether this process was forked off one whose threads had started


def resolve_threads(threads: int | None) -> int:
    """The thread count itself; for None the processors this process may use, or Numba's limit if that is lower.

    Raises
    ------
    InputError
        If `threads` is not between 1 and Numba's own limit, the number of processors it found at import.
    """
    from numba.core import config

    limit: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
    if threads is not None:
        return require_integer("threads", threads, 1, limit)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, limit)


@cache
def start_threads() -> None:
    """Start Numba's threads, such that they sleep after waiting for a while; later calls do nothing.

    GNU OpenMP lets a thread that waits for the others spin for milliseconds. Where another process wants the
    processor, the spinning thread keeps the very one off it that it waits for: measured, an epoch took 14 s
    instead of 0.6 s, with this bound 2.3 s. A thread that sleeps at once takes longer to wake up than a small
    product lasts. The bound is read when the library is loaded, so it is set for that moment only.
    """
    import numba

    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        numba.get_num_threads()  # loads the threading layer
    finally:
        if not chosen:
            os.environ.pop("GOMP_SPINCOUNT", None)


def has_threads() -> bool:
    """Whether kernels may run on several threads here.

    A process that was forked off one whose threads had started has none of them, and GNU OpenMP ends it when it
    asks for some. There kernels run on one thread; processes that are spawned have threads of their own.
    """
    return not _lost_threads


def _after_fork() -> None:
    global _lost_threads
    numba = sys.modules.get("numba")
    with suppress(ValueError):  # they had not started
        _lost_threads = _lost_threads or (numba is not None and numba.threading_layer() != "tbb")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def launching() -> AbstractContextManager[object]:
    """To be entered while a kernel runs on several threads.

    Python threads may call kernels at the same time; Numba's own work queue, which it has where there is neither
    OpenMP nor TBB, would end the process then, so there they wait for each other.
    """
    import numba

    return threading.Lock() if numba.threading_layer() == "workqueue" else nullcontext()  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def thread_limit(threads: int | None) -> Iterator[int]:
    """Within the context Numba kernels and BLAS use `threads` threads each (they never run at the same time).

    `threads` is read, and refused, by :func:`resolve_threads`; the context gives the number it resolves to.
    """
    import numba

    threads = resolve_threads(threads)
    start_threads()
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield threads
    finally:
        numba.set_num_threads(before)


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
