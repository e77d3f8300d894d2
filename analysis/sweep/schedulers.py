"""Where the runs of a sweep are trained: on this machine by joblib, or on many by Dask.

A scheduler is a function from tasks to their rows, which come in any order, one for every task. What it must not
do is give up: a run whose process is killed is tried again, and one that keeps killing its process gets a row that
says so.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from analysis.sweep.grid import Task
from analysis.sweep.row import Row, failed, start_row, train_row
from sparsekit.checks import require_integer
from sparsekit.config import make_config
from sparsekit.errors import InputError, RunError
from sparsekit.kernels.threads import resolve_threads

if TYPE_CHECKING:
    from distributed import Client, Future

_PROCESSES = 3  # that a run may take with it before it is given up
_SECONDS_TO_CONNECT = 10


class Scheduler(Protocol):
    """Anything that trains runs."""

    def rows(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """The row of every task, in the order in which they end."""
        ...


@dataclass(frozen=True)
class JoblibScheduler:
    """Processes on this machine, started by joblib's loky.

    Parameters
    ----------
    workers : processes at a time; by default one for each processor
    threads : threads of each, for Numba and BLAS; by default the processors are shared out fairly
    """

    workers: int | None = None
    threads: int | None = None

    def rows(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """Train; what was being trained when a process was killed is trained again, one run after the other.

        Nobody can say which of several runs took the process with it. Alone a run answers for itself, and after
        its third process it is given up.
        """
        workers, threads = _shared(self.workers, self.threads)
        together, alone = _with_threads(tasks, threads), list[Task]()
        deaths = Counter[str]()
        while together or alone:
            batch = [alone.pop()] if alone else together
            begun: list[Task] = []
            done: set[str] = set()
            for row in _rows_until_a_process_dies(batch, workers, threads, begun):
                done.add(row["key"])
                yield row
            if batch is together:
                together = together[len(begun) :]
            for task in begun:
                if task.key not in done:
                    deaths[task.key] += 1
                    if deaths[task.key] < _PROCESSES:
                        alone.append(task)
                    else:
                        yield start_row(task) | failed(f"its process was killed, {_PROCESSES} times in all")


def _rows_until_a_process_dies(
    batch: Sequence[Task], workers: int, threads: int, begun: list[Task]
) -> Iterator[Row]:
    """The rows of a batch as far as it comes; tasks that were handed to a process are added to `begun`."""
    from joblib import Parallel, delayed, parallel_config

    def handing_out() -> Iterator[Any]:
        for task in batch:
            begun.append(task)
            yield delayed(train_row)(task)

    # a single job would be trained in this very process, which must outlive all of them
    with parallel_config("loky", n_jobs=max(2, workers), inner_max_num_threads=threads):
        parallel = Parallel(
            return_as="generator_unordered",
            batch_size=1,  # pyright: ignore[reportArgumentType]
            pre_dispatch=str(workers),
        )
        with suppress(BrokenProcessPool):
            yield from cast("Iterator[Row]", parallel(handing_out()))


@dataclass(frozen=True)
class DaskScheduler:
    """The workers of a Dask cluster, which need this package and the data, but no folder in common.

    Parameters
    ----------
    address : of the cluster's scheduler, such as tcp://host:8786; None for a cluster of processes on this machine
    workers : processes of that cluster; by default one for each processor
    threads : threads of a run, for Numba and BLAS; by default 1, or the processors of this machine shared fairly
    """

    address: str | None = None
    workers: int | None = None
    threads: int | None = None

    def rows(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """Train; Dask itself trains a run again whose worker was lost, and gives it up after several workers."""
        with ExitStack() as stack:
            client, threads = self._connected(stack)
            futures = {
                client.submit(train_row, task, key=f"train_row-{task.key}"): task
                for task in _with_threads(tasks, threads)
            }
            for future in _as_completed(futures, client):
                yield _row_of(future, futures[future], client)
                future.release()

    def _connected(self, stack: ExitStack) -> "tuple[Client, int]":
        """A client, closed with the stack, and the threads of each run."""
        from distributed import Client, LocalCluster

        if self.address is None:
            workers, threads = _shared(self.workers, self.threads)
            address = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    dashboard_address=":0",  # any free port
                    silence_logs=logging.CRITICAL,
                )
            )
        elif self.workers is not None:
            raise InputError(f"workers must be left out with a running cluster, not {self.workers}")
        else:
            address, threads = (
                self.address,
                require_integer("threads", 1 if self.threads is None else self.threads, 1),
            )
        try:
            return stack.enter_context(Client(address, timeout=_SECONDS_TO_CONNECT)), threads
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"dask must name a scheduler that answers, not {self.address!r}: {reason}") from None


def _as_completed(futures: Iterable["Future"], client: "Client") -> Iterator["Future"]:
    """The futures as they end. Dask's own iterator would wait for ever for those that a lost connection forgot."""
    from distributed import CancelledError, wait

    pending = set(futures)
    while pending:
        try:
            ended = wait(pending, timeout=_SECONDS_TO_CONNECT, return_when="FIRST_COMPLETED")
            done, pending = cast("tuple[set[Future], set[Future]]", ended)
        except TimeoutError:
            _require_known(pending, client)
        except CancelledError:
            raise _lost_connection() from None
        else:
            yield from done


def _row_of(future: "Future", task: Task, client: "Client") -> Row:
    """What a future says, or that its workers were lost."""
    from distributed import CancelledError, KilledWorker

    while True:
        try:
            return future.result(timeout=_SECONDS_TO_CONNECT)
        except TimeoutError:
            _require_known([future], client)
        except KilledWorker:
            return start_row(task) | failed("its worker was killed, as often as the cluster allows")
        except CancelledError:
            raise _lost_connection() from None
        except Exception as error:  # the worker could not call train_row at all
            return start_row(task) | failed(f"{type(error).__name__}: {error}")


def _require_known(futures: Iterable["Future"], client: "Client") -> None:
    """Fail if the client, having lost its scheduler, no longer knows a future: it would never end."""
    if client.status != "running" or any(future.key not in client.futures for future in futures):
        raise _lost_connection()


def _lost_connection() -> RunError:
    return RunError("the connection to Dask's scheduler was lost; the same command goes on from here")


def _shared(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Workers and threads of each such that together they take the processors once."""
    processors = resolve_threads(None)
    workers = require_integer("workers", processors if workers is None else workers, 1)
    fair = max(1, processors // workers)
    return workers, require_integer("threads", fair if threads is None else threads, 1, processors)


def _with_threads(tasks: Sequence[Task], threads: int) -> list[Task]:
    return [Task(task.label, make_config(task.config.model_dump(), {"threads": threads})) for task in tasks]
