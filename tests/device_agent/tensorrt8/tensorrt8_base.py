"""What both halves of the stand-in need: enumerations, strictness, loggers, the record of calls."""

import json
import os

__version__ = os.environ.get("BOARDFIT_TENSORRT8", "8.2.1.8")
VERSION = tuple(int(part) for part in __version__.split(".")[:2])


def call(name, *told):
    path = os.environ.get("BOARDFIT_TENSORRT8_CALLS")
    if path:
        with open(path, "a") as stream:
            stream.write(json.dumps([name] + [str(one) for one in told]) + "\n")


def wanted(value, kind, what):
    # pybind11 takes no bool for a float, and nothing but an int for an int.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError("incompatible function arguments: %s is %r" % (what, type(value)))
    return value


class Member:
    """What pybind11 makes of an enumeration with arithmetic."""

    def __init__(self, owner, name, value):
        self._owner, self.name, self.value = owner, name, value

    def __int__(self):
        return self.value

    __index__ = __int__

    def __str__(self):
        return "%s.%s" % (self._owner, self.name)

    def __eq__(self, other):
        return isinstance(other, (Member, int)) and int(self) == int(other)

    def __le__(self, other):
        return int(self) <= int(other)

    def __hash__(self):
        return hash((self._owner, self.value))


def enumeration(name, members, start=0):
    kind = type(name, (), {})
    for value, member in enumerate(members.split(), start):
        setattr(kind, member, Member(name, member, value))
    return kind


class Strict:
    """No attribute but those of the class: pybind11's classes take no others."""

    _inner = ()

    def __setattr__(self, name, value):
        known = getattr(type(self), name, None)
        if not name.startswith("_") and not isinstance(known, property):
            raise AttributeError("%s has no attribute %s" % (type(self).__name__, name))
        object.__setattr__(self, name, value)


DataType = enumeration("DataType", "FLOAT HALF INT8 INT32 BOOL")
float32, float16, int8 = DataType.FLOAT, DataType.HALF, DataType.INT8
int32 = DataType.INT32
BYTES = {"FLOAT": 4, "HALF": 2, "INT8": 1, "INT32": 4, "BOOL": 1}
ONNX_TYPES = {1: float32, 10: float16, 3: int8, 6: int32}
LayerType = enumeration(
    "LayerType", "CONVOLUTION ACTIVATION POOLING ELEMENTWISE CONSTANT SHAPE SHUFFLE SCALE OTHER"
)
LAYER_TYPES = {
    "Conv": "CONVOLUTION",
    "Relu": "ACTIVATION",
    "Sigmoid": "ACTIVATION",
    "Add": "ELEMENTWISE",
    "Mul": "ELEMENTWISE",
    "Constant": "CONSTANT",
    "MaxPool": "POOLING",
    "Flatten": "SHUFFLE",
    "QuantizeLinear": "SCALE",
    "DequantizeLinear": "SCALE",
}
ErrorCode = enumeration(
    "ErrorCode",
    "SUCCESS INTERNAL_ERROR MEM_ALLOC_FAILED MODEL_DESERIALIZE_FAILED INVALID_VALUE INVALID_GRAPH "
    "INVALID_NODE UNSUPPORTED_GRAPH UNSUPPORTED_NODE",
)
NetworkDefinitionCreationFlag = enumeration(
    "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH EXPLICIT_PRECISION"
)
BuilderFlag = enumeration(
    "BuilderFlag",
    "FP16 INT8 DEBUG GPU_FALLBACK STRICT_TYPES REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS "
    "SAFETY_SCOPE"
    + (
        " OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS DIRECT_IO REJECT_EMPTY_ALGORITHMS"
        if VERSION >= (8, 2)
        else ""
    ),
)
ProfilingVerbosity = enumeration(
    "ProfilingVerbosity",
    "LAYER_NAMES_ONLY DETAILED NONE DEFAULT VERBOSE"
    if VERSION >= (8, 2)
    else "DEFAULT NONE VERBOSE",
)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = (
        Member("Severity", name, value)
        for value, name in enumerate(["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
    )

    def __init__(self):
        self._made = True


class Logger(ILogger):
    def __init__(self, min_severity=ILogger.WARNING):
        ILogger.__init__(self)
        self.min_severity = min_severity

    def log(self, severity, msg):
        if severity <= self.min_severity:
            print("[TRT] [%s] %s" % (severity.name[0], msg))


def made_logger(logger):
    if not getattr(wanted(logger, ILogger, "logger"), "_made", False):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    return logger


class IProfiler:
    def __init__(self):
        self._made = True


class IHostMemory(bytes):
    nbytes = property(len)


def compute():
    return os.environ.get("BOARDFIT_COMPUTE", "5.3")
