PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
OUT ?= build
BIN := .venv/bin
READY := .venv/.ready
# tests that run side by side
WORKERS ?= 2
# where make lab begins
LAB ?= $(basename $(notdir $(firstword $(sort $(wildcard notebooks/*.ipynb)))))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=1800

.PHONY: setup run lab test test-all attacks honest test-gpu

run: $(READY)  ## execute the solved labs; a book with pictures in build/ (or OUT=folder)
	@$(BIN)/labkit run --out $(OUT)

setup: $(READY)  ## .venv with all that is needed; the other targets do it, too

lab: $(READY)  ## open the student notebooks at lab 1 (LAB=02_lora: at another)
	@$(BIN)/jupyter-lab --notebook-dir=notebooks notebooks/$(LAB).ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

test: $(READY)  ## what a contributor needs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/labkit build --check
	@# in a copy: what labs write next to themselves is no part of the course, nor of its wheel
	@rm -rf build/rehearsal && mkdir -p build && cp -R solutions build/rehearsal
	$(PYTEST) -m "not thorough" $(NBVAL) tests build/rehearsal

test-all: $(READY)  ## what takes longer: all answers over the wire, more attacks, all pages
	LABKIT_ATTACKS=some $(PYTEST) -m thorough tests

attacks: $(READY)  ## every hostile submission, not only a choice of each kind (half an hour)
	LABKIT_ATTACKS=all $(BIN)/pytest tests/attacks

honest: $(READY)  ## right notebooks, ten times, seven side by side: none may lose a point (half an hour)
	LABKIT_HONEST=10 $(BIN)/pytest tests/honest

test-gpu: $(READY)  ## the CUDA paths, on a machine that has a card; figures in build/gpu.json
	@$(BIN)/pytest -m gpu -rs tests/gpu; status=$$?; \
	  test ! -f build/gpu.json || cat build/gpu.json; exit $$status

# A Debian without python3-venv has no ensurepip: then the pip of $(PYTHON) fills the environment.
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed, for instance: make PYTHON=python3.12'; exit 1; }
	@test ! -L .venv || { echo '.venv is a link: remove it first, for pip would fill what it leads to'; exit 1; }
	@$(PYTHON) -m venv .venv >/dev/null || { \
	  $(PYTHON) -m venv --clear --without-pip .venv && \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } || \
	  { echo 'No virtual environment: sudo apt install python3-venv, then again'; exit 1; }
	@echo 'Installing the libraries (minutes, once) ...'
	@$(BIN)/python -m pip install --quiet -e '.[dev]' $(addprefix -c ,$(CONSTRAINTS))
	@# JupyterLab asks whether it may fetch news; here the first thing to read is lab 1
	@$(BIN)/jupyter labextension disable @jupyterlab/apputils-extension:announcements \
	  --level=sys_prefix 2>/dev/null
	@touch $@
