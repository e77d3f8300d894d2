"""Counting: stored weights, bytes, and the memory of the process."""

import sys
from pathlib import Path
from typing import Any

from sparsekit.models import weight_layers
from sparsekit.nn.module import Module


def layer_summary(model: Module) -> list[dict[str, Any]]:
    """One row for each layer with weights, in forward order.

    Keys
    ----
    name, shape : dotted name and [n_out, n_in]
    fan_in : stored inputs of an active neuron; an int where it is constant, else the mean
    fan_in_min, fan_in_max : over the active neurons
    n_active : neurons with at least one stored input
    nnz : stored weights
    sparsity : share of the weights that is not stored
    """
    rows = []
    for name, layer in weight_layers(model).items():
        fan_ins = layer.matrix.fan_ins()
        fan_ins = fan_ins[fan_ins > 0]
        low, high = (int(fan_ins.min()), int(fan_ins.max())) if fan_ins.size else (0, 0)
        n_out, n_in = layer.matrix.shape
        rows.append(
            {
                "name": name,
                "shape": [n_out, n_in],
                "fan_in": low if low == high else float(fan_ins.mean()),
                "fan_in_min": low,
                "fan_in_max": high,
                "n_active": int(fan_ins.size),
                "nnz": layer.matrix.nnz,
                "sparsity": 1 - layer.matrix.nnz / (n_out * n_in),
            }
        )
    return rows


def sparsity(model: Module) -> float:
    """Share of the network's weights that is not stored, biases and normalisation not counted."""
    matrices = [layer.matrix for layer in weight_layers(model).values()]
    n_weights = sum(m.shape[0] * m.shape[1] for m in matrices)
    return 1 - sum(m.nnz for m in matrices) / n_weights if n_weights else 0.0


def weight_bytes(model: Module) -> dict[str, int]:
    """Bytes that training holds for the weights of the network (biases and normalisation not counted).

    Keys: `storage` (values and indices), `products` (what was built for the kernels: transposed indices,
    packed copies), `gradients`, `optimizer`, and their sum, `total`.
    """
    layers = weight_layers(model).values()
    counts = {
        "storage": sum(layer.matrix.nbytes for layer in layers),
        "products": sum(layer.matrix.held_nbytes - layer.matrix.nbytes for layer in layers),
        "gradients": sum(layer.weight.grad.nbytes for layer in layers if layer.weight.grad is not None),
        "optimizer": sum(array.nbytes for layer in layers for array in layer.weight.state.values()),
    }
    return counts | {"total": sum(counts.values())}


def peak_memory_bytes() -> int:
    """The most memory this process has held so far, in bytes.

    On Linux the kernel's VmHWM of this very program; getrusage would report the parent's peak for a process
    that was started from a larger one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on every system, and needed only here

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
