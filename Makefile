# The two commands that matter: `make demo` and `make test`. Both set everything up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# CPython 3.6 with onnxruntime 1.10 is the software of a Jetson Nano; the agent is tested on it.
VENV36 := .venv36
PYTHON36 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.6.*/bin/python) $(shell command -v python3.6))
DEMO := runs/demo
# Tests that calibrate and measure have the computer to themselves. Those in which a board fails at a
# set moment, or a program has to get a core, mostly wait: two at a time, the longest file first. All
# others share its cores.
ALONE := $(addprefix tests/,test_branches_fit.py test_fit.py)
PAIRED := $(addprefix tests/,faults boards device_agent/test_inspection.py)

.PHONY: demo test faults check format clean

demo: $(VENV)/.installed
	$(BIN)/boardfit fit data/demo/network.py:factory --weights data/demo/weights.pt \
	  --data data/demo/images.npz --board local --latency 18% --size 15% --max-drop 1.0 \
	  --out $(DEMO)

test: $(VENV)/.installed-test $(VENV36)/.installed sshd check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile \
	  $(addprefix --ignore=,$(ALONE) $(PAIRED))
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(PAIRED)
	$(BIN)/python -m pytest $(ALONE)

# Two hundred faults on the virtual Nano; a quarter of an hour.
faults: $(VENV)/.installed-test $(VENV36)/.installed sshd
	$(BIN)/python -m tests.faults.campaign --faults 200 --seed 1

# Lint, format and types.
check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vermin --quiet --no-tips --target=3.6- --violations device_agent

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,tensorrt]'
	touch $@

# Without a Python 3.6 the tests that need it say so and are skipped.
$(VENV36)/.installed:
	@if [ -n "$(PYTHON36)" ]; then \
	  $(PYTHON36) -m venv $(VENV36) && \
	  $(VENV36)/bin/python -m pip install --quiet --upgrade pip==21.3.1 && \
	  $(VENV36)/bin/python -m pip install --quiet numpy==1.19.5 onnxruntime==1.10.0 && \
	  touch $@; \
	else \
	  echo "no CPython 3.6 found: tests of the agent on it are skipped (PYTHON36=... names one)"; \
	fi

# The SSH tests need OpenSSH's server; only root on a Debian system can install it here.
.PHONY: sshd
sshd:
	@if [ -x /usr/sbin/sshd ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq openssh-server >/dev/null; \
	else echo "no sshd found: SSH tests are skipped (install openssh-server)"; fi

clean:
	rm -rf $(VENV) $(VENV36) .mypy_cache .pytest_cache .ruff_cache .hypothesis
