"""Whether a network and data fit each other."""

from __future__ import annotations

from torch import Tensor, nn

from harness.errors import ConfigError
from harness.networks.data import Data
from harness.networks.metrics import TOP1, Metric
from harness.networks.structure import BATCH_NORMS, CONVOLUTIONS, outputs_of, run_once

__all__ = ["check_fits", "check_images", "check_varied"]

# Images by which the statistics of the first batch norm are checked.
CHECKED = 64
# Beyond these the network reads something else than it was trained on: three standard deviations
# between the means, or a factor of three between the spreads (ten times a shifted validation set).
MAX_SHIFT, MAX_SPREAD = 3.0, 3.0


def check_fits(network: nn.Module, data: Data, metric: Metric = TOP1) -> None:
    """Raise ConfigError unless the network takes these images and the metric its outputs.

    For top-1: a class for every label.
    """
    images = data.test_images[:2]
    try:
        outputs = outputs_of(network, images)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"the network does not take images of shape {tuple(images.shape)}"
            f"{_channel_hint(network, images)}: {error}"
        ) from error
    if not metric.classifies:
        if any(output.ndim == 0 or len(output) != len(images) for output in outputs):
            raise ConfigError(
                f"the network turns {len(images)} images into outputs of "
                f"{', '.join(str(tuple(output.shape)) for output in outputs)}; each needs one "
                "entry an image, so leave what mixes them (such as non-maximum suppression) to the "
                "metric"
            )
        metric.of([output.numpy() for output in outputs], data.test_labels[:2].numpy())
        return
    if len(outputs) != 1 or outputs[0].ndim != 2 or len(outputs[0]) != len(images):
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs) or "no tensor"
        raise ConfigError(
            f"the network turns images of shape {tuple(images.shape)} into {shapes}; "
            "expected (n, classes), or name a --metric for what it is"
        )
    classes = outputs[0].shape[1]
    for name, labels in (("train", data.train_labels), ("test", data.test_labels)):
        if labels is not None and int(labels.max()) >= classes:
            raise ConfigError(
                f"the {name} labels go up to {int(labels.max())}, "
                f"but the network's output has {classes} classes"
            )


def check_images(network: nn.Module, images: Tensor, *, least: int = 1) -> None:
    """Raise ConfigError where images do not look like what the network was trained on.

    At least ``least`` of them; none constant; and what the first batch norm sees of them within
    what it saw in training (its running mean and variance): images that were not normalised, or
    hold 0..255, are off by far. A network without used batch norm is not checked so.
    """
    if len(images) < least:
        raise ConfigError(f"{len(images)} images are too few to calibrate on; give {least} or more")
    check_varied(images)
    seen = _first_batchnorm(network, images[:CHECKED])
    if seen is None:
        return
    shift, spread = seen
    if shift <= MAX_SHIFT and 1 / MAX_SPREAD <= spread <= MAX_SPREAD:
        return
    mean = [round(value, 3) for value in images[:CHECKED].mean((0, 2, 3)).tolist()]
    std = [round(value, 3) for value in images[:CHECKED].std((0, 2, 3)).tolist()]
    raise ConfigError(
        f"the images do not look like those that the network was trained on: at its first batch "
        f"norm their mean is {shift:.1f} standard deviations away and their spread is "
        f"{spread:.2g} times what it was. As read they have mean {mean} and standard deviation "
        f"{std} by channel; give the training's --mean and --std, or its --preprocess"
    )


def check_varied(images: Tensor) -> None:
    """Raise ConfigError where an image has one value everywhere."""
    flat = images.flatten(1)
    constant = (flat.amax(1) == flat.amin(1)).nonzero().flatten().tolist()
    if constant:
        raise ConfigError(
            f"{len(constant)} of {len(images)} images are constant (the first is number "
            f"{constant[0]}, all {float(flat[constant[0], 0]):g}); are they read correctly?"
        )


def _first_batchnorm(network: nn.Module, images: Tensor) -> tuple[float, float] | None:
    """Shift and spread of the first batch norm's inputs by its running statistics.

    Medians over channels: of |mean - running mean| / running std, and of std / running std. None
    where no batch norm was trained, or the images are too few to tell.
    """
    found: list[tuple[float, float]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, BATCH_NORMS)
        mean, variance = module.running_mean, module.running_var
        if found or mean is None or variance is None:
            return
        if not module.num_batches_tracked:  # never trained: nothing to compare with
            trained = bool((mean != 0).any() or (variance != 1).any())
            if not trained:
                return
        values = inputs[0].transpose(0, 1).flatten(1)
        if values.shape[1] < 2:  # one number has no spread
            return
        usual = (variance + module.eps).sqrt()
        shift = ((values.mean(1) - mean).abs() / usual).median()
        found.append((float(shift), float((values.std(1) / usual).median())))

    hooks = [
        module.register_forward_pre_hook(look)
        for module in network.modules()
        if isinstance(module, BATCH_NORMS)
    ]
    try:
        run_once(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _channel_hint(network: nn.Module, images: Tensor) -> str:
    """What to do where the images' channels are not those of the first convolution."""
    first = next((m for m in network.modules() if isinstance(m, CONVOLUTIONS)), None)
    if first is None or images.ndim != 4 or images.shape[1] == first.in_channels:
        return ""
    if images.shape[-1] == first.in_channels:
        return (
            f" (the images look channels-last: give them as (n, {first.in_channels}, h, w), "
            "images.permute(0, 3, 1, 2))"
        )
    return f" (they have {images.shape[1]} channels, its first convolution {first.in_channels})"
