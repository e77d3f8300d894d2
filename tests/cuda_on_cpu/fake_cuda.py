"""What stands in for `cupy.cuda`: one device, streams, graphs and events.

A stream runs what it is given at once. While it captures, nothing runs: launches are recorded, and the graph
replays them. What CUDA forbids during a capture raises `CUDARuntimeError` here, too.
"""

import time as _time
import types as _types

# Streaming multiprocessors and bytes of shared memory that a block may ask for, of the devices that can be played.
DEVICES = {
    "70": ("Tesla V100", 80, 96 * 1024),
    "75": ("Tesla T4", 40, 64 * 1024),
    "80": ("NVIDIA A100", 108, 163 * 1024),
    "86": ("NVIDIA A40", 84, 99 * 1024),
    "90": ("NVIDIA H100", 132, 227 * 1024),
}

_ERRORS = {
    "cudaErrorInsufficientDriver": (35, "CUDA driver version is insufficient for CUDA runtime version"),
    "cudaErrorNoDevice": (100, "no CUDA-capable device is detected"),
    "cudaErrorStreamCaptureUnsupported": (900, "operation not permitted when stream is capturing"),
    "cudaErrorIllegalState": (401, "the operation cannot be performed in the present state"),
    "cudaErrorStreamCaptureImplicit": (906, "operation would make the legacy stream depend on a capturing stream"),
}


class CUDARuntimeError(RuntimeError):
    """`cupy.cuda.runtime.CUDARuntimeError`, made from the name of the error."""

    def __init__(self, name: str, detail: str = ""):
        self.status, text = _ERRORS[name]
        super().__init__(f"{name}: {text}{detail and ' (' + detail + ')'}")


class _State:
    """The device that is played, and what keeps it from being used."""

    def __init__(self):
        self.reset("90", None)

    def reset(self, compute_capability: str, failure: str | None) -> None:
        self.compute_capability = compute_capability
        self.failure = failure
        self.null_stream = Stream(null=True)
        self.current = self.null_stream
        self.capturing: Stream | None = None


def check_device() -> None:
    """Raise what CUDA raises where there is no driver, or no device."""
    if _state.failure is not None:
        raise CUDARuntimeError(_state.failure)


def forbid_while_capturing(what: str) -> None:
    """Raise if a stream captures: `what` cannot be part of a graph."""
    check_device()
    if _state.capturing is not None:
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported", what)


def enqueue(work) -> bool:
    """Do `work` on the current stream. True if it was done, False if it was only recorded."""
    check_device()
    capturing = _state.capturing
    if capturing is None:
        work()
        return True
    if _state.current is capturing:
        capturing.recorded.append(work)
        return False
    if _state.current is _state.null_stream and not capturing.non_blocking:
        raise CUDARuntimeError("cudaErrorStreamCaptureImplicit")
    work()
    return True


class Graph:
    """What was recorded between `begin_capture` and `end_capture`."""

    def __init__(self, recorded: list):
        self._recorded = recorded

    def launch(self, stream: "Stream | None" = None) -> None:
        forbid_while_capturing("launch of a graph")
        for work in self._recorded:
            work()

    def upload(self, stream: "Stream | None" = None) -> None:
        forbid_while_capturing("upload of a graph")


class Stream:
    """`cupy.cuda.Stream`."""

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.null = null
        self.non_blocking = non_blocking
        self.recorded: list | None = None
        self._outer: list[Stream] = []

    def __enter__(self) -> "Stream":
        check_device()
        self._outer.append(_state.current)
        _state.current = self
        return self

    def __exit__(self, *_) -> None:
        _state.current = self._outer.pop()

    def use(self) -> "Stream":
        check_device()
        _state.current = self
        return self

    def synchronize(self) -> None:
        forbid_while_capturing("synchronisation of a stream")

    def record(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        check_device()

    def is_capturing(self) -> bool:
        return self.recorded is not None

    def begin_capture(self, mode: int | None = None) -> None:
        if self is _state.null_stream or self.null:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported", "the null stream")
        forbid_while_capturing("a second capture")
        self.recorded = []
        _state.capturing = self

    def end_capture(self) -> Graph:
        if self.recorded is None:
            raise CUDARuntimeError("cudaErrorIllegalState", "end_capture without begin_capture")
        graph = Graph(self.recorded)
        self.recorded = None
        _state.capturing = None
        return graph


class Event:
    """`cupy.cuda.Event`; measures time on the host's clock."""

    def __init__(self, block: bool = False, disable_timing: bool = False):
        check_device()
        self.recorded_at: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        check_device()
        self.recorded_at = _time.perf_counter()

    def synchronize(self) -> None:
        forbid_while_capturing("synchronisation of an event")

    @property
    def done(self) -> bool:
        return True


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two events."""
    return 1e3 * (end.recorded_at - start.recorded_at)


class Device:
    """`cupy.cuda.Device`. There is one."""

    def __init__(self, id: int | None = None):  # noqa: A002, the name in CuPy
        self.id = 0 if id is None else id

    def __enter__(self) -> "Device":
        check_device()
        return self

    def __exit__(self, *_) -> None:
        pass

    def use(self) -> None:
        check_device()

    def synchronize(self) -> None:
        forbid_while_capturing("synchronisation of the device")

    @property
    def compute_capability(self) -> str:
        check_device()
        return _state.compute_capability

    @property
    def attributes(self) -> dict[str, int]:
        check_device()
        _, processors, shared = DEVICES[_state.compute_capability]
        return {
            "MultiProcessorCount": processors,
            "MaxSharedMemoryPerBlock": 48 * 1024,
            "MaxSharedMemoryPerBlockOptin": shared,
            "MaxSharedMemoryPerMultiprocessor": shared + 1024 if shared > 64 * 1024 else shared,
            "MaxThreadsPerBlock": 1024,
            "MaxRegistersPerBlock": 65536,
            "WarpSize": 32,
        }


def is_available() -> bool:
    return _state.failure is None


def get_current_stream() -> Stream:
    check_device()
    return _state.current


def _device_count() -> int:
    check_device()
    return 1


def _current_device() -> int:
    check_device()
    return 0


def _device_properties(device: int) -> dict[str, object]:
    check_device()
    name, processors, shared = DEVICES[_state.compute_capability]
    return {"name": name.encode(), "multiProcessorCount": processors, "sharedMemPerBlockOptin": shared}


_state = _State()

runtime = _types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=_device_count,
    getDevice=_current_device,
    getDeviceProperties=_device_properties,
    deviceSynchronize=lambda: forbid_while_capturing("synchronisation of the device"),
    runtimeGetVersion=lambda: 13000,
    driverGetVersion=lambda: 0 if _state.failure == "cudaErrorInsufficientDriver" else 13000,
)
