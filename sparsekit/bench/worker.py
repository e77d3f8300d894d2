"""One training of the epoch benchmark, in a process of its own: `python -m sparsekit.bench.worker SETTINGS`.

SETTINGS and the line it prints are JSON. Each branch loads only what it needs, because memory is measured.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as `settings` say; `seconds` of each epoch, `test_accuracy`, `peak_memory_bytes`."""
    method = settings.pop("method")
    if method == "PyTorch dense":
        return _pytorch(**settings)
    return _sparsekit(settings | {"method": method.lower(), "lr_schedule": "constant"})


def _sparsekit(settings: dict[str, Any]) -> dict[str, Any]:
    from sparsekit.config import make_config
    from sparsekit.training.run import train_run

    with tempfile.TemporaryDirectory() as folder:
        run = train_run(make_config(settings), Path(folder) / "run", progress=False)
    result = {key: run.result[key] for key in ("test_accuracy", "peak_memory_bytes")}
    return result | {"seconds": run.history.column("seconds")}


def _pytorch(dataset: str, sparsity: float, **settings: Any) -> dict[str, Any]:
    from sparsekit.bench.torch_competitors import train_mlp
    from sparsekit.counting import peak_memory_bytes
    from sparsekit.data import load_dataset

    result = train_mlp(load_dataset(dataset), **settings)
    return result | {"peak_memory_bytes": peak_memory_bytes()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
