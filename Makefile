# The commands of this project; `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo

.PHONY: help venv demo test check format clean

help:
	@echo "make demo    train a small model, restore it, evaluate it, draw its forecasts"
	@echo "make test    the whole test suite"
	@echo "make check   formatting, lint and types"
	@echo "make format  put formatting and imports right"
	@echo "make clean   remove the environment and everything written"

venv: $(VENV)/installed

# Made again when what it is made from changes.
$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: venv
	rm -rf $(DEMO)
	$(BIN)/python train_main.py --config=configs/smoke.py --workdir=$(DEMO)/train
	$(BIN)/python eval_main.py --config=configs/eval_samples.py \
	  --config.checkpoint=$(DEMO)/train --config.output_dir=$(DEMO)/eval
	$(BIN)/python examples/forecast_samples.py $(DEMO)/train $(DEMO)/forecasts.png

test: venv
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out *.egg-info
