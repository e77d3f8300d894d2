"""Fixtures and the Hypothesis profiles of the whole suite."""

import os
import signal

import numpy as np
import pytest
from hypothesis import settings

# A shell lets what it starts in the background ignore Ctrl-C; children inherit that, and tests send it to them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where kernels run as plain Python, NumPy warns of every NaN that compiled loops compute in silence.
if os.environ.get("NUMBA_DISABLE_JIT") == "1":
    np.seterr(all="ignore")

# The first example compiles kernels and a loaded machine stalls: time is no criterion of a property.
# Derandomised, so that a failure on one machine is a failure on all.
settings.register_profile("default", deadline=None, derandomize=True)
# Other examples every time, and ten times as many: pytest --hypothesis-profile thorough.
settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)
# The environment variable SPARSEKIT_TESTS chooses a profile too.
settings.load_profile(os.environ.get("SPARSEKIT_TESTS", "default"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
