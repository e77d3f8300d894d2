"""Faults planted in topology methods and in the training around them, to see that the tests catch them.

A fault is a replacement in the source of a module. Of the module that results, only the function around the
replacement is put in the place of the real one. A replacement whose text is not found, or more than once, is an
error: nothing would be planted, and a test that then finds no fault would say nothing.

`python tests/planted_faults.py` prints the table of CONTRIBUTING.md.
"""

import ast
import contextlib
import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import pytest

from sparsekit.topology import SET, RigL, SRigL, Static, TopologyMethod


@dataclass(frozen=True)
class Fault:
    """A fault and what must catch it.

    Attributes
    ----------
    words : what is wrong, for the table
    method : the method that is checked with the fault in place, as Python
    check : name of the promise of `check_topology_method` that breaks, or of the test
    source : dotted module whose source has the text `old`, once
    into : modules in which the function is replaced, if others have imported it; by default where it is defined
    oracle : whether the comparison with the naive versions must see the fault as well
    """

    words: str
    method: str
    check: str
    source: str
    old: str
    new: str
    into: tuple[str, ...] = ()
    oracle: bool = True

    @cached_property
    def subject(self) -> TopologyMethod:
        return eval(self.method, {"SET": SET, "RigL": RigL, "SRigL": SRigL, "Static": Static})

    @property
    def declared(self) -> dict[str, Any]:
        """What `check_topology_method` is told of the method."""
        grows = {SET: "random", Static: "nothing"}.get(type(self.subject), "gradient")
        return {"drops": "nothing" if grows == "nothing" else "magnitude", "grows": grows}

    def changed_module(self) -> tuple[types.ModuleType, list[str]]:
        """The module with the fault, apart from the real one, and the path to the faulty function."""
        real = importlib.import_module(f"sparsekit.{self.source}")
        text = inspect.getsource(real)
        found = text.count(self.old)
        assert found == 1, f"{self.words!r} is not planted: {self.old!r} is in {real.__name__} {found} times"
        module = types.ModuleType(real.__name__)
        module.__dict__.update({"__file__": real.__file__, "__package__": real.__package__})
        exec(compile(text.replace(self.old, self.new), real.__file__, "exec"), module.__dict__)
        return module, function_around(text, self.old)

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Within the context sparsekit has the fault."""
        changed, (*path, last) = self.changed_module()
        faulty = inspect.getattr_static(reduce(getattr, path, changed), last)
        with pytest.MonkeyPatch.context() as patch:
            for module in self.into or (self.source,):
                owner = reduce(getattr, path, importlib.import_module(f"sparsekit.{module}"))
                patch.setattr(owner, last, faulty)
            yield


def function_around(source: str, text: str) -> list[str]:
    """Path to the function of the module, or the method, in which the text is."""
    line = source[: source.index(text)].count("\n") + 1
    path, nodes = [], ast.parse(source).body
    while not path or isinstance(path[-1], ast.ClassDef):
        path += [node for node in nodes if node.lineno <= line <= (node.end_lineno or 0)]
        nodes = path[-1].body
    return [node.name for node in path]


def in_rigl(words: str, check: str, old: str, new: str, **options: Any) -> Fault:
    return Fault(words, "RigL()", check, "topology.rigl", old, new, **options)


def in_srigl(
    words: str, check: str, old: str, new: str, method: str = "SRigL(gamma_sal=0.9)", **options: Any
) -> Fault:
    return Fault(words, method, check, "topology.srigl", old, new, **options)


PRUNE = "kept = largest(magnitude, mask & active, n_keep)"
ONE_MORE = "n_prune, n_keep = n_prune + (n_keep > 0), n_keep - (n_keep > 0)\n        "
BOTH = ("topology.rigl", "topology.srigl")
SELECTION = "topology.selection"

FAULTS = [
    # RigL
    in_rigl("RigL: one weight too many is replaced", "pruning", "kept = largest", ONE_MORE + "kept = largest"),
    in_rigl(
        "RigL: int(f nnz) rounded, not truncated",
        "pruning",
        "kept = largest",
        "n_prune = round(drop_fraction * mask.sum())\n"
        "        n_keep = mask.sum() - n_prune\n        kept = largest",
    ),
    in_rigl("RigL: weights ranked with their sign", "pruning", "np.abs(weight)", "weight"),
    in_rigl("RigL: gradients ranked with their sign", "growth", "np.abs(grad)", "grad"),
    in_rigl("RigL: just-dropped positions cannot grow", "growth", "~kept, n_prune", "~mask, n_prune"),
    in_rigl(
        "RigL: grows where weights were kept",
        "growth",
        "largest(np.abs(grad), ~kept, n_prune)",
        "largest(np.abs(grad), np.ones_like(mask), n_prune)",
    ),
    in_rigl(
        "RigL: the mask is updated in place",
        "arguments unchanged",
        "return TopologyUpdate.between(mask, kept, new, keep_candidates=kept)",
        "update = TopologyUpdate.between(mask, kept, new, keep_candidates=kept)\n"
        "        mask[...] = new\n        return update",
        oracle=False,
    ),
    in_rigl(
        "RigL: noise from rng breaks ties",
        "random source",
        "kept = largest",
        "grad = grad if rng is None else grad + 1e-9 * rng.random(grad.shape)\n        kept = largest",
        oracle=False,
    ),
    # selection
    Fault(
        "ties go to the higher index",
        "RigL()",
        "pruning",
        SELECTION,
        "ties[-surplus:]",
        "ties[:surplus]",
        into=BOTH,
    ),
    Fault(
        "SRigL: ties within a neuron go to the higher index",
        "SRigL()",
        "growth",
        SELECTION,
        "ties[count - np.count_nonzero(chosen[row]) :]",
        "ties[: np.count_nonzero(chosen[row]) - count]",
        into=("topology.srigl",),
    ),
    # SRigL
    in_srigl(
        "SRigL: one weight too many is replaced", "pruning", "budget = require", ONE_MORE + "budget = require"
    ),
    in_srigl(
        "SRigL: gradients of active weights make salient too",
        "saliency",
        'if self.saliency_gradient == "all" else',
        "if True else",
    ),
    in_srigl(
        "SRigL: weights to keep do not make salient",
        "saliency",
        "salient = keep_candidates | grow_candidates",
        "salient = grow_candidates",
    ),
    in_srigl(
        "SRigL: the output layer is ablated", "output layer", "budget, n_out) if ablate else 0", "budget, n_out)"
    ),
    in_srigl(
        "SRigL: ablation threshold off by one",
        "ablation",
        "salient_counts < threshold",
        "salient_counts < threshold + (threshold > 0)",
    ),
    in_srigl(
        "SRigL: neurons need no salient weight",
        "ablation",
        "max(1, int(gamma_sal * (budget // n_out)))",
        "int(gamma_sal * (budget // n_out))",
        "SRigL(gamma_sal=0.3)",
    ),
    in_srigl(
        "SRigL: threshold of the present fan-in, not of k0",
        "ablation",
        "ablation_threshold(self.gamma_sal, budget,",
        "ablation_threshold(self.gamma_sal, max(budget, int(mask.sum(axis=1).max()) * n_out),",
    ),
    in_srigl("SRigL: the floor is ignored", "budget", "[:floor]", "[:1]"),
    in_srigl("SRigL: the floor is rounded down", "budget", "math.ceil(budget / n_in)", "max(1, budget // n_in)"),
    in_srigl(
        "SRigL: the floor saves the least salient neurons",
        "ablation",
        "(-salient_counts, dead)",
        "(salient_counts, dead)",
    ),
    in_srigl(
        "SRigL: revive=False is ignored", "ablation", "if self.revive else", "if True else", "SRigL(revive=False)"
    ),
    in_srigl(
        "SRigL: the fan-in of ablated neurons is lost",
        "budget",
        "budget // int(np.count_nonzero(~ablated))",
        "budget // n_out",
    ),
    in_srigl(
        "SRigL: fan-in rounded up",
        "budget",
        "budget // int(np.count_nonzero(~ablated))",
        "-(-budget // int(np.count_nonzero(~ablated)))",
    ),
    in_srigl(
        "SRigL: fan-in by what is stored, not by the budget",
        "budget",
        "budget // int(np.count_nonzero(~ablated))",
        "max(1, int(mask.sum()) // int(np.count_nonzero(~ablated)))",
    ),
    in_srigl(
        "SRigL: pruning neuron by neuron",
        "pruning",
        PRUNE,
        "kept = np.array([largest(m, row, int(row.sum()) - int(drop_fraction * row.sum()))"
        " for m, row in zip(magnitude, mask & active)])",
    ),
    in_srigl(
        "SRigL: n_keep not counted again after ablation",
        "consistent report",
        PRUNE,
        "kept = largest(magnitude, np.ones_like(mask) & active, n_keep)",
    ),
    in_srigl(
        "SRigL: too many kept weights: the first stay, not the largest",
        "pruning",
        "kept[full] = largest_per_row(np.where(kept[full], magnitude[full], -np.inf), fan_in)",
        "kept[full] &= kept[full].cumsum(axis=1) <= fan_in",
    ),
    in_srigl(
        "SRigL: just-dropped positions cannot grow",
        "growth",
        "np.where(kept, np.inf, gradient)",
        "np.where(kept, np.inf, np.where(mask, -1.0, gradient))",
    ),
    in_srigl(
        "SRigL: positions without a gradient cannot grow",
        "constant fan-in",
        "np.where(kept, np.inf, gradient), fan_in) & active",
        "np.where(kept, np.inf, gradient), fan_in) & active & (kept | (gradient > 0))",
    ),
    in_srigl(
        "SRigL: kept weights compete with gradients",
        "consistent report",
        "np.where(kept, np.inf, gradient)",
        "np.where(kept, magnitude, gradient)",
    ),
    # SET and Static
    Fault(
        "SET: just-dropped positions cannot grow",
        "SET()",
        "random growth",
        "topology.set",
        "np.flatnonzero(~kept)",
        "np.flatnonzero(~kept if (~mask).sum() < n_prune else ~mask)",
        oracle=False,
    ),
    Fault(
        "SET: positions drawn with replacement",
        "SET()",
        "growth",
        "topology.set",
        "replace=False",
        "replace=True",
        oracle=False,
    ),
    Fault(
        "Static: the new mask is the old array",
        "Static()",
        "arguments unchanged",
        "topology.static",
        "mask.copy(), mask.copy(),",
        "mask, mask,",
        oracle=False,
    ),
    # what all methods share
    Fault(
        "regrown weights are reported as new",
        "RigL()",
        "consistent report",
        "topology.update",
        "grown=new & ~old",
        "grown=new & ~kept",
    ),
    Fault(
        "weights that are not finite are accepted",
        "SRigL()",
        "refusals",
        "topology.update",
        "if not np.isfinite(array).all():",
        "if False:",
        oracle=False,
    ),
    # the training around them
    Fault(
        "optimizer state of new weights is not cleared",
        "SRigL()",
        "training",
        "nn.parameter",
        "carried(old, np.empty_like(values))",
        "old.reshape(-1)[slots].reshape(values.shape)",
        oracle=False,
    ),
    Fault(
        "optimizer state stays in its slot",
        "RigL()",
        "training",
        "nn.parameter",
        "carried(old, np.empty_like(values))",
        "np.resize(old, values.shape)",
        oracle=False,
    ),
    Fault(
        "new weights start at the value of a neighbour",
        "SET()",
        "training",
        "nn.parameter",
        "self.values = carried(self.values, values)",
        "values[...] = self.values.reshape(-1)[slots].reshape(values.shape)\n        self.values = values",
        oracle=False,
    ),
    Fault(
        "updates end too early",
        "RigL()",
        "training",
        "topology.schedule",
        "step < self.t_end",
        "2 * step < self.t_end",
        oracle=False,
    ),
    Fault(
        "regrown weights are reset",
        "RigL()",
        "training",
        "training.trainer",
        "layer.rewire(update.mask)",
        "layer.rewire(update.kept)\n            layer.rewire(update.mask)",
        oracle=False,
    ),
    Fault(
        "biases of ablated neurons are reset",
        "SRigL(gamma_sal=0.9)",
        "training",
        "nn.weighted",
        "old = self.matrix.flat_positions()",
        "self.bias.values[~mask.any(axis=1)] = 0\n        old = self.matrix.flat_positions()",
        oracle=False,
    ),
    Fault(
        "the optimizer steps an array that the layer no longer uses",
        "SET()",
        "training",
        "nn.weighted",
        "self.weight.values = matrix.values",
        "self.weight.values = matrix.values.copy()",
        oracle=False,
    ),
]

AROUND = {"method": "SRigL()", "check": "state machine", "oracle": False}
FAULTS_AROUND = [
    Fault(
        "a checkpoint forgets the optimizer's memory",
        source="training.checkpoint",
        old='parameter.state = _part_of(extra, f"optimizer.{name}.")',
        new="parameter.state = {}",
        **AROUND,
    ),
    Fault(
        "a checkpoint forgets the random sources",
        source="training.checkpoint",
        old='rng.bit_generator.state = state["random"][name]',
        new="pass",
        **AROUND,
    ),
    Fault(
        "the dense gradient is zero where no weight is stored",
        source="nn.linear",
        old="grad = self._grad_output @ self._input.T",
        new="grad = self._grad_output @ self._input.T * self.matrix.mask()",
        **AROUND,
    ),
    Fault(
        "the topology is updated before the optimizer steps",
        source="training.trainer",
        old="self.optimizer.step(self.parameters, self.current_learning_rate)",
        new="late = self.parameters if updating is None else []\n"
        "            self.optimizer.step(late, self.current_learning_rate)",
        **AROUND,
    ),
    Fault(
        "the output layer is ablated like any other",
        source="training.trainer",
        old="ablate=layer.ablate",
        new="ablate=True",
        **AROUND,
    ),
    Fault(
        "condensed to CSR: values in another order than indices",
        source="condensed",
        old="self.values.flatten()",
        new='self.values.flatten("F")',
        **AROUND,
    ),
]

TITLE = "| planted fault | check that catches it | naive versions too |\n| --- | --- | --- |"


def table() -> str:
    """The table of CONTRIBUTING.md: every fault, and what catches it."""
    rows = [
        f"| {fault.words} | {fault.check} | {'yes' if fault.oracle else ''} |" for fault in FAULTS + FAULTS_AROUND
    ]
    return "\n".join([TITLE, *rows])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
