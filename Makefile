# `make demo` and `make test` both start from a fresh clone: they make .venv first, once.
PYTHON ?= python3
TORCH  ?= torch==2.14.1 torchvision==0.29.1
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test
setup: $(VENV)/.stamp

# The stamp is written last: an interrupted set-up is repeated, a finished one costs nothing until pyproject.toml changes.
$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/metarun train experiment=protonet_glyphs_5w1s

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest
