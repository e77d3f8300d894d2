"""Counting: stored weights, floating-point operations, bytes, and the memory of the process."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.kernels.transpose import index_dtype
from sparsekit.models import weight_layers
from sparsekit.nn import Module, WeightLayer
from sparsekit.stored import StoredMatrix


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
        rows.append(
            {
                "name": name,
                "shape": list(layer.matrix.shape),
                "fan_in": low if low == high else float(fan_ins.mean()),
                "fan_in_min": low,
                "fan_in_max": high,
                "n_active": int(fan_ins.size),
                "nnz": layer.matrix.nnz,
                "sparsity": 1 - layer.matrix.nnz / _n_positions(layer),
            }
        )
    return rows


def sparsity(model: Module) -> float:
    """Share of the network's weights that is not stored, biases and normalisation not counted."""
    layers = weight_layers(model).values()
    n_weights = sum(map(_n_positions, layers))
    return 1 - sum(layer.matrix.nnz for layer in layers) / n_weights if n_weights else 0.0


def inference_flops(model: Module, sample_shape: tuple[int, ...], *, dense: bool = False) -> dict[str, int]:
    """Floating-point operations of a prediction, for one sample, by layer with weights in forward order.

    A weight costs two, a multiplication and an addition, each time that the layer uses it: once in a linear
    layer, once for each pixel of the output in a convolution (of the border too, where it meets padding).
    Biases, normalisation, activations and pooling are not counted, as in the RigL and SRigL papers.

    Parameters
    ----------
    sample_shape : shape of one sample
    dense : count every weight, stored or not
    """
    return {
        name: 2 * module.uses_per_sample(shape) * (_n_positions(module) if dense else module.matrix.nnz)
        for name, module, shape in model.shapes(tuple(sample_shape))
        if isinstance(module, WeightLayer)
    }


def training_flops(sparse: float, dense: float, delta_t: int | None) -> float:
    """Floating-point operations of a training step, for one sample.

        RigL, SRigL: (3 sparse delta_t + 2 sparse + dense) / (delta_t + 1)          otherwise: 3 sparse

    A step is a forward pass and a backward pass of twice its cost. RigL and SRigL look at the dense gradient of
    the weights once in delta_t steps. The formula is RigL's and supposes that they do so all through the training
    and that the update takes the place of a step; here updates end earlier, and are made in addition to a step.

    Parameters
    ----------
    sparse, dense : operations of a prediction with the stored weights and with all of them, see
        :func:`inference_flops`; equal for dense training
    delta_t : steps between two updates that need the dense gradient; None for methods that never do

    Source: Evci et al., "Rigging the Lottery", arXiv 1911.11134, appendix on FLOPs.
    """
    if delta_t is None:
        return 3.0 * sparse
    return (3 * sparse * delta_t + 2 * sparse + dense) / (delta_t + 1)


def storage_bytes(matrix: StoredMatrix) -> dict[str, int]:
    """Bytes of the stored weights and their indices in each storage, whichever the matrix has.

    Keys: `dense`, `csr`, and `condensed`, where neurons with fewer weights than the others are filled up with
    zeros, as :mod:`sparsekit.export` does.
    """
    fan_ins = matrix.fan_ins()
    n_active, row_pointers = int((fan_ins > 0).sum()), fan_ins.size + 1
    value, index = matrix.dtype.itemsize, np.dtype(index_dtype(matrix.shape[1])).itemsize
    return {
        "dense": matrix.shape[0] * matrix.shape[1] * value,
        "csr": matrix.nnz * (value + index) + 8 * row_pointers,
        "condensed": n_active * (int(fan_ins.max()) * (value + index) + 4),
    }


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


def _n_positions(layer: WeightLayer) -> int:
    return layer.matrix.shape[0] * layer.matrix.shape[1]
