"""Comparing methods on the same data and seeds, each run in a process of its own."""

import csv
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sparsekit.atomic import atomic_path, write_text
from sparsekit.config import RunConfig, make_config
from sparsekit.errors import DivergedError, InputError
from sparsekit.inference import FORMATS, inference_times
from sparsekit.kernels.threads import available_threads, thread_limit
from sparsekit.training.run import load_run, make_folder

BATCHES = (1, 256)
_MARKER = "comparison.csv"


@dataclass(frozen=True)
class Contender:
    """A method to compare, with settings of its own: 'srigl:gamma_sal=0' is SRigL without ablation."""

    label: str
    settings: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "Contender":
        """Read METHOD or METHOD:setting=value:setting=value."""
        method, *pairs = text.strip().split(":")
        settings = {"method": method}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or not name or not value:
                raise InputError(f"methods must be METHOD or METHOD:setting=value, not {text!r}")
            settings[name.replace("-", "_")] = value
        label = f"{method} ({', '.join(pairs)})" if pairs else method
        return cls(label, settings)


def compare(
    settings: Mapping[str, Any],
    methods: Sequence[str],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    folder: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train every method at every sparsity with every seed; return one row for each method and sparsity.

    Runs go to folders of their own within `folder`; comparison.csv and comparison.png stand beside them. Dense
    training is run once for each seed. Each run is a fresh process, so its peak memory is its own; they run one
    after the other, so their times are too.

    Parameters
    ----------
    settings : what all runs share, names of :class:`RunConfig`
    methods : METHOD or METHOD:setting=value, see :class:`Contender`

    Raises
    ------
    InputError
        For a setting that is not allowed, before anything is trained.
    """
    plan = _plan(settings, methods, sparsities, seeds)
    folder = _prepare(Path(folder), overwrite)
    results: dict[tuple[str, float], list[dict[str, Any]]] = {}
    with tqdm(plan, unit="run", disable=not progress) as bar:
        for label, config in bar:
            bar.set_description(f"{label} {_sparsity_of(config):.0%} seed {config.seed}")
            name = f"{label}-{_sparsity_of(config):g}-seed{config.seed}".translate(str.maketrans(" ", "-", "(),"))
            result = _train_in_a_process(config, folder / name, overwrite)
            results.setdefault((label, _sparsity_of(config)), []).append(result | {"run": name})
    rows = [summarize(label, sparsity, runs) for (label, sparsity), runs in results.items()]
    with thread_limit(plan[0][1].threads or available_threads()):
        for row, runs in zip(rows, results.values(), strict=True):
            row |= _inference(folder / runs[0]["run"])
    _save(rows, folder, plan[0][1])
    return rows


def summarize(label: str, sparsity: float, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row from the results of the seeds: means and standard deviations; layers of the first seed."""
    first = runs[0]
    row: dict[str, Any] = {"label": label, "sparsity": sparsity, "seeds": [run["seed"] for run in runs]}
    columns = {
        "test_accuracy": [run["test_accuracy"] for run in runs],
        "seconds_per_epoch": [run["seconds_per_epoch"] for run in runs],
        "peak_memory_bytes": [run["peak_memory_bytes"] for run in runs],
        "weight_bytes": [run["weight_bytes"]["total"] for run in runs],
    }
    for name, values in columns.items():
        row |= {f"{name}_mean": float(np.mean(values)), f"{name}_std": _std(values)}
    return row | {"stored_weights": first["stored_weights"], "layers": first["layers"]}


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _plan(
    settings: Mapping[str, Any], methods: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int]
) -> list[tuple[str, RunConfig]]:
    """All runs, validated before the first one starts."""
    for name, values in (("methods", methods), ("sparsities", sparsities), ("seeds", seeds)):
        if not values:
            raise InputError(f"{name} must name at least one value, not none")
    plan: list[tuple[str, RunConfig]] = []
    contenders = [Contender.parse(text) for text in methods]
    for sparsity, contender, seed in itertools.product(sparsities, contenders, seeds):
        own = {"sparsity": sparsity, "seed": seed} | contender.settings
        config = make_config(settings, own)
        if config.method != "dense" or sparsity == sparsities[0]:
            plan.append((contender.label, config))
    return plan


def _sparsity_of(config: RunConfig) -> float:
    return 0.0 if config.method == "dense" else config.sparsity


def _prepare(folder: Path, overwrite: bool) -> Path:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not (folder / _MARKER).is_file():
            raise InputError(f"out {folder} exists and is not a comparison; name a new folder")
        if not overwrite:
            raise InputError(f"out {folder} holds a comparison already; name a new folder or pass --overwrite")
    make_folder(folder)
    write_text(folder / _MARKER, "")
    return folder


def _train_in_a_process(config: RunConfig, folder: Path, overwrite: bool) -> dict[str, Any]:
    settings = folder.with_suffix(".toml")
    write_text(settings, config.to_toml())
    command = [sys.executable, "-m", "sparsekit", "train", "--config", str(settings), "--out", str(folder)]
    command += ["--quiet", *(["--overwrite"] if overwrite else [])]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    settings.unlink()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        kind = InputError if done.returncode == 2 else DivergedError
        raise kind(f"{folder.name}: {last.removeprefix('sparsekit: error: ')}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _inference(folder: Path) -> dict[str, float]:
    run = load_run(folder)
    n_features = int(np.prod(run.result["sample_shape"]))
    times = inference_times(run.model, n_features, BATCHES)
    return {f"inference_{batch}_{name}_us": times[batch][name] for batch in BATCHES for name in FORMATS}


def _save(rows: list[dict[str, Any]], folder: Path, config: RunConfig) -> None:
    from sparsekit.figures import comparison_figure

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows)
    write_text(folder / _MARKER, text.getvalue())
    seeds = f"seed{'s' * (len(rows[0]['seeds']) > 1)} {', '.join(map(str, rows[0]['seeds']))}"
    hidden = "-".join(map(str, config.hidden))
    with atomic_path(folder / "comparison.png") as temporary:
        comparison_figure(rows, f"{config.dataset}, hidden layers {hidden}, {seeds}").savefig(temporary)
