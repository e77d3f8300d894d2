"""What the notebooks share: the start of a lesson, pictures, sliders, animations, exercises; no algorithms."""

from classroom.exercises import try_it, verify
from classroom.images import load_images
from classroom.lesson import start, unless_fast
from classroom.moving import animate, explore
from classroom.pictures import (
    COLOURS,
    bipartite_graph,
    mask_heat_map,
    mask_steps,
    matrix,
    method_colour,
)

__all__ = [
    "COLOURS",
    "animate",
    "bipartite_graph",
    "explore",
    "load_images",
    "mask_heat_map",
    "mask_steps",
    "matrix",
    "method_colour",
    "start",
    "try_it",
    "unless_fast",
    "verify",
]
