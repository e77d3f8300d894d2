"""Pictures that move: animations, and sliders that also work on a page without Python."""

import base64
import hashlib
import html
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure
from PIL import Image as Pillow

MOST_FRAMES = 30  # that a static page carries
_COLOURS = 64  # of a frame: enough for a diagram, and a third of the bytes
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def animate(figures: Iterable[Figure], seconds: float = 0.8, alt: str = "animation") -> HTML:
    """A GIF that plays wherever pictures are shown, over and over.

    Parameters
    ----------
    figures : the frames, all of the same size; they are closed
    seconds : each is shown
    alt : says what can be seen, for those who cannot
    """
    first, *others = [with_palette(_png(figure), _COLOURS) for figure in figures]
    durations = [int(1000 * seconds)] * (1 + len(others))
    durations[-1] *= 3
    gif = encoded(first, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    address = f"data:image/gif;base64,{gif}"
    return HTML(f'<img src="{address}" alt="{html.escape(alt)}" style="max-width:100%">')


def explore(draw: Callable[..., Figure], **choices: Sequence[Any]) -> None:
    """A slider for each argument of a pure function that draws a figure.

    With a kernel and ipywidgets every value of every choice can be reached, and is drawn when it is. A page
    without a kernel shows up to `MOST_FRAMES` of them, drawn beforehand, by a few lines of JavaScript; a page
    without JavaScript shows the first.

    Parameters
    ----------
    draw : called with one value of each choice by name, returns a new figure; the first line of its docstring says
        what can be seen, for those who cannot
    choices : the values that each argument may take, in the order of the slider
    """
    lists = {name: list(values) for name, values in choices.items()}
    bundle: dict[str, Any] = {"text/html": _player(draw, _thinned(lists)), "text/plain": f"explore {list(lists)}"}
    if find_spec("ipywidgets") is None:
        print("These sliders move in fewer steps, because ipywidgets is not installed: pip install '.[notebooks]'")
    else:
        bundle |= _widgets(draw, lists)._repr_mimebundle_()
    display(bundle, raw=True)


def _widgets(draw: Callable[..., Figure], choices: dict[str, list[Any]]) -> Any:
    import ipywidgets as widgets

    picture = widgets.Image(format="png")
    sliders = {
        name: widgets.SelectionSlider(
            options=[(str(value), value) for value in values], description=_words(name), continuous_update=False
        )
        for name, values in choices.items()
    }

    def redraw(_: Any = None) -> None:
        picture.value = _png(draw(**{name: slider.value for name, slider in sliders.items()}))

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    redraw()
    return widgets.VBox([*sliders.values(), picture])


def _thinned(choices: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Leave out values, evenly, until a page can carry all combinations; first and last ones stay."""
    sizes = {name: len(values) for name, values in choices.items()}
    while math.prod(sizes.values()) > MOST_FRAMES:
        sizes[max(sizes, key=lambda name: sizes[name])] -= 1
    return {
        name: [values[round(i * (len(values) - 1) / max(1, sizes[name] - 1))] for i in range(sizes[name])]
        for name, values in choices.items()
    }


def _player(draw: Callable[..., Figure], choices: dict[str, list[Any]]) -> str:
    """HTML with all frames in it; combinations are numbered with the last choice running fastest."""
    frames = []
    for combination in itertools.product(*choices.values()):
        figure = draw(**dict(zip(choices, combination, strict=True)))
        frames.append("data:image/png;base64," + encoded(with_palette(_png(figure), _COLOURS), "PNG"))
    name = "explore-" + hashlib.sha256("".join(frames).encode()).hexdigest()[:12]
    alt = (draw.__doc__ or "what the sliders show").strip().splitlines()[0]
    sliders = "".join(
        f'<label style="display:block">{html.escape(_words(choice))} '
        f'<input type="range" min="0" max="{len(values) - 1}" value="0" style="width:50%;vertical-align:middle" '
        f"data-labels='{html.escape(json.dumps([str(value) for value in values]), quote=True)}'> "
        f"<output>{html.escape(str(values[0]))}</output></label>"
        for choice, values in choices.items()
    )
    return f"""<div id="{name}" class="explore">{sliders}
<img src="{frames[0]}" alt="{html.escape(alt)}" style="max-width:100%">
<script>(() => {{
  const root = document.getElementById("{name}");
  const sliders = [...root.querySelectorAll("input")], picture = root.querySelector("img");
  const frames = [picture.src, ...{json.dumps(frames[1:])}];
  const show = () => {{
    let index = 0;
    for (const slider of sliders) {{
      index = index * (Number(slider.max) + 1) + Number(slider.value);
      slider.nextElementSibling.textContent = JSON.parse(slider.dataset.labels)[slider.value];
    }}
    picture.src = frames[index];
  }};
  sliders.forEach((slider) => slider.addEventListener("input", show));
}})();</script></div>"""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


def with_palette(png: bytes, n_colours: int) -> Pillow.Image:
    """The picture with at most so many colours; diagrams have few, and then need a fraction of the bytes."""
    picture = Pillow.open(io.BytesIO(png)).convert("RGB")
    return picture.quantize(n_colours, dither=Pillow.Dither.NONE)


def encoded(picture: Pillow.Image, kind: str, **options: Any) -> str:
    """The file of a picture, "PNG" or "GIF", in base64."""
    stream = io.BytesIO()
    picture.save(stream, kind, optimize=True, **options)
    return base64.b64encode(stream.getvalue()).decode()
