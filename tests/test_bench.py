"""Benchmarks: what is wrong is never timed, samples become the right numbers, files hold all rows. No timings."""

import csv
import io
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from sparsekit import cli
from sparsekit.bench import conv, epoch, linear, measure, resnet, run, torch_competitors, train_step, worker
from sparsekit.bench.environment import environment
from sparsekit.bench.measure import Case, Implementation, Problem, Timing, check
from sparsekit.bench.pictures import linear_figure, speedup_figure
from sparsekit.bench.report import FIELDS, case_rows, csv_text, with_ratios
from sparsekit.errors import InputError, RunError

TINY = {
    linear: linear.Sizes(48, 32, (0.8, 0.9), (1, 3, 16), (1, 2), 3),
    train_step: train_step.Sizes(((40, 24), (17, 9)), (0.5, 0.9), 5),
    conv: conv.Sizes(((4, 5), (3, 6)), (0.5, 0.9), 3),
    epoch: epoch.Sizes((12,), turns=2, epochs=3, train_samples=500, test_samples=100),
    resnet: resnet.Sizes((0.9, 0.99), batch=2, warm_up=1, steps=3),
}
OURS = {"condensed", "condensed, samples first", "CSR, unstructured"}
TORCH = torch_competitors.load()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Small shapes, few turns and repeats, no pauses, and no data set but a made-up one."""
    for module, sizes in TINY.items():
        for name in ("FULL", "QUICK"):
            monkeypatch.setattr(module, name, sizes)
    monkeypatch.setattr(run, "REPEATS", 3)
    monkeypatch.setattr(run, "QUICK_REPEATS", 3)
    monkeypatch.setattr(measure, "TURNS", 3)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "_SAMPLE", 1e-5)

    def missing(name):
        raise InputError(f"no {name} here")

    monkeypatch.setattr(epoch, "load_dataset", missing)


@pytest.fixture(params=["with PyTorch", "without PyTorch"])
def torch(request, monkeypatch):
    if request.param == "without PyTorch":
        monkeypatch.setitem(sys.modules, "torch", None)
        return None
    return TORCH or pytest.skip("PyTorch is not installed")


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `sparsekit bench` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def bench(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparsekit", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return bench


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Measuring


class Machine:
    """A clock that only runs and pauses move."""

    def __init__(self, durations):
        self.now, self.log, self.pauses = 0.0, [], []
        self.durations = {name: itertools.cycle(seconds) for name, seconds in durations.items()}

    def implementation(self, name):
        def work():
            self.log.append(name)
            self.now += next(self.durations[name])

        return Implementation(name, "ours", work)

    def wait(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def measure(self, repeats, layers=1, threads=1):
        problem = Problem([self.implementation(name) for name in self.durations], [], 1, 1, layers)
        return measure.measure(problem, repeats, threads, clock=lambda: self.now, wait=self.wait)


def test_medians_and_quartiles_of_known_samples():
    # two runs to warm up and three samples a turn
    turns = [[9, 9, 0.001, 0.002, 0.003], [9, 9, 0.004, 0.005, 0.006], [9, 9, 0.007, 0.008, 0.009]]
    (timing,) = Machine({"a": itertools.chain(*turns)}).measure(repeats=9)
    assert timing.samples == 9
    assert [timing.q1, timing.median, timing.q3] == pytest.approx([0.003, 0.005, 0.007])


def test_repeats_are_never_fewer_than_asked():
    (timing,) = Machine({"a": [0.001]}).measure(repeats=10)
    assert timing.samples == 12


def test_a_layer_is_timed_where_a_run_goes_through_many():
    (timing,) = Machine({"a": [0.016]}).measure(repeats=3, layers=16)
    assert timing.median == pytest.approx(0.001)


def test_short_runs_are_repeated_within_a_sample(monkeypatch):
    monkeypatch.setattr(measure, "_SAMPLE", 5e-4)
    monkeypatch.setattr(measure, "WARM_UP", 0)
    machine = Machine({"a": [1e-5]})
    (timing,) = machine.measure(repeats=6)
    assert timing.median == pytest.approx(1e-5)
    assert len(machine.log) == pytest.approx(3 * (1 + 1 + 50 + 2 * 50), abs=9)


def test_all_are_warmed_up_equally_long(monkeypatch):
    monkeypatch.setattr(measure, "WARM_UP", 0.03)
    machine = Machine({"quick": [0.001], "slow": [0.02]})
    machine.measure(repeats=3)  # one sample a turn
    assert machine.log.count("quick") == pytest.approx(3 * (1 + 30 + 1), abs=3)
    assert machine.log.count("slow") == 3 * (1 + 2 + 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_implementations_take_turns_with_a_pause_before_each_on_threads(monkeypatch, threads):
    monkeypatch.setattr(measure, "PAUSE", 0.08)
    machine = Machine({"a": [0.001], "b": [0.002]})
    times = machine.measure(repeats=3, threads=threads)
    assert [name for name, _ in itertools.groupby(machine.log)] == ["a", "b"] * 3
    assert machine.pauses == ([] if threads == 1 else [0.08] * 6)
    assert [timing.median for timing in times] == pytest.approx([0.001, 0.002])


def test_a_pause_lasts_as_long_as_asked_and_computes():
    started, busy = time.perf_counter(), time.process_time()
    measure.busy_wait(0.05)
    assert time.perf_counter() - started >= 0.05
    assert time.process_time() - busy >= 0.005  # asleep it would be nothing; other programs may take their share


# Checking


def problem_giving(result, expected):
    return Problem(
        [Implementation("good", "dense", lambda: expected), Implementation("bad", "ours", result)],
        [expected],
        1,
        1,
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda y: y + np.eye(3, 4) * 1e-3, "bad gives wrong results in here, shape (3, 4): off by 0.001"),
        (lambda y: np.where(y == y.max(), np.nan, y), "bad gives wrong results in here, shape (3, 4)"),
        (lambda y: y.T, "bad gives shape (4, 3), not (3, 4), in here"),
        (lambda y: [y, y], "bad gives 2 results, not 1, in here"),
    ],
    ids=["one weight", "NaN", "shape", "number"],
)
def test_wrong_results_are_caught(spoil, words, rng):
    expected = rng.standard_normal((3, 4))
    check(problem_giving(lambda: expected.astype(np.float32), expected), "here")
    with pytest.raises(RunError) as caught:
        check(problem_giving(lambda: spoil(expected), expected), "here")
    assert words in str(caught.value)


def test_what_is_wrong_is_not_timed(monkeypatch, tmp_path, rng):
    expected = rng.standard_normal((3, 4))
    problem = problem_giving(lambda: 2 * expected, expected)
    monkeypatch.setitem(
        run._CASES, "linear", lambda quick: [Case("linear", "3 -> 4", 0.5, 4, lambda rng: problem)]
    )
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("timed"))
    with pytest.raises(
        RunError, match="^bad gives wrong results in linear 3 -> 4, 50%, batch 4, hot weights, 1 th"
    ):
        run.run("linear", tmp_path, threads=[1], progress=False)
    assert not list(tmp_path.iterdir())


def test_a_wrong_kernel_is_named(monkeypatch, command):
    from sparsekit.condensed import CondensedMatrix

    right = CondensedMatrix.matmul
    monkeypatch.setattr(CondensedMatrix, "matmul", lambda *a, **k: right(*a, **k) * np.float32(1.01))
    code, _, errors = command("linear", "--threads", 1, "--out", "x")
    assert code == 1
    assert errors.startswith(
        "sparsekit: error: condensed gives wrong results in linear 48 -> 32, 80%, batch 1, hot"
    )
    assert errors.count("\n") == 1


# Cases


def test_full_cases_are_those_of_the_targets():
    layer, step, images = linear.Sizes(), train_step.Sizes(), conv.Sizes()
    assert (layer.n_in, layer.n_out, layer.cold_layers) == (3072, 768, 16)
    assert layer.sparsities == (0.8, 0.9, 0.95, 0.99)
    assert layer.batches == tuple(2**i for i in range(12))
    assert step.layers == ((784, 512), (1024, 1024), (3072, 768))
    assert (step.sparsities, step.batch) == ((0.9, 0.95, 0.98), 128)
    assert (images.images, images.sparsities, images.batch) == (((64, 32), (128, 16), (256, 8)), (0.9, 0.95), 64)


def test_multiply_adds_are_counted():
    for module, passes in ((train_step, 3), (conv, None)):
        for case in module.cases(quick=False):
            problem = case.build(np.random.default_rng(0))
            per_pass = problem.expected[0].size
            passes_ = passes or len(problem.expected)
            n_in = problem.dense_macs / passes_ / per_pass
            assert n_in in (40, 17, 4 * 9, 3 * 9)
            assert problem.stored_macs == max(1, round((1 - case.sparsity) * n_in)) * per_pass * passes_


def test_both_sides_use_the_threads_asked_for(monkeypatch, tmp_path):
    import numba

    used = []

    def work():
        blas = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        torch_threads = {TORCH.get_num_threads()} if TORCH else set()
        used.append({numba.get_num_threads()} | blas | torch_threads)
        return np.ones(1)

    problem = Problem([Implementation("a", "ours", work), Implementation("b", "dense", work)], [np.ones(1)], 1, 1)
    monkeypatch.setitem(
        run._CASES, "train-step", lambda quick: [Case("train-step", "w", 0.5, 1, lambda rng: problem)]
    )
    counts = sorted({1, numba.config.NUMBA_NUM_THREADS})
    results = run.run("train-step", tmp_path, threads=counts, progress=False)
    assert [key for key, _ in itertools.groupby(used)] == [{count} for count in counts]
    assert [row["threads"] for row in results.rows["train-step"]] == [c for c in counts for _ in range(2)]


# Rows and files


def test_rates_count_what_an_implementation_multiplies():
    implementations = [Implementation(kind, kind, lambda: None) for kind in ("ours", "dense", "dense", "csr")]
    case = Case("linear", "w", 0.9, 1, lambda rng: problem)
    problem = Problem(implementations, [], stored_macs=100, dense_macs=1000)
    rows = case_rows(case, 2, problem, [Timing(t, t, t, 30) for t in (1e-6, 4e-6, 5e-6, 2e-6)])
    assert [row["gmacs"] for row in rows] == pytest.approx([0.1, 0.25, 0.2, 0.05])
    assert [row["fraction_of_dense"] for row in rows] == pytest.approx([0.4, 1, 0.8, 0.2])
    assert [row["median_us"] for row in rows] == pytest.approx([1, 4, 5, 2])


def test_ratios_are_over_the_best_of_each_kind():
    times = {"ours": ("ours", 10.0), "slow": ("dense", 40.0), "fast": ("dense", 20.0), "csr": ("csr", 15.0)}
    rows = with_ratios([{"implementation": n, "kind": k, "median_us": t} for n, (k, t) in times.items()])
    assert [row["over_best_dense"] for row in rows] == pytest.approx([2, 0.5, 1, 4 / 3])
    assert [row["over_best_csr"] for row in rows] == pytest.approx([1.5, 0.375, 0.75, 1])
    assert with_ratios(rows[:1])[0]["over_best_dense"] is None


def expected_rows(name, torch):
    """Implementations of each case, and how many cases there are."""
    dense = {"linear": ["NumPy dense", "NumPy dense, samples first"], "conv": ["NumPy im2col"]}.get(
        name, ["NumPy dense"]
    )
    pytorch = ["PyTorch dense", "PyTorch dense, samples first"]
    if name == "conv":
        pytorch = ["PyTorch conv2d, NCHW", "PyTorch conv2d, channels last"]
    csr = ["SciPy CSR (1 thread)"] if name == "linear" else []
    if torch and torch.backends.mkl.is_available() and name == "linear":
        csr += ["PyTorch CSR (MKL)", "PyTorch CSR (MKL), as converted"]
    ours = OURS if name == "linear" else {"condensed"}
    n_cases = {"linear": 2 * (3 + 2), "train-step": 4, "conv": 2 * 2 * 2}[name]
    return ours | set(dense) | set(csr) | set(pytorch if torch else []), n_cases


@pytest.mark.parametrize("name", ["linear", "train-step", "conv"])
def test_a_benchmark_writes_table_and_figures(name, torch, command, tmp_path):
    code, printed, errors = command(name, "--quick", "--threads", 1, "--out", "x", "--json", "r.json")
    assert (code, errors) == (0, "")
    rows = read_csv(tmp_path / "x" / f"{name}.csv")
    names, n_cases = expected_rows(name, torch)
    assert {row["implementation"] for row in rows} == names
    assert len(rows) == len(names) * n_cases
    assert tuple(rows[0]) == FIELDS
    for row in rows:
        assert row["benchmark"] == name
        assert (row["threads"], int(row["samples"])) == ("1", 3)
        assert 0 < float(row["q1_us"]) <= float(row["median_us"]) <= float(row["q3_us"])
        assert float(row["gmacs"]) > 0
        assert (row["over_best_csr"] != "") == (name == "linear")
        assert row["peak_memory_mib"] == row["test_accuracy"] == ""
    for _, group in itertools.groupby(rows, key=lambda row: [row[key] for key in FIELDS[:6]]):
        case = list(group)
        dense = [row for row in case if row["kind"] == "dense"]
        best, rate = (f(float(row[key]) for row in dense) for f, key in ((min, "median_us"), (max, "gmacs")))
        for row in case:
            assert float(row["over_best_dense"]) == pytest.approx(best / float(row["median_us"]))
            assert float(row["fraction_of_dense"]) == pytest.approx(float(row["gmacs"]) / rate)
    written = {path.name for path in (tmp_path / "x").iterdir()}
    figure = "linear-threads-1.png" if name == "linear" else f"{name}.png"
    assert written == {f"{name}.csv", f"{name}.json", figure}
    assert (tmp_path / "x" / figure).read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result == json.loads((tmp_path / "x" / f"{name}.json").read_text())
    assert (result["environment"]["torch"] is None) == (torch is None)
    assert len(result["rows"][name]) == len(rows)
    assert ("PyTorch is not installed" in printed) == (torch is None)
    for part in (f"{name}, 1 thread", "x dense", "openblas", *(["x CSR"] if name == "linear" else [])):
        assert part in printed


def test_all_in_a_hurry_leaves_the_epochs_out(no_torch, command, tmp_path):
    code, printed, errors = command("--quick", "--quiet", "--out", "x")
    assert (code, printed, errors) == (0, "", "")
    names = {path.name for path in (tmp_path / "x").iterdir() if path.suffix == ".csv"}
    assert names == {"linear.csv", "train-step.csv", "conv.csv"}
    assert {row["threads"] for name in names for row in read_csv(tmp_path / "x" / name)} == {"1"}


def test_same_seed_same_problem():
    case = next(linear.cases(quick=True))
    first, again, other = (case.build(np.random.default_rng(seed)).expected[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_is_not_measured_is_an_empty_cell():
    row = csv.DictReader(io.StringIO(csv_text([{"benchmark": "conv", "over_best_csr": None}])))
    assert next(row) == dict.fromkeys(FIELDS, "") | {"benchmark": "conv"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["linaer"],
            "benchmark must be one of linear, train-step, conv, epoch, resnet18, gpu, all, not 'linaer' (did you",
        ),
        (["linear", "--threads", "0"], "threads must be an integer in [1, "),
        (["linear", "--threads", "1,4096"], "threads must be an integer in [1, "),
        (["linear", "--threads", "two"], "threads must be numbers separated by commas, not 'two'"),
        (["linear", "--threads", ""], "threads must be numbers separated by commas"),
        (["linear", "--seed", "-1"], "seed must be an integer of at least 0"),
        (["linear", "--seed", "x"], "--seed"),
        (["linear", "--json", "nowhere/r.json"], "json must name a file in a folder that exists"),
        (["linear", "--out", "file"], "out file cannot be made"),
        (["linear", "--fast"], "No such option: --fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, command, tmp_path):
    (tmp_path / "file").write_text("")
    code, printed, errors = command(*arguments)
    assert (code, printed) == (2, "")
    assert errors.startswith("sparsekit: error: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Environment


def test_the_environment_says_what_was_measured_on(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    found = environment()
    assert found["processors"] >= 1
    assert all(found[key] for key in ("cpu", "python", "sparsekit", "numpy", "blas", "scipy", "numba"))
    assert found["variables"]["OPENBLAS_CORETYPE"] == "Haswell"
    json.dumps(found)


def test_a_slowed_down_competitor_is_pointed_out(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert not any("OPENBLAS" in note for note in run._notes(["conv"]))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert any("OPENBLAS_CORETYPE=Haswell" in note for note in run._notes(["conv"]))


def test_one_module_imports_torch():
    folder = Path(run.__file__).parent
    assert [path.name for path in folder.glob("*.py") if '"torch")' in path.read_text()] == [
        "torch_competitors.py"
    ]
    assert not [path for path in folder.glob("*.py") if "import torch\n" in path.read_text()]


# Epochs


@pytest.fixture
def made_up():
    with epoch._dataset(TINY[epoch], 0) as (path, _, _):
        yield path


def settings(method, dataset):
    return {
        "method": method, "dataset": dataset, "hidden": [12], "sparsity": 0.9, "batch_size": 128, "epochs": 3,
        "threads": 1, "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["SRigL", "dense", "PyTorch dense"])
def test_a_training_returns_what_is_compared(method, made_up):
    if method.startswith("PyTorch"):
        pytest.importorskip("torch")
    result = worker.main(settings(method, made_up))
    assert len(result["seconds"]) == 3
    assert all(seconds > 0 for seconds in result["seconds"])
    assert result["test_accuracy"] > 0.5  # the made-up patterns are easy
    assert result["peak_memory_bytes"] > 2**20


def test_trainings_run_in_processes_of_their_own(made_up):
    assert len(epoch._train(settings("dense", made_up))["seconds"]) == 3
    with pytest.raises(RunError, match="training dense on nowhere.npz failed: .*nowhere.npz"):
        epoch._train(settings("dense", "nowhere.npz"))


def test_epochs_are_compared_without_the_first_of_each_process(torch, monkeypatch):
    trained = []

    def train(settings):
        trained.append((settings["method"], settings["threads"], settings["seed"]))
        scale = {"SRigL": 1, "dense": 2, "PyTorch dense": 3}[settings["method"]]
        return {"seconds": [99, scale, 2 * scale], "peak_memory_bytes": scale * 2**20, "test_accuracy": 0.9}

    monkeypatch.setattr(epoch, "_train", train)
    steps = []
    rows, notes = epoch.run([1, 2], 7, quick=False, advance=lambda: steps.append(1))
    methods = ["SRigL", "dense", *(["PyTorch dense"] if torch else [])]
    assert trained == [(m, threads, seed) for threads in (1, 2) for seed in (7, 8) for m in methods]
    assert len(steps) == epoch.turns([1, 2], quick=False) == len(trained)
    assert [(row["threads"], row["implementation"]) for row in rows] == [(t, m) for t in (1, 2) for m in methods]
    for row in rows:
        scale = 1 + methods.index(row["implementation"])
        assert row["median_us"] == pytest.approx(1.5e6 * scale)
        assert row["samples"] == 4
        assert row["over_best_dense"] == pytest.approx(2 / scale)
        assert (row["peak_memory_mib"], row["test_accuracy"]) == (scale, 0.9)
        assert "made-up" in row["work"]
    assert len(notes) == 1
    assert "made-up" in notes[0]


def test_the_epoch_command_prints_memory(no_torch, monkeypatch, command, tmp_path):
    result = {"seconds": [9, 0.5], "peak_memory_bytes": 123 * 2**20, "test_accuracy": 0.875}
    monkeypatch.setattr(epoch, "_train", lambda settings: result)
    code, printed, errors = command("epoch", "--threads", "1", "--out", "x")
    assert (code, errors) == (0, "")
    for part in ("123", "87.5", "0.5", "made-up", "PyTorch is not installed"):
        assert part in printed
    assert len(read_csv(tmp_path / "x" / "epoch.csv")) == 2


# ResNet-18


class FakeStepper:
    """Stands for a process; the first step of each is slow."""

    def __init__(self, settings):
        self.settings, self.steps = settings, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def step(self):
        self.steps += 1
        return 99.0 if self.steps == 1 else self._scale() * self.steps

    def end(self):
        own = {"profile": {"batch norm": 0.25, "the rest": 0.75}, "update_seconds": 2.5}
        return {"peak_memory_bytes": self._scale() * 2**20} | (
            own if self.settings["library"] == "sparsekit" else {}
        )

    def _scale(self):
        return 4 if self.settings["sparsity"] == 0 else 1


def test_steps_of_resnet18_are_compared_in_turns(torch, monkeypatch):
    made, turns = [], []
    monkeypatch.setattr(resnet, "_Stepper", lambda settings: made.append(settings) or FakeStepper(settings))
    rows, notes = resnet.run([1, 2], 7, quick=False, advance=lambda: turns.append(1))
    names = ["SRigL 90 %", "SRigL 99 %", "sparsekit dense"]
    names += ["PyTorch dense, NCHW", "PyTorch dense, channels last"] if torch else []
    assert [(row["threads"], row["implementation"]) for row in rows] == [
        (t, name) for t in (1, 2) for name in names
    ]
    assert [(m["threads"], m["batch"], m["seed"]) for m in made] == [(t, 2, 7) for t in (1, 2) for _ in names]
    assert len(turns) == resnet.turns([1, 2], quick=False) == 6
    for row in rows:
        scale = 1 if row["kind"] == "ours" else 4
        assert row["median_us"] == pytest.approx(3e6 * scale)  # steps 2, 3 and 4: the first is a warm-up
        assert row["samples"] == 3
        assert row["over_best_dense"] == pytest.approx(4 / scale)
        assert row["peak_memory_mib"] == scale
    assert len(notes) == 6  # a profile of each network of ours
    part = "resnet18, SRigL 90 %, 1 thread, one step: batch norm 250 ms (25%), the rest 750 ms (75%)"
    assert notes[0] == f"{part}; a step with a topology update takes 2.50 s"


def test_a_process_trains_resnet18_step_by_step():
    settings = {"library": "sparsekit", "method": "dense", "sparsity": 0.0, "batch": 2, "threads": 1, "seed": 0}
    with resnet._Stepper(settings) as process:
        assert process.step() > 0
        end = process.end()
    assert end["peak_memory_bytes"] > 50 * 2**20
    assert end["update_seconds"] is None
    assert min(end["profile"].values()) > 0
    assert {"input gradient", "batch norm, ReLU and sums", "the rest"} < set(end["profile"])
    with pytest.raises(RunError, match="the process that trains .* failed: .*method"), resnet._Stepper({
        **settings, "method": "dances"
    }) as process:  # fmt: skip
        process.step()


def test_pytorch_trains_resnet18_step_by_step():
    pytest.importorskip("torch")
    settings = {"library": "PyTorch", "channels_last": True, "sparsity": 0.0, "batch": 2, "threads": 1, "seed": 0}
    with resnet._Stepper(settings) as process:
        assert process.step() > 0
        assert list(process.end()) == ["peak_memory_bytes"]


# Figures


def row(name, kind, batch=1, **other):
    base = {"work": "w", "sparsity": 0.9, "batch": batch, "weights": "hot", "threads": 1}
    times = {"median_us": 10.0 * batch, "q1_us": 9.0 * batch, "q3_us": 12.0 * batch}
    return base | {"implementation": name, "kind": kind} | times | other


def drawn(figure):
    figure.savefig(io.BytesIO(), format="png")
    return figure


@pytest.mark.parametrize("sparsities", [(0.9,), (0.8, 0.9, 0.95), (0.8, 0.9, 0.95, 0.99)])
def test_the_linear_figure_draws_medians_and_quartiles(sparsities):
    names = [("condensed", "ours"), ("NumPy dense", "dense"), ("SciPy CSR (1 thread)", "csr")]
    rows = [row(n, k, b, sparsity=s) for s in sparsities for b in (1, 2, 4) for n, k in names]
    others = [row("condensed", "ours", 8, weights="cold"), row("condensed", "ours", 8, threads=2)]
    figure = drawn(linear_figure([*rows, *others], 1))
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in panels] == [f"{100 * s:g} % sparse" for s in sparsities]
    for axes in panels:
        assert [line.get_label() for line in axes.lines] == [name for name, _ in names]
        for line, band in zip(axes.lines, axes.collections, strict=True):
            assert list(line.get_xdata()) == [1, 2, 4]
            assert list(line.get_ydata()) == [10, 20, 40]
            assert set(band.get_paths()[0].vertices[:, 1]) == {9, 18, 36, 12, 24, 48}
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [name for name, _ in names]
    assert "1 thread" in figure.get_suptitle()


def test_the_bars_are_as_long_as_the_ratios():
    ratios = {(1, 0.9): 3.0, (1, 0.95): 5.0, (2, 0.9): 2.0, (2, 0.95): 4.0}
    rows = [
        row(name, kind, threads=threads, sparsity=sparsity, over_best_dense=ratio if kind == "ours" else 1.0)
        for (threads, sparsity), ratio in ratios.items()
        for name, kind in (("condensed", "ours"), ("NumPy dense", "dense"))
    ]
    figure = drawn(speedup_figure(rows, "a title"))
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == list(ratios.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["w, 90 %", "w, 95 %"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1 thread", "2 threads"]


def test_a_timing_has_its_quartiles():
    assert Timing.of([1, 2, 3, 4, 5]) == Timing(2, 3, 4, 5)
