"""Coverage-guided: bytes for the inventory, boards.toml (see ``run_atheris``)."""

import sys

import atheris

with atheris.instrument_imports(include=["harness.boards", "tomllib"]):
    from tests.fuzz import properties

if __name__ == "__main__":
    atheris.Setup(sys.argv, properties.boards_toml)
    atheris.Fuzz()
