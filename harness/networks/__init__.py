"""Networks and data as torch sees them: loading, folding, counting, and export to ONNX.

A *layer* is a convolution or a linear layer, known by its dotted module name in the original
network; that name survives batch-norm folding, pruning and export.
"""

from harness.networks.data import Data, check_fits, load_data
from harness.networks.evaluate import onnx_logits, open_session, top1
from harness.networks.export import as_onnx, export_onnx, layer_of_node, quiet, save_pt2, write_file
from harness.networks.loading import keep_freed_memory, load_network
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
)

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "LAYER_TYPES",
    "Data",
    "Layer",
    "Network",
    "as_onnx",
    "check_fits",
    "count_macs",
    "count_parameters",
    "export_onnx",
    "fingerprint",
    "fold_batchnorm",
    "keep_freed_memory",
    "layer_of_node",
    "layers_in_order",
    "load_data",
    "load_network",
    "onnx_logits",
    "open_session",
    "output_shapes",
    "quiet",
    "save_pt2",
    "top1",
    "write_file",
]
