"""Logs made from samples, in trtexec 8.0.1's words, with every statistic worked out plainly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HEADER = "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --onnx=/nets/{net} --fp16"
STAMP = "[01/15/2022-17:01:08] [I] "


def six(value: float) -> str:
    """A number as C++ streams print it by default: six significant digits."""
    return f"{value:.6g}"


def times_line(name: str, samples_ms: Sequence[float], percents: Sequence[int]) -> str:
    """One line of the summary. The percentile leaves out the largest int((100 - p) * n / 100)."""
    ordered, count = sorted(samples_ms), len(samples_ms)
    middle = count // 2
    median = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    line = (
        f"{name}: min = {six(ordered[0])} ms, max = {six(ordered[-1])} ms, "
        f"mean = {six(sum(ordered) / count)} ms, median = {six(median)} ms"
    )
    for percent in percents:
        kept = count - (100 - percent) * count // 100
        line += f", percentile({percent}%) = {six(ordered[max(0, kept - 1)])} ms"
    return line


def log_text(
    samples_ms: Sequence[float],
    *,
    net: str = "net.onnx",
    version: str = "8001",
    percents: Sequence[int] = (99,),
    window: int = 10,
    warmups: int = 2,
    end_to_end: bool = True,
) -> str:
    """A log of a network that copies nothing: its latency is its GPU time."""
    header = HEADER.format(version=version, net=net)
    lines = [
        "Precision: FP32+FP16",
        "Batch: Explicit",
        "Streams: 1",
        "Selected Device: NVIDIA Tegra X1",
        "Compute Clock Rate: 0.9216 GHz",
        "[TRT] [GpuLayer] Conv_0 + Relu_1",
        "Created input binding for input.1 with dimensions 1x3x384x384",
        f"Warmup completed {warmups} queries over 200 ms",
        f"Timing trace has {len(samples_ms)} queries over {six(sum(samples_ms) / 1e3)} s",
        "=== Trace details ===",
    ]
    for start in range(0, len(samples_ms) - window + 1, window):
        mean = six(sum(samples_ms[start : start + window]) / window)
        beside = f"end to end {mean} ms, " if end_to_end else ""
        lines.append(
            f"Average on {window} runs - GPU latency: {mean} ms - Host latency: {mean} ms "
            f"({beside}enqueue 0.5 ms)"
        )
    lines += ["=== Performance summary ===", "Throughput: 54.1791 qps"]
    names = ["Latency", "GPU Compute Time", *(["End-to-End Host Latency"] if end_to_end else [])]
    lines += [times_line(name, samples_ms, percents) for name in names]
    zeros = [0.0] * len(samples_ms)
    lines += [times_line(name, zeros, percents) for name in ("H2D Latency", "D2H Latency")]
    return "\n".join([header, *(STAMP + line for line in lines)]) + "\n"


def write_log(path: Path, samples_ms: Sequence[float], **options) -> Path:
    path.write_text(log_text(samples_ms, **options))
    return path
