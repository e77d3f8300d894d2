"""The wheel holds the package and nothing else. `make wheel` also installs it alone and trains with it."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "build", "--quiet", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT)) for kind in ("*.py", "*.cu") for path in (ROOT / "sparsekit").rglob(kind)
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    assert "Provides-Extra: gpu" in zipfile.ZipFile(wheel).read(metadata).decode()
    assert any(name.endswith("entry_points.txt") for name in names)
