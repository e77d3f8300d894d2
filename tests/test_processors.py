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

import numpy as np
from kernel_helpers import VARIANTS, assert_within_rounding, mask_of, misaligned
from numba.core.dispatcher import Dispatcher
from test_convolution import Case, assert_results_within_rounding

from sparsekit import kernels
from sparsekit.condensed import CondensedMatrix
from sparsekit.convolution import Convolution
from sparsekit.csr import CSRMatrix

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
        for batch in (1, 18):
            x, g = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 4, 3, batch), (3, 2, 5, batch)))
            case = Case(weight, mask, x, g, STRIDE, PADDING)
            yield f"{storage.__name__}, {x.dtype}, batch {batch}", case.convolution(storage), case


def save_results(path):
    """What the package computes."""
    results = {}
    for name, matrix, _, _, x, g, bias in layers():
        results[f"{name}: matmul"] = matrix.matmul(x)
        results[f"{name}: matmul, frozen"] = matrix.frozen().matmul(x)
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
        assert_within_rounding(results.pop(f"{name}: matmul, frozen"), W @ X, w @ x, n_terms)
        y = results.pop(f"{name}: matmul, bias, relu")
        assert_within_rounding(y, np.maximum(W @ X + B, 0), w @ x + b, n_terms + 1)
        dx = results.pop(f"{name}: rmatmul")
        assert_within_rounding(dx, W.T @ G, w.T @ g, mask.sum(axis=0)[:, None])
        dw = results.pop(f"{name}: sampled_outer")
        assert_within_rounding(dw, (G @ X.T)[mask], (g @ x.T)[mask], X.shape[1])
    for name, _, case in convolutions():
        stored = [results.pop(f"{name}: {what}") for what in ("forward", "input", "weight")]
        assert_results_within_rounding(case, stored, Case.oracle)
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
