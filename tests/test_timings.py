"""Our timings beside the published ones: what is read, joined, compared and drawn."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis import timings
from analysis.plots import save_figure
from analysis.plots.timings import gpu_figure, speedups_figure, times_figure
from analysis.timings import Timing, fastest, measured, published, ratios, with_threads
from sparsekit.bench.report import csv_text
from sparsekit.errors import InputError

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "results" / "bench" / "linear.csv"
COMPETITORS = [("BLAS", "dense", 40), ("slow BLAS", "dense", 90), ("MKL", "csr", 25), ("SciPy", "csr", 30)]
OURS = [("condensed", "ours", 10), ("condensed, samples first", "ours", 16), ("CSR, unstructured", "ours", 12)]


def bench_rows(batches=(1, 8, 256), sparsities=(0.9,), threads=(1, 2), weights="hot", work="3072 -> 768"):
    """Rows as the benchmark writes them; a time is the implementation's, times batch and over threads."""
    common = {"benchmark": "linear", "work": work, "weights": weights, "samples": 30}
    rows = []
    for sparsity in sparsities:
        for batch in batches:
            for count in threads:
                for name, kind, scale in OURS + COMPETITORS:
                    median = scale * batch / count
                    times = {"median_us": median, "q1_us": 0.9 * median, "q3_us": 1.2 * median}
                    case = {"sparsity": sparsity, "batch": batch, "threads": count}
                    rows.append(common | case | {"implementation": name, "kind": kind} | times)
    return rows


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "linear.csv"
    path.write_text(csv_text(bench_rows() + bench_rows(weights="cold") + bench_rows(work="8 -> 4")))
    environment = {"cpu": "Abacus(R) 3000 CPU @ 1.00Hz", "cpu_name_of_llvm": "abacus"}
    path.with_suffix(".json").write_text(json.dumps({"environment": environment}))
    return path


def run(*arguments):
    return CliRunner().invoke(timings.app, [str(argument) for argument in arguments])


def time_of(rows, series, sparsity, batch):
    """The one time of this series in this case."""
    (time,) = [t.time_us for t in rows if (t.series, t.sparsity, t.batch) == (series, sparsity, batch)]
    return time


def test_all_published_timings_are_read():
    cpu, gpu = published("CPU"), published("GPU")
    assert len(cpu) == 4 * 5 * 12 * 5
    assert len(gpu) == 4 * 12 * 8
    for rows in (cpu, gpu):
        assert {t.sparsity for t in rows} == {0.8, 0.9, 0.95, 0.99}
        assert {t.batch for t in rows} == {2**power for power in range(12)}
        assert {t.source for t in rows} == {"published"}
    assert {t.threads for t in cpu} == {1, 2, 4, 8, 16}


def test_the_published_timings_give_the_speedups_of_the_papers_abstract():
    """3.4 and 2.5 times over dense and CSR on a CPU (one sample), 1.7 and 13.0 on a GPU (256 samples), at 90 %."""
    cpu = with_threads("threads", fastest(published("CPU")), 4)
    times = [time_of(cpu, series, 0.9, 1) for series in ("dense", "csr", "condensed")]
    assert times == [148.2, 106.7, 43.6]
    assert (round(times[0] / times[2], 1), round(times[1] / times[2], 2)) == (3.4, 2.45)
    gpu = fastest(published("GPU"))
    times = [time_of(gpu, series, 0.9, 256) for series in ("dense", "csr", "condensed", "condensed_turned")]
    assert times == [136.2, 1058.4, 81.5, 103.8]
    assert (round(times[0] / times[2], 1), round(times[1] / times[2], 1)) == (1.7, 13.0)


def test_only_hot_rows_of_the_published_layer_are_taken(bench):
    rows = measured(bench)
    assert len(rows) == len(bench_rows())
    assert {t.machine for t in rows} == {"Abacus 3000 (abacus)"}
    first = rows[0]
    assert (first.source, first.device, first.threads, first.sparsity, first.batch) == (
        "measured",
        "CPU",
        1,
        0.9,
        1,
    )
    assert (first.time_us, first.q1_us, first.q3_us) == (10, 9, 12)
    assert {t.implementation: t.series for t in rows} == {
        "condensed": "condensed",
        "condensed, samples first": "condensed_turned",
        "CSR, unstructured": "other",
        "BLAS": "dense",
        "slow BLAS": "dense",
        "MKL": "csr",
        "SciPy": "csr",
    }


@pytest.mark.parametrize("content", [None, "no JSON", "{}", '{"environment": null}'])
def test_a_machine_that_was_not_recorded_is_called_so(bench, content):
    file = bench.with_suffix(".json")
    file.unlink() if content is None else file.write_text(content)
    assert {t.machine for t in measured(bench)} == {"a machine not recorded"}


cases = st.tuples(
    st.sampled_from(["published", "measured"]),
    st.integers(1, 2),
    st.sampled_from([0.8, 0.9]),
    st.sampled_from(["dense", "csr", "condensed", "other"]),
)


@given(st.lists(st.tuples(cases, st.floats(1, 9)), max_size=12))
def test_the_fastest_of_each_series_in_each_case(rows):
    every = [Timing(a, "CPU", "m", b, c, 8, d, f"{i}", time) for i, ((a, b, c, d), time) in enumerate(rows)]
    expected = {case: min(time for other, time in rows if other == case) for case, _ in rows if case[3] != "other"}
    assert {(t.source, t.threads, t.sparsity, t.series): t.time_us for t in fastest(every)} == expected
    assert len(fastest(every)) == len(expected)


def test_ratios_are_of_the_fastest_competitors(bench):
    rows = ratios(measured(bench))
    assert [(row["threads"], row["series"]) for row in rows] == [
        (1, "condensed"),
        (1, "condensed_turned"),
        (2, "condensed"),
        (2, "condensed_turned"),
    ]
    for row in rows:
        own = {"condensed": 10, "condensed_turned": 16}[row["series"]]
        for batch in (1, 256):
            assert row[f"batch_{batch}_over_dense"] == pytest.approx(40 / own)
            assert row[f"batch_{batch}_over_csr"] == pytest.approx(25 / own)


def test_ratios_are_those_that_the_benchmark_itself_reports():
    with open(BENCH, newline="") as file:
        reported = {
            (row["implementation"], int(row["threads"]), batch, over): float(row[f"over_best_{over}"])
            for row in csv.DictReader(file)
            for batch in (1, 256)
            for over in ("dense", "csr")
            if (row["weights"], row["sparsity"], row["batch"]) == ("hot", "0.9", str(batch))
        }
    names = {"condensed": "condensed", "condensed_turned": "condensed, samples first"}
    found = {
        (names[row["series"]], row["threads"], batch, over): row[f"batch_{batch}_over_{over}"]
        for row in ratios(measured(BENCH))
        for batch in (1, 256)
        for over in ("dense", "csr")
    }
    assert len(found) == 2 * 2 * 2 * 2
    assert found == pytest.approx({key: reported[key] for key in found})


def test_a_case_that_was_not_timed_has_no_ratio(tmp_path):
    path = tmp_path / "linear.csv"
    path.write_text(csv_text(bench_rows(batches=(1, 8), threads=(1,))))
    for row in ratios(measured(path)):
        assert row["batch_1_over_dense"] > 1
        assert row["batch_256_over_dense"] is row["batch_256_over_csr"] is None
    path.write_text(csv_text(bench_rows(sparsities=(0.5,))))
    assert ratios(measured(path)) == []


def test_with_threads(bench):
    rows = measured(bench)
    assert {t.threads for t in with_threads("threads", rows, None)} == {2}
    assert {t.threads for t in with_threads("threads", rows, 1)} == {1}
    with pytest.raises(InputError, match="^threads must be one of 1, 2, not 3$"):
        with_threads("threads", rows, 3)


def lines_of(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_panels_show_the_rows_and_name_their_machine(bench):
    left = fastest(with_threads("threads", published("CPU"), 4))
    right = fastest(with_threads("threads", measured(bench), 1))
    panels = times_figure(left, right).axes
    assert [axes.get_title() for axes in panels] == [
        "published: Intel Xeon W-2145, 4 threads",
        "measured: Abacus 3000 (abacus), 1 thread",
    ] * 4
    drawn = lines_of(panels[2])
    assert [batch for batch, _ in drawn["condensed"]] == [2**power for power in range(12)]
    assert (1, 43.6) in drawn["condensed"]
    assert (256, 974.2) in drawn["dense product of active neurons only"]
    assert lines_of(panels[3]) == {
        "condensed": [(1, 10), (8, 80), (256, 2560)],
        "condensed, transposes included": [(1, 16), (8, 128), (256, 4096)],
        "dense": [(1, 40), (8, 320), (256, 10240)],
        "CSR": [(1, 25), (8, 200), (256, 6400)],
    }
    for axes in (panels[1], panels[5], panels[7]):  # sparsities that this benchmark did not time
        assert lines_of(axes) == {}
        assert [text.get_text() for text in axes.texts] == ["not measured"]


def test_speedups_are_times_of_the_same_machine(bench):
    machines = [
        fastest(with_threads("threads", published("CPU"), 2)),
        fastest(with_threads("threads", measured(bench), 1)),
        fastest(published("GPU")),
    ]
    panels = speedups_figure(machines).axes
    names = ["published:\nIntel Xeon W-2145, 2 threads", "measured:\nAbacus 3000 (abacus), 1 thread"]
    assert [axes.get_title() for axes in panels] == [*names, "published:\nNVIDIA Titan V"] * 2
    assert lines_of(panels[1])["90 % sparse"] == [(1, 4), (8, 4), (256, 4)]
    assert lines_of(panels[4])["90 % sparse"] == [(1, 2.5), (8, 2.5), (256, 2.5)]
    assert lines_of(panels[0])["80 % sparse"][0] == (1, 250.8 / 64.2)
    assert lines_of(panels[5])["99 % sparse"][-1] == (2048, 948.9 / 126.1)
    low, high = panels[0].get_ylim()
    every = [y for axes in panels for line in axes.get_lines() for y in line.get_ydata()]
    assert low < min(every) < 1 < max(every) < high


def test_the_gpu_figure_says_that_nothing_was_measured():
    figure = gpu_figure(fastest(published("GPU")))
    assert "published timings, not measured here" in figure.get_suptitle()
    sparsities = ("80", "90", "95", "99")
    assert [axes.get_title() for axes in figure.axes] == [
        f"{percent} % sparse, published: NVIDIA Titan V" for percent in sparsities
    ]
    assert (256, 81.5) in lines_of(figure.axes[1])["condensed"]
    assert (256, 103.8) in lines_of(figure.axes[1])["condensed, transposes included"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command on our own benchmark: the folder it wrote, its JSON, and what it printed."""
    folder = tmp_path_factory.mktemp("timings")
    result = run("--bench", BENCH, "--threads", 1, "--out", folder / "out", "--json", folder / "r.json")
    assert result.exit_code == 0
    return folder / "out", json.loads((folder / "r.json").read_text()), result.stdout


def test_the_command_writes_a_tidy_table_and_figures(finished):
    folder = finished[0]
    figures = [f"{name}.{suffix}" for name in ("speedups", "times-cpu", "times-gpu") for suffix in ("png", "svg")]
    assert sorted(path.name for path in folder.iterdir()) == [*figures, "timings.csv"]
    with open(folder / "timings.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1200 + 384 + len(measured(BENCH))
    cases = {tuple(value for key, value in row.items() if not key.endswith("_us")) for row in rows}
    assert len(cases) == len(rows)
    assert {row["q1_us"] for row in rows if row["source"] == "published"} == {""}
    keys = ("source", "device", "threads", "sparsity", "batch", "implementation")
    times = {tuple(row[key] for key in keys): row["time_us"] for row in rows}
    assert times["published", "CPU", "4", "0.9", "1", "condensed"] == "43.6"
    assert times["published", "GPU", "4", "0.9", "256", "ffi_tp_self"] == "81.5"


def test_the_command_prints_and_saves_the_ratios(finished):
    folder, saved, printed = finished
    row = next(row for row in saved["times_faster"] if (row["device"], row["threads"]) == ("CPU", 4))
    assert row["batch_1_over_dense"] == pytest.approx(148.2 / 43.6)
    line = next(line for line in printed.splitlines() if "Xeon" in line and " 4 " in line)
    assert [word for word in line.split() if "." in word] == ["3.40", "2.45", "0.48", "1.12"]
    assert str(folder) in printed


def test_figures_are_the_same_bytes_every_time(finished, tmp_path):
    machines = [with_threads("threads", published("CPU"), 4), with_threads("threads", measured(BENCH), 1)]
    figure = speedups_figure([fastest(rows) for rows in (*machines, published("GPU"))])
    save_figure(figure, tmp_path, "speedups")
    for name in ("speedups.png", "speedups.svg"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def without(field, text):
    lines = list(csv.DictReader(text.splitlines()))
    kept = [name for name in lines[0] if name != field]
    return "\n".join([",".join(kept), *(",".join(f'"{row[name]}"' for name in kept) for row in lines)])


GOOD = csv_text(bench_rows(batches=(1,), threads=(1,)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no CSV of `sparsekit bench`: it lacks benchmark, work, sparsity"),
        (b"\x80\xff\x00", "is no CSV file"),
        (without("median_us", GOOD), "is no CSV of `sparsekit bench`: it lacks median_us$"),
        (GOOD.replace("linear,", "conv,"), "has no rows of the linear benchmark of 3072 -> 768 with hot weights"),
        (GOOD.replace("hot", "cold"), "has no rows of the linear benchmark of 3072 -> 768 with hot weights"),
        (GOOD.splitlines()[0], "has no rows of the linear benchmark"),
        (GOOD.replace(",16.0,", ",fast,"), "has something else than numbers in line 3"),
        (GOOD + "linear,3072 -> 768,0.9,1,hot\n", "has something else than numbers in line 9"),
        (GOOD.replace(",16.0,", ",-16.0,"), "has times that are no median and quartiles above 0 in line 3"),
        (GOOD.replace(",16.0,", ",nan,"), "has times that are no median and quartiles above 0 in line 3"),
        (GOOD.replace(",csr,", ",ours,"), "has no csr implementation at sparsity 0.9, batch 1, threads 1"),
        (
            GOOD.replace(",condensed,", ",c,"),
            "has no condensed implementation at sparsity 0.9, batch 1, threads 1",
        ),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, content, message):
    path = tmp_path / "bench.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"^bench .*bench.csv {message}"):
        measured(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", 3], "^threads must be one of 1, 2, not 3$"),
        (["--published-threads", 3], "^published-threads must be one of 1, 2, 4, 8, 16, not 3$"),
        (["--bench", "missing.csv"], "^bench missing.csv cannot be read: No such file"),
        (["--bench", ROOT], "^bench .* cannot be read: Is a directory"),
        (["--out", ROOT / "README.md" / "below"], "^out .* cannot be made: Not a directory"),
        (["--json", "missing/r.json"], "^json must name a file in a folder that exists, not missing/r.json"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(bench, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("--bench", bench, *arguments)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.csv", "linear.json"]


def test_a_mistake_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "analysis.timings", "--bench", "missing.csv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "sparsekit: error: bench missing.csv cannot be read: No such file or directory\n"
    assert done.stdout == ""
