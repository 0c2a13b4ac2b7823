"""Engines of onnxruntime, 1.10 (Python 3.6) and later; only here are it and numpy imported."""

import glob
import json
import os
import statistics
import time

import numpy
import onnxruntime

from . import onnx_nodes

RUNTIME = "onnxruntime"
PROFILE_WARMUP_RUNS = 10
# What the profiler appends to the name of a kernel that it timed.
KERNEL_TIME = "_kernel_time"
ELEMENT_TYPES = {
    "tensor(float)": numpy.float32,
    "tensor(float16)": numpy.float16,
    "tensor(double)": numpy.float64,
    "tensor(int64)": numpy.int64,
    "tensor(int32)": numpy.int32,
    "tensor(int8)": numpy.int8,
    "tensor(uint8)": numpy.uint8,
    "tensor(bool)": numpy.bool_,
}

clock = time.perf_counter


def version():
    """The runtime's version and its providers."""
    return onnxruntime.__version__, list(onnxruntime.get_available_providers())


def _options(threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # 3: errors only; its warnings about saved optimised graphs would fill the stderr tail.
    options.log_severity_level = 3
    return options


def _session(path, options):
    # Another provider, a GPU's, is for benchmarks alone: it is asked for or it is an error.
    provider = os.environ.get("BOARDFIT_ONNXRUNTIME_PROVIDER") or "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError(
            "onnxruntime %s did not take %s up, only %s: is onnxruntime-gpu there, and its CUDA?"
            % (onnxruntime.__version__, provider, ", ".join(session.get_providers()))
        )
    return session


def _shape(node):
    """Static shape of an input; a symbolic first dimension is the batch and becomes 1."""
    shape = list(node.shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = 1
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(
            "input %s has shape %s: export the network with fixed sizes (only the batch may vary)"
            % (node.name, node.shape)
        )
    return shape


def random_feed(session, seed):
    """Inputs for timing: normal numbers from ``seed``; zeros where the network wants integers."""
    generator = numpy.random.RandomState(seed)
    feed = {}
    for node in session.get_inputs():
        kind = ELEMENT_TYPES.get(node.type)
        if kind is None:
            raise ValueError("input %s is a %s, which cannot be made up" % (node.name, node.type))
        shape = _shape(node)
        if issubclass(kind, numpy.floating):
            feed[node.name] = generator.standard_normal(shape).astype(kind)
        else:
            feed[node.name] = numpy.zeros(shape, kind)
    return feed


class Engine:
    """A loaded network with inputs for timing; ``batch`` is the first input's first size."""

    def __init__(self, path, threads, seed):
        self._session = _session(path, _options(threads))
        self._feed = random_feed(self._session, seed)
        first = self._session.get_inputs()[0].name
        self.batch = int(self._feed[first].shape[0]) if self._feed[first].ndim else 1

    def run(self):
        """One inference; results are dropped."""
        self._session.run(None, self._feed)

    def close(self):
        """Free the runtime's memory."""
        self._session = None


def load(path, threads, seed):
    """An ``Engine`` that is ready to run."""
    return Engine(path, threads, seed)


def _chunks(events, runs):
    """Events by kernel. Execution is sequential, so each run has the same events in the same order;
    names alone would not do, because unnamed nodes share one."""
    size, rest = divmod(len(events), runs)
    rows = [events[start : start + size] for start in range(0, len(events), size or 1)]
    names = [event["name"] for event in rows[0]] if rows else []
    if rest or any([event["name"] for event in row] != names for row in rows):
        raise ValueError(
            "the profile has %d kernel calls in %d runs, which are not alike: "
            "a network with loops or branches cannot be profiled" % (len(events), runs)
        )
    return list(zip(*rows))  # noqa: B905 (strict= is Python 3.10)


def kernel_latency_s(durations_us):
    """Median of durations that the profiler has cut to whole microseconds, in seconds.

    The median for grouped data spreads equal values over their microsecond, so that kernels of a
    few microseconds keep their fraction; + 0.5 because the profiler truncates.
    """
    return statistics.median_grouped([value + 0.5 for value in durations_us], 1) * 1e-6


def profile(path, threads, seed, runs, folder):
    """Kernels in the order of execution, whole runs and one run's trace: ``profile.result``."""
    optimised = os.path.join(folder, "optimised.onnx")
    options = _options(threads)
    options.optimized_model_filepath = optimised
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(folder, "profile")
    session = _session(path, options)
    feed = random_feed(session, seed)
    for _ in range(PROFILE_WARMUP_RUNS + runs):
        session.run(None, feed)
    trace = session.end_profiling()
    with open(trace) as stream:
        events = json.load(stream)
    for leftover in glob.glob(os.path.join(folder, "profile*.json")):
        os.remove(leftover)
    listed = onnx_nodes.read_nodes(optimised)[0]
    os.remove(optimised)
    nodes = {node.name: node for node in listed}
    original, initialisers = onnx_nodes.read_nodes(path)
    origin = onnx_nodes.Origin(original, initialisers, listed)
    timed = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL_TIME)]
    timed.sort(key=lambda event: event["ts"])
    columns = [calls[PROFILE_WARMUP_RUNS:] for calls in _chunks(timed, PROFILE_WARMUP_RUNS + runs)]
    whole = [e for e in events if e.get("cat") == "Session" and e["name"] == "model_run"]
    whole.sort(key=lambda event: event["ts"])
    whole = whole[PROFILE_WARMUP_RUNS:]
    kernels = []
    for calls in columns:
        name = calls[0]["name"][: -len(KERNEL_TIME)]
        op = calls[0]["args"].get("op_name", "")
        node = nodes.get(name) or onnx_nodes.Node(name, op, [], [])
        kernels.append(
            {
                "name": name,
                "op": op,
                "node": origin.of(node),
                "serves": origin.serves(node),
                "latency_s": kernel_latency_s([call["dur"] for call in calls]),
                "provider": calls[0]["args"].get("provider", ""),
                "samples_s": [_duration_s(call["dur"]) for call in calls],
            }
        )
    return {
        "kernels": kernels,
        "runs_s": [_duration_s(run["dur"]) for run in whole],
        "trace": _trace(columns, whole),
    }


def _duration_s(microseconds):
    """A duration in seconds; + 0.5 because the profiler truncates, which sums would show."""
    return round((microseconds + 0.5) * 1e-6, 7)


def _seconds(microseconds):
    """Whole microseconds in seconds, as the shortest decimal that says so."""
    return round(microseconds * 1e-6, 6)


def _trace(columns, whole):
    """The kernels of the run whose duration is the median of all, from the run's start."""
    run = sorted(range(len(whole)), key=lambda number: whole[number]["dur"])[len(whole) // 2]
    return {
        "run_s": _seconds(whole[run]["dur"]),
        "kernels": [
            {
                "kernel": index,
                "start_s": _seconds(calls[run]["ts"] - whole[run]["ts"]),
                "latency_s": _seconds(calls[run]["dur"]),
                "thread": calls[run]["tid"],
            }
            for index, calls in enumerate(columns)
        ],
    }


def infer(path, threads, inputs_path, input_name, outputs_path, progress):
    """Writes the first output for every input, run one by one, to ``outputs_path`` (.npy)."""
    session = _session(path, _options(threads))
    wanted = {node.name: node for node in session.get_inputs()}
    name = input_name or session.get_inputs()[0].name
    if name not in wanted or len(wanted) != 1:
        raise ValueError(
            "inputs are for %s alone, but the network has inputs %s" % (name, sorted(wanted))
        )
    output = session.get_outputs()[0].name
    inputs = numpy.load(inputs_path, mmap_mode="r", allow_pickle=False)
    kind = ELEMENT_TYPES[wanted[name].type]
    found = []
    for index in range(len(inputs)):
        one = numpy.ascontiguousarray(inputs[index : index + 1], dtype=kind)
        found.append(session.run([output], {name: one})[0])
        progress(index + 1, len(inputs))
    with open(outputs_path, "wb") as stream:
        numpy.save(stream, numpy.concatenate(found), allow_pickle=False)
