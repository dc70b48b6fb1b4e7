# Two commands do all the set-up, in .venv of this folder:
#   make quickstart   environment, install, the quickstart run, where its results are
#   make test         environment, install, all tests
# Repeating a command re-uses what is installed.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# A machine without an NVIDIA GPU must not download CUDA builds of torch (several GB).
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
CONSTRAINTS := $(if $(GPU),,-c constraints-cpu.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test install install-test clean

quickstart: install
	@if [ -e runs/quickstart/plan.json ]; then $(BIN)/llm-wizard resume quickstart; else $(BIN)/llm-wizard run quickstart; fi

# One process a core for the tests that leave the second core idle; the others start processes of their own, and want the machine.
LIGHT := tests/data tests/text tests/tokenizer tests/troubleshoot tests/tui

test: install-test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(LIGHT)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(LIGHT))

install: $(VENV)/.installed-train

install-test: $(VENV)/.installed-test

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "llm-wizard needs Python 3.10 to 3.13; found none on PATH. Type: make PYTHON=/path/to/python3.11 quickstart"; exit 64; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu type: apt-get install python3-venv"; exit 64; }

# torch first: deepspeed's own build imports it, and would bring the CUDA build on its own.
$(VENV)/.installed-train: pyproject.toml constraints-cpu.txt | $(BIN)/python
	@echo "installing into $(VENV) (minutes, once)"
	@$(PIP) install -q $(CONSTRAINTS) torch
	@$(PIP) install -q $(CONSTRAINTS) -e '.[train]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-train
	@$(PIP) install -q $(CONSTRAINTS) -e '.[train,test]'
	@touch $@

clean:
	rm -rf $(VENV)
