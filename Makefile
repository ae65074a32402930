# Two commands to know: `make demo` and `make test`. Each sets up .venv first, on a bare machine too.

PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
ifneq ($(wildcard ../shared/data),)
export FORWARDINF_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test test-whole test-architectures test-attacks lint docs smoke pythons constraints clean
.PHONY: bench bench-engines bench-published evaluate-attribution evaluate-leaks evaluate-memorized evaluate-mislabeled evaluate-probes evaluate-trace evaluate-trace-images evaluate-trace-removal evaluate-verify

demo: .venv/core            ## train, attribute, show: about a minute
	$(BIN)/forwardinf demo

test: .venv/dev             ## everything that is asserted, of tests with many cases a few: seven minutes on two cores
	$(BIN)/python -m pytest

test-whole: .venv/dev       ## every case of every test, also those marked `whole`, which repeat on slower inputs; 20 minutes
	FORWARDINF_WHOLE=1 $(BIN)/python -m pytest

test-architectures: .venv/dev  ## both presets and two uses on forty real architectures, tiny: ten minutes
	FORWARDINF_WHOLE=1 FORWARDINF_ALL_ARCHITECTURES=1 $(BIN)/python -m pytest tests/gradients/test_architectures.py --dist load

test-attacks: .venv/dev     ## the attacks of tests/attack in full: a kill before every file operation, a signal at 300 moments; ten minutes
	FORWARDINF_WHOLE=1 FORWARDINF_ALL_ATTACKS=1 $(BIN)/python -m pytest tests/attack

lint: .venv/dev             ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev            ## how far from one plain forward pass: about ten minutes; writes benchmarks/results/
	$(BIN)/python -m benchmarks forward
	$(BIN)/python -m benchmarks memory

bench-engines: .venv/dev    ## what each engine costs beside one forward pass, and beside rivals: 50 minutes on a quiet machine
	$(BIN)/python -m benchmarks engines --threads 1 2

evaluate-probes: .venv/dev  ## LDS and copies found against the number of shared perturbations; says its time first, resumable
	$(BIN)/python -m benchmarks probes

bench-published: .venv/dev  ## what `as_published` does differently, on real models: about ten minutes
	$(BIN)/python -m benchmarks published

evaluate-attribution: .venv/dev  ## every way of scoring against retraining; says its time first, resumable; docs/faithfulness.md
	$(BIN)/python -m benchmarks attribution --only cifar & \
	$(BIN)/python -m benchmarks attribution --only digits fashion sst2; wait
	$(BIN)/python -m benchmarks attribution --collect

evaluate-verify: .venv/dev  ## the hypothesis itself, by exact retraining, on two cores; says its time first, resumable
	$(BIN)/python -m benchmarks verify --only groups & \
	$(BIN)/python -m benchmarks verify --only convex; wait
	$(BIN)/python -m benchmarks verify --collect

docs: .venv/dev             ## docs/cli.md from the commands, docs/demo.png from the demo, tables from benchmarks/results/
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_demo_picture.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python docs/make_architectures.py
	$(BIN)/python docs/make_architecture.py

evaluate-trace: .venv/dev   ## fact tracing on WebNLG (FORWARDINF_DATA): 80 minutes, and half an hour more to train the decoder once
	$(BIN)/python -m benchmarks trace

evaluate-leaks: .venv/dev   ## copies of training examples among the tests (FORWARDINF_DATA): 40 minutes on one core
	$(BIN)/python -m benchmarks leaks

evaluate-mislabeled: .venv/dev  ## wrong labels, planted and human (FORWARDINF_DATA): an hour on one core; cleanlab in /tmp/rivals
	sh benchmarks/rivals/setup_cleanlab.sh
	$(BIN)/python -m benchmarks mislabeled

evaluate-memorized: .venv/dev   ## what is known by heart, by hundreds of trainings (FORWARDINF_DATA): half an hour on one core
	$(BIN)/python -m benchmarks memorized

evaluate-trace-images: .venv/dev  ## generated images in small diffusion models, and retraining without what was named; resumable
	$(BIN)/python -m benchmarks trace-images

evaluate-trace-removal: .venv/dev ## facts in a small decoder trained again without the texts that were named; resumable
	$(BIN)/python -m benchmarks trace-removal

smoke: .venv/dev            ## the wheel, in an environment of its own, with no extra
	rm -rf .smoke && $(PYTHON) -m venv .smoke
	$(PIP) wheel -q --no-deps -w .smoke/dist .
	.smoke/bin/python -m pip -q --disable-pip-version-check install -c constraints.txt torch==2.13.0
	.smoke/bin/python -m pip -q --disable-pip-version-check install -c constraints.txt .smoke/dist/*.whl
	cd .smoke && bin/forwardinf --version && bin/forwardinf doctor && bin/python -c "import forwardinf as fi; print(fi.attribute)"
	rm -rf .smoke

pythons: .venv/dev          ## the parts that need no torch, under every Python present
	$(BIN)/python tests/pythons.py --install

constraints: .venv/dev      ## write down the versions installed now
	{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable | sed 's/+cpu//'; } > .constraints && mv .constraints constraints.txt

clean:
	rm -rf .venv .smoke .pythons dist build .mypy_cache .ruff_cache

# torch first and pinned: unpinned, the package index resolves it to a CUDA build of several GB.
.venv/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e .
	touch $@

.venv/dev: .venv/core
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@
