"""trtexec's spellings for builds and calls, and what they mean."""

import pytest

from harness.errors import ConfigError
from harness.records import BoardSpec, BuildSettings
from harness.tensorrt import options

NANO = BoardSpec(name="nano", host="jetson-nano", runtime="tensorrt")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, "fp32"),
        ({"fp16": True}, "fp16"),
        ({"int8": True}, "int8"),
        ({"best": True}, "best"),
        # trtexec lets the builder choose among all that is named.
        ({"fp16": True, "int8": True}, "best"),
        ({"fp16": True, "best": True}, "best"),
    ],
)
def test_precisions_are_read_as_trtexec_means_them(given, precision):
    assert options.read(**given).precision == precision


def test_options_of_calls_reach_the_build_settings():
    found = options.read(
        workspace="256", use_cuda_graph=True, use_spin_wait=True, no_data_transfers=True
    )
    assert found.settings == BuildSettings(
        flags=("tf32",),
        workspace_bytes=256 * MIB,
        cuda_graph=True,
        spin_wait=True,
        transfers=False,
    )
    assert options.read(no_tf32=True).settings == BuildSettings()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("workspace:64", 64 * MIB),
        ("workspace:1.5G", 1536 * MIB),
        ("workspace:512K", 512 << 10),
        ("workspace:200MiB", 200 * MIB),
        ("workspace:4096B", 4096),
    ],
)
def test_memory_pools_are_read_with_and_without_units(text, size):
    assert options.parse_pools(text) == size


@pytest.mark.parametrize("text", ["64", "dlaSRAM:1", "workspace:", "workspace:0", "workspace:-3"])
def test_pools_that_are_not_the_workspace_are_told(text):
    with pytest.raises(ConfigError, match="workspace"):
        options.parse_pools(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "1e9", "256M"])
def test_a_workspace_that_is_no_number_of_mebibytes_is_told(text):
    with pytest.raises(ConfigError, match="MiB"):
        options.parse_workspace(text)


def test_one_limit_is_enough():
    with pytest.raises(ConfigError, match="the same memory"):
        options.read(workspace="64", mem_pool_size="workspace:64")


def test_a_board_of_another_runtime_has_no_such_options():
    local = BoardSpec(name="local")
    assert options.for_board(options.read(), local) is None
    with pytest.raises(ConfigError, match="runs onnxruntime"):
        options.for_board(options.read(fp16=True), local)
    asked = options.read(fp16=True)
    assert options.for_board(asked, NANO) is asked


def test_rebuilds_are_bounded():
    assert options.read(rebuilds=5).rebuilds == 5
    with pytest.raises(ConfigError, match="between 1 and 8"):
        options.read(rebuilds=99)
