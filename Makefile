# Two commands set up everything on a machine that has only Python, make and a package index:
#   make demo    the main job on scenes that the program draws itself
#   make test    format, lint, types, import floors, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := densesiam_seg cli datasets tests benchmarks

.PHONY: demo test test-wheel test-readers cluster-test faults format docs site camvid accuracy bench clean

demo: $(VENV)/.installed
	$(BIN)/densesiam-seg demo --out demo --overwrite

test: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel in an empty environment; fetches torch once more, so that it is not part of `make test`.
test-wheel: $(VENV)/.installed-test
	$(BIN)/pytest -m slow tests/test_package.py

# Several machines, as nodes of a Ray cluster or as network namespaces of this one; what is not allowed here is skipped.
cluster-test: $(VENV)/.installed-cluster
	$(BIN)/pytest -m cluster -rs

# Exports, read by the programs that they are for; these pull packages that would get in each other's way elsewhere.
test-readers: .venv-readers/.installed
	.venv-readers/bin/python -P -m pytest -rs tests/exporting/test_readers.py

.venv-readers/.installed: pyproject.toml
	test -x .venv-readers/bin/python || $(PYTHON) -m venv .venv-readers
	.venv-readers/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,readers]'
	touch $@

# Every fault of docs/faults.md as often as it is meant to be tried; `make test` tries each a few times.
# FAULTS="--page docs/faults.md" writes the page, FAULTS="-k kill" chooses cases.
FAULTS ?=
faults: $(VENV)/.installed-test
	$(BIN)/pytest tests/faults --full $(FAULTS)

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is made from the code: the table of settings.
docs: $(VENV)/.installed
	$(BIN)/python -P -c 'from densesiam_seg.config import settings_table; print(settings_table(), end="")' > docs/settings.md

# The pages under docs/ as a site in build/site; a broken link or a page outside the menu fails.
site: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The first figure of the README; CAMVID names the folder that holds images/ and labels/.
CAMVID ?= ../shared/data/camvid
camvid: $(VENV)/.installed
	$(BIN)/python -P benchmarks/camvid.py --root $(CAMVID)

# Every baseline and ours, from scratch over three seeds; COCO names the folder of the sample in COCO's own layout.
# ACCURACY takes further options: --quick for a look in ten minutes, --ablation, --rows, --seeds, --datasets.
COCO ?= ../shared/data/coco
ACCURACY ?=
accuracy: $(VENV)/.installed
	$(BIN)/python benchmarks/accuracy --camvid $(CAMVID) --coco $(COCO) $(ACCURACY)

# Everything around the network against the network itself; PHOTOS names a folder of JPEGs to use instead of scenes.
PHOTOS ?=
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/speed $(if $(PHOTOS),--photos $(PHOTOS))

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time this fetches about 3 GB (torch)"
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed-test
	$(PIP) --editable '.[test,ray]'
	touch $@

clean:
	rm -rf $(VENV) .venv-readers build *.egg-info
