"""PyTorch as a competitor: nothing else in this package imports it, and without it these rows are left out.

Its tensors share the memory of the NumPy arrays that the others multiply.
"""

import importlib
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from sparsekit.bench.arrays import aligned, output
from sparsekit.bench.measure import Implementation, as_list, columns, in_turn, transposes
from sparsekit.csr import CSRMatrix
from sparsekit.data import Dataset, Standardization
from sparsekit.kernels.gpu_arrays import require_cupy


def load() -> ModuleType | None:
    """PyTorch, or None where it cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torch")
        except (ImportError, OSError):  # not there, or its libraries cannot be loaded
            return None


def version() -> str | None:
    """Its version, and the instructions it uses."""
    torch = load()
    return torch and f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


@contextmanager
def inference(threads: int) -> Iterator[None]:
    """Within the context PyTorch uses `threads` threads and records nothing for gradients."""
    torch = load()
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def linear(weights: Sequence[np.ndarray], x: np.ndarray, x_rows: np.ndarray) -> list[Implementation]:
    """W X, feature-major and samples first; `x_rows` is the transpose of `x`."""
    torch = load()
    if torch is None:
        return []
    tensors = [torch.from_numpy(weight) for weight in weights]
    outputs = [torch.from_numpy(output(len(weight), x.shape[1])) for weight in weights]
    products = [
        partial(torch.mm, weight, torch.from_numpy(x), out=out)
        for weight, out in zip(tensors, outputs, strict=True)
    ]
    rows = [partial(torch.nn.functional.linear, torch.from_numpy(x_rows), weight) for weight in tensors]
    return [
        Implementation("PyTorch dense", "dense", in_turn(products)),
        Implementation("PyTorch dense, samples first", "dense", in_turn(rows), convert=transposes),
    ]


def csr_on_gpu(matrix: CSRMatrix, x: np.ndarray) -> list[Implementation]:
    """PyTorch's CSR product on the GPU, where PyTorch is there and was built for one."""
    torch = load()
    if torch is None or not torch.cuda.is_available():
        return []
    cupy = require_cupy()
    parts = (np.asarray(part).astype(np.int32) for part in (matrix.indptr, matrix.indices))
    values = torch.from_numpy(np.array(matrix.values)).cuda()
    weight = torch.sparse_csr_tensor(*(torch.from_numpy(part).cuda() for part in parts), values, matrix.shape)
    operand = torch.from_numpy(x).cuda()

    def product() -> Any:  # on the stream whose events and graphs time it
        with torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)):
            return weight @ operand

    return [Implementation("PyTorch CSR", "csr", product)]


def linear_csr(dense: Sequence[np.ndarray], matrices: Sequence[CSRMatrix], x: np.ndarray) -> list[Implementation]:
    """MKL's CSR product, feature-major: as PyTorch converts a dense weight, and at its best.

    PyTorch makes 64-bit indices. It is faster with 32 bits, which MKL takes as they are, with a place to write to,
    and with one sample as a vector.
    """
    torch = load()
    if torch is None or not torch.backends.mkl.is_available():
        return []
    converted = [_quietly(torch.from_numpy(weight).to_sparse_csr) for weight in dense]
    as_made = [partial(operator.matmul, weight, torch.from_numpy(x)) for weight in converted]
    one = x.shape[1] == 1
    product, operand = (torch.addmv, x[:, 0]) if one else (torch.addmm, x)
    best = []
    for matrix in matrices:
        out = torch.from_numpy(output(matrix.shape[0], x.shape[1]))
        out = (out[:, 0] if one else out).zero_()  # what it adds 0 times of must not be NaN
        best.append(partial(product, out, _sparse(torch, matrix), torch.from_numpy(operand), beta=0, out=out))
    return [
        Implementation("PyTorch CSR (MKL)", "csr", in_turn(best), convert=columns),
        Implementation("PyTorch CSR (MKL), as converted", "csr", in_turn(as_made), convert=columns),
    ]


def _sparse(torch: ModuleType, matrix: CSRMatrix) -> Any:
    indptr, indices = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    values = torch.from_numpy(aligned(matrix.values))
    return _quietly(lambda: torch.sparse_csr_tensor(indptr, indices, values, matrix.shape))


def _quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that its sparse tensors are in beta
        return make()


def train_step(weight: np.ndarray, x: np.ndarray, g: np.ndarray) -> list[Implementation]:
    """The three products of a dense layer, feature-major and samples first."""
    torch = load()
    if torch is None:
        return []
    (n_out, n_in), batch = weight.shape, x.shape[1]
    w, x_, g_ = (torch.from_numpy(array) for array in (weight, x, g))
    y, gx, gw = (torch.from_numpy(output(*shape)) for shape in ((n_out, batch), (n_in, batch), (n_out, n_in)))
    x_rows, g_rows = x_.T.contiguous(), g_.T.contiguous()
    y_rows, gx_rows = y.T.contiguous(), gx.T.contiguous()

    def feature_major() -> tuple[Any, Any, Any]:
        return torch.mm(w, x_, out=y), torch.mm(w.T, g_, out=gx), torch.mm(g_, x_.T, out=gw)

    def samples_first() -> tuple[Any, Any, Any]:
        torch.mm(x_rows, w.T, out=y_rows)
        torch.mm(g_rows, w, out=gx_rows)
        return y_rows.T, gx_rows.T, torch.mm(g_rows.T, x_rows, out=gw)

    return [
        Implementation("PyTorch dense", "dense", feature_major),
        Implementation("PyTorch dense, samples first", "dense", samples_first),
    ]


def convolution(weight: np.ndarray, x: np.ndarray, g: np.ndarray | None) -> list[Implementation]:
    """A 3x3 convolution with padding 1, in both memory formats.

    Parameters
    ----------
    weight : (out_channels, in_channels, 3, 3)
    x : (channels, height, width, batch)
    g : gradient of the output, shaped like it, to compute both gradients too; None for the forward pass only
    """
    torch = load()
    if torch is None:
        return []
    implementations = []
    for name, memory_format in (("NCHW", torch.contiguous_format), ("channels last", torch.channels_last)):
        w = torch.from_numpy(weight).to(memory_format=memory_format)
        x_, g_ = (_images_first(torch, array, memory_format) for array in (x, g))
        run = _forward(torch, w, x_) if g_ is None else _forward_backward(torch, w, x_, g_)
        implementations.append(Implementation(f"PyTorch conv2d, {name}", "dense", run, convert=_images_last))
    return implementations


def _images_first(torch: ModuleType, array: np.ndarray | None, memory_format: Any) -> Any:
    if array is None:
        return None
    return torch.from_numpy(array).permute(3, 0, 1, 2).contiguous(memory_format=memory_format)


def _forward(torch: ModuleType, w: Any, x: Any) -> Callable[[], Any]:
    return partial(torch.nn.functional.conv2d, x, w, padding=1)


def _forward_backward(torch: ModuleType, w: Any, x: Any, g: Any) -> Callable[[], Any]:
    forward, backward = _forward(torch, w, x), torch.ops.aten.convolution_backward
    settings = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    return lambda: (forward(), *backward(g, x, w, *settings)[:2])


def _images_last(results: Any) -> list[np.ndarray]:
    """Images as (channels, height, width, batch), a weight gradient as the matrix it is in the reference."""
    images = [np.asarray(result) for result in as_list(results)]
    return [image.transpose(1, 2, 3, 0) for image in images[:2]] + [g.reshape(len(g), -1) for g in images[2:]]


def _ready(threads: int, seed: int) -> Any:
    """PyTorch with so many threads and this seed; an ImportError where it is not there."""
    torch = load()
    if torch is None:
        raise ImportError("PyTorch cannot be imported")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return torch


def _sgd(torch: ModuleType, model: Any) -> Any:
    """The optimizer of the networks that are trained: ours by default, in PyTorch's fastest form."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def train_mlp(
    dataset: Dataset, hidden: Sequence[int], *, batch_size: int, epochs: int, threads: int, seed: int
) -> dict[str, Any]:
    """Train a dense MLP with Nesterov SGD, the data a tensor in memory; the seconds of each epoch, the accuracy.

    Raises
    ------
    ImportError
        If PyTorch is not there.
    """
    torch = _ready(threads, seed)
    standardization = Standardization.fit(dataset.x_train)
    x, x_test = (_standardized(torch, part, standardization) for part in (dataset.x_train, dataset.x_test))
    y, y_test = (torch.from_numpy(labels) for labels in (dataset.y_train, dataset.y_test))
    sizes = (dataset.n_features, *hidden, dataset.n_classes)
    layers = [torch.nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes)]
    model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))[:-1]
    optimizer, loss = _sgd(torch, model), torch.nn.CrossEntropyLoss()
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch_size + 1, batch_size):
            batch = order[start : start + batch_size]
            optimizer.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    with torch.inference_mode():
        correct = [
            (model(x_).argmax(1) == y_).sum() for x_, y_ in zip(x_test.split(512), y_test.split(512), strict=True)
        ]
    return {"seconds": seconds, "test_accuracy": float(sum(correct)) / len(y_test)}


def _standardized(torch: ModuleType, samples: np.ndarray, standardization: Standardization) -> Any:
    """The samples as a float tensor (n, features); no second float copy is made on the way."""
    x = samples.astype(np.float32)
    x -= standardization.mean.astype(np.float32)
    x /= standardization.std.astype(np.float32)
    return torch.from_numpy(x).flatten(1)


def resnet18_step(
    x: np.ndarray, y: np.ndarray, *, threads: int, seed: int, channels_last: bool
) -> Callable[[], None]:
    """A training step of a dense ResNet-18 for CIFAR, as :func:`sparsekit.models.resnet18`, with Nesterov SGD.

    Raises
    ------
    ImportError
        If PyTorch is not there.
    """
    torch = _ready(threads, seed)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = _resnet18(torch).to(memory_format=memory_format)
    images, labels = torch.from_numpy(x).to(memory_format=memory_format), torch.from_numpy(y)
    optimizer, loss = _sgd(torch, model), torch.nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return step


def _resnet18(torch: ModuleType) -> Any:
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, n_in: int, n_out: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
            self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
            self.shortcut = nn.Sequential()
            if stride != 1 or n_in != n_out:
                conv = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(n_out))

        def forward(self, x: Any) -> Any:
            y = nn.functional.relu(self.bn1(self.conv1(x)))
            return nn.functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))

    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for n_in, n_out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Block(n_in, n_out, stride), Block(n_out, n_out, 1)]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))
