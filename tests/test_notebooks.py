"""The notebooks run, are in step with what was committed, and show neither warnings nor paths."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbmake.nb_run import NotebookRun

from sparsekit.errors import RunError

FOLDER = Path(__file__).parent.parent / "notebooks"
sys.path.insert(0, str(FOLDER))  # where a notebook runs, and so where it finds `classroom`
_spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)

LESSONS = [path.stem for path in execute.lessons()]
SECONDS = 300  # a cell may take, on a machine that is busy with other tests
each_lesson = pytest.mark.parametrize("lesson", LESSONS)


def committed(lesson: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{lesson}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_there_are_eight_in_order():
    assert [lesson[:2] for lesson in LESSONS] == [f"{number:02}" for number in range(1, 9)]
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(LESSONS)


@each_lesson
def test_source_and_notebook_are_in_step(lesson):
    def cells(notebook):
        return [(cell.cell_type, cell.source, cell.metadata, cell.id) for cell in notebook.cells]

    assert cells(execute.read(FOLDER / f"{lesson}.py")) == cells(committed(lesson)), "run make notebooks"


@each_lesson
def test_it_was_executed_from_top_to_bottom_without_a_warning(lesson):
    notebook = committed(lesson)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]


@each_lesson
def test_it_is_small_and_names_no_path_of_a_machine(lesson):
    text = (FOLDER / f"{lesson}.ipynb").read_text(encoding="utf-8")
    assert len(text) < execute.MOST_BYTES
    assert not re.search(r"/(home|root|tmp|work|Users)/\w", text)
    assert not [output for output in outputs(committed(lesson)) if "widget" in str(output.get("data", {}).keys())]


@each_lesson
def test_it_opens_with_what_one_learns_and_ends_with_exercises(lesson):
    cells = committed(lesson).cells
    assert re.match(rf"# {int(lesson[:2])}\. ", cells[0].source)
    opening = "\n".join(cell.source for cell in cells[:2])
    assert "**You will learn**" in opening
    assert "**You need**" in opening
    source = "\n".join(cell.source for cell in cells)
    exercises = source[source.index("## Exercises") :]
    assert exercises.count("try_it(") >= 3
    assert exercises.count("verify(") >= 3


@pytest.mark.parametrize(
    ("lesson", "module"), [("07_train_and_compare", "pandas"), ("08_property_tests", "hypothesis")]
)
def test_what_a_lesson_needs_is_asked_for_before_it_is_imported(lesson, module):
    code = [cell.source for cell in committed(lesson).cells if cell.cell_type == "code"]
    assert code[0] == f'from classroom import start\n\nstart("{module}")'


@each_lesson
def test_exercises_wait_for_the_reader(lesson):
    shown = [output.text for output in outputs(committed(lesson)) if output.output_type == "stream"]
    said = "".join(shown)
    source = "\n".join(cell.source for cell in committed(lesson).cells)
    assert said.count("Not answered yet.") == len(re.findall(r"^try_it\(", source, flags=re.MULTILINE))
    assert said.count("The solution passes the check.") == len(
        re.findall(r"^verify\(", source, flags=re.MULTILINE)
    )


@each_lesson
def test_it_runs_in_fast_mode_on_digits(lesson, monkeypatch):
    # Warnings are errors in this mode; without the folder the images are digits.
    monkeypatch.setenv("SPARSEKIT_NOTEBOOKS", "fast")
    monkeypatch.delenv("SPARSEKIT_DATA", raising=False)
    result = NotebookRun(FOLDER / f"{lesson}.ipynb", default_timeout=SECONDS).execute()
    assert result.error is None, result.error.trace
    assert [output.text for output in outputs(result.nb) if output.get("name") == "stderr"] == []
    if "load_images()" in "\n".join(cell.source for cell in result.nb.cells):
        said = "".join(output.text for output in outputs(result.nb) if output.get("name") == "stdout")
        assert "instead of Fashion-MNIST" in said


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("import warnings\nwarnings.warn('look here')", "wrote to stderr: .*look here"),
        ("from IPython.display import HTML\nHTML('x' * 700_000)", "has 70. kB"),
    ],
)
def test_what_readers_should_not_see_is_refused(cell, message, tmp_path):
    source = tmp_path / "01_test.py"
    source.write_text(f"# %%\n{cell}\n")
    with pytest.raises(RunError, match=f"01_test.py.*{message}"):
        execute.execute(source)


def test_an_unknown_name_is_one_line():
    done = subprocess.run(
        [sys.executable, FOLDER / "execute.py", "01", "99"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sparsekit: error: names must be beginnings of 01_why_sparse, ")
    assert done.stderr.endswith("not '99'\n")
