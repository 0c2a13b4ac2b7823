"""Coverage-guided: bytes for the importer of trtexec's logs (see ``run_atheris``)."""

import sys

import atheris

with atheris.instrument_imports(include=["harness.trtexec"]):
    from tests.fuzz import properties

if __name__ == "__main__":
    atheris.Setup(sys.argv, properties.trtexec_log)
    atheris.Fuzz()
