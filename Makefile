# make demo | test | lab | notebooks | lock: each builds .venv first when it is missing or older than the lock file.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export OMP_NUM_THREADS ?= 1
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test lab notebooks lock clean help
help:
	@echo "make demo       train and evaluate a small HigherHRNet before your eyes (minutes); page in runs/demo/"
	@echo "make test       notebooks in step, clean and tested; pytest"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make notebooks  re-execute all notebooks in place and clean them"
	@echo "make lock       renew requirements.lock from settings.ini"

# uv installs the pinned packages in seconds where pip takes minutes; the lock file is an ordinary requirements file
$(STAMP): requirements.lock settings.ini setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "python3 is too old: 3.10 or newer is needed (make PYTHON=python3.11 ...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

demo: $(STAMP)
	OMP_NUM_THREADS=$(shell nproc) $(BIN)/hrnet_demo

test: $(STAMP)
	$(BIN)/python tests/check_notebooks.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest -q tests

lab: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab --notebook-dir nbs $(if $(filter 0,$(shell id -u)),--allow-root)

notebooks: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/check_notebooks.py --execute

lock:
	$(BIN)/python -c "import configparser as c; p = c.ConfigParser(delimiters='=', interpolation=None); p.read('settings.ini'); d = p['DEFAULT']; print('\n'.join((d['requirements'] + ' ' + d['dev_requirements']).split()))" > .requirements.tmp
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-emit-index-url --no-annotate --no-header .requirements.tmp -o requirements.lock
	rm .requirements.tmp

clean:
	rm -rf .venv runs data/synthetic
