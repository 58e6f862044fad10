# The two commands to start with: `make overhead` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin/python
NATIVE := $(wildcard csrc/*/*.h csrc/*/*.in csrc/*/*.cuh csrc/*/*.cpp csrc/*/*.cu)
OVERHEAD ?=
PYTEST ?=
EMULATE ?=

.PHONY: overhead test example emulated emulate-quick emulate mutants sanitize kernels figures check lint \
	build wheel abi-check installs ptxas sass gpu-kit gpu-check gpu-check-dry-run clean

overhead: build
	$(BIN) -m bench.overhead $(OVERHEAD)

test: build emulated
	$(BIN) -m pytest $(PYTEST)

# From images to a ranking and whether to believe it, in minutes: a run on a subset of CIFAR-10, 200
# architectures ranked with it and without training, figures and tables. Interrupted, it goes on.
EXAMPLE ?= build/example
CWKERNELS := $(VENV)/bin/cwkernels
example: build
	$(CWKERNELS) train bench/configs/example.toml --run $(EXAMPLE) --resume
	$(CWKERNELS) rank $(EXAMPLE) --architectures 200
	$(CWKERNELS) rank $(EXAMPLE) --architectures 200 --untrained
	$(CWKERNELS) evaluate $(EXAMPLE)
	$(CWKERNELS) report $(EXAMPLE) --out $(EXAMPLE)/report

# .pre-commit-config.yaml lists the linters; what one of them changes fails, too.
lint: build
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(BIN) -m pre_commit run --all-files --show-diff-on-failure

# Planted bugs, each to be killed by the test that it names.
mutants: build
	$(BIN) tests/mutants/run.py

# The CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
sanitize: $(VENV)/installed
	$(BIN) tests/native/sanitize.py

kernels: build
	$(BIN) -m bench.kernels

# Measures everything anew, which takes twenty minutes of a quiet machine, and renews the tables of
# README.md and docs/performance.md from the records.
# The records are written elsewhere first, or all but the first would be of a changed checkout.
RECORDS := build/figures
figures: build
	mkdir -p $(RECORDS)
	$(BIN) -m bench.kernels --json $(RECORDS)/kernels_cpu.json
	$(BIN) -m bench.peers --json $(RECORDS)/peers_cpu.json
	$(BIN) -m bench.overhead --steps 16 --json $(RECORDS)/overhead_cpu.json \
		--plot $(RECORDS)/overhead_cpu.png
	$(BIN) -m bench.scaling --json $(RECORDS)/scaling_cpu.json --plot $(RECORDS)/scaling_cpu.png
	$(BIN) -m bench.ranking --json $(RECORDS)/ranking_cpu.json
	cp $(RECORDS)/* bench/results/
	$(BIN) -m bench.figures

# Before a commit, in under two minutes: a random tenth of the tests, but for the slow ones.
check: lint
	$(BIN) -m pytest -q --sample 0.1 -m "not slow" $(PYTEST)

# The one file for every torch and Python, in dist/.
WHEEL_ARCHS ?= 80,86,89,90,100,120
wheel: build
	rm -rf build/lib dist
	CWKERNELS_CUDA_ARCHS=$(WHEEL_ARCHS) $(BIN) -m pip wheel --quiet --no-build-isolation --no-deps \
		--wheel-dir dist .

# The wheel on other versions of torch: downloads them, 7 GB on disk at a time.
ABI ?= newest 2.13 2.10
abi-check: wheel
	$(BIN) tools/abi_check.py dist/*.whl $(ABI)

installs: build
	$(BIN) tools/check_installs.py

build: $(VENV)/installed cwkernels/_C.so

# The virtual environment: with the torch that $(PYTHON) imports if it does, else with a new one.
$(VENV)/torch: tools/make_venv.py
	$(PYTHON) tools/make_venv.py $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml setup.py
	$(BIN) -m pip install --quiet --no-build-isolation --editable ".[test,bench,gates]"
	touch $@

cwkernels/_C.so: $(VENV)/installed CMakeLists.txt $(wildcard cmake/*) setup.py $(NATIVE)
	$(BIN) setup.py --quiet build_ext --inplace
	touch $@

# The CUDA kernels for the host, which tests of the parameter `emulated` run, and the planted bugs.
EMULATED := build/cmake/emulator/_emulated.so
emulated: $(EMULATED)

$(EMULATED): cwkernels/_C.so $(wildcard tests/emulator/*.* tests/oracles/*.cu tests/oracles/*.h)
	$(BIN) tests/emulator/build.py
	touch $@

# The emulated kernels alone, as `make test` runs them, and under sanitizers, on other devices and in
# other orders.
emulate-quick: emulated
	$(BIN) -m pytest -q -k "emulated or plants" $(PYTEST)

emulate: emulated
	$(BIN) tests/emulator/emulate.py $(EMULATE)

# Where nvcc is: registers and spills of the CUDA kernels against csrc/registers.json, and whether the
# hot ones multiply by the matrix instructions that they were written for.
ptxas: $(VENV)/installed
	$(BIN) tools/ptxas_table.py

sass: $(VENV)/installed
	$(BIN) tools/sass_check.py

# On a machine with a GPU, in a copy of this checkout with what gpu-kit has gathered and built here:
#   make gpu-kit; (copy the checkout, cwkernels/_C.so and build/gpu_check)
#   python3 -m tools.gpu_check --out DIR --seconds 540   (again and again, until nothing is left)
#   python -m bench.figures --gpu DIR/report.json        (here)
OUT ?= build/gpu_check_out
GPU_CHECK ?=
gpu-kit: build
	CWKERNELS_CUDA=1 $(BIN) -m tools.gpu_check.kit

gpu-check:
	$(PYTHON) -m tools.gpu_check --out $(OUT) $(GPU_CHECK)

# Tries all of it here: the emulator for a GPU, tiny shapes, and a stand-in for compute-sanitizer.
gpu-check-dry-run: emulated
	test -d build/gpu_check/wheels || $(BIN) -m tools.gpu_check.kit --wheels
	$(BIN) -m tools.gpu_check --out build/gpu_check_dry_run --dry-run $(GPU_CHECK)

clean:
	rm -rf build dist $(VENV) cwkernels/_C.so *.egg-info
