# `make demo` and `make test` both start from a fresh clone: they make .venv first, once.
PYTHON ?= python3
TORCH  ?= torch==2.14.1 torchvision==0.29.1
INDEX  ?=
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test
setup: $(VENV)/.stamp

# The stamp is written last: an interrupted set-up is repeated, a finished one costs nothing until pyproject.toml changes.
$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, several GB; make INDEX=https://download.pytorch.org/whl/cpu takes the CPU build, a tenth of it"
	$(BIN)/python -m pip install --quiet $(if $(INDEX),--index-url $(INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/metarun train experiment=protonet_glyphs_5w1s

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	GOMP_SPINCOUNT=1000 $(BIN)/pytest
