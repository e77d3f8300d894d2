"""Callbacks: code that looks on while a network is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    import numpy as np

    from sparsekit.topology import TopologyUpdate
    from sparsekit.training.trainer import Trainer


class Callback:
    """Override what you need; every method may look at the trainer, its model and its history."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After every optimizer step and the topology update that may follow it."""

    def on_topology_update(self, trainer: Trainer, layer: str, update: TopologyUpdate) -> None:
        """After the layer of that name has moved to `update.mask`.

        Layers behind it have not: they still need what they remember of the step, so no forward pass here.
        """

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """After an epoch's row was added to the history."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, or when training stops with an error."""

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold of this callback: arrays by name, nothing by default."""
        return {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from the :meth:`state` of a checkpoint; called before :meth:`on_fit_start`."""


class ProgressBar(Callback):
    """A tqdm bar over all steps with loss, accuracy and sparsity; a widget in a notebook."""

    _EVERY = 10  # steps between two refreshes of the numbers

    def on_fit_start(self, trainer):
        self._bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step")
        self._describe(trainer)

    def on_step_end(self, trainer):
        self._bar.update()
        if trainer.step % self._EVERY == 0:
            self._bar.set_postfix(trainer.running_metrics(), refresh=False)

    def on_epoch_end(self, trainer, row):
        self._bar.set_postfix(trainer.running_metrics(), refresh=False)
        self._describe(trainer)

    def on_fit_end(self, trainer):
        self._bar.close()

    def _describe(self, trainer: Trainer) -> None:
        epoch = min(len(trainer.history) + 1, trainer.epochs)
        self._bar.set_description(f"epoch {epoch}/{trainer.epochs}")
