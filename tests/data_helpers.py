"""What the tests of data sets, their files and their batches share."""

import numpy as np
import pytest
from hypothesis import strategies as st

from sparsekit.errors import InputError

X, Y = np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2), np.array([0, 1, 2, 0, 1, 2])
NAN = np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1.0)  # in sample 3
SEEDS = st.integers(0, 2**32 - 1)


def refused(*words, call):
    """The call raises InputError, in one line that has all the words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
