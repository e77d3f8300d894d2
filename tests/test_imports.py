"""Imports run one way, and `import sparsekit` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sparsekit

PACKAGE = Path(sparsekit.__file__).parent

# Each part may import the parts to its left, itself, and what has no dependencies at all.
FREE = {"errors", "checks", "atomic"}
ALLOWED = {
    "masks": set(),
    "kernels": set(),
    "topology": {"masks"},
    "distributions": set(),
    "stored": {"masks", "kernels"},
    "csr": {"masks", "kernels", "stored"},
    "gpu_matrix": {"kernels", "stored"},
    "condensed": {"masks", "kernels", "stored", "csr", "gpu_matrix"},
    "dense": {"masks", "kernels", "stored"},
    "convolution": {"kernels", "stored"},
    "gpu_convolution": {"convolution", "gpu_matrix", "kernels"},
    "im2col": {"convolution", "kernels", "stored"},
    "nn": {"stored", "kernels", "convolution", "im2col", "dense"},
    "gpu": {"condensed", "dense", "gpu_convolution", "gpu_matrix", "kernels", "nn"},
    "optim": {"nn"},
    "data": set(),
    "models": {"nn", "distributions", "masks", "stored", "csr", "condensed", "dense"},
    "counting": {"models", "nn", "stored", "kernels"},
    "config": set(),
    "figures": {"models", "nn", "training"},
    "inference": {"models", "nn", "csr", "dense", "kernels", "stored"},
    "training": {
        "models", "nn", "optim", "topology", "data", "counting", "config", "figures", "kernels",
        "stored", "csr", "condensed", "dense",
    },
    "sklearn": {"config", "data", "kernels", "nn", "training"},
    "inspection": {"counting", "models", "training", "figures"},
    "evaluation": {"data", "kernels", "nn", "training"},
    "export": {"data", "models", "nn", "stored", "csr", "condensed", "dense", "training"},
    "comparison": {"config", "data", "inference", "kernels", "training", "figures"},
    "bench": {
        "config", "data", "training", "counting", "figures", "kernels", "masks", "csr", "condensed", "convolution",
        "gpu_matrix",
    },
    "testing": {"data", "masks", "models", "nn", "optim", "topology", "training"},
    "tables": set(),
    "console": set(),
    "cli": {
        "config", "console", "training", "comparison", "inspection", "evaluation", "export", "bench", "tables",
    },
    "__main__": {"cli"},
}  # fmt: skip


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sparsekit":
            names = [node.module] if "." in node.module else [f"sparsekit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("sparsekit.")]
        else:
            continue
        parts |= {name.split(".")[1] for name in names}
    return parts - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part != "__init__":
        assert imported_parts(path) - FREE - {part} <= ALLOWED.get(part, set())


def test_the_package_never_imports_the_analysis():
    for path in PACKAGE.rglob("*.py"):
        assert "analysis" not in {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }


def test_every_part_is_listed():
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert parts - FREE - {"__init__"} == set(ALLOWED)


HEAVY = ("numba", "cupy", "matplotlib", "sklearn", "typer", "rich", "pydantic", "pooch", "safetensors")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_sparsekit_is_light():
    assert loaded_by("import sparsekit") == set()


def test_arrays_and_topologies_need_no_heavy_library():
    names = "CondensedMatrix CSRMatrix DenseMatrix masks distributions topology nn models optim data"
    assert loaded_by("import sparsekit; " + "; ".join(f"sparsekit.{n}" for n in names.split())) == set()


def test_public_names_resolve():
    for name in sparsekit.__all__:
        assert getattr(sparsekit, name) is not None
    assert set(sparsekit.__all__) <= set(dir(sparsekit))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sparsekit.nonsense  # noqa: B018
