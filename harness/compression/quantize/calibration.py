"""The ranges of a network's tensors over calibration images, by running the ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from harness.compression.quantizers import Histogram, Range, RangeMethod
from harness.errors import BuildError
from harness.networks import open_session

__all__ = ["input_shape", "tensor_ranges"]

# The values of one tensor and batch that are counted at least, where it has as many.
SAMPLE = 1 << 14


def tensor_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: npt.NDArray[np.float32],
    *,
    method: RangeMethod,
    symmetric: bool,
    outside: float = 1e-4,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Range]:
    """The 8-bit range of each of ``tensors`` over ``images`` ``(n, ...)``.

    The methods are those of ``quantizers.activation_range``; all but ``"minmax"`` take a second
    pass, which counts values (of large tensors evenly spaced ones)
    in histograms. ``progress(done, of)`` counts images of both passes.
    Raises BuildError where the network does not run on the images.
    """
    watched = list(dict.fromkeys(tensors))
    passes = 1 if method == "minmax" else 2
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, passes * len(images))

    extremes = {name: (0.0, 0.0) for name in watched}
    for values, count in _values(model, watched, images):
        for name, value in zip(watched, values, strict=True):
            low, high = extremes[name]
            extremes[name] = min(low, float(value.min())), max(high, float(value.max()))
        tell(count)
    if bad := [name for name, ends in extremes.items() if not np.isfinite(ends).all()]:
        raise BuildError(
            f"the values of {bad[0]} on the calibration images are not finite; look at the images "
            "and at the network's weights"
        )
    histograms = {name: Histogram(low, high) for name, (low, high) in extremes.items()}
    if method != "minmax":
        for values, count in _values(model, watched, images):
            for name, value in zip(watched, values, strict=True):
                histograms[name].add(torch.from_numpy(_sample(value)))
            tell(count)
    return {
        name: histogram.range(method, 8, symmetric=symmetric, outside=outside)
        for name, histogram in histograms.items()
    }


def _sample(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Evenly spaced values of a large tensor: the histogram needs no more, and counting is slow."""
    # An odd step does not keep to one column of the image.
    step = values.size // SAMPLE | 1
    return np.ascontiguousarray(values.reshape(-1)[::step])


def input_shape(model: onnx.ModelProto) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of the network's one input, None where a dimension is free; BuildError."""
    constants = {item.name for item in model.graph.initializer}
    entries = [entry for entry in model.graph.input if entry.name not in constants]
    if len(entries) != 1:
        raise BuildError(
            f"the network has {len(entries)} inputs "
            f"({', '.join(entry.name for entry in entries)}); calibration feeds exactly one"
        )
    dims = entries[0].type.tensor_type.shape.dim
    return entries[0].name, tuple(dim.dim_value or None for dim in dims)


def _values(
    model: onnx.ModelProto, tensors: Sequence[str], images: npt.NDArray[np.float32]
) -> Iterator[tuple[list[npt.NDArray[Any]], int]]:
    """The values of ``tensors`` batch by batch, and how many images each batch has."""
    name, shape = input_shape(model)
    seen = [tensor for tensor in tensors if tensor != name]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(
        onnx.ValueInfoProto(name=tensor) for tensor in seen if tensor not in known
    )
    try:
        session = open_session(watched.SerializeToString(), threads=1)
    except Exception as error:  # onnxruntime raises its own kinds, which differ by version
        raise BuildError(f"the network does not run here for calibration: {error}") from error
    # A free batch of one keeps the values of large networks from filling the memory.
    batch = (shape[0] if shape else None) or 1
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch], dtype=np.float32)
        count = len(part)
        if count < batch:  # the file has fixed its batch: fill it up with copies
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        try:
            found = dict(zip(seen, session.run(seen, {name: part}), strict=True))
        except Exception as error:  # as above
            raise BuildError(
                f"the network takes {shape}, and calibration images are {part.shape[1:]}: {error}"
            ) from error
        found[name] = part
        yield [np.asarray(found[tensor], np.float32) for tensor in tensors], count
