# Everything runs in .venv, which is created on first use. You only need Python (>= 3.11) and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export TOKENIZERS_PARALLELISM = false
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: install demo test test-slow test-oldest test-deepspeed test-consumers check format audit benchmark docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(shell grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

demo: install
	$(BIN)/multilora demo

# Two workers with one passive OpenMP thread each: spinning threads slow down two processes on two cores.
test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile

# The tests that `make test` leaves out because they take minutes.
test-slow: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# The fast tests with the lowest versions that pyproject.toml allows, in a separate environment.
OLDEST := $(VENV)-oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet $$(grep '^torch==' $(OLDEST)/constraints.txt)
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt -e '.[test]'
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile

# ZeRO-2 and ZeRO-3 on two CPU processes. DeepSpeed (tested: 0.19.8) is installed into a separate folder inside .venv.
DEEPSPEED := $(VENV)/deepspeed
test-deepspeed: install
	$(BIN)/python -m pip install --quiet setuptools wheel
	test -d $(DEEPSPEED) || DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
	    --target $(DEEPSPEED) deepspeed==0.19.8 hjson ninja py-cpuinfo msgpack einops
	PATH="$(CURDIR)/$(DEEPSPEED)/bin:$$PATH" PYTHONPATH=$(DEEPSPEED) DS_ACCELERATOR=cpu OMP_WAIT_POLICY=passive \
	    $(BIN)/python -m pytest -m slow tests/training/test_deepspeed.py

# Programs that read exports, each in an environment of its own inside .venv-consumers; llama.cpp is compiled, which takes
# minutes. optimum-intel and the ONNX builder need torch.
CONSUMERS := $(VENV)-consumers
LLAMA := llama_cpp_python-0.3.36
TORCH := $(shell grep '^torch==' constraints.txt)
test-consumers: install
	for name in openvino_genai onnxruntime_genai llama mlx; do $(PYTHON) -m venv $(CONSUMERS)/$$name; done
	$(CONSUMERS)/openvino_genai/bin/pip install --quiet $(TORCH)
	$(CONSUMERS)/openvino_genai/bin/pip install --quiet openvino-genai==2026.4.1.0 optimum-intel==2.2.0
	$(CONSUMERS)/onnxruntime_genai/bin/pip install --quiet $(TORCH)
	$(CONSUMERS)/onnxruntime_genai/bin/pip install --quiet onnxruntime-genai==0.18.0 onnx onnx-ir transformers peft
	$(CONSUMERS)/mlx/bin/pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
	$(CONSUMERS)/llama/bin/pip download --quiet --no-deps --no-binary :all: --dest $(CONSUMERS) llama-cpp-python==0.3.36
	tar -xzf $(CONSUMERS)/$(LLAMA).tar.gz -C $(CONSUMERS)
	$(CONSUMERS)/llama/bin/pip install --quiet $(CONSUMERS)/$(LLAMA)
	MULTILORA_CONSUMERS=$(CURDIR)/$(CONSUMERS) MULTILORA_LLAMA_PYTHON=$(CURDIR)/$(CONSUMERS)/llama/bin/python \
	    MULTILORA_LLAMA_CPP=$(CURDIR)/$(CONSUMERS)/$(LLAMA)/vendor/llama.cpp \
	    MULTILORA_MLX_PYTHON=$(CURDIR)/$(CONSUMERS)/mlx/bin/python OMP_WAIT_POLICY=passive \
	    $(BIN)/python -m pytest -rs -m 'slow or not slow' tests/export/test_consumers.py tests/export/test_llama_cpp.py \
	    tests/export/test_mlx.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Known vulnerabilities of the versions in constraints.txt, with pip-audit in a separate environment. It needs PyPI itself
# (https://pypi.org/pypi/NAME/VERSION/json), since package indexes and mirrors have no such data; --strict fails if a
# package cannot be looked up.
AUDIT := $(VENV)-audit
audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

# The documentation, as a site in build/site; a warning is an error.
DOCS_STAMP := $(VENV)/.docs-installed
docs: $(DOCS_STAMP)
	PATH="$(BIN):$$PATH" $(BIN)/mkdocs build --strict

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

benchmark: install
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/adapter.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
