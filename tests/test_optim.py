"""Optimizers against naive formulas, and learning rates over training."""

import math

import numpy as np
import pytest

from sparsekit import InputError
from sparsekit.nn import Parameter
from sparsekit.optim import SGD, AdamW, LearningRate


def run(optimizer, rates, grads, start):
    parameter = Parameter(np.array(start))
    for rate, grad in zip(rates, grads, strict=True):
        parameter.grad = np.array(grad)
        optimizer.step([parameter], rate)
    return parameter.values


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd(momentum, nesterov, weight_decay, rng):
    grads, rates, start = rng.standard_normal((4, 3)), [0.1, 0.05, 0.2, 0.1], rng.standard_normal(3)
    w, v = start.copy(), np.zeros(3)
    for grad, rate in zip(grads, rates, strict=True):
        g = grad + weight_decay * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v if nesterov else v)
    np.testing.assert_allclose(run(SGD(momentum, nesterov, weight_decay), rates, grads, start), w, rtol=1e-14)


def test_adamw(rng):
    grads, rates, start = rng.standard_normal((5, 3)), [0.1, 0.05, 0.2, 0.1, 0.3], rng.standard_normal(3)
    w, m, v = start.copy(), np.zeros(3), np.zeros(3)
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        m, v = 0.8 * m + 0.2 * grad, 0.95 * v + 0.05 * grad**2
        w = w - rate * (0.1 * w + (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8))
    got = run(AdamW(beta1=0.8, beta2=0.95, weight_decay=0.1), rates, grads, start)
    np.testing.assert_allclose(got, w, rtol=1e-12)


@pytest.mark.parametrize("optimizer", [SGD(weight_decay=0.1), AdamW(weight_decay=0.1)], ids=["sgd", "adamw"])
def test_float32_stays_float32(optimizer):
    parameter = Parameter(np.ones(3, np.float32))
    parameter.grad = np.ones(3, np.float32)
    values = parameter.values
    optimizer.step([parameter], 0.1)
    assert parameter.values is values
    assert parameter.values.dtype == np.float32
    assert all(array.dtype == np.float32 for array in parameter.state.values())


def test_sgd_refuses():
    with pytest.raises(InputError, match="momentum must be greater than 0 with nesterov=True"):
        SGD(momentum=0.0, nesterov=True)
    with pytest.raises(InputError, match=r"momentum must lie in \[0, 1\), not 1"):
        SGD(momentum=1)
    with pytest.raises(InputError, match="weight_decay must be at least 0 and finite, not -1"):
        AdamW(weight_decay=-1)


def test_cosine_falls_once_an_epoch():
    rates = [LearningRate(0.1, "cosine").at(step, 10, 4) for step in range(1, 41)]
    expected = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(10)])
    assert rates[0] == 0.1
    assert rates[20] == pytest.approx(0.05)


def test_step_decays_at_whole_epochs():
    rate = LearningRate(1.0, "step", step_epochs=2, step_factor=0.1)
    rates = [rate.at(step, 3, 6) for step in range(1, 19)]
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 6)


def test_warm_up_rises_linearly():
    rate = LearningRate(1.0, "constant", warmup_epochs=2)
    assert [rate.at(step, 4, 5) for step in (1, 4, 8, 9, 20)] == [0.125, 0.5, 1.0, 1.0, 1.0]
    cosine = LearningRate(1.0, "cosine", warmup_epochs=1)
    assert cosine.at(5, 4, 5) == 1.0
    assert cosine.at(20, 4, 5) == pytest.approx(0.5 * (1 + math.cos(math.pi * 3 / 4)))


def test_learning_rate_refuses():
    with pytest.raises(InputError, match="schedule must be one of constant, cosine, step, not 'linear'"):
        LearningRate(0.1, "linear")
    with pytest.raises(InputError, match="initial must be greater than 0 and finite, not 0"):
        LearningRate(0)
