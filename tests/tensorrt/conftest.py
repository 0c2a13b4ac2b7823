"""A Python with TensorRT-RTX, where there is one."""

import pytest

from tests.tensorrt import rtx


@pytest.fixture(scope="session")
def rtx_python():
    found = rtx.python()
    if found is None:
        pytest.skip(f"TensorRT-RTX is not here (pip install 'boardfit[tensorrt]', or {rtx.OTHER})")
    return found
