"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

import yaml

import sparsekit

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())

# what conda-forge calls otherwise, splits, or does not need
CONDA_NAMES = {"matplotlib": ["matplotlib-base"], "dask": ["dask", "distributed"], "build": ["python-build"]}
# wheels for the tests that compile for GPUs
NOT_ON_CONDA = {"nvidia-cuda-nvdisasm", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"}
ONLY_ON_CONDA = {"python", "tbb", "pip"}


def parse(requirement: str) -> tuple[str, str]:
    requirement = requirement.split(";")[0].strip()
    name, _, bounds = re.fullmatch(r"([\w-]+)(\[[\w,]+\])?(.*)", requirement).groups()
    return name, bounds.strip()


def required() -> dict[str, str]:
    extras = PROJECT["optional-dependencies"]
    listed = PROJECT["dependencies"] + [
        r for name in ("notebooks", "analysis", "docs", "dev") for r in extras[name]
    ]
    bounds = dict(parse(requirement) for requirement in listed)
    return {
        conda: b
        for name, b in bounds.items()
        for conda in CONDA_NAMES.get(name, [name])
        if name not in NOT_ON_CONDA
    }


def test_environment_is_in_step_with_pyproject():
    entries = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    entries += [entry for entry in ENVIRONMENT["dependencies"][-1]["pip"] if not entry.startswith("-")]
    offered = dict(parse(entry) for entry in entries)
    assert offered.pop("python") == PROJECT["requires-python"]
    assert {name: bounds for name, bounds in offered.items() if name not in ONLY_ON_CONDA} == required()
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    # conda hands these lines to pip as a requirements file, in which few options are allowed
    assert ENVIRONMENT["dependencies"][-1]["pip"][-1] == "--editable ."


def test_extras_are_those_of_the_design():
    assert set(PROJECT["optional-dependencies"]) == {
        "gpu",
        "gpu-cuda12",
        "notebooks",
        "analysis",
        "docs",
        "dev",
    }


def test_torch_is_nowhere_a_dependency():
    listed = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    assert not [r for r in listed if parse(r)[0] == "torch"]


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sparsekit.__version__


def test_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
