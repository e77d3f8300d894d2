"""The website: the lessons as they were executed, the handbook (README), and the reference made of the docstrings.

Everything it needs, MathJax and its fonts too, is copied into it: it can be read without a network.
"""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import sparsekit

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent

project = "sparsekit"
author = "The sparsekit authors"
project_copyright = author
version = release = sparsekit.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["build"]
default_role = "code"  # `x` in a docstring is code
# The names of attributes look for something to link to, and several classes have a fan_in.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = "sparsekit"
html_static_path = ["_static"]
html_favicon = html_logo = "_static/mask.svg"
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` has run them; the site shows what they have shown
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes, dtypes, units
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

napoleon_custom_sections = ["Derivation", ("Keys", "params_style")]

_SECTIONS = {"Parameters", "Attributes", "Returns", "Yields", "Keys"}
_ENTRY = re.compile(r"^( *)(\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*) : (.+)$")
_LONE_STAR = re.compile(r"(?<![\w*\\])(\*{1,2})(?=\w)(?![^*]*\w\*)")  # as in (n_samples, *shape)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("config-inited", copy_lessons)
    app.connect("config-inited", write_handbook)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon's 500


def write_handbook(*_: object) -> None:
    """The README as a page; what it names in the repository but is not on the site is named without a link."""

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if target.startswith(("http", "#")):
            return match[0]
        if target.startswith("CONTRIBUTING.md"):
            return f"[{label}]({target.replace('CONTRIBUTING', 'contributing')})"
        if (REPOSITORY / target).is_file() and target.startswith("results/"):
            return f"[{label}](../{target})"
        return label if label == target else f"{label} (`{target}`)"

    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (DOCS / "handbook.md").write_text(re.sub(r"\[([^\]]*)\]\(([^)]*)\)", link, text), encoding="utf-8")


def copy_lessons(*_: object) -> None:
    """Bring the executed notebooks into the folder that Sphinx reads."""
    folder = DOCS / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, folder)


def as_restructured_text(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Docstrings here are plain text for people; what reST would misread is turned into what is meant.

    "name : what it is" becomes a name with a description, because after the colon stand sentences and not types;
    |w| is a magnitude and no substitution; a star before a name is no emphasis.
    """
    section, literal, result = None, False, [""]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", below):
            section = line
        elif section in _SECTIONS and line and result[-1] == "" and not line.startswith(" ") and " : " not in line:
            section = None  # a sentence below the list; two empty lines end it for napoleon
            result.append("")
        literal &= line.startswith(" ") or not line
        entry = _ENTRY.match(line) if section in _SECTIONS and not literal else None
        if entry:
            indent, name, text = entry.groups()
            result += [""] * bool(indent) + [indent + name.replace("*", r"\*"), f"{indent}    {_plain(text)}"]
        else:
            result.append(line if literal else _plain(line))
        literal |= line.endswith("::")
    lines[:] = result[1:]


def _plain(line: str) -> str:
    """The line with what is outside of backticks protected."""
    parts = line.split("`")
    parts[::2] = [
        _LONE_STAR.sub(lambda m: m[1].replace("*", r"\*"), part.replace("|", r"\|")) for part in parts[::2]
    ]
    return "`".join(parts)
