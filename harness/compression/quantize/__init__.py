"""Q/DQ networks: float ONNX files rewritten so that a runtime runs their layers on integers."""

from harness.compression.quantize.export import QuantizeReport, quantize
from harness.compression.quantize.files import ready
from harness.compression.quantize.forms import Form, available_precisions, form_of, usual_form
from harness.compression.quantize.int4 import store_weights_int4
from harness.compression.quantize.kernels import FloatLayer, float_layers, real_int8_layers

__all__ = [
    "FloatLayer",
    "Form",
    "QuantizeReport",
    "available_precisions",
    "float_layers",
    "form_of",
    "quantize",
    "ready",
    "real_int8_layers",
    "store_weights_int4",
    "usual_form",
]
