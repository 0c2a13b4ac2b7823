"""A stand-in for TensorRT's Python bindings, 8.0.1, 8.2.1 or 8.5.2, strict about how it is called.

Written from NVIDIA's Python API reference and bindings of those versions. A name, keyword, type or
order of calls that the documentation does not have raises. BOARDFIT_TENSORRT8 picks the version,
BOARDFIT_TENSORRT8_CALLS names a file to which every call is appended, BOARDFIT_TENSORRT8_NEEDS the
bytes of workspace that kill the process (a negative number: that fail the build),
BOARDFIT_TENSORRT8_SLEEP the seconds that a build takes.

What it cannot prove: that TensorRT fuses, names, rounds or times as this does; which tactics it
finds; that a network which parses here parses there; that memory suffices; that two threads, two
contexts or a real GPU's asynchrony are handled. Its engines compute nothing: element i of an output
is i + 1 times the first element of the input. Runs under Python 3.6 with the standard library.
"""

import tensorrt8_build
import tensorrt8_run
from tensorrt8_base import (
    BuilderFlag,
    DataType,
    ErrorCode,
    IHostMemory,
    ILogger,
    IProfiler,
    LayerType,
    Logger,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    __version__,
    float16,
    float32,
    int8,
    int32,
)
from tensorrt8_build import (
    Builder,
    IBuilderConfig,
    ILayer,
    INetworkDefinition,
    IOptimizationProfile,
    ITensor,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from tensorrt8_run import (
    ICudaEngine,
    IExecutionContext,
    Runtime,
)

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "ErrorCode",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProfiler",
    "ITensor",
    "ITimingCache",
    "LayerType",
    "Logger",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "__version__",
    "float16",
    "float32",
    "int8",
    "int32",
]

# What later versions have.
for _module, _name in (
    (tensorrt8_build, "MemoryPoolType"),
    (tensorrt8_run, "EngineInspector"),
    (tensorrt8_run, "LayerInformationFormat"),
    (tensorrt8_run, "TensorIOMode"),
):
    if hasattr(_module, _name):
        globals()[_name] = getattr(_module, _name)
