# Needs only make and Python >= 3.11; everything else goes to .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help venv demo test thorough fuzz coverage lint notebooks lab docs results bench variance sweeps wheel clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: $(VENV)/.installed ## build .venv with sparsekit and its development tools

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsekit needs Python 3.11 or newer, not " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,analysis,notebooks,docs]'
	@touch $@

demo: venv ## compare six methods at 90 % and 98 % sparsity on digits, with a picture
	$(BIN)/sparsekit compare --dataset digits --hidden 256,256 --sparsities 0.9,0.98 \
		--epochs 30 --batch-size 32 --delta-t 50 --out runs/demo --overwrite

test: venv ## run the tests
	$(BIN)/python -m pytest -n 2

thorough: venv ## run the tests with ten times as many random examples
	$(BIN)/python -m pytest -n 2 --hypothesis-profile thorough --timeout 0

fuzz: venv ## read 10,000 damaged and hostile files with every reader (half an hour)
	SPARSEKIT_TESTS=thorough $(BIN)/python -m pytest -n 2 --timeout 0 tests/test_fuzz.py

# Without compilation these would train for hours, or they look at other things than sparsekit/.
NOT_COVERED := test_faults test_resume test_readme test_accuracy test_monte_carlo test_sweep test_theory \
	test_variance test_notebooks test_site test_classroom test_nvrtc
coverage: venv ## which lines of sparsekit/ the tests reach, with the kernels as plain Python (40 minutes)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -n 2 --timeout 0 $(NOT_COVERED:%=--ignore=tests/%.py) -k 'not ctrl_c and not full_disk' \
		--cov --cov-report=term-missing:skip-covered

lint: venv ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

notebooks: venv ## execute all notebooks and write them with what they show (about seven minutes on 2 cores)
	$(BIN)/python notebooks/execute.py

lab: venv ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

docs: venv ## build the website into build/site
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs build/site
	@echo "open build/site/index.html"

results: venv ## train the table of the README on Fashion-MNIST (about ten minutes on 2 cores)
	$(BIN)/sparsekit compare --config results/fashion-mnist-mlp.toml --sparsities 0.9,0.98 --seeds 0,1,2 \
		--methods dense,static,set,rigl,srigl:gamma_sal=0,srigl,srigl:gamma_sal=0.95 \
		--out runs/fashion-mnist-mlp --overwrite
	cp runs/fashion-mnist-mlp/comparison.csv results/fashion-mnist-mlp.csv
	cp runs/fashion-mnist-mlp/comparison.png results/fashion-mnist-mlp.png

bench: venv ## time the kernels against NumPy, SciPy and PyTorch if it is installed
	$(BIN)/sparsekit bench all --out results/bench

variance: venv ## check the variance theory by simulation, and draw it
	$(BIN)/python -m analysis.variance --full --out results/variance

sweeps: venv ## train all runs behind results/sweeps and draw them (about an hour on 2 cores)
	for name in fashion-mnist-mlp fashion-mnist-cnn; do \
		$(BIN)/python -m analysis.sweep analysis/grids/$$name.toml --out runs/sweeps/$$name && \
		$(BIN)/python -m analysis.accuracy runs/sweeps/$$name --out results/sweeps/$$name && \
		$(BIN)/python -m analysis.ablation runs/sweeps/$$name --out results/sweeps/$$name && \
		cp runs/sweeps/$$name/results.csv results/sweeps/$$name/ || exit 1; \
	done

wheel: venv ## build the wheel, install it alone into a fresh environment, train on digits with it
	rm -rf dist build/wheel-check
	$(BIN)/python -m build --quiet --wheel --outdir dist
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet dist/*.whl
	cd build/wheel-check && bin/sparsekit train --epochs 20 --batch-size 32 --delta-t 50 --overwrite --out run

clean: ## remove .venv and caches; runs/ and results/ are kept
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
