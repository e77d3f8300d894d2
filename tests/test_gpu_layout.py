"""How stored weights lie on a GPU, the table of kernels, and the rule that chooses one; none is launched."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.gpu_convolution import kernel_corners, kernel_taps
from sparsekit.im2col import Im2colConvolution
from sparsekit.kernels import gpu_dispatch, gpu_instances
from sparsekit.kernels.gpu_arrays import bfloat16_bits
from sparsekit.kernels.gpu_dispatch import choose
from sparsekit.kernels.gpu_instances import ENTRIES, INSTANCES, ROW_BYTES, ROWS, SHAPES, SOURCE
from sparsekit.kernels.gpu_layout import chunk_rows, packed_rows


@st.composite
def rows_of_any_length(draw):
    """(mask, inputs of a chunk): few or many rows, some empty, some full; one chunk or many."""
    n_rows, n_inputs = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = rng.choice(draw(st.sampled_from([[0.0], [0.3], [1.0], [0.0, 0.1, 1.0]])), n_rows)
    return rng.random((n_rows, n_inputs)) < density[:, None], draw(st.integers(1, n_inputs))


def packed(mask, rows_of_chunk):
    matrix = CSRMatrix.from_mask(mask)
    positions = np.random.default_rng(0).permutation(matrix.nnz)
    rows = packed_rows(matrix.indptr, matrix.indices, positions, mask.shape[1], rows_of_chunk)
    return rows, positions


@settings(max_examples=80)
@given(layer=rows_of_any_length())
def test_every_weight_is_packed_once_and_where_the_kernel_looks(layer):
    mask, rows_of_chunk = layer
    rows, positions = packed(mask, rows_of_chunk)
    found = {}
    for s, c in np.ndindex(rows.n_slices, rows.n_chunks):
        begin, end = rows.steps[s * rows.n_chunks + c : s * rows.n_chunks + c + 2]
        for step, lane, entry in np.ndindex(end - begin, ROWS, ENTRIES):
            local, position = rows.inputs[begin + step, lane, entry], rows.positions[begin + step, lane, entry]
            if position < 0:
                assert local == rows_of_chunk  # the row of zeros
            else:
                assert local < rows_of_chunk
                assert position not in found
                found[position] = rows.outputs[s * ROWS + lane], c * rows_of_chunk + local
    expected = zip(positions.tolist(), zip(*np.nonzero(mask), strict=True), strict=True)
    assert found == dict(expected)
    assert rows.steps[0] == 0
    assert rows.steps[-1] == len(rows.inputs)
    assert rows.most_steps == np.diff(rows.steps).max()


@settings(max_examples=60)
@given(layer=rows_of_any_length())
def test_every_row_is_written_once_and_the_longest_come_first(layer):
    mask, rows_of_chunk = layer
    rows, _ = packed(mask, rows_of_chunk)
    real = rows.outputs[rows.outputs >= 0]
    assert sorted(real) == list(range(len(mask)))
    assert (rows.outputs[len(mask) :] == -1).all()
    assert (np.diff(mask.sum(axis=1)[real]) <= 0).all()


def test_constant_fan_in_is_packed_without_loss():
    mask = np.random.default_rng(0).random((64, 200)).argsort(axis=1) < 20
    assert packed(mask, 200)[0].fill == 1.0
    mask[3] = False  # an ablated neuron reads nothing; the others move up
    rows = packed(mask, 200)[0]
    assert rows.outputs[62:].tolist() == [63, 3]
    assert rows.fill == pytest.approx(64 / 63)


@settings(max_examples=100)
@given(n_inputs=st.integers(1, 10**6), kib=st.sampled_from([48, 64, 96, 99, 163, 227]))
def test_chunks_are_few_even_and_fit(n_inputs, kib):
    rows = chunk_rows(n_inputs, kib * 1024)
    n_chunks = -(-n_inputs // rows)
    assert rows <= 2**16 - 1
    assert rows % ENTRIES == 0 or n_chunks == 1
    assert shared_bytes(rows) <= kib * 1024
    if n_chunks > 1:
        one_chunk_less = -(-n_inputs // (n_chunks - 1))
        assert shared_bytes(one_chunk_less + ENTRIES) > kib * 1024


def shared_bytes(rows_of_chunk):
    """Two buffers with their row of zeros, and the partial sums of a slice in which every weight is there."""
    return 2 * (rows_of_chunk + 1) * ROW_BYTES + -(-rows_of_chunk // ENTRIES) * ENTRIES * ROWS * 4


def test_the_table_agrees_with_the_source():
    source = SOURCE.read_text(encoding="utf-8")
    constants = {
        name: int(value) for name, value in re.findall(r"^const int (\w+) = (\d+);", source, re.MULTILINE)
    }
    assert constants == {
        "MAX_THREADS": gpu_instances.TILED_THREADS,
        "FEW_THREADS": gpu_instances.FEW_THREADS,
        "PACK_THREADS": gpu_instances.PACK_THREADS,
        "ROWS": ROWS,
        "SEGMENTS": gpu_instances.SEGMENTS,
        "SHARE": gpu_instances.SEGMENTS // 2,
    }
    kernels = set(re.findall(r"^(\w+)\(const \w+\*.*", source, re.MULTILINE))
    assert kernels == {instance.name.split("<")[0] for instance in INSTANCES}
    assert len({instance.name for instance in INSTANCES}) == len(INSTANCES)
    assert all(shape.threads <= gpu_instances.TILED_THREADS for shape in SHAPES)


def test_the_documented_predictions_are_those_of_the_rule():
    table = re.findall(r"^(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", gpu_dispatch.__doc__, re.MULTILINE)
    assert len(table) == 5
    for batch, *times in table:
        fp32, tf32 = (choose((768, 3072), 768 * 307, int(batch), allow_dense=True, tf32=t) for t in (False, True))
        predicted = [*fp32.predicted.values(), tf32.predicted["dense"]]
        assert times == [f"{time:.1f}" for time in predicted]


def test_the_rule():
    shape, nnz = (768, 3072), 768 * 307
    assert choose(shape, nnz, 1).name == "condensed-small"
    assert choose(shape, nnz, 256).name == "condensed-tile"
    assert choose(shape, 768 * 2, 256).name == "condensed-small"  # staging 3072 inputs for 2 would be waste
    assert choose(shape, nnz, 2048, tf32=True).name == "condensed-tile"  # dense only where it is allowed
    assert choose(shape, nnz, 2048, allow_dense=True).name == "condensed-tile"
    assert choose(shape, nnz, 2048, allow_dense=True, tf32=True).name == "dense"
    assert choose(shape, nnz, 2048, itemsize=2, allow_dense=True, tf32=True).name == "condensed-tile"
    assert choose(shape, nnz, 0, allow_dense=True).name == "condensed-small"
    assert "predicted, not measured" in str(choose(shape, nnz, 1))


@settings(max_examples=40)
@given(data=st.data())
def test_taps_and_corners_find_the_pixels_of_a_convolution(data):
    channels, *size = (data.draw(st.integers(1, 4)) for _ in range(3))
    kernel, stride = (tuple(data.draw(st.integers(1, 3)) for _ in range(2)) for _ in range(2))
    padding = tuple(data.draw(st.integers(k - 1, k)) for k in kernel)
    pixels = np.arange(1, channels * size[0] * size[1] + 1).reshape(channels, *size)
    identity = DenseMatrix(np.zeros((1, channels * kernel[0] * kernel[1])))
    convolution = Im2colConvolution(identity, channels, kernel, stride, padding)
    output_size = convolution.output_size(*size)
    taps, corners = kernel_taps(channels, kernel, tuple(size)), kernel_corners(output_size, stride, padding)
    for column in range(len(taps)):
        identity.values[...] = 0
        identity.values[0, column] = 1
        expected = convolution.forward(pixels[..., None].astype(float)).ravel()
        top, left = corners.T
        pixel, row, tap_column, zero = taps[column]
        inside = (
            (top + row >= 0) & (top + row < size[0]) & (left + tap_column >= 0) & (left + tap_column < size[1])
        )
        where = np.where(inside, top * size[1] + left + pixel, 0)
        np.testing.assert_array_equal(np.where(inside, pixels.ravel()[where], 0), expected)
        assert zero == 0


def test_bfloat16_rounds_to_the_nearest_and_keeps_nan():
    exact = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf], dtype=np.float32)
    np.testing.assert_array_equal(bfloat16_bits(exact), exact.view(np.uint32) >> 16)
    step = np.float32(2.0**-7)  # of bfloat16 between 1 and 2
    between = np.array([1 + 0.49 * step, 1 + 0.5 * step, 1 + 0.51 * step, 1 + 1.5 * step], dtype=np.float32)
    back = (bfloat16_bits(between).astype(np.uint32) << 16).view(np.float32)
    assert ((back - 1) / step).tolist() == [0, 0, 1, 2]  # a tie goes to the even one
    nan = np.array([0x7F800001, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    assert np.isnan((bfloat16_bits(nan).astype(np.uint32) << 16).view(np.float32)).all()
