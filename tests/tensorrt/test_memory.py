"""What a build takes of memory: sizes by hand, and the three builds that were logged."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from harness.errors import ConditionError, ConfigError
from harness.records import GpuFacts
from harness.tensorrt import memory, preparing
from harness.tensorrt.options import EngineOptions
from tests.tensorrt.nets import chain, facts, network, node

MIB = 1 << 20


def test_weights_and_activations_are_counted_by_hand():
    found = memory.estimate(chain(), workspace_bytes=0)
    # conv1 16*4*9+16, conv2 16*16*9+16, fc 20*16+20: 592 + 2320 + 340 floats.
    assert found.weights_bytes == 4 * 3252
    # Alive at the addition: relu1's 16*6*6, conv2's and the sum's: 3 * 576 floats.
    assert found.activations_bytes == 4 * 3 * 576
    assert found.buffers_bytes == 3 * 4 * 3252 + 2 * 4 * 3 * 576
    assert found.total_bytes == memory.LIBRARIES_BYTES + found.buffers_bytes


def test_half_weights_take_two_bytes_and_free_dimensions_count_as_one():
    weight = np.zeros((8, 4, 1, 1), np.float16)
    model = network([node("Relu", ["x"], ["y"])], constants=[("w", weight)])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    found = memory.estimate(model, workspace_bytes=0)
    assert found.weights_bytes == 64
    assert found.activations_bytes == 2 * 4 * 4 * 6 * 6


# trtexec 8.0.1's logs: in use at the end of the build less before CUDA's 203 MiB; the workspace
# given; and twice the engine's size, for the weights of an fp16 engine in fp32.
@pytest.mark.parametrize(
    ("end", "before", "workspace", "engine"),
    [(3634, 2904 - 203, 16, 13), (3469, 2665 - 203, 200, 10), (3465, 2787 - 203, 16, 4)],
)
def test_the_estimate_covers_the_builds_that_were_logged(end, before, workspace, engine):
    needed = memory.BuildMemory(
        libraries_bytes=memory.LIBRARIES_BYTES,
        weights_bytes=2 * engine * MIB,
        activations_bytes=0,
        workspace_bytes=workspace * MIB,
    )
    took = (end - before) * MIB
    # Activations come on top: without them it is right within an eighth.
    assert took <= needed.total_bytes <= 1.15 * took


def check(free, total=4000 * MIB, workspace=None):
    return memory.preflight(chain(), free_bytes=free, total_bytes=total, workspace_bytes=workspace)


def test_a_build_fits_is_tight_or_cannot_be():
    assert check(2000 * MIB).status == "fits"
    tight = check(800 * MIB)
    assert tight.status == "tight"
    assert "add swap" in tight.message and "--workspace" in tight.message
    assert check(None).status == "unknown"
    assert check(2000 * MIB, workspace=5000 * MIB).status == "impossible"


@pytest.mark.parametrize(
    ("free", "workspace"), [(0, 8), (1000, 16), (1200, 128), (1350, 256), (9000, 256)]
)
def test_the_workspace_is_the_largest_power_of_two_that_leaves_a_margin(free, workspace):
    # Of 1,000 MiB 852 are for libraries and 128 stay free; the network itself takes 0.1.
    assert check(free * MIB).workspace_bytes == workspace * MIB


def test_the_workspace_that_was_asked_for_is_kept():
    assert check(1000 * MIB, workspace=300 * MIB).workspace_bytes == 300 * MIB


def test_a_build_that_cannot_be_is_refused_with_the_boards_name():
    with pytest.raises(ConditionError, match=r"board nano: .* in all"):
        memory.require(chain(), facts(), free_bytes=10**9, workspace_bytes=10**10)


def test_a_gpu_with_memory_of_its_own_is_asked_and_a_shared_one_is_not():
    big = replace(
        facts(),
        machine="x86_64",
        gpu=GpuFacts(name="H", total_bytes=80 * 10**9, free_bytes=70 * 10**9),
    )
    found = memory.require(chain(), big, free_bytes=10**6)
    assert found.status == "fits" and found.free_bytes == 70 * 10**9
    shared = facts(total_bytes=4156694528, free_bytes=10**9)
    assert memory.require(chain(), shared, free_bytes=2 * 10**9).free_bytes == 2 * 10**9


def test_a_limit_is_set_only_where_the_agents_own_does_not_fit(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(chain(), path)
    for free, limit in ((2000, None), (1200, 128 * MIB)):
        found = preparing.prepare(
            path, facts(), EngineOptions(), folder=tmp_path / "made", free_bytes=free * MIB
        )
        assert found.build.workspace_bytes == limit
        assert found.path == path


def test_a_file_that_is_none_is_an_error_of_the_input(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("nothing")
    with pytest.raises(ConfigError, match="not an ONNX file"):
        preparing.prepare(path, facts(), EngineOptions(), folder=tmp_path)
