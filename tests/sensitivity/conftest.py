"""One thread for networks this small."""

import pytest


@pytest.fixture(autouse=True)
def small(one_thread: None) -> None:
    """Every test here computes in one thread."""
