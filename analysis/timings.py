"""Our timings of one linear layer beside those the authors of SRigL published, each on its own machine.

``python -m analysis.timings`` joins a CSV of ``sparsekit bench linear`` with the published timings (`published/`)
and writes `timings.csv` and three figures. What it compares, and what not:

* Both time the same layer, 3072 -> 768 in float32, in inference, the same weights again and again. Processors,
  libraries and thread counts differ, so times are never compared across machines; **ratios** on one machine are.
* Published competitors are PyTorch's, compiled with inductor, and so is the published condensed product on the
  CPU. Of our competitors (NumPy, SciPy, PyTorch) the fastest of its kind counts in each case. A ratio is about a
  competitor as much as about a kernel: the better one is tuned, the smaller the other's speed-up.
* The published weights are a trained layer's, without its ablated neurons; ours are random, with as many weights
  in each of all 768 neurons. Only the published side therefore has a dense product of its active neurons.
* "condensed" takes its input as its kernel wants it: samples as rows on the published CPU, features as rows
  here and on the published GPU. "condensed, transposes included" starts from samples as rows: the published GPU
  kernel turns its input, ours turns input and output.
"""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from analysis.plots import save_figure
from analysis.plots.timings import gpu_figure, speedups_figure, times_figure
from analysis.tables import write_csv
from sparsekit.checks import require_choice
from sparsekit.console import Json, Out, Quiet, check_json, console, new_folder, run_app, write_json
from sparsekit.errors import InputError
from sparsekit.training.folder import make_folder

LAYER = "3072 -> 768"
BENCH = Path("results/bench/linear.csv")
SHOWN_SPARSITY, SHOWN_BATCHES = 0.9, (1, 256)  # the cases the paper's abstract names

_PUBLISHED = Path(__file__).with_name("published")
_MACHINES = {"CPU": "Intel Xeon W-2145", "GPU": "NVIDIA Titan V"}
# The columns of the published files that are drawn; of the others the name is kept and the series is "other".
_PUBLISHED_SERIES = {
    "CPU": {"dense": "dense", "structured": "structured", "csr": "csr", "condensed": "condensed"},
    "GPU": {
        "dense": "dense",
        "structured": "structured",
        "csr": "csr",
        "ffi_tp_self": "condensed",
        "ffi_tp": "condensed_turned",
    },
}
_OUR_SERIES = {"condensed": "condensed", "condensed, samples first": "condensed_turned"}
_NEEDED = ("condensed", "dense", "csr")
_TIMES = ("median_us", "q1_us", "q3_us")
_COLUMNS = ("benchmark", "work", "sparsity", "batch", "weights", "threads", "implementation", "kind", *_TIMES)


@dataclass(frozen=True)
class Timing:
    """One implementation in one case, a row of `timings.csv`.

    Attributes
    ----------
    source : published or measured
    device : CPU or GPU
    machine : name of the processor
    threads : of the host
    sparsity : in [0, 1)
    batch : samples in the product
    series : dense, csr, structured (dense product of active neurons), condensed, condensed_turned (transposes
        included) or other
    implementation : as its benchmark calls it
    time_us, q1_us, q3_us : median and quartiles, microseconds; the quartiles of published timings are not known
    """

    source: str
    device: str
    machine: str
    threads: int
    sparsity: float
    batch: int
    series: str
    implementation: str
    time_us: float
    q1_us: float | None = None
    q3_us: float | None = None

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Where and with how many threads it was timed: times are compared within a place only."""
        return self.source, self.device, self.machine, self.threads


def published(device: str) -> list[Timing]:
    """The authors' timings on the "CPU" or "GPU"; `published/README.md` says where they come from."""
    with open(_PUBLISHED / f"{device.lower()}.csv", encoding="utf-8", newline="") as file:
        return [timing for row in csv.DictReader(file) for timing in _published_row(device, row)]


def _published_row(device: str, row: dict[str, str]) -> Iterator[Timing]:
    case = int(row["threads"]), int(row["sparsity"]) / 100, int(row["batch"])
    for column, text in row.items():
        if column.endswith("_us"):
            name = column.removesuffix("_us")
            series = _PUBLISHED_SERIES[device].get(name, "other")
            yield Timing("published", device, _MACHINES[device], *case, series, name, float(text))


def measured(path: Path) -> list[Timing]:
    """The rows with hot weights of a CSV that ``sparsekit bench linear`` wrote.

    The machine is named by the JSON file of the same name beside it, if it is there.

    Raises
    ------
    InputError
        If the file cannot be read, is no such CSV, or holds no timing of the published layer.
    """
    machine = _machine(path.with_suffix(".json"))
    timings = [
        _measured_row(path, number, row, machine)
        for number, row in enumerate(_read(path), start=2)
        if (row["benchmark"], row["work"], row["weights"]) == ("linear", LAYER, "hot")
    ]
    if not timings:
        raise InputError(f"bench {path} has no rows of the linear benchmark of {LAYER} with hot weights")
    _require_competitors(path, timings)
    return timings


def _read(path: Path) -> list[dict[str, str]]:
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise InputError(f"bench {path} is no CSV of `sparsekit bench`: it lacks {', '.join(missing)}")
        return list(rows)
    except OSError as error:
        raise InputError(f"bench {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"bench {path} is no CSV file") from None


def _measured_row(path: Path, number: int, row: dict[str, str], machine: str) -> Timing:
    name, kind = row["implementation"], row["kind"]
    series = _OUR_SERIES.get(name, "other") if kind == "ours" else kind
    try:
        case = int(row["threads"]), float(row["sparsity"]), int(row["batch"])
        median, q1, q3 = (float(row[name]) for name in _TIMES)
    except (TypeError, ValueError):
        raise InputError(f"bench {path} has something else than numbers in line {number}") from None
    if not 0 < q1 <= median <= q3 < math.inf:
        raise InputError(f"bench {path} has times that are no median and quartiles above 0 in line {number}")
    return Timing("measured", "CPU", machine, *case, series, name, median, q1, q3)


def _machine(path: Path) -> str:
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
        name = re.sub(r"\((R|TM)\)| CPU| @ .*", "", environment["cpu"])
        return f"{name} ({environment['cpu_name_of_llvm']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "a machine not recorded"


def _require_competitors(path: Path, timings: Iterable[Timing]) -> None:
    found = {(t.threads, t.sparsity, t.batch, t.series) for t in timings}
    for case in sorted({key[:3] for key in found}):
        for series in _NEEDED:
            if (*case, series) not in found:
                threads, sparsity, batch = case
                where = f"sparsity {sparsity}, batch {batch}, threads {threads}"
                raise InputError(f"bench {path} has no {series} implementation at {where}")


def fastest(timings: Iterable[Timing]) -> list[Timing]:
    """Of each series in each case the fastest implementation, for example the best of the dense competitors."""
    best: dict[tuple[Any, ...], Timing] = {}
    for timing in timings:
        key = (timing.place, timing.sparsity, timing.batch, timing.series)
        if timing.series != "other" and (key not in best or timing.time_us < best[key].time_us):
            best[key] = timing
    return list(best.values())


def with_threads(name: str, timings: Sequence[Timing], threads: int | None) -> list[Timing]:
    """The timings with one thread count, by default the largest; `name` is the argument that chose it.

    Raises
    ------
    InputError
        If nothing was timed with so many threads.
    """
    counts = sorted({timing.threads for timing in timings})
    chosen = counts[-1] if threads is None else require_choice(name, threads, counts)
    return [timing for timing in timings if timing.threads == chosen]


def ratios(timings: Iterable[Timing]) -> list[dict[str, Any]]:
    """How many times faster than dense, and than CSR, condensed is in the cases of the paper's abstract.

    One row for each machine, thread count and condensed series; the keys `batch_B_over_dense` and
    `batch_B_over_csr` are None where there is no such case.
    """
    shown = fastest(t for t in timings if t.sparsity == SHOWN_SPARSITY and t.batch in SHOWN_BATCHES)
    times = {(t.place, t.series, t.batch): t.time_us for t in shown}
    rows = []
    for place, series in itertools.product(dict.fromkeys(t.place for t in shown), _OUR_SERIES.values()):
        own = {batch: times.get((place, series, batch)) for batch in SHOWN_BATCHES}
        if any(own.values()):
            keys = ("source", "device", "machine", "threads", "series")
            row: dict[str, Any] = dict(zip(keys, (*place, series), strict=True))
            for (batch, time), over in itertools.product(own.items(), ("dense", "csr")):
                row[f"batch_{batch}_over_{over}"] = time and times[place, over, batch] / time
            rows.append(row)
    return rows


def ratio_table(rows: Iterable[dict[str, Any]]) -> Table:
    """The ratios as a table for the terminal."""
    table = Table(
        title=f"Linear layer {LAYER}, {100 * SHOWN_SPARSITY:g} % sparse: condensed is so many times faster than",
        caption="Each row is about one machine with one thread count (GPU: of the host) and the fastest competitor"
        "\nof its kind there; below 1 condensed is slower.",
    )
    for heading in ("source", "machine", "condensed"):
        table.add_column(heading)
    table.add_column("threads", justify="right")
    for batch, over in itertools.product(SHOWN_BATCHES, ("dense", "CSR")):
        table.add_column(f"{over}, batch {batch}", justify="right")
    names = {"condensed": "without transposes", "condensed_turned": "with transposes"}
    for row in rows:
        values = [value for key, value in row.items() if key.startswith("batch_")]
        shown = ["-" if value is None else f"{value:.2f}" for value in values]
        table.add_row(row["source"], row["machine"], names[row["series"]], str(row["threads"]), *shown)
    return table


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bench: Annotated[Path, typer.Option(help="CSV file that `sparsekit bench linear` wrote.")] = BENCH,
    published_threads: Annotated[int, typer.Option(help="Threads of the published CPU timings in figures.")] = 4,
    threads: Annotated[
        int | None, typer.Option(help="Threads of our timings in figures (default: the most that were timed).")
    ] = None,
    out: Out = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Draw our timings of a linear layer beside those the authors of SRigL published, each on its own machine."""
    check_json(json_file)
    cpu, gpu, ours = published("CPU"), published("GPU"), measured(bench)
    left = fastest(with_threads("published-threads", cpu, published_threads))
    right = fastest(with_threads("threads", ours, threads))
    folder = out or new_folder("timings")
    make_folder(folder)
    write_csv(folder / "timings.csv", [asdict(timing) for timing in (*cpu, *gpu, *ours)])
    save_figure(times_figure(left, right), folder, "times-cpu")
    save_figure(speedups_figure([left, right, fastest(gpu)]), folder, "speedups")
    save_figure(gpu_figure(fastest(gpu)), folder, "times-gpu")
    rows = ratios([*cpu, *ours, *gpu])
    write_json(json_file, {"layer": LAYER, "sparsity": SHOWN_SPARSITY, "times_faster": rows})
    if not quiet:
        console().print(ratio_table(rows))
        print(f"table and figures in {folder}")


if __name__ == "__main__":
    run_app(app)
