"""Networks and data as torch sees them: loading, folding, counting, and export to ONNX.

A *layer* is a convolution or a linear layer, known by its dotted module name in the original
network; that name survives batch-norm folding, pruning and export.
"""

from torch import Tensor

from harness.networks.data import Data, Preparation, data_fingerprint, preparation
from harness.networks.evaluate import onnx_logits, onnx_outputs, open_session, top1
from harness.networks.export import (
    as_onnx,
    example_input,
    export_onnx,
    layer_of_node,
    quiet,
    save_pt2,
    write_file,
)
from harness.networks.loading import keep_freed_memory, load_callable, load_network
from harness.networks.metrics import TOP1, Metric, load_metric
from harness.networks.sources import load_data, load_images
from harness.networks.structure import (
    BATCH_NORMS,
    CONVOLUTIONS,
    LAYER_TYPES,
    Layer,
    Network,
    count_macs,
    count_parameters,
    fingerprint,
    fold_batchnorm,
    layers_in_order,
    output_shapes,
    tensors_of,
)
from harness.networks.suitability import check_fits, check_images, check_varied

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "LAYER_TYPES",
    "TOP1",
    "Data",
    "Layer",
    "Metric",
    "Network",
    "Preparation",
    "Tensor",
    "as_onnx",
    "check_fits",
    "check_images",
    "check_varied",
    "count_macs",
    "count_parameters",
    "data_fingerprint",
    "example_input",
    "export_onnx",
    "fingerprint",
    "fold_batchnorm",
    "keep_freed_memory",
    "layer_of_node",
    "layers_in_order",
    "load_callable",
    "load_data",
    "load_images",
    "load_metric",
    "load_network",
    "onnx_logits",
    "onnx_outputs",
    "open_session",
    "output_shapes",
    "preparation",
    "quiet",
    "save_pt2",
    "tensors_of",
    "top1",
    "write_file",
]
