"""Coverage-guided: bytes for the agent's reader of ONNX files (see ``run_atheris``)."""

import sys

import atheris

with atheris.instrument_imports(include=["device_agent"]):
    from tests.fuzz import properties

if __name__ == "__main__":
    atheris.Setup(sys.argv, properties.onnx_file_nodes)
    atheris.Fuzz()
