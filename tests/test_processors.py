"""The CPU kernels in fresh processes: without a compiler, for other processors, and how often one is compiled."""

import copy
import importlib
import json
import os
import pickle
import pkgutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import naive
import numpy as np
import pytest
from kernel_helpers import VARIANTS, assert_within_rounding, mask_of, misaligned
from layer_helpers import assert_close, normalization
from layer_helpers import results as results_of
from numba.core.codegen import get_host_cpu_features
from numba.core.dispatcher import Dispatcher
from test_convolution import Case, assert_results_within_rounding

from sparsekit import kernels
from sparsekit.condensed import CondensedMatrix
from sparsekit.convolution import Convolution
from sparsekit.csr import CSRMatrix
from sparsekit.kernels.compiled import run
from sparsekit.kernels.gather import gather_strips
from sparsekit.nn import BatchNorm2d, Conv2d, MaxPool2d, ReLU, Sequential

HAS = {name[1:] for name in get_host_cpu_features().split(",") if name.startswith("+")}
STORAGES = [CondensedMatrix, CSRMatrix]
STRIDE, PADDING = (2, 1), (1, 2)


def layers():
    """(name, matrix, weight, mask, x, g, bias): float32 with uint16 indices, float64 with int32 ones."""
    rng = np.random.default_rng(0)
    for storage, (shape, fan_in, dtype) in product(
        STORAGES, [((40, 70), 50, np.float32), ((7, 66000), 26, np.float64)]
    ):
        n_out, n_in = shape
        mask = mask_of(CondensedMatrix, shape, fan_in, rng)
        mask[2] = False
        weight = (rng.standard_normal(shape) * mask).astype(dtype)
        matrix = storage.from_dense(weight, mask)
        for batch in (1, 5, 17, 66, 130) if dtype == np.float32 else (1, 3, 9, 66):
            operands = (rng.standard_normal(s).astype(dtype) for s in ((n_in, batch), (n_out, batch), (n_out, 1)))
            yield f"{matrix}, batch {batch}", matrix, weight, mask, *operands


def convolutions():
    """(name, convolution, case) of small images."""
    rng = np.random.default_rng(0)
    for storage, dtype in product(STORAGES, [np.float32, np.float64]):
        mask = mask_of(storage, (3, 18), 5, rng).reshape(3, 2, 3, 3)
        weight = (rng.standard_normal(mask.shape) * mask).astype(dtype)
        for batch in (1, 16, 18):  # 16: whole cache lines
            x, g = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 4, 3, batch), (3, 2, 5, batch)))
            case = Case(weight, mask, x, g, STRIDE, PADDING)
            yield f"{storage.__name__}, {x.dtype}, batch {batch}", case.convolution(storage), case


def networks():
    """(name, normalisation, convolution, x, g); the convolution may apply the normalisation to what it reads."""
    rng = np.random.default_rng(0)
    for name, conv, case in convolutions():
        layer = Conv2d(conv.matrix, 2, 3, STRIDE, PADDING)
        layer.bias.values[...] = rng.standard_normal((3, 1))
        layer.keep_dense_gradient = True
        yield name, normalization(BatchNorm2d, 2, rng, case.x.dtype), layer, case.x, case.g


def of_layers():
    """Normalisation, convolution and pooling, each alone or fused with a ReLU, by name."""
    for name, norm, conv, x, g in networks():
        if x.shape[3] > 1:
            network = Sequential(
                {"bn": norm, "relu": ReLU(), "conv": conv, "behind": ReLU(), "pool": MaxPool2d(2)}
            )
            for what, array in results_of(network, x, g[:, :1, :2]).items():
                yield f"{name}: {what}", array
            yield f"{name}: dense gradient", conv.dense_gradient()
        yield f"{name}: bias and ReLU", conv.forward(x, relu=True)
        yield f"{name}: normalised", norm.forward(x, relu=True, side=x)


def check_layers(found):
    """Against plain loops in float64; takes out what it has checked."""
    for name, norm, conv, x, g in networks():
        mask, weight = (array.reshape(3, 2, 3, 3) for array in (conv.matrix.mask(), conv.matrix.to_dense()))
        parameters = norm.weight.values[:, 0], norm.bias.values[:, 0]
        bias = conv.bias.values[:, 0]
        expected = {}
        if x.shape[3] > 1:
            mean, var = naive.feature_statistics(x)
            normalised = naive.batch_norm(x, mean, var, *parameters, norm.eps)
            seen = naive.rectified(normalised)
            y = naive.conv_layer(weight, mask, seen, STRIDE, PADDING, bias=bias, relu=True)
            of_y = naive.max_pooling_gradient(g[:, :1, :2], y, (2, 2), (2, 2)) * (y > 0)
            of_seen = naive.convolution_input_gradient(weight, mask, of_y, x.shape[1:3], STRIDE, PADDING)
            dx, d_weight, d_bias = naive.batch_norm_gradient(
                of_seen * (normalised > 0), x, parameters[0], norm.eps
            )
            dw = naive.convolution_weight_gradient(np.ones_like(mask), of_y, seen, STRIDE, PADDING)
            n = x[0].size
            norm.running_mean += 0.1 * (mean[:, None] - norm.running_mean)
            norm.running_var += 0.1 * (var[:, None] * n / (n - 1) - norm.running_var)
            expected |= {
                "output": naive.max_pooling(y, (2, 2), (2, 2)),
                "gradient of the input": dx,
                "gradient of bn.weight": d_weight[:, None],
                "gradient of bn.bias": d_bias[:, None],
                "gradient of conv.weight": dw[mask].reshape(conv.matrix.values.shape),
                "gradient of conv.bias": of_y.sum(axis=(1, 2, 3))[:, None],
                "bn.running_mean": norm.running_mean,
                "bn.running_var": norm.running_var,
                "dense gradient": dw.reshape(3, -1),
            }
        expected["bias and ReLU"] = naive.conv_layer(weight, mask, x, STRIDE, PADDING, bias=bias, relu=True)
        running = norm.running_mean[:, 0], norm.running_var[:, 0]
        normalised = naive.batch_norm(x, *running, *parameters, norm.eps)
        expected["normalised"] = naive.residual_sum(normalised, x, relu=True)
        for what, array in expected.items():
            assert_close(found.pop(f"{name}: {what}"), array, 1e-5 if x.dtype == np.float32 else 1e-12, what)


def in_strips(matrix, x):
    """W x in strips, also where the processor or the batch would have it computed in another way."""
    out, plan = np.empty((matrix.shape[0], x.shape[1]), x.dtype), matrix.plan
    arrays = matrix.kernel_values.reshape(-1), plan.indices, plan.indptr
    run(gather_strips, 0, *arrays, 2, x, np.empty(0, x.dtype), False, out)
    return out


def save_results(path):
    """What the package computes."""
    results = dict(of_layers())
    for name, matrix, _, _, x, g, bias in layers():
        results[f"{name}: matmul"] = matrix.matmul(x)
        results[f"{name}: matmul, frozen"] = matrix.frozen().matmul(x)
        results[f"{name}: matmul, in strips"] = in_strips(matrix, x)
        results[f"{name}: matmul, bias, relu"] = matrix.matmul(x, bias=bias, relu=True)
        results[f"{name}: rmatmul"] = matrix.rmatmul(g)
        results[f"{name}: sampled_outer"] = matrix.sampled_outer(g, x).ravel()
    for name, conv, case in convolutions():
        for what, result in zip(("forward", "input", "weight"), case.results(conv), strict=True):
            results[f"{name}: {what}"] = result
    np.savez(path, **results)


def check_results(path):
    """Against dense products in float64, and plain loops."""
    with np.load(path) as arrays:
        results = dict(arrays)
    for name, _, weight, mask, *operands in layers():
        W, X, G, B = (array.astype(float) for array in (weight, *operands))
        w, x, g, b = (np.abs(array) for array in (W, X, G, B))
        n_terms = mask.sum(axis=1)[:, None]
        assert_within_rounding(results.pop(f"{name}: matmul"), W @ X, w @ x, n_terms)
        for how in ("frozen", "in strips"):
            assert_within_rounding(results.pop(f"{name}: matmul, {how}"), W @ X, w @ x, n_terms)
        y = results.pop(f"{name}: matmul, bias, relu")
        assert_within_rounding(y, np.maximum(W @ X + B, 0), w @ x + b, n_terms + 1)
        dx = results.pop(f"{name}: rmatmul")
        assert_within_rounding(dx, W.T @ G, w.T @ g, mask.sum(axis=0)[:, None])
        dw = results.pop(f"{name}: sampled_outer")
        assert_within_rounding(dw, (G @ X.T)[mask], (g @ x.T)[mask], X.shape[1])
    for name, _, case in convolutions():
        stored = [results.pop(f"{name}: {what}") for what in ("forward", "input", "weight")]
        assert_results_within_rounding(case, stored, Case.oracle)
    check_layers(results)
    assert not results


def in_a_fresh_process(code, *arguments, **environment):
    """What the code prints; a warning is an error to it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_results_without_compilation(tmp_path):
    """Fresh memory is full of NaN there, so that a result shows whether it was read before it was written."""
    code = """
import sys, numpy as np
empty = np.empty
def full_of_nan(*arguments, **options):
    array = empty(*arguments, **options)
    array.reshape(-1).view(np.uint8)[...] = 255
    return array
import test_processors as t
np.empty = full_of_nan
t.save_results(sys.argv[1])"""
    in_a_fresh_process(code, tmp_path / "results.npz", NUMBA_DISABLE_JIT="1")
    check_results(tmp_path / "results.npz")


@pytest.mark.skipif("avx2" not in HAS or "fma" not in HAS, reason="this processor has no AVX2")
def test_products_with_avx2(tmp_path):
    """Which looks the inputs of one sample up in another way than AVX-512 does, and has strips."""
    code = """
import sys, numpy as np, test_processors as t
from sparsekit.kernels.processor import LOOKUP_INPUTS
assert LOOKUP_INPUTS == 32
results = {name: (m.frozen() if x.shape[1] == 1 else m).matmul(x) for name, m, *_, x, _, _ in t.layers()}
np.savez(sys.argv[1], **results)"""
    avx2 = {"NUMBA_DISABLE_JIT": "0", "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}
    in_a_fresh_process(code, tmp_path / "results.npz", **avx2)
    with np.load(tmp_path / "results.npz") as results:
        for name, _, weight, mask, x, *_ in layers():
            W, X = weight.astype(float), x.astype(float)
            n_terms = mask.sum(axis=1)[:, None]
            assert_within_rounding(results[name], W @ X, np.abs(W) @ np.abs(X), n_terms)


def use(matrix, x, g, bias):
    matrix.matmul(x), matrix.matmul(x, bias=bias, relu=True), matrix.rmatmul(g), matrix.sampled_outer(g, x)


def use_operands_of_every_kind():
    mask = mask_of(CondensedMatrix, (40, 70), 50, np.random.default_rng(0))
    matrix = CondensedMatrix.from_mask(mask)
    unaligned = CondensedMatrix(misaligned(matrix.values, 1), matrix.indices, matrix.rows, matrix.shape)
    read_only = CondensedMatrix.from_mask(mask)
    read_only.values.flags.writeable = False
    others = (
        unaligned,
        read_only,
        matrix.frozen(),
        copy.deepcopy(matrix),
        pickle.loads(pickle.dumps(matrix.to_csr())),
    )
    for batch in (1, 5, 17, 66, 130):
        x, g, bias = (np.ones(shape, np.float32) for shape in ((70, batch), (40, batch), (40, 1)))
        for variant in VARIANTS.values():
            use(matrix, variant(x), variant(g), variant(bias))
        for other in others:
            use(other, x, g, bias)
        y, dx, dw = (misaligned(like, 4) for like in (g, x, matrix.values))
        matrix.matmul(x, out=y), matrix.rmatmul(g, out=dx), matrix.sampled_outer(g, x, out=dw)
    columns = CondensedMatrix.from_mask(mask_of(CondensedMatrix, (3, 18), 5, np.random.default_rng(0)))
    conv = Convolution(columns, 2, 3, STRIDE, PADDING)
    x, g = np.ones((2, 4, 3, 18), np.float32), np.ones((3, 2, 5, 18), np.float32)
    for variant in VARIANTS.values():
        conv.forward(variant(x), out=misaligned(g, 4))
        conv.input_gradient(variant(g), input_size=(4, 3))
        conv.weight_gradient(variant(g), variant(x))
    columns.values.flags.writeable = False
    for other in (conv, Convolution(columns.frozen(), 2, 3, STRIDE, PADDING)):
        other.forward(x), other.input_gradient(g, input_size=(4, 3)), other.weight_gradient(g, x)
    for _, norm, conv, x, g in networks():
        pool, around = MaxPool2d(2), Sequential({"bn": norm, "relu": ReLU(), "conv": conv})
        results_of(around, x, g)
        twins = around, copy.deepcopy(around), pickle.loads(pickle.dumps(around))
        for variant in VARIANTS.values():
            x_like, g_like = np.asarray(variant(x)), np.asarray(variant(g))
            norm.forward(x_like, side=x_like), conv.forward(x_like, relu=True)
            for network in twins:
                results_of(network, x_like, g_like)
            if x_like.dtype == x.dtype:  # pooling takes numbers as they are
                results_of(pool, x_like, x_like[:, :2, :1])


def print_specialisations():
    """Of every compiled function the dtypes and dimensions for which it was compiled, as JSON."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__, kernels.__name__ + "."):
        for name, value in vars(importlib.import_module(module.name)).items():
            for k, function in enumerate(value if isinstance(value, tuple) else [value]):
                if isinstance(function, Dispatcher):
                    found[f"{module.name}.{name}[{k}]"] = [
                        ", ".join(f"{getattr(a, 'dtype', a)} {getattr(a, 'ndim', '')}" for a in signature)
                        for signature in function.signatures
                    ]
    print(json.dumps(found))


def test_any_processor_and_no_more_specialisations_than_dtypes_need(tmp_path):
    """On one without wide vectors. Both in one process, because most of the time is spent compiling.

    The parallel versions, of the same loops, are compiled as serial ones: that takes a third of the time.
    """
    code = """
import numba, sys
njit = numba.njit
numba.njit = lambda *arguments, **options: njit(*arguments, **{**options, "parallel": False})
import test_processors as t
t.save_results(sys.argv[1])
t.use_operands_of_every_kind()
t.print_specialisations()"""
    any_processor = {"NUMBA_DISABLE_JIT": "0", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    printed = in_a_fresh_process(code, tmp_path / "results.npz", NUMBA_OPT="1", **any_processor)
    check_results(tmp_path / "results.npz")

    specialisations = json.loads(printed)
    assert any("cpu" in name for name, versions in specialisations.items() if versions)
    twice = {name: versions for name, versions in specialisations.items() if len(set(versions)) < len(versions)}
    assert not twice, "compiled again for the same dtypes:\n" + json.dumps(twice, indent=1)
    too_many = {name: versions for name, versions in specialisations.items() if len(versions) > 4}
    assert not too_many, "more than two dtypes of weights and two of indices:\n" + json.dumps(too_many, indent=1)
