"""What the notebooks share: exercises that never raise, sliders with a still version, data that may be missing."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "notebooks"))

import classroom
from classroom import lesson, moving, pictures


def draws(step=0, shade=0.5):
    figure = Figure(figsize=(1, 1), dpi=20)
    axes = figure.subplots()
    axes.imshow([[step / 60]], cmap="gray", vmin=0, vmax=1, alpha=shade)
    return figure


def square_check(answer):
    assert answer(3) == 9, "three times three is nine"


class TestExercises:
    @pytest.mark.parametrize("answer", [None, ..., lambda x: None, lambda x: ...])
    def test_unanswered(self, answer, capsys):
        classroom.try_it(answer, square_check)
        assert capsys.readouterr().out == "Not answered yet.\n"

    def test_wrong_with_the_hint(self, capsys):
        classroom.try_it(lambda x: x, square_check)
        assert "Not yet: three times three is nine" in capsys.readouterr().out

    def test_an_answer_that_raises_stops_nobody(self, capsys):
        classroom.try_it(lambda x: x / 0, square_check)
        assert capsys.readouterr().out == "Not yet: ZeroDivisionError: division by zero\n"

    def test_right(self, capsys):
        classroom.try_it(lambda x: x * x, square_check)
        assert capsys.readouterr().out == "Right!\n"

    def test_values_are_answers_too(self, capsys):
        def check(value):
            assert value == 7

        classroom.try_it(np.int64(7), check)
        classroom.try_it(8, check)
        assert capsys.readouterr().out.splitlines()[0] == "Right!"

    def test_a_wrong_solution_of_the_notebook_raises(self):
        classroom.verify(lambda x: x * x, square_check)
        with pytest.raises(AssertionError, match="nine"):
            classroom.verify(lambda x: x, square_check)


class TestStart:
    def test_a_missing_module_names_the_command(self):
        with pytest.raises(ImportError, match=r"needs no_such_module: pip install '\.\[notebooks\]'"):
            classroom.start("no_such_module")

    def test_unless_fast(self, monkeypatch):
        monkeypatch.setattr(lesson, "FAST", True)
        assert classroom.unless_fast(10, fast=1) == 1
        monkeypatch.setattr(lesson, "FAST", False)
        assert classroom.unless_fast(10, fast=1) == 10


class TestImages:
    def test_digits_without_a_folder(self, monkeypatch, capsys):
        monkeypatch.delenv("SPARSEKIT_DATA", raising=False)
        assert classroom.load_images().name == "digits"
        assert "instead of Fashion-MNIST (28 x 28): SPARSEKIT_DATA names no folder" in capsys.readouterr().out

    def test_digits_with_a_folder_that_has_other_things(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path))
        assert classroom.load_images().name == "digits"
        assert "has no fashion-mnist/train-images-idx3-ubyte.gz" in capsys.readouterr().out

    def test_digits_where_a_file_is_damaged(self, monkeypatch, capsys, tmp_path):
        from sparsekit.data.sources import SOURCES

        (tmp_path / "fashion-mnist").mkdir()
        for name in SOURCES["fashion-mnist"].sha256:
            (tmp_path / "fashion-mnist" / name).write_bytes(b"nothing")
        monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path))
        assert classroom.load_images().name == "digits"
        assert "is damaged" in capsys.readouterr().out


class TestExplore:
    @pytest.fixture
    def shown(self, monkeypatch):
        """Calls explore, and returns what a notebook is given to show."""
        bundles = []
        monkeypatch.setattr(moving, "display", lambda bundle, raw: bundles.append(bundle))

        def explore(**choices):
            classroom.explore(draws, **choices)
            return bundles[-1]

        return explore

    def test_the_still_version_holds_evenly_spaced_frames(self, shown):
        page = shown(step=range(61))["text/html"]
        labels = json.loads(re.search(r"data-labels='([^']*)'", page)[1].replace("&quot;", '"'))
        assert len(labels) == moving.MOST_FRAMES
        assert labels[0] == "0"
        assert labels[-1] == "60"
        frames = re.findall(r"data:image/png;base64,([^\"]+)", page)
        assert len(frames) == moving.MOST_FRAMES
        shades = [np.asarray(Image.open(io.BytesIO(base64.b64decode(f))).convert("L")).mean() for f in frames]
        assert shades == sorted(shades)
        assert shades[0] < shades[-1]

    def test_combinations_fit(self, shown):
        page = shown(step=range(61), shade=[0.1, 0.5, 1.0])["text/html"]
        assert 20 <= page.count("data:image/png") <= moving.MOST_FRAMES
        assert page.count("<input") == 2
        assert "0.1" in page

    def test_the_same_picture_gives_the_same_page(self, shown):
        assert shown(step=[1, 2])["text/html"] == shown(step=[1, 2])["text/html"]

    def test_a_widget_reaches_every_value(self, shown):
        assert moving.WIDGET_VIEW in shown(step=range(61))
        slider, picture = moving._widgets(draws, {"step": list(range(61))}).children
        before = picture.value
        slider.value = 37
        assert picture.value != before
        assert len(slider.options) == 61

    def test_without_ipywidgets_there_is_a_sentence_and_the_still_version(self, shown, monkeypatch, capsys):
        monkeypatch.setattr(moving, "find_spec", lambda name: None)
        assert set(shown(step=[1, 2])) == {"text/html", "text/plain"}
        assert "pip install '.[notebooks]'" in capsys.readouterr().out


def test_animations_hold_all_frames():
    picture = classroom.animate([draws(step) for step in (0, 30, 60)], seconds=0.5, alt="a shade")
    address, alt = re.fullmatch(
        r'<img src="data:image/gif;base64,([^"]+)" alt="([^"]+)" .*>', picture.data
    ).groups()
    frames = Image.open(io.BytesIO(base64.b64decode(address)))
    assert frames.n_frames == 3
    assert frames.info["loop"] == 0
    assert alt == "a shade"


class TestPictures:
    MASK = np.array([[True, False, True], [False, False, False]])

    def axes(self):
        return Figure().subplots()

    def test_a_heat_map_shows_the_mask(self):
        axes = self.axes()
        classroom.mask_heat_map(axes, self.MASK, "title")
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), self.MASK)

    def test_steps_are_told_apart(self):
        axes = self.axes()
        classroom.mask_steps(axes, {"kept": self.MASK, "grown": ~self.MASK})
        names = list(pictures.STEPS)
        codes = np.asarray(axes.images[0].get_array())
        assert set(codes[self.MASK]) == {names.index("kept")}
        assert set(codes[~self.MASK]) == {names.index("grown")}

    def test_a_matrix_writes_stored_numbers_only(self):
        axes = self.axes()
        classroom.matrix(axes, np.full((2, 3), 1.25), mask=self.MASK, frame=self.MASK)
        assert [text.get_text() for text in axes.texts] == ["1.2", "1.2"]
        assert len(axes.patches) == 2

    def test_a_graph_has_a_line_for_every_weight(self):
        axes = self.axes()
        classroom.bipartite_graph(axes, self.MASK, highlight=[0])
        assert len(axes.collections[0].get_segments()) == 2

    @pytest.mark.parametrize("method", ["dense", "static-unstructured", "set", "rigl", "srigl:gamma_sal=0"])
    def test_every_method_has_a_colour(self, method):
        assert classroom.method_colour(method) in classroom.COLOURS.values()
