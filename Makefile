# The commands of this project; `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo

.PHONY: help venv demo test check format docs clean

help:
	@echo "make demo    forecast with the bundled model; train another, restore it, evaluate both"
	@echo "make test    the whole test suite"
	@echo "make check   formatting, lint and types"
	@echo "make docs    the documentation as a site, in out/site"
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
	$(BIN)/python examples/forecast_samples.py mini $(DEMO)/forecasts.png
	$(BIN)/python eval_main.py --config=configs/eval_samples.py \
	  --config.checkpoint=mini --config.output_dir=$(DEMO)/eval
	$(BIN)/python train_main.py --config=configs/smoke.py --workdir=$(DEMO)/train
	$(BIN)/python eval_main.py --config=configs/eval_samples.py \
	  --config.checkpoint=$(DEMO)/train --config.output_dir=$(DEMO)/eval_train
	@echo
	@echo "$(DEMO)/forecasts.png  the bundled model: context, truth and forecast of real series"
	@echo "$(DEMO)/eval           its table and how each number was obtained"
	@echo "$(DEMO)/train          a model trained here: checkpoints, metrics.jsonl, TensorBoard events"
	@echo "$(DEMO)/eval_train     its table"
	@echo
	@echo "Next:"
	@echo "  $(BIN)/timemoe forecast timemoe_jax/data/samples/new_york_daily.csv \\"
	@echo "    --horizon 30 --out out/new_york.csv --plot out/new_york.png"
	@echo "  $(BIN)/python train_main.py --config=configs/smoke.py --workdir=out/longer \\"
	@echo "    --config.train.num_steps=3000"
	@echo "  $(BIN)/timemoe data download ett data"
	@echo "  $(BIN)/python eval_main.py --config=configs/eval_nano.py --config.data_dir=data \\"
	@echo "    --config.datasets=ETTh1"

# A worker for each core, up to four of up to 4 GB. Those of a file stay together, since they share
# what is slow to make.
test: venv
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A broken link or a page that no menu names ends it.
docs: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/python docs/make_config_page.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) out *.egg-info
