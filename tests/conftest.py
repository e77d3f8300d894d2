"""Fixtures and the Hypothesis profile of the whole suite."""

import numpy as np
import pytest
from hypothesis import settings

# The first example compiles kernels and a loaded machine stalls: time is no criterion of a property.
# Derandomised, so that a failure on one machine is a failure on all.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
