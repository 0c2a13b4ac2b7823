"""Coverage-guided: bytes for the agent's end of the wire (see ``run_atheris``)."""

import sys

import atheris

with atheris.instrument_imports(include=["device_agent", "json"]):
    from tests.fuzz import properties

if __name__ == "__main__":
    atheris.Setup(sys.argv, properties.agent_wire)
    atheris.Fuzz()
