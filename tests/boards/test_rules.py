"""Which fusion rules hold on which board."""

from dataclasses import replace

import pytest

from harness.boards import rules
from latency_models import fusion, graph
from tests.report.conftest import FACTS


@pytest.mark.parametrize(
    ("machine", "simd", "int8", "version", "name"),
    [
        ("x86_64", "avx512", "vnni", "1.31.0", "onnxruntime-cpu"),
        # Skylake-SP: wide vectors without their 8-bit products.
        ("x86_64", "avx512", "avx2", "1.31.0", "onnxruntime-cpu"),
        ("x86_64", "avx2", "avx2", "1.31.0", "onnxruntime-cpu-avx2"),
        # AVX-VNNI, as on desktop processors without AVX-512.
        ("x86_64", "avx2", "vnni", "1.23.2", "onnxruntime-cpu-avx2"),
        ("AMD64", None, "slow", "1.31.0", "onnxruntime-cpu-avx2"),
        ("x86_64", None, "vnni", "1.31.0", "onnxruntime-cpu"),
        ("aarch64", "neon", "dotprod", "1.31.0", "onnxruntime-cpu-arm"),
        ("armv7l", "neon", "slow", "1.31.0", "onnxruntime-cpu-arm"),
        ("aarch64", "neon", "slow", "1.10.0", "onnxruntime-1.10-cpu-arm"),
        ("x86_64", "avx512", "vnni", "1.10.0", "onnxruntime-1.10-cpu"),
        ("x86_64", "avx2", "avx2", "1.10.0", "onnxruntime-1.10-cpu"),
        ("x86_64", "avx512", "vnni", "1.20.1", "onnxruntime-1.10-cpu"),
        ("x86_64", "avx512", "vnni", "1.21.0", "onnxruntime-cpu"),
    ],
)
def test_a_boards_facts_name_its_fusion_rules(machine, simd, int8, version, name):
    facts = replace(FACTS, machine=machine, simd=simd, int8=int8, runtime_version=version)
    assert rules.fusion_rules(facts) == name
    assert name in fusion.RUNTIMES


def test_tensorrt_has_rules_of_its_own_whatever_the_processor():
    for runtime in ("tensorrt", "tensorrt_rtx"):
        facts = replace(FACTS, runtime=runtime, runtime_version="8.2.1")
        assert rules.fusion_rules(facts) == "tensorrt"
    assert "tensorrt" in graph.RUNTIMES


def test_the_fake_engines_version_says_nothing_of_onnxruntimes():
    facts = replace(FACTS, runtime="fake", runtime_version="1", simd="avx512")
    assert rules.fusion_rules(facts) == "onnxruntime-cpu"
