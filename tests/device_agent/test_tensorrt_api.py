"""What chips are fast at, and options and keys of engines."""

from __future__ import annotations

import pytest

from device_agent import trt_api, trt_build


@pytest.mark.parametrize(
    ("compute", "fast"),
    [
        ("5.3", (True, False)),  # Jetson Nano
        ("6.2", (True, False)),  # Jetson TX2
        ("6.1", (False, True)),  # GeForce GTX 10
        ("5.2", (False, False)),
        ("7.2", (True, True)),
        ("8.7", (True, True)),
        ("12.0", (True, True)),
        ("3.7", (None, None)),  # older than any that TensorRT 8 knows
        (None, (None, None)),
    ],
)
def test_int8_is_a_storage_format_where_it_is_not_fast(
    compute: str | None, fast: tuple[bool | None, bool | None]
) -> None:
    assert trt_api.fast(compute) == fast


def test_options_of_building_have_one_form() -> None:
    found = trt_build.options_of({"flags": ["tf32", "fp16", "fp16"], "spin_wait": True})
    assert found["flags"] == ["fp16", "tf32"]
    assert found["rebuild"] == 0 and "spin_wait" not in found


@pytest.mark.parametrize("changed", range(6))
def test_every_part_of_a_key_counts(changed: int) -> None:
    parts = ["a" * 64, "tensorrt", "8.2.1.8", "5.3", "MAXN", {"rebuild": 0}]
    others = ["b" * 64, "tensorrt_rtx", "8.2.3.0", "6.2", "5W", {"rebuild": 1}]
    other = [others[n] if n == changed else part for n, part in enumerate(parts)]
    assert trt_build.key_of(*parts) == trt_build.key_of(*parts)
    assert trt_build.key_of(*parts) != trt_build.key_of(*other)


def test_a_workspace_shrinks_to_the_smallest_and_no_further() -> None:
    # 256 MiB, a quarter of it, and a quarter of that.
    assert trt_build.smaller(256 << 20) == 64 << 20
    assert trt_build.smaller(64 << 20) == 16 << 20
    assert trt_build.smaller(20 << 20) == 16 << 20
