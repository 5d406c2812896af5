# Two commands: `make pilot` sets up and runs the main job, `make test` sets up and passes the tests.
PYTHON ?= python3.11
BIN := .venv/bin
DATA ?= sample/target
TRANSFER ?= sample/transfer
# Where pip would pull the CUDA build of torch: make pilot PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
# More of `maskocr pilot --help`, such as PILOT_FLAGS="--set pretrain.steps=2000"
PILOT_FLAGS ?=

.PHONY: pilot test pipelines lock lint

pilot: .venv/ready
	$(BIN)/maskocr pilot --data "$(DATA)" --transfer "$(TRANSFER)" $(PILOT_FLAGS)

test: .venv/ready
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

.venv/ready: requirements.lock pyproject.toml
	@echo "setting up .venv: some 230 packages, a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# After a change of the ranges in pyproject.toml: install what they ask for, then write down every version.
lock:
	$(BIN)/python -m pip install --quiet --upgrade $(PIP_FLAGS) torch==2.13.0 -e '.[pipeline,versions,test]'
	{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//'; } > requirements.new
	mv requirements.new requirements.lock

pipelines: .venv/ready
	$(BIN)/python -m maskocr_pipelines

lint: .venv/ready
	$(BIN)/ruff check .
