"""The README's example runs, and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_prints_what_the_readme_says():
    code, shown = re.search(r"```python\n(import sparsekit.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()
    assert len(code.splitlines()) <= 15
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    # Another processor rounds otherwise and may end up with slightly different masks, so compare the words
    # exactly and the accuracy within a few of the 360 test images.
    words = [re.sub(r"[\d.,]+", "#", text) for text in (printed.getvalue(), shown)]
    assert words[0] == words[1]
    got, said = (float(re.search(r"accuracy ([\d.]+)%", text)[1]) for text in (printed.getvalue(), shown))
    assert abs(got - said) < 3


def test_local_links_and_pictures_exist():
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
