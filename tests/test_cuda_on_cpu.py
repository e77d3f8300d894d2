"""The engine that runs CUDA kernels on the CPU: right kernels are right, and every planted bug is found."""

import re
import threading

import numpy as np
import pytest
from cuda_on_cpu import (
    CpuRawModule,
    KernelError,
    build,
    examples,
    fake_cupy,
    missing_tools,
    sanitized,
    thread_order,
)
from cuda_on_cpu.examples import ALL, BAD_ACCESSES, BUGS, CORRECT, ORDERS, RACES

OPTIONS = ("-std=c++17",)


def skip_if(reason: str | None):
    return pytest.mark.skipif(reason is not None, reason=reason or "")


pytestmark = skip_if(missing_tools())


@pytest.fixture(scope="module")
def kernels():
    return examples.build({**CORRECT, **BUGS, "lost_atomic": ALL["lost_atomic"]})


@pytest.fixture(scope="module")
def module():
    names = [
        "shuffles",
        "sixteen_bits",
        "arrivals",
        "turn_vectors",
        "untouched",
        "fold<32>",
        "total",
        "transpose<unsigned short, 8>",
    ]
    return CpuRawModule(code=examples.SOURCE, options=OPTIONS, name_expressions=names)


def outcome(example, kernel, order: int) -> bool | str:
    """Whether the values are right, or the error."""
    with thread_order(order):
        try:
            return bool(example.launch(kernel))
        except KernelError as error:
            return str(error)


def line_of(text: str) -> int:
    """The line of examples.cu that holds a text."""
    return examples.SOURCE[: examples.SOURCE.index(text)].count("\n") + 1


# ----------------------------------------------------------------------------------------------------
# Right kernels
# ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", [*ORDERS, 2, 3, 2**31])
@pytest.mark.parametrize("name", CORRECT)
def test_right_kernels_are_right_in_every_order(kernels, name, order):
    assert outcome(CORRECT[name], kernels[name], order) is True


def test_sixteen_bit_numbers_through_shared_memory(module, rng):
    matrix = rng.integers(0, 2**16, (11, 19)).astype(np.uint16)
    out = np.zeros((19, 11), np.uint16)
    kernel = module.get_function("transpose<unsigned short, 8>")
    kernel((3,), (8, 2), (matrix, out, np.int32(11), np.int32(19)))
    assert np.array_equal(out, matrix.T)


def test_shuffles_read_the_lanes_that_cuda_says(module):
    out = np.full((5, 32), -1, np.int32)
    module.get_function("shuffles")((1,), (32,), (out,))
    lane = np.arange(32)
    group, place = lane // 8 * 8, lane % 8
    assert np.array_equal(out[0], group + 11 % 8)
    # Reading in a lower group is allowed, in a higher one it is not.
    assert np.array_equal(out[1], np.where((lane ^ 12) < group + 8, lane ^ 12, lane))
    assert np.array_equal(out[2], np.where(place + 3 < 8, lane + 3, lane))
    assert np.array_equal(out[3], np.where(place - 3 >= 0, lane - 3, lane))
    met = np.where(lane < 16, lane ^ 1, lane)
    assert np.array_equal(out[4], met[31 - lane])


def test_half_precision_is_numpys(module):
    # Every half, and the numbers half way between two of them: ties, overflow, subnormals, infinities, NaN.
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        neighbours = np.nextafter(halves, np.float16(np.inf)).astype(np.float32)
        between = (halves.astype(np.float32) + neighbours) / 2
        values = np.concatenate([halves.astype(np.float32), between, [np.float32(65520), np.float32(-1e30)]])
        expected = values.astype(np.float16)
    half, _, from_half, _ = sixteen_bits(module, values.astype(np.float32))
    number = ~np.isnan(values)
    assert np.array_equal(half[number], expected[number].view(np.uint16))
    assert np.array_equal(from_half, expected.astype(np.float32), equal_nan=True)


def test_bfloat16_is_the_nearest_and_nan_stays_nan(module, rng):
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(2**10, dtype=np.uint32) << 16) + 0x3F808000
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFF8000], np.uint32)
    values = np.concatenate([bits, ties, nans]).view(np.float32)
    _, bfloat16, _, back = sixteen_bits(module, values)
    below = values.view(np.uint32) >> 16  # this one, or the one after it
    with np.errstate(invalid="ignore"):
        candidates = np.stack([below << 16, (below + 1) << 16]).view(np.float32).astype(np.float64)
        away = np.abs(candidates - values)
    nearest = np.where(away[0] == away[1], below + below % 2, below + (away[1] < away[0]))
    number = np.isfinite(values) & np.isfinite(candidates[1])
    assert np.array_equal(bfloat16[number], nearest[number])
    assert np.all(np.isnan(back) == np.isnan(values))
    assert np.array_equal(back[~np.isnan(back)].view(np.uint32) >> 16, bfloat16[~np.isnan(back)])


def sixteen_bits(module, values):
    half, bfloat16 = np.zeros((2, values.size), np.uint16)
    from_half, from_bfloat16 = np.zeros((2, values.size), np.float32)
    arguments = (values, half, bfloat16, from_half, from_bfloat16, np.int32(values.size))
    module.get_function("sixteen_bits")((1,), (128,), arguments)
    return half, bfloat16, from_half, from_bfloat16


def arrivals(module, order: int) -> np.ndarray:
    found = np.full(2 * 3 * 2 * 3 * 2 * 2, -1, np.int32)
    with thread_order(order):
        module.get_function("arrivals")((2, 3, 2), (3, 2, 2), (np.zeros(1, np.int32), found))
    return found


def test_orders_of_threads_and_blocks(module):
    threads = np.arange(12 * 12)
    assert np.array_equal(arrivals(module, 0), threads)
    assert np.array_equal(arrivals(module, 1), threads[::-1])
    seven = arrivals(module, 7)
    assert np.array_equal(np.sort(seven), threads)
    assert np.array_equal(arrivals(module, 7), seven)
    assert not np.array_equal(arrivals(module, 8), seven)
    # One block after another, in a shuffled order.
    blocks = seven.reshape(12, 12) // 12
    assert np.all(blocks == blocks[:, :1])
    assert not np.array_equal(blocks[:, 0], np.arange(12))
    with pytest.raises(ValueError, match="thread order -1"), thread_order(-1):
        pass


def test_shared_memory_is_nan_before_each_block(module):
    out = np.zeros((3, 8), np.float32)
    module.get_function("untouched")((3,), (4,), (out,), shared_mem=16)
    assert np.all(np.isnan(out))


def test_launches_from_several_python_threads_do_not_meet(kernels):
    results = []
    workers = [
        threading.Thread(target=lambda: results.extend(CORRECT["fold"].launch(kernels["fold"]) for _ in range(20)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 80


# ----------------------------------------------------------------------------------------------------
# Planted bugs
# ----------------------------------------------------------------------------------------------------
WRONG_IN_EVERY_ORDER = (
    "read_after_write", "write_after_read", "short_staging", "wrong_stride", "no_barrier_after_wait",
    "no_syncwarp",
)  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WRONG_IN_EVERY_ORDER)
def test_wrong_values(kernels, name, order):
    assert outcome(BUGS[name], kernels[name], order) is False


def test_copies_come_as_late_as_they_may_in_even_orders_and_at_once_in_odd_ones(kernels):
    even = [order % 2 == 0 for order in ORDERS]
    assert set(even) == {True, False}
    late = [outcome(BUGS["weak_wait"], kernels["weak_wait"], order) for order in ORDERS]
    assert late == [not is_even for is_even in even]
    early = [
        outcome(BUGS["no_barrier_before_reuse"], kernels["no_barrier_before_reuse"], order) for order in ORDERS
    ]
    assert early == even


SHUFFLE = line_of("sum += __shfl_xor_sync")
ERRORS = {
    "barrier_in_branch": f"threads wait at different barriers: lines {line_of('if (top) __syncthreads')} and "
    f"{line_of('__syncthreads();  // before the tile is read')}",
    "barrier_after_exit": f"line {line_of('__syncthreads();  // before the tile is read')}: "
    "barrier after 12 of 64 threads have exited",
    "missing_lane": f"line {SHUFFLE}: lane 31 of the mask has exited",
    "lane_outside_mask": f"line {SHUFFLE}: lane .. is not in its own mask",
    "reads_outside_mask": f"line {SHUFFLE}: lane 15 reads lane 31, which is not in the mask",
    "different_lines": f"line {SHUFFLE + 1}: deadlock, lane 0 of the mask waits at line {SHUFFLE}",
}


def test_every_planted_bug_has_a_test():
    assert {*WRONG_IN_EVERY_ORDER, "weak_wait", "no_barrier_before_reuse", *ERRORS} == set(BUGS)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_line(kernels, name):
    found = [outcome(BUGS[name], kernels[name], order) for order in ORDERS]
    assert all(isinstance(error, str) for error in found)  # an error in every order
    assert re.search(ERRORS[name], found[1])  # the one of the reverse order


def test_the_engine_works_on_after_an_error(kernels):
    assert isinstance(outcome(BUGS["missing_lane"], kernels["missing_lane"], 0), str)
    assert outcome(CORRECT["row_sums"], kernels["row_sums"], 0) is True
    assert isinstance(outcome(BUGS["missing_lane"], kernels["missing_lane"], 0), str)


def test_a_lost_atomic_does_not_show_in_the_values(kernels):
    """Which is why there are the sanitizers."""
    assert all(outcome(ALL["lost_atomic"], kernels["lost_atomic"], order) is True for order in ORDERS)


def test_a_bug_whose_text_is_gone_is_not_planted():
    with pytest.raises(ValueError, match="occurs 0 times"):
        examples.Example("total", examples.total, "no such text", "").source()


# ----------------------------------------------------------------------------------------------------
# Launches that CUDA, or CuPy, would refuse, or take for something else
# ----------------------------------------------------------------------------------------------------
X = np.zeros(4, np.float32)
TOTAL = (X, np.zeros(1, np.float32), np.int32(4))
READ_ONLY = np.zeros(1, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TOTAL[:2], "2 arguments for 3 parameters"),
        ((*TOTAL[:2], 4), "argument 2 is a Python int, of which CuPy passes 8 bytes; .* 4-byte signed integer"),
        ((*TOTAL[:2], 4.0), "argument 2 is a Python float"),
        ((*TOTAL[:2], True), "argument 2 is a Python bool, of which CuPy passes 1 bytes"),
        ((*TOTAL[:2], np.int64(4)), "argument 2 is a int64, the parameter a 4-byte signed integer"),
        ((*TOTAL[:2], np.float32(4)), "argument 2 is a float32, the parameter a 4-byte signed integer"),
        ((*TOTAL[:2], X), "argument 2 is a pointer, the parameter a 4-byte signed"),
        ((*TOTAL[:2], "4"), "argument 2 is a str"),
        ((np.float32(0), *TOTAL[1:]), "argument 0 is a float32, the parameter a pointer"),
        (
            (X.astype(np.float64), *TOTAL[1:]),
            "argument 0 is an array of float64, .* pointer to 4-byte floating point",
        ),
        ((X.astype(np.int32), *TOTAL[1:]), "argument 0 is an array of int32"),
        ((np.zeros((4, 2), np.float32).T, *TOTAL[1:]), "argument 0 is not C-contiguous"),
        ((X[::2], *TOTAL[1:]), "argument 0 is not C-contiguous"),
        ((X, READ_ONLY, TOTAL[2]), "argument 1 is read-only"),
    ],
)
def test_arguments_that_are_not_what_the_kernel_takes(module, arguments, message):
    with pytest.raises(KernelError, match=message):
        module.get_function("total")((1,), (32,), arguments)


def test_arguments_that_are(module):
    kernel = module.get_function("total")
    total = np.zeros(1, np.float32)
    values = np.arange(4, dtype=np.float32)
    values.flags.writeable = False  # the kernel's pointer is to const
    kernel((1,), (32,), (values, total, np.int32(4)))
    kernel((1,), (32,), (None, total, np.int32(0)))  # a null pointer
    assert total == 6
    assert examples.turn_vectors(module.get_function("turn_vectors"))  # floats for pointers to float4


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((1,), (1025,), 0, "a block of"),
        ((1,), (1, 1, 65), 0, "at most 64 in z"),
        ((0,), (32,), 0, "grid .0,. is empty"),
        ((1,), (32, 0), 0, "is empty"),
        ((1, 65536), (32,), 0, "a grid of"),
        (1, (32,), 0, "grid 1 is no tuple"),
        ((1,), [32], 0, "is no tuple"),
        ((1,), (32,), 48 * 1024 + 1, "max_dynamic_shared_size_bytes is 49152"),
    ],
)
def test_launches_that_cuda_refuses(module, grid, block, shared, message):
    with pytest.raises(KernelError, match=message):
        module.get_function("total")(grid, block, TOTAL, shared_mem=shared)


def test_much_shared_memory_has_to_be_asked_for(monkeypatch):
    kernel = CpuRawModule(code=examples.SOURCE, options=OPTIONS, name_expressions=["fold<32>"]).get_function(
        "fold<32>"
    )
    assert examples.fold(kernel, 48 * 1024)
    with pytest.raises(KernelError, match="49168 bytes of dynamic shared memory"):
        examples.fold(kernel, 48 * 1024 + 16)
    kernel.max_dynamic_shared_size_bytes = 227 * 1024
    assert kernel.max_dynamic_shared_size_bytes == 227 * 1024
    assert examples.fold(kernel, 227 * 1024)
    with pytest.raises(KernelError, match="the device has no"):
        kernel.max_dynamic_shared_size_bytes = 227 * 1024 + 1
    fake_cupy.use_fake_cupy(monkeypatch, "75")
    with pytest.raises(KernelError, match="the device allows 65536"):
        examples.fold(kernel, 65 * 1024)


def test_static_shared_memory_counts(module):
    kernel = module.get_function("turn_vectors")
    vectors, out = np.zeros(256, np.float32), np.zeros(256, np.float32)
    kernel((1,), (64,), (vectors, out), shared_mem=47 * 1024)  # and its 1 KiB
    with pytest.raises(KernelError, match="49168 bytes of shared memory, 49152 allowed"):
        kernel((1,), (64,), (vectors, out), shared_mem=47 * 1024 + 16)


def test_options_and_names():
    code = 'extern "C" __global__ void fill(float* x) { x[threadIdx.x] = VALUE; }'
    kernel = CpuRawModule(code=code, options=("-DVALUE=3", "--use_fast_math")).get_function("fill")
    values = np.zeros(4, np.float32)
    kernel((1,), (4,), (values,))
    assert np.all(values == 3)
    with pytest.raises(KernelError, match="VALUE.* was not declared"):
        CpuRawModule(code=code).get_function("fill")
    with pytest.raises(KernelError, match="--fancy is not known"):
        CpuRawModule(code=code, options=("--fancy",)).get_function("fill")
    with pytest.raises(TypeError, match="tuple"):
        CpuRawModule(code=code, options=["-DVALUE=3"])
    module = CpuRawModule(code=code, options=("-DVALUE=3",), name_expressions=["fill"])
    with pytest.raises(KernelError, match="other is not in name_expressions"):
        module.get_function("other")
    assert module.get_function("fill") is module.get_function("fill")


def test_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    first = build.build_library("int answer() { return 42; }", None)
    assert first.parent == build.cache_folder()
    assert first.parent.stat().st_mode & 0o777 == 0o700
    before = first.stat().st_mtime_ns
    assert build.build_library("int answer() { return 42; }", None) == first
    assert first.stat().st_mtime_ns == before
    assert build.build_library("int answer() { return 43; }", None) != first
    assert {path.suffix for path in first.parent.iterdir()} == {".o", ".so"}  # nothing is left behind


# ----------------------------------------------------------------------------------------------------
# Sanitizers
# ----------------------------------------------------------------------------------------------------
def lines_of_bug(name: str) -> set[int]:
    """The lines of the kernel of an example."""
    source = ALL[name].source()
    kernel = ALL[name].kernel.split("<")[0]
    start = source[: re.search(rf"__global__ void [^;]*\b{kernel}\(", source).start()].count("\n") + 1
    return set(range(start, start + source.split("\n")[start - 1 :].index("}") + 1))


def reported_lines(report: str) -> set[int]:
    return {int(line) for line in re.findall(r"kernel\.cu:(\d+)", report)}


@skip_if(missing_tools("thread"))
def test_thread_sanitizer_finds_races_and_nothing_else():
    names = [*CORRECT, *RACES]
    done = sanitized.run_sanitized("thread", examples.__file__, *names)
    assert done.returncode == sanitized.FOUND, done.stderr
    pieces = re.split(r"^== (\w+)$", done.stderr, flags=re.MULTILINE)
    reports = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert list(reports) == names
    for name in CORRECT:
        assert reports[name].strip() == ""
    for name in RACES:
        assert "WARNING: ThreadSanitizer: data race" in reports[name]
        assert reported_lines(reports[name]) & lines_of_bug(name), reports[name]


@skip_if(missing_tools("address"))
def test_address_sanitizer_is_content_with_right_kernels():
    done = sanitized.run_sanitized("address", examples.__file__, *CORRECT)
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr


@skip_if(missing_tools("address"))
@pytest.mark.parametrize("name", BAD_ACCESSES)
def test_address_sanitizer_finds_bad_accesses(name):
    done = sanitized.run_sanitized("address", examples.__file__, name)
    assert done.returncode == sanitized.FOUND, done.stderr
    assert reported_lines(done.stderr) & lines_of_bug(name), done.stderr


@skip_if(missing_tools("address"))
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_a_sanitizer_that_is_not_preloaded_is_an_error(sanitizer):
    module = CpuRawModule(code=examples.SOURCE, options=OPTIONS, name_expressions=["total"], sanitize=sanitizer)
    with pytest.raises(KernelError, match=f"the {sanitizer} sanitizer is not preloaded"):
        module.compile()


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(build, "library_of", lambda sanitizer: None)
    assert "no libtsan.so: install" in missing_tools("thread")
    assert "no libasan.so: install" in missing_tools("address")
    with pytest.raises(KernelError, match="no libtsan.so"):
        sanitized.run_sanitized("thread", examples.__file__)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert missing_tools("address").startswith("g++ is not installed")
