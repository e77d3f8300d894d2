"""Inspecting runs: the numbers are those of the network and of its masks, for every method and old runs too."""

import json

import numpy as np
import pytest

from sparsekit import InputError
from sparsekit.config import make_config
from sparsekit.counting import inference_flops, layer_summary, storage_bytes, training_flops
from sparsekit.inspection import inspect_run
from sparsekit.models import weight_layers
from sparsekit.training.evolution import read_evolution
from sparsekit.training.run import load_run, train_run

SMALL = {
    "hidden": [16, 12], "epochs": 2, "batch_size": 64, "delta_t": 3, "threads": 1, "sparsity": 0.9,
    "gamma_sal": 0.8, "backend": "vectorized",
}  # fmt: skip
METHODS = ["dense", "static", "static-unstructured", "set", "rigl", "srigl"]


@pytest.fixture(scope="module", params=METHODS)
def run_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    train_run(make_config(SMALL, {"method": request.param}), folder, progress=False)
    return folder


def test_numbers_are_those_of_the_run(run_folder):
    run, inspection = load_run(run_folder), inspect_run(run_folder)
    result = inspection.result
    assert json.loads(json.dumps(result)) == result
    assert (result["dataset"], result["model"], result["method"]) == ("digits", "mlp", run_folder.name)
    layers = weight_layers(run.model)
    rows = read_evolution(run_folder / "topology.csv")
    assert inspection.evolution == rows
    flops = inference_flops(run.model, (1, 8, 8))
    for found, expected in zip(result["layers"], layer_summary(run.model), strict=True):
        name = expected["name"]
        assert {key: found[key] for key in expected} == expected
        assert found["weight_shape"] == found["shape"]
        assert found["flops"] == flops[name] == 2 * expected["nnz"]
        assert found["dense_flops"] == 2 * expected["shape"][0] * expected["shape"][1]
        assert found["bytes"] == storage_bytes(layers[name].matrix)
        of_layer = [row for row in rows if row["layer"] == name]
        if layers[name].is_sparse:
            assert (found["itop"], found["initial_n_active"]) == (of_layer[-1]["itop"], of_layer[0]["n_active"])
            assert of_layer[-1]["n_active"] == found["n_active"]
            assert found["itop"] >= 1 - found["sparsity"] - 1e-12
        else:
            assert (found["itop"], of_layer) == (1.0, [])
    for key in ("flops", "dense_flops"):
        assert result[key] == sum(layer[key] for layer in result["layers"])
    for storage in ("dense", "csr", "condensed"):
        assert result["bytes"][storage] == sum(layer["bytes"][storage] for layer in result["layers"])
    sizes = [np.prod(layer["shape"]) for layer in result["layers"]]
    assert result["itop"] == pytest.approx(
        np.average([layer["itop"] for layer in result["layers"]], weights=sizes)
    )


def test_training_flops_follow_the_method(run_folder):
    result = inspect_run(run_folder).result
    sparse, dense = result["flops"], result["dense_flops"]
    expected = training_flops(sparse, dense, 3) if run_folder.name in ("rigl", "srigl") else 3 * sparse
    assert result["training_flops"] == expected
    assert result["dense_training_flops"] == 3 * dense
    assert (sparse == dense) == (run_folder.name == "dense")
    n_samples = 2 * (1437 // 64) * 64  # of two epochs, without the incomplete batches
    assert result["total_training_flops"] == pytest.approx(n_samples * expected)
    assert result["total_dense_training_flops"] == n_samples * 3 * dense
    assert result["n_updates"] == (0 if run_folder.name == "dense" else 10)  # every third step before step 33


def test_the_figure_is_written(run_folder, tmp_path):
    inspection = inspect_run(run_folder)
    inspection.save_plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    for name in ("a.txt", "a"):
        with pytest.raises(InputError, match="out must be a file that ends in .png, .svg, .pdf, not"):
            inspection.save_plot(tmp_path / name)


def test_runs_of_earlier_versions_can_be_inspected(tmp_path):
    folder = tmp_path / "run"
    train_run(make_config(SMALL, {"epochs": 1, "dense_layers": ["fc1"]}), folder, progress=False)
    (folder / "topology.csv").unlink()
    inspection = inspect_run(folder)
    assert inspection.evolution is None
    assert [layer["itop"] for layer in inspection.result["layers"]] == [1.0, None, None]
    assert [layer["initial_n_active"] for layer in inspection.result["layers"]] == [16, None, None]
    assert (inspection.result["itop"], inspection.result["n_updates"]) == (None, None)
    inspection.save_plot(tmp_path / "a.png")
    assert "the evolution of the masks was not recorded" in inspection.plot().get_suptitle()


@pytest.mark.parametrize("model", ["cnn", "mnist_cnn"])
def test_convolutional_networks(model, tmp_path):
    config = make_config(SMALL, {"epochs": 1, "model": model, "channels": [4, 6], "delta_t": 5})
    train_run(config, tmp_path / "run", progress=False)
    inspection = inspect_run(tmp_path / "run")
    first = inspection.result["layers"][0]
    assert first["weight_shape"] == ([4, 1, 3, 3] if model == "cnn" else [32, 1, 3, 3])
    pixels = 64 if model == "cnn" else 36
    assert first["flops"] == 2 * pixels * first["nnz"]
    inspection.save_plot(tmp_path / "a.png")


def test_damaged_records_are_refused(tmp_path):
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", progress=False)
    (tmp_path / "run" / "topology.csv").write_text("step,layer\n3\n")
    with pytest.raises(InputError, match="topology.csv is damaged"):
        inspect_run(tmp_path / "run")
    with pytest.raises(InputError, match="is not a run"):
        inspect_run(tmp_path)
