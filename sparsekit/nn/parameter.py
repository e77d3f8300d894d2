"""Parameters: values, their gradient, and the optimizer's state, always stored alike."""

import numpy as np


class Parameter:
    """An array that an optimizer changes.

    For a sparse weight these are the stored values only, so gradient and optimizer state are as small as the
    weight itself.

    Attributes
    ----------
    values : float array, changed in place by the optimizer
    grad : array like `values`, gradient of the loss, or None before the first backward pass
    state : what the optimizer remembers of this parameter, arrays like `values` by name
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.grad: np.ndarray | None = None
        self.state: dict[str, np.ndarray] = {}

    def rewire(self, values: np.ndarray, old_positions: np.ndarray, new_positions: np.ndarray) -> None:
        """Move to a new topology: `values` becomes the storage and is filled.

        A position stored before and after keeps its value and optimizer state; a newly grown one starts at
        zero in both. The gradient is gone.

        Parameters
        ----------
        values : float array of new_positions.size elements, overwritten
        old_positions, new_positions : ascending int arrays, flat positions of the stored weights
        """
        slots = np.searchsorted(old_positions, new_positions)
        slots[slots == old_positions.size] = 0
        stays = old_positions[slots] == new_positions if old_positions.size else np.zeros(slots.shape, bool)
        source = slots[stays]

        def carried(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            new[...] = 0
            new.reshape(-1)[stays] = old.reshape(-1)[source]
            return new

        self.state = {name: carried(old, np.empty_like(values)) for name, old in self.state.items()}
        self.values = carried(self.values, values)
        self.grad = None
