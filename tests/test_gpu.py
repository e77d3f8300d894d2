"""The GPU kernels through their launcher: on the CPU, where g++ compiles them, and on a GPU if there is one.

The parameter "cpu" runs `condensed.cu` itself, every CUDA thread on its own stack, with CuPy's stand-in; "device"
runs the same tests on the GPU.
"""

from pathlib import Path

import numpy as np
import pytest
from cuda_on_cpu import KernelError, missing_tools, thread_order
from cuda_on_cpu.fake_cupy import use_cupy_without_device, use_fake_cupy, use_no_cupy
from cuda_on_cpu.sanitized import run_sanitized
from gpu_launches import PLANTED_BUGS, plant, take
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import assert_within_rounding

from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import GpuUnavailableError, InputError
from sparsekit.gpu import GpuConvolution, GpuNetwork
from sparsekit.gpu_matrix import GpuCondensedMatrix
from sparsekit.im2col import Im2colConvolution
from sparsekit.kernels import gpu
from sparsekit.kernels.gpu_arrays import bfloat16_bits
from sparsekit.models import mlp
from sparsekit.models.cnn import cnn, mnist_cnn
from sparsekit.nn import BatchNorm, Linear, Sequential, WeightLayer

NO_COMPILER = missing_tools()
KINDS = ("float32", "float16", "bfloat16")
PATHS = ("condensed-small", "condensed-tile")
HERE = Path(__file__).parent


def no_device():
    """Why the tests cannot run on a GPU, or None."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    return None if cupy.cuda.is_available() else "CuPy finds no CUDA device"


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))),
        pytest.param("device", marks=pytest.mark.skipif(no_device() is not None, reason=str(no_device()))),
    ]
)
def cupy(request, monkeypatch):
    """CuPy, or its stand-in with the shared memory of a T4, so that few inputs already make several chunks."""
    return use(request.param, monkeypatch)


def use(where, monkeypatch):
    if where == "cpu":
        return use_fake_cupy(monkeypatch, "75")
    import cupy

    return cupy


@pytest.fixture
def fake_cupy(monkeypatch):
    """The stand-in alone, for what only it can do."""
    if NO_COMPILER is not None:
        pytest.skip(NO_COMPILER)
    return use_fake_cupy(monkeypatch, "75")


def layer(n_out, n_in, fan_in, ablated=(), seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((n_out, n_in)).argsort(axis=1) < fan_in
    mask[list(ablated)] = False
    return CondensedMatrix.from_dense((rng.standard_normal(mask.shape) * mask).astype(np.float32), mask)


def numbers(cupy, shape, kind, seed):
    """A random array on the device, and what it holds as float64 on the host."""
    return on_device(cupy, np.random.default_rng(seed).standard_normal(shape).astype(np.float32), kind)


def on_device(cupy, x, kind):
    if kind == "bfloat16":
        bits = bfloat16_bits(x)
        return cupy.asarray(bits), (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    x = x.astype(kind)
    return cupy.asarray(x), x.astype(np.float64)


def check_products(cupy, matrix, batch, kind, seed=0):
    """All products of a matrix against float64, within the bound of rounding for float32 sums in any order."""
    n_out, n_in = matrix.shape
    weight, mask = matrix.to_dense().astype(np.float64), matrix.mask()
    fan_in, readers = mask.sum(axis=1)[:, None], mask.sum(axis=0)[:, None]
    on_gpu = matrix.to_gpu()
    x, exact_x = numbers(cupy, (n_in, batch), kind, seed)
    g, exact_g = numbers(cupy, (n_out, batch), kind, seed + 1)
    bias, exact_bias = numbers(cupy, (n_out, 1), "float32", seed + 2)
    product, magnitude = weight @ exact_x, np.abs(weight) @ np.abs(exact_x)
    assert_within_rounding(on_gpu.matmul(x).get(), product, magnitude, fan_in)
    got = on_gpu.matmul(x, bias=bias, relu=True).get()
    with_bias = magnitude + np.abs(exact_bias)
    assert_within_rounding(got, np.maximum(product + exact_bias, 0), with_bias, fan_in)
    first = on_gpu.matmul(cupy.ascontiguousarray(x.T), bias=bias, samples_first=True).get()
    assert_within_rounding(first.T, product + exact_bias, with_bias, fan_in)

    back, back_magnitude = weight.T @ exact_g, np.abs(weight.T) @ np.abs(exact_g)
    assert_within_rounding(on_gpu.rmatmul(g).get(), back, back_magnitude, readers)
    first = on_gpu.rmatmul(cupy.ascontiguousarray(g.T), samples_first=True).get()
    assert_within_rounding(first.T, back, back_magnitude, readers)

    got = on_gpu.sampled_outer(g, x).get()
    assert got.shape == matrix.values.shape
    outer = (exact_g @ exact_x.T)[mask], (np.abs(exact_g) @ np.abs(exact_x).T)[mask]
    assert_within_rounding(got.ravel(), *outer, batch)


# ----------------------------------------------------------------------------------------------------
# The three products
# ----------------------------------------------------------------------------------------------------
LAYERS = {  # n_out, n_in, fan_in, ablated, batch
    "one weight, one sample": (1, 1, 1, (), 1),
    "two samples": (5, 7, 3, (), 2),
    "full fan-in": (17, 13, 13, (), 5),
    "a half-warp of samples": (40, 101, 11, (0, 7, 39), 16),
    "one active neuron": (3, 9, 2, (0, 2), 17),
    "no active neuron": (3, 9, 2, (0, 1, 2), 31),
    "fan-in 1": (37, 100, 1, (), 32),
    "two chunks, more than 48 KiB": (18, 400, 40, (5,), 8),
    "three chunks": (20, 450, 37, (2,), 33),
    "seven chunks, some unread": (4, 1300, 3, (), 40),
    "two tiles": (50, 64, 20, (), 64),
    "three tiles": (20, 31, 7, (19,), 130),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", LAYERS)
def test_products_equal_float64_within_rounding(cupy, monkeypatch, case, path, kind):
    *arguments, batch = LAYERS[case]
    take(monkeypatch, path)
    with thread_order(list(LAYERS).index(case) % 4):
        check_products(cupy, layer(*arguments), batch, kind)


@pytest.mark.parametrize("where", ["cpu", "device"])
@settings(max_examples=25)
@given(data=st.data())
def test_products_of_any_shape(where, data):
    reason = NO_COMPILER if where == "cpu" else no_device()
    if reason is not None:
        pytest.skip(reason)
    n_out, n_in = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    fan_in, batch = data.draw(st.integers(1, n_in)), data.draw(st.integers(0, 70))
    ablated = data.draw(st.sets(st.integers(0, n_out - 1), max_size=n_out))
    with pytest.MonkeyPatch.context() as patch, thread_order(data.draw(st.integers(0, 5))):
        cupy = use(where, patch)
        take(patch, data.draw(st.sampled_from(PATHS)))
        seed = data.draw(st.integers(0, 1000))
        check_products(
            cupy, layer(n_out, n_in, fan_in, ablated, seed), batch, data.draw(st.sampled_from(KINDS)), seed
        )


@pytest.mark.parametrize("shape", gpu.SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_of_block(cupy, monkeypatch, shape, kind):
    monkeypatch.setattr(gpu, "SHAPES", (shape,))
    take(monkeypatch, "condensed-tile")
    with thread_order(3):
        check_products(cupy, layer(70, 40, 9, (3, 69)), 35, kind)


def test_wide_blocks_where_there_are_enough_of_them(cupy, monkeypatch):
    rows = layer(768, 20, 4).to_gpu().packed_weights()[0]
    limits = gpu.device_limits(cupy)._replace(processors=132)
    chosen = [gpu._gather_shape(rows, tiles, limits).slices for tiles in (1, 8, 64)]
    assert chosen == [1, 3, 6]
    assert gpu._outer_shape(rows, 2, limits._replace(processors=8)).slices == 6
    assert gpu._outer_shape(rows, 2, limits._replace(processors=8, shared_memory=6500)).slices == 3


@pytest.mark.parametrize("path", PATHS)
def test_more_inputs_than_uint16_counts(cupy, monkeypatch, path):
    take(monkeypatch, path)
    n_in = 2**16 + 30
    indices = np.array([[0, 65535, 65536], [3, 4, n_in - 1]])
    values = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], dtype=np.float32)
    matrix = CondensedMatrix(values, indices, np.array([0, 2]), (3, n_in))
    assert matrix.indices.dtype == np.int32
    on_gpu, x = matrix.to_gpu(), np.arange(n_in, dtype=np.float32)
    assert on_gpu.matmul(cupy.asarray(x)).get().tolist() == (matrix.to_dense() @ x).tolist()
    g = cupy.asarray(np.array([[1.0], [5.0], [2.0]], dtype=np.float32))
    got = on_gpu.sampled_outer(g, cupy.asarray(x[:, None])).get()
    assert got.tolist() == [[0, 65535, 65536], [6, 8, 2 * (n_in - 1)]]


def test_the_transposed_product_of_many_inputs(cupy):
    n_in = 2**16 + 30
    matrix = CondensedMatrix(np.ones((1, 2), np.float32), np.array([[1, n_in - 1]]), np.array([1]), (2, n_in))
    g = cupy.asarray(np.array([3.0, 5.0], dtype=np.float32))
    got = matrix.to_gpu().rmatmul(g).get()
    assert np.flatnonzero(got).tolist() == [1, n_in - 1]
    assert got[[1, n_in - 1]].tolist() == [5, 5]


@pytest.mark.parametrize("path", PATHS)
def test_what_a_neuron_does_not_read_cannot_reach_it(cupy, monkeypatch, path):
    """Rows of one slice have 2, 3 and 9 inputs in a step's multiples of 4: all but the last are filled up."""
    take(monkeypatch, path)
    mask = np.zeros((3, 450), dtype=bool)  # three chunks; the first input of each is read by nobody
    mask[0, [1, 170, 449]] = mask[1, [2, 3, 4]] = mask[2, [200, 201, 449]] = True
    on_gpu = CondensedMatrix.from_dense(mask.astype(np.float32), mask).to_gpu()
    x = np.ones((450, 36), dtype=np.float32)
    x[[0, 152, 304]] = np.nan
    x[[5, 160, 448]] = np.inf
    assert (on_gpu.matmul(cupy.asarray(x)).get() == 3).all()
    x[2, 1], x[3, 2], x[4, 35] = np.nan, np.inf, -np.inf
    y = on_gpu.matmul(cupy.asarray(x), relu=True).get()
    assert (y[[0, 2]] == 3).all()
    assert np.isnan(y[1, 1])
    assert np.isposinf(y[1, 2])
    assert y[1, 35] == 0
    assert (np.delete(y[1], [1, 2, 35]) == 3).all()


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_in_every_order_of_threads(fake_cupy, monkeypatch, path):
    take(monkeypatch, path)
    on_gpu = layer(40, 450, 37).to_gpu()
    (x, _), (g, _) = (numbers(fake_cupy, (n, 67), "float32", n) for n in (450, 40))
    results = []
    for order in (0, 1, 2, 3):
        with thread_order(order):
            products = on_gpu.matmul(x), on_gpu.rmatmul(g), on_gpu.sampled_outer(g, x)
            results.append(b"".join(product.get().tobytes() for product in products))
    assert len(set(results)) == 1


@pytest.mark.parametrize("path", [*PATHS, "dense"])
def test_changed_values_are_seen_by_the_next_product(cupy, monkeypatch, path):
    matrix = layer(9, 50, 6)
    on_gpu, x = matrix.to_gpu(), numbers(cupy, (50, 40), "float32", 1)[0]
    g = numbers(cupy, (9, 40), "float32", 2)[0]

    def products():
        take(monkeypatch, path)
        y = on_gpu.matmul(x).get()
        take(monkeypatch, PATHS[1] if path == "dense" else path)
        return y, on_gpu.rmatmul(g).get()

    before = products()
    on_gpu.values *= 2  # exact
    after = products()
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, 2 * old)
    np.testing.assert_array_equal(on_gpu.to_cpu().values, 2 * matrix.values)
    assert on_gpu.to_cpu().indices.tolist() == matrix.indices.tolist()


def test_a_frozen_matrix_packs_once(cupy, monkeypatch):
    take(monkeypatch, "condensed-tile")
    launched, launch = [], gpu._launch
    monkeypatch.setattr(gpu, "_launch", lambda name, *args: (launched.append(name), launch(name, *args)))
    matrix = layer(9, 50, 6).to_gpu()
    frozen, x = matrix.frozen(), numbers(cupy, (50, 33), "float32", 1)[0]
    expected = matrix.matmul(x).get()
    matrix.values *= 2  # another array
    for _ in range(3):
        np.testing.assert_array_equal(frozen.matmul(x).get(), expected)
    assert launched.count("pack") == 1 + 1


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("samples_first", [False, True])
def test_the_dense_product(cupy, monkeypatch, relu, samples_first):
    matrix = layer(9, 50, 6, (4,))
    on_gpu, x = matrix.to_gpu(), numbers(cupy, (50, 40), "float32", 1)[0]
    bias = numbers(cupy, (9,), "float32", 2)[0]
    arguments = {"bias": bias, "relu": relu, "samples_first": samples_first, "allow_dense": True}
    x = cupy.ascontiguousarray(x.T) if samples_first else x
    gathered = on_gpu.matmul(x, **arguments).get()
    assert on_gpu.choice.name == "condensed-small"
    take(monkeypatch, "dense")
    np.testing.assert_allclose(on_gpu.matmul(x, **arguments).get(), gathered, rtol=1e-5, atol=1e-5)


def test_which_way_was_taken_can_be_asked(cupy, monkeypatch):
    on_gpu = layer(9, 50, 6).to_gpu()
    assert on_gpu.choice is None
    on_gpu.matmul(numbers(cupy, (50, 3), "float32", 1)[0])
    assert str(on_gpu.choice).startswith("condensed-small (predicted, not measured, in microseconds: ")
    assert "dense" not in on_gpu.explain(256).predicted
    fp32 = on_gpu.explain(256, allow_dense=True).predicted["dense"]
    monkeypatch.setenv("CUPY_TF32", "1")
    assert on_gpu.explain(256, allow_dense=True).predicted["dense"] != fp32
    assert on_gpu.explain(4, np.float16, transposed=True).name == "condensed-small"


def test_vectors_outputs_and_what_the_matrix_says(cupy):
    matrix = layer(9, 50, 6, (0,))
    on_gpu, x = matrix.to_gpu(), numbers(cupy, (50,), "float32", 1)[0]
    y = on_gpu @ x
    assert y.shape == (9,)
    assert on_gpu.matmul(x, samples_first=True).get().tolist() == y.get().tolist()
    g = numbers(cupy, (9,), "float32", 2)[0]
    assert on_gpu.rmatmul(g).shape == (50,)
    out = cupy.empty((9, 1), dtype=np.float32)
    on_gpu.matmul(x, out=out)
    assert out.get()[:, 0].tolist() == y.get().tolist()
    assert on_gpu.sampled_outer(g, x, out=cupy.empty((8, 6), dtype=np.float32)).shape == (8, 6)
    assert (on_gpu.shape, on_gpu.fan_in, on_gpu.nnz, on_gpu.dtype) == ((9, 50), 6, 48, np.float32)
    assert on_gpu.nbytes == matrix.nbytes < on_gpu.held_nbytes
    assert (
        repr(on_gpu)
        == f"GpuCondensedMatrix(9 x 50, fan_in=6, 8 of 9 neurons active, float32, {matrix.nbytes} bytes)"
    )


def test_the_backend_of_a_matrix_on_the_host(cupy):
    matrix = layer(9, 50, 6, (1,))
    (x, exact_x), (g, exact_g) = numbers(cupy, (50, 3), "float32", 1), numbers(cupy, (9, 3), "float32", 2)
    for _ in range(2):
        weight = matrix.to_dense()
        np.testing.assert_allclose(matrix.matmul(x, backend="gpu").get(), weight @ exact_x, atol=1e-5)
        np.testing.assert_allclose(matrix.rmatmul(g, backend="gpu").get(), weight.T @ exact_g, atol=1e-5)
        outer = (exact_g @ exact_x.T)[matrix.mask()].reshape(matrix.values.shape)
        np.testing.assert_allclose(matrix.sampled_outer(g, x, backend="gpu").get(), outer, atol=1e-5)
        matrix.values *= -3  # seen by the next product
    for other in (matrix.to_csr(), DenseMatrix(matrix.to_dense())):
        with pytest.raises(InputError, match=f"for CondensedMatrix, not for {type(other).__name__}"):
            other.matmul(x, backend="gpu")


# ----------------------------------------------------------------------------------------------------
# Convolution
# ----------------------------------------------------------------------------------------------------
CONVOLUTIONS = {  # channels, image, kernel, stride, padding, out channels, fan_in, batch
    "3x3": (3, (5, 6), 3, 1, 1, 7, 9, 5),
    "stride 2": (2, (7, 7), 3, 2, 0, 18, 4, 33),
    "1x1": (5, (3, 2), 1, 1, 0, 4, 2, 64),
    "rectangular": (2, (4, 6), (2, 3), (1, 2), (0, 2), 5, 5, 4),
    "three chunks": (50, (3, 3), 3, 1, 1, 4, 40, 8),
    "only padding": (1, (1, 1), 3, 1, 2, 2, 3, 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_equals_float64_within_rounding(cupy, case, kind):
    channels, size, kernel, stride, padding, n_out, fan_in, batch = CONVOLUTIONS[case]
    taps = channels * int(np.prod(kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    matrix, geometry = layer(n_out, taps, fan_in, (1,)), (channels, kernel, stride, padding)
    on_gpu = GpuConvolution(matrix.to_gpu(), *geometry)
    x, exact_x = numbers(cupy, (channels, *size, batch), kind, 1)
    bias, exact_bias = numbers(cupy, (n_out,), "float32", 2)

    def exact(transform):
        values = transform(matrix.values.astype(np.float64))
        same = DenseMatrix(CondensedMatrix(values, matrix.indices, matrix.rows, matrix.shape).to_dense())
        return Im2colConvolution(same, *geometry).forward(transform(exact_x), bias=transform(exact_bias))

    with thread_order(list(CONVOLUTIONS).index(case) % 3):
        got = on_gpu.forward(x, bias=bias, relu=True).get()
    assert_within_rounding(got, np.maximum(exact(np.asarray), 0), exact(np.abs), fan_in)


def test_convolution_sees_changed_values_and_writes_to_out(cupy):
    on_gpu = GpuConvolution(layer(4, 18, 5).to_gpu(), 2, 3, padding=1)
    x = numbers(cupy, (2, 4, 4, 3), "float32", 1)[0]
    before = on_gpu.forward(x).get()
    on_gpu.matrix.values *= 2
    out = cupy.empty((4, 4, 4, 3), dtype=np.float32)
    assert on_gpu.forward(x, out=out) is out
    np.testing.assert_array_equal(out.get(), 2 * before)
    assert repr(on_gpu).startswith("GpuConvolution(CondensedMatrix(4 x 18")
    assert on_gpu.forward(cupy.empty((2, 4, 4, 0), dtype=np.float32)).shape == (4, 4, 4, 0)


# ----------------------------------------------------------------------------------------------------
# Whole networks
# ----------------------------------------------------------------------------------------------------
NETWORKS = {
    "mlp": (lambda: mlp([20, 40, 30, 5], sparsity=0.8, dropout=0.3, batch_norm=True), (20,)),
    "mlp without batch norm": (lambda: mlp([12, 9, 4], sparsity=0.5), (12,)),
    "cnn": (lambda: cnn((3, 9, 8), 5, channels=(8, 6), sparsity=0.7), (3, 9, 8)),
    "mnist_cnn": (lambda: mnist_cnn((1, 12, 12), 4, sparsity=0.9), (1, 12, 12)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 33])
def test_a_replayed_network_equals_the_model(cupy, name, batch):
    make, shape = NETWORKS[name]
    model = make()
    rng = np.random.default_rng(0)
    for module in model.layers.values():
        if isinstance(module, WeightLayer):
            module.backend = "vectorized"  # its kernels need not be compiled
            if module.bias is not None:
                module.bias.values[...] = rng.standard_normal(module.bias.values.shape)
        elif isinstance(module, BatchNorm):
            module.running_mean[...] = rng.standard_normal(module.running_mean.shape)
            module.running_var[...] = rng.uniform(0.5, 2, module.running_var.shape)
    network = GpuNetwork(model, shape, batch)
    for _ in range(2):  # the second time with new inputs
        x = rng.standard_normal((*shape, batch)).astype(np.float32)
        expected = model.forward(x)
        got = network(cupy.asarray(x))
        assert got is network.output
        np.testing.assert_allclose(got.get(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        replayed = got.get()
        network.output[...] = 0
        network._run()
        np.testing.assert_array_equal(network.output.get(), replayed)


def test_a_network_launches_one_graph(fake_cupy, monkeypatch):
    network = GpuNetwork(mlp([12, 9, 4], sparsity=0.5), (12,), 3)
    monkeypatch.setattr(gpu, "_launch", None)  # nothing is launched one by one any more
    network(fake_cupy.asarray(np.ones((12, 3), dtype=np.float32)))


def normalised_first():
    layers = mlp([6, 6, 4], batch_norm=True).layers
    return Sequential({name: layers[name] for name in ("bn1", "fc2")})


REFUSED = {
    "GELU": (lambda: mlp([6, 5, 4], activation="gelu"), "no GELU on the GPU, as 'gelu1' is"),
    "CSR": (
        lambda: Sequential({"fc": Linear(CSRMatrix.from_mask(np.eye(4, 6, dtype=bool)))}),
        "model must have condensed or dense weights on the GPU, not the CSRMatrix of 'fc'",
    ),
    "batch norm alone": (normalised_first, "no BatchNorm that does not follow a weight on the GPU, as 'bn1' is"),
    "float64": (lambda: mlp([6, 4], dtype=np.float64), "values must be float32 on the GPU, not float64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_refused(cupy, name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        GpuNetwork(make(), (6,), 2)


def test_inputs_of_a_network_that_are_refused(cupy):
    model = mlp([6, 4])
    with pytest.raises(InputError, match="batch must be an integer of at least 1, not 0"):
        GpuNetwork(model, (6,), 0)
    with pytest.raises(InputError, match="x must have shape"):
        GpuNetwork(model, (7,), 1)
    network = GpuNetwork(model, (6,), 2)
    with pytest.raises(InputError, match=r"x must have the shape \(6, 2\) of this network's input, not \(6, 3\)"):
        network(cupy.zeros((6, 3), dtype=np.float32))
    with pytest.raises(InputError, match="x must be float32 on the GPU, not float16"):
        network(cupy.zeros((6, 2), dtype=np.float16))
    with pytest.raises(InputError, match="x must be an array on the GPU, not numpy.ndarray: call cupy.asarray"):
        network(np.zeros((6, 2), dtype=np.float32))


# ----------------------------------------------------------------------------------------------------
# Errors, before any launch
# ----------------------------------------------------------------------------------------------------
def refusals(cupy):
    """(product, message) for a matrix 4 x 6."""

    def array(*shape, dtype=np.float32):
        return cupy.zeros(shape, dtype=dtype)

    m = layer(4, 6, 2).to_gpu()
    x, g, block = array(6, 3), array(4, 3), array(10, 3)
    host = np.zeros((6, 3), dtype=np.float32)
    yield lambda: m.matmul(host), r"x must be an array on the GPU, not numpy.ndarray: call cupy.asarray\(x\)"
    yield lambda: m.rmatmul([[1.0]]), "g must be an array on the GPU, not builtins.list: call cupy.asarray"
    yield lambda: m.matmul(array(6, 3, dtype=np.float64)), "x must be float32, float16 or bfloat16 .* not float64"
    yield lambda: m.matmul(array(3, 6).T), r"x must be C-contiguous: call cupy.ascontiguousarray\(x\)"
    yield lambda: m.matmul(g), r"x must have shape \(6, batch\) or \(6,\), not \(4, 3\)"
    yield lambda: m.matmul(x, samples_first=True), r"x must have shape \(batch, 6\) or \(6,\), not \(6, 3\)"
    yield lambda: m.matmul(array(6, 1, 3)), r"not \(6, 1, 3\)"
    yield lambda: m.rmatmul(x), r"g must have shape \(4, batch\) or \(4,\), not \(6, 3\)"
    yield lambda: m.matmul(x, backend="cpu"), "backend must be one of gpu, not 'cpu'"
    yield lambda: m.matmul(x, bias=np.zeros(4)), "bias must be an array on the GPU, not numpy.ndarray"
    yield lambda: m.matmul(x, bias=array(4, dtype=np.float64)), "bias must be float32 on the GPU, not float64"
    yield lambda: m.matmul(x, bias=array(6)), r"bias must have shape \(4,\) or \(4, 1\), not \(6,\)"
    yield lambda: m.matmul(x, out=host), "out must be an array on the GPU, not numpy.ndarray"
    yield lambda: m.matmul(x, out=array(4, 2)), r"out must be a float32 array \(4, 3\), not float32 \(4, 2\)"
    yield lambda: m.matmul(x, out=array(4, 3, dtype=np.float16)), r"not float16 \(4, 3\)"
    yield lambda: m.matmul(x, out=array(3, 4).T), "out must be C-contiguous"
    yield lambda: m.matmul(block[:6], out=block[5:9]), "out must not share memory with x"
    yield lambda: m.sampled_outer(g, x, out=m.values), "out must not share memory with values"
    yield lambda: m.sampled_outer(g, array(6, 2)), "g and x must have the same dtype and batch, not float32 3 and"
    yield lambda: m.sampled_outer(g, array(6, 3, dtype=np.float16)), "and float16 3"

    images, convolution = array(1, 4, 4, 3), GpuConvolution(layer(2, 4, 2).to_gpu(), 1, 2)
    yield lambda: convolution.forward(x), r"x must have shape \(1, height, width, batch\), not \(6, 3\)"
    yield lambda: convolution.forward(images.get()), "x must be an array on the GPU"
    yield lambda: convolution.forward(images, bias=array(3)), r"bias must have shape \(2,\)"
    yield lambda: convolution.forward(images, out=images), r"out must be a float32 array \(2, 3, 3, 3\)"
    yield lambda: convolution.forward(array(1, 1, 1, 1)), "kernel_size must be at most the padded input 1 x 1"
    yield lambda: GpuConvolution(layer(2, 4, 2), 1, 2), "matrix must be a GpuCondensedMatrix, made by to_gpu"
    yield lambda: GpuConvolution(m, 1, 2), "matrix must have .* = 4 columns, not 6"


def test_what_is_refused_before_any_launch(cupy, monkeypatch):
    cases = list(refusals(cupy))
    monkeypatch.setattr(gpu, "_launch", None)
    for product, message in cases:
        with pytest.raises(InputError, match=message) as error:
            product()
        assert "\n" not in str(error.value)


def test_an_array_on_another_device(fake_cupy, monkeypatch):
    matrix, x = layer(4, 6, 2).to_gpu(), fake_cupy.zeros((6, 1), dtype=np.float32)
    elsewhere = type("elsewhere", (fake_cupy.ndarray,), {"device": "<CUDA Device 1>"})
    with pytest.raises(InputError, match="x must be on the device of the matrix, .*, not on <CUDA Device 1>"):
        matrix.matmul(x.view(elsewhere))


def test_matrices_that_are_refused(cupy):
    with pytest.raises(InputError, match="matrix must be a CondensedMatrix, not CSRMatrix"):
        GpuCondensedMatrix(layer(4, 6, 2).to_csr())
    with pytest.raises(InputError, match="values must be float32 on the GPU, not float64"):
        CondensedMatrix.from_mask(np.eye(3, dtype=bool), np.float64).to_gpu()
    wide = CondensedMatrix(np.ones((1, 1), np.float32), np.array([[7]]), np.array([0]), (1, 2**16 + 1))
    wide.indices = wide.indices.astype(np.uint16)
    with pytest.raises(InputError, match="indices must be int32 to count 65537 inputs, not uint16"):
        GpuCondensedMatrix(wide)
    wide.indices = wide.indices.astype(np.int64)
    with pytest.raises(InputError, match="indices must be uint16 or int32 on the GPU, not int64"):
        GpuCondensedMatrix(wide)


def test_without_cupy_or_device(monkeypatch):
    matrix = layer(4, 6, 2)
    uses = (
        matrix.to_gpu,
        lambda: matrix.matmul(np.zeros((6, 1)), backend="gpu"),
        lambda: GpuNetwork(mlp([6, 4]), (6,), 1),
    )
    for make, message in (
        (use_no_cupy, r"the GPU needs CuPy, which is not installed: pip install 'sparsekit\[gpu\]'"),
        (use_cupy_without_device, "the GPU needs a CUDA device and its driver, and CuPy finds none here"),
    ):
        make(monkeypatch)
        for use in uses:
            with pytest.raises(GpuUnavailableError, match=message):
                use()


# ----------------------------------------------------------------------------------------------------
# Would a mistake be found?
# ----------------------------------------------------------------------------------------------------
def check_in_several_orders(cupy):
    for order in (0, 1, 2):
        with thread_order(order):
            check_products(cupy, layer(20, 450, 37, (2,)), 100, "float32")


# what reads or writes elsewhere would break this process: those are for the sanitizer
@pytest.mark.parametrize("bug", [name for name, bug in PLANTED_BUGS.items() if bug.sanitizer != "address"])
def test_a_planted_bug_is_found(fake_cupy, monkeypatch, tmp_path, bug):
    with plant(monkeypatch, tmp_path, bug):
        take(monkeypatch, PLANTED_BUGS[bug].path)
        with pytest.raises((AssertionError, KernelError)):
            check_in_several_orders(fake_cupy)


SANITIZERS_MISSING = missing_tools("thread", "address")
with_sanitizers = pytest.mark.skipif(SANITIZERS_MISSING is not None, reason=str(SANITIZERS_MISSING))


@with_sanitizers
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_the_sanitizers_find_nothing(sanitizer):
    done = run_sanitized(sanitizer, HERE / "gpu_launches.py", *KINDS[: 1 if sanitizer == "thread" else 2])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "all instances launched\n"


@with_sanitizers
@pytest.mark.parametrize(
    ("sanitizer", "bug"),
    [(bug.sanitizer, name) for name, bug in PLANTED_BUGS.items() if bug.sanitizer],
)
def test_the_sanitizers_find_planted_bugs(sanitizer, bug):
    done = run_sanitized(sanitizer, HERE / "gpu_launches.py", bug)
    assert done.returncode == 66, done.stdout + done.stderr[-3000:]
    assert "kernel.cu" in done.stderr
