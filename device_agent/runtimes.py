"""Which runtimes a board has, and what they can do.

They are imported in a process of their own (``python -m device_agent.runtimes NAME``): that may end
in a signal, and would stay in the agent's memory while engines are measured.
"""

import ctypes
import importlib
import json
import os
import re
import signal
import subprocess
import sys

from . import trt_api

IMPORT_TIMEOUT_S = 120
PR_SET_PDEATHSIG = 1
# No released version knows as many; the climb ends at the first that is refused.
MOST_OPSETS, MOST_IRS = 60, 40
# The oldest that every onnxruntime from 1.0 on accepts, to try the other number with.
SAFE_OPSET, SAFE_IR = 9, 4
BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v(\d+)\]")
TRTEXEC_PLACES = ("usr/src/tensorrt/bin/trtexec", "usr/local/tensorrt/bin/trtexec")


def run(argv, timeout_s=20):
    """Exit code and output of a command, ``(None, reason)`` where it cannot run or takes too long.

    It gets the C locale, no stdin, and its stderr behind its stdout.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, LC_ALL="C"),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return None, "%s took more than %d s" % (argv[0], timeout_s)
    except OSError as error:
        return None, "%s: %s" % (argv[0], error.strerror)
    return done.returncode, done.stdout.decode(errors="replace")


# --- a network of one operator, written by hand: the agent has no onnx package ------------------


def _varint(number):
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _block(field, content):
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _tensor(name):
    # ValueInfoProto: name, type { tensor_type { elem_type FLOAT, shape { dim { dim_value 1 } } } }
    shape = _block(2, _block(1, _number(1, 1)))
    return _block(1, name) + _block(2, _block(1, _number(1, 1) + shape))


def tiny_network(opset, ir_version):
    """The bytes of an ONNX file with one Relu, stamped with an opset and an IR version."""
    node = _block(1, b"x") + _block(2, b"y") + _block(4, b"Relu")
    graph = _block(1, node) + _block(2, b"g")
    graph += _block(11, _tensor(b"x")) + _block(12, _tensor(b"y"))
    return _number(1, ir_version) + _block(7, graph) + _block(8, _number(2, opset))


def _highest(accepts, start, end):
    """The last number from ``start`` on that is accepted without a gap, or None."""
    found = None
    for number in range(start, end):
        if not accepts(number):
            break
        found = number
    return found


# --- in the process of their own ----------------------------------------------------------------


def _onnxruntime_facts(module):
    yield {
        "version": module.__version__,
        "path": os.path.dirname(module.__file__),
        "providers": list(module.get_available_providers()),
    }
    options = module.SessionOptions()
    options.log_severity_level = 4

    def loads(opset, ir_version):
        try:
            module.InferenceSession(
                tiny_network(opset, ir_version), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # its exceptions derive from nothing narrower in all versions
            return False
        return True

    yield {
        "opset": _highest(lambda opset: loads(opset, SAFE_IR), SAFE_OPSET, MOST_OPSETS),
        "ir": _highest(lambda ir: loads(SAFE_OPSET, ir), SAFE_IR, MOST_IRS),
    }


def _tensorrt_facts(module):
    has = trt_api.features(module)
    yield {
        "version": module.__version__,
        "path": os.path.dirname(module.__file__),
        "features": sorted(name for name in has if has[name]),
    }
    builder = module.Builder(module.Logger(module.Logger.ERROR))
    # Versions with strong typing alone (11) have no such questions.
    yield {
        "fast_fp16": getattr(builder, "platform_has_fast_fp16", None),
        "fast_int8": getattr(builder, "platform_has_fast_int8", None),
    }


def _cuda_facts(module):
    gpu = module.Cuda()
    yield gpu.facts()
    gpu.close()


FACTS = {
    "onnxruntime": _onnxruntime_facts,
    "tensorrt": _tensorrt_facts,
    "tensorrt_rtx": _tensorrt_facts,
    "cuda": _cuda_facts,
}
# Of the agent itself; the others are the board's.
MODULES = {"cuda": "device_agent.cuda"}


def _die_with_the_agent():
    """An import that hangs must not outlive an agent that was ended meanwhile (Linux)."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        pass


def main(name):
    """Exit code; a line of JSON for each group of facts, so that a crash keeps the earlier ones."""
    _die_with_the_agent()
    stdout = os.dup(1)
    os.dup2(2, 1)  # native libraries print there
    module = importlib.import_module(MODULES.get(name, name))
    for facts in FACTS[name](module):
        os.write(stdout, json.dumps(facts).encode() + b"\n")
    return 0


# --- the agent's side ---------------------------------------------------------------------------


def _reason(code, stderr):
    if code < 0:
        return "importing it ended in %s" % signal.Signals(-code).name
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else "exit code %d" % code


def probe(name, timeout_s=None):
    """The facts of a runtime; ``error`` says why there are none, or not all of them."""
    timeout_s = IMPORT_TIMEOUT_S if timeout_s is None else timeout_s
    found = dict.fromkeys(("version", "path", "error"))
    here = os.path.dirname(os.path.abspath(__file__))
    child = subprocess.Popen(
        [sys.executable, "-m", "device_agent.runtimes", name],
        cwd=os.path.dirname(here),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        stdout, stderr = child.communicate(timeout=timeout_s)
        late = False
    except subprocess.TimeoutExpired:
        child.kill()
        stdout, stderr = child.communicate()
        late = True
    for line in stdout.decode(errors="replace").splitlines():
        found.update(json.loads(line))
    if late:
        found["error"] = "importing it took more than %d s" % timeout_s
    elif child.returncode:
        found["error"] = _reason(child.returncode, stderr.decode(errors="replace"))
    return found


def trtexec_version(text):
    """The version in trtexec's first line, as ``8.2.1``, or None.

    Up to 8 it is major * 1000 + minor * 100 + patch (8.0.1 is 8001), from 10 on major * 10000 and
    so on (10.3.0 is 100300): trtexec.cpp and NvInferVersion.h of those releases. Before 7.2 or so
    it told none.
    """
    found = BANNER.search(text or "")
    if found is None:
        return None
    digits = found.group(1)
    number = int(digits)
    major, rest = divmod(number, 10000 if len(digits) > 4 else 1000)
    return "%d.%d.%d" % (major, rest // 100, rest % 100)


def trtexec(root="/", find=None, run=run):
    """Path and version of trtexec, or None where there is none; a version of None was not told.

    ``find`` looks a program up on the PATH.
    """
    places = [find("trtexec")] if find else []
    places += [os.path.join(root, place) for place in TRTEXEC_PLACES]
    for path in places:
        if path and os.access(path, os.X_OK):
            _, text = run([path, "--help"], 60)
            return {"path": path, "version": trtexec_version(text)}
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
