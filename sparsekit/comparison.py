"""Comparing methods on the same data and seeds, each run in a process of its own."""

import csv
import io
import itertools
import json
import re
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
from sparsekit.data import Dataset
from sparsekit.errors import InputError, RunError
from sparsekit.inference import FORMATS, inference_times
from sparsekit.kernels.threads import resolve_threads, thread_limit
from sparsekit.training.folder import make_folder
from sparsekit.training.run import build_model, build_trainer, load_data, load_run

BATCHES = (1, 256)
_MARKER = "comparison.txt"


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
            name = name.replace("-", "_")
            if name in ("method", "sparsity", "seed"):
                raise InputError(f"methods must not set {name}, which has a flag of its own, as {text!r} does")
            settings[name] = value
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

    Runs go to folders of their own within `folder`; comparison.csv and comparison.png stand beside them, and
    comparison.txt lists them. Runs of an earlier comparison that the new one does not train stay in the folder.
    Dense training is run once for each seed. Each run is a fresh process, so its peak memory is its own; they
    run one after the other, so their times are too.

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
            name = _run_name(label, config)
            bar.set_description(name)
            result = _train_in_a_process(config, folder / name, overwrite)
            results.setdefault((label, _sparsity_of(config)), []).append(result | {"run": name})
    rows = [summarize(label, sparsity, runs) for (label, sparsity), runs in results.items()]
    with thread_limit(plan[0][1].threads):
        for row, runs in zip(rows, results.values(), strict=True):
            row |= _inference(folder / runs[0]["run"])
    _save(rows, folder, plan[0][1])
    write_text(folder / _MARKER, "".join(f"{_run_name(label, config)}\n" for label, config in plan))
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
        config = make_config(settings, contender.settings, {"sparsity": sparsity, "seed": seed})
        if config.method != "dense" or sparsity == sparsities[0]:
            plan.append((contender.label, config))
    _refuse_repeated(plan)
    datasets: dict[tuple[str, float], Dataset] = {}
    for _, config in plan:  # what does not fit the data or the network is found here, not after an hour
        if config.seed == seeds[0]:
            key = config.dataset, config.validation
            if key not in datasets:
                datasets[key] = load_data(config)
            dataset = datasets[key]
            build_trainer(config, build_model(config, dataset), progress=False).prepare(dataset)
            resolve_threads(config.threads)
    return plan


def _refuse_repeated(plan: Sequence[tuple[str, RunConfig]]) -> None:
    configs = [config for _, config in plan]
    names = [_run_name(label, config) for label, config in plan]
    for name, config in zip(names, configs, strict=True):
        if names.count(name) > 1 or configs.count(config) > 1:
            raise InputError(f"methods, sparsities and seeds must name each run once, not {name!r} twice")


def _run_name(label: str, config: RunConfig) -> str:
    """Name of a run's folder: letters, digits and -._= only."""
    return re.sub(r"[^\w.=]+", "-", f"{label}-{_sparsity_of(config)!r}-seed{config.seed}")


def _sparsity_of(config: RunConfig) -> float:
    return 0.0 if config.method == "dense" else config.sparsity


def _prepare(folder: Path, overwrite: bool) -> Path:
    """Make the folder and mark it as a comparison's; what an earlier one wrote stays until the new one is done."""
    others = {path.name for path in folder.iterdir()} - {_MARKER} if folder.is_dir() else {folder.name}
    if folder.exists() and others:
        if not (folder / _MARKER).is_file():
            raise InputError(f"out {folder} exists and is not a comparison; name a new folder")
        if not overwrite:
            raise InputError(f"out {folder} holds a comparison already; name a new folder or pass --overwrite")
    make_folder(folder)
    if not (folder / _MARKER).is_file():
        write_text(folder / _MARKER, "not finished\n")
    return folder


def _train_in_a_process(config: RunConfig, folder: Path, overwrite: bool) -> dict[str, Any]:
    settings = folder.parent / f"{folder.name}.toml"
    command = [sys.executable, "-m", "sparsekit", "train", "--config", str(settings), "--out", str(folder)]
    command += ["--quiet", *(["--overwrite"] if overwrite else [])]
    try:
        write_text(settings, config.to_toml())
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        settings.unlink(missing_ok=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        kind = InputError if done.returncode == 2 else RunError
        raise kind(f"run {folder.name}: {last.removeprefix('sparsekit: error: ')}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _inference(folder: Path) -> dict[str, float]:
    run = load_run(folder)
    times = inference_times(run.model, run.result["sample_shape"], BATCHES)
    return {f"inference_{batch}_{name}_us": times[batch][name] for batch in BATCHES for name in FORMATS}


def _save(rows: list[dict[str, Any]], folder: Path, config: RunConfig) -> None:
    from sparsekit.figures import comparison_figure

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows)
    write_text(folder / "comparison.csv", text.getvalue())
    seeds = f"seed{'s' * (len(rows[0]['seeds']) > 1)} {', '.join(map(str, rows[0]['seeds']))}"
    with atomic_path(folder / "comparison.png") as temporary:
        comparison_figure(rows, f"{config.dataset}, {_network_name(config)}, {seeds}").savefig(temporary)


def _network_name(config: RunConfig) -> str:
    """The network as a figure's title has it."""
    if config.model == "mlp":
        return f"hidden layers {'-'.join(map(str, config.hidden))}"
    return f"{config.model} {'-'.join(map(str, config.channels))}" if config.model == "cnn" else config.model
