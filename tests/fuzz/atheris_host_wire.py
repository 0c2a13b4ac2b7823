"""Coverage-guided: bytes for the host's end of the wire (see ``run_atheris``)."""

import sys

import atheris

with atheris.instrument_imports(include=["harness.boards", "jsonschema", "json"]):
    from tests.fuzz import properties

if __name__ == "__main__":
    atheris.Setup(sys.argv, properties.host_wire)
    atheris.Fuzz()
