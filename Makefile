# make run         builds the command, streams the bundled data through it (the main job), and
#                  builds the Python package and runs its quick start
# make test        formatting, lints, all tests, documentation: under 15 minutes on 2 cores
# make check-deep parity  model checking, ThreadSanitizer, the portable system layer, fuzzing, long chaos
# make cuda-offline  device code compiled and its machine code checked, without a GPU (in check-deep)
# make gpu-check   what a GPU shows of the executor "cuda": builds a folder and runs what is in it
# make bench       every figure beside its peer or floor, in one run

CARGO ?= cargo
# Any that is 3.11 or newer; `make pytest` with another one wants its environments, .venv*, gone.
PYTHON ?= python3
# How long the parts of check-deep run that could run for ever.
FUZZ_SECONDS ?= 60
CHAOS_SECONDS ?= 60
# How many child processes the chaos test kills while a million messages flow.
CHAOS_KILLS ?= 4000
# How long the log is that one handler is interpreted, compiled and run in a process over.
PARITY_MESSAGES ?= 1000000

DEVELOP = .venv/bin/maturin develop --quiet --features pyo3/extension-module,conformance

.PHONY: run test test-rust test-python pytest pytest-base python python-base venv check-deep bench loom tsan \
	portable fuzz chaos cuda-offline gpu-check gpu-check-bundle tools

run: tools
	$(CARGO) build --release -p dotcompute-cli
	./target/release/dotcompute stream data/nyc-wind-2013.csv
	@$(MAKE) --no-print-directory venv
	PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/.venv .venv/bin/maturin develop --quiet --release
	.venv/bin/python examples/python/01_quick_start.py

test: test-rust test-python

test-rust: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features dotcompute-python/conformance -- -D warnings
	$(CARGO) test --workspace
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

# The Python package on the same core, in an environment of its own under .venv. With the
# conformance suite in it, which its tests run on the asyncio executor.
python: venv
	PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/.venv $(DEVELOP) --extras dev,numba,fast

# The same without anything optional: no numba, no uvloop.
python-base: venv
	@test -x .venv-base/bin/python || $(PYTHON) -m venv .venv-base
	PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/.venv-base $(DEVELOP) --extras test

venv: tools
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@test -x .venv/bin/maturin || \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check "maturin>=1.9,<2"

test-python: python python-base
	.venv/bin/ruff check python examples
	.venv/bin/ruff format --check python examples
	.venv/bin/mypy --strict python/pydotcompute examples/python
	.venv/bin/python -m mypy.stubtest pydotcompute._native --allowlist python/stubtest-allowlist.txt
	@echo "pytest with the optional packages and without, at once: some minutes, each printed when it is over"
	@$(MAKE) --no-print-directory -j2 --output-sync=line pytest pytest-base

# Both at once, since each waits for most of its time. After `python` and `python-base`.
pytest:
	.venv/bin/python -m pytest
pytest-base:
	.venv-base/bin/python -m pytest

check-deep: loom tsan portable cuda-offline chaos parity fuzz

bench: tools
	$(CARGO) build --release -p dotcompute-cli -p dotcompute-bench
	./target/release/dotcompute bench --markdown docs/benchmarks.md

# The lock-free structures and the waiters under loom, which tries every interleaving. It builds
# the mailbox crate alone, in a folder of its own.
loom: tools
	RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 $(CARGO) test --profile deep \
		-p dotcompute-mailbox --lib --target-dir target/loom -- loom
	RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 $(CARGO) test --profile deep \
		-p dotcompute-cuda --test loom_protocol --target-dir target/loom

# std is not instrumented on a stable toolchain, so only harnesses that share no lock, channel or
# Arc of std with the code under test: see the files' headers.
tsan: tools
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
		$(CARGO) test \
		-p dotcompute-mailbox --test tsan_ring --test tsan_mailbox \
		--target $$(rustc -vV | sed -n 's/^host: //p') --target-dir target/tsan
	RUSTC_BOOTSTRAP=1 DOTCOMPUTE_TSAN=1 \
		RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer -Clink-arg=-rdynamic" \
		$(CARGO) test -p dotcompute-cuda --test tsan_device \
		--target $$(rustc -vV | sed -n 's/^host: //p') --target-dir target/tsan

# The twin of the system calls for other systems, tested on this one.
portable: tools
	RUSTFLAGS="--cfg dotcompute_portable" $(CARGO) test \
		-p dotcompute-mailbox --target-dir target/portable

chaos: tools
	CHAOS_SECONDS=$(CHAOS_SECONDS) $(CARGO) test --profile deep -p dotcompute-conformance --test chaos
	CHAOS_KILLS=$(CHAOS_KILLS) CHAOS_MESSAGES=1000000 $(CARGO) test --profile deep -p dotcompute-process --test chaos

# Device sources compiled and linked for every architecture by the code that ships, and their machine
# code looked at. Takes NVIDIA's compilers (200 MB) into an environment of its own, and the package,
# whose handlers are compiled there by numba-cuda.
cuda-offline: python
	@test -x target/cuda-tools/bin/python || $(PYTHON) -m venv target/cuda-tools
	@target/cuda-tools/bin/python -m pip install --quiet --disable-pip-version-check \
		-r crates/dotcompute-cuda/tests/requirements.txt
	PYTHONPATH=python:python/tests target/cuda-tools/bin/python \
		crates/dotcompute-cuda/tests/python_handlers.py target/cuda-tools/handlers
	$(CARGO) clippy -p dotcompute-cuda --features offline --all-targets -- -D warnings
	folder=$$(echo $(CURDIR)/target/cuda-tools/lib/python3*/site-packages/nvidia/cu13); \
		DOTCOMPUTE_CUDA_LIBRARIES=$$folder/lib NVDISASM=$$folder/bin/nvdisasm \
		DOTCOMPUTE_PYTHON_HANDLERS=$(CURDIR)/target/cuda-tools/handlers \
		$(CARGO) test -p dotcompute-cuda --features offline

# Everything that the check needs, in one folder and one file: it runs where there is neither cargo nor a
# network. Its programs want x86-64 and glibc 2.34; its wheel Python 3.11 or newer, with NumPy. On the
# machine with the GPU: tar xf gpu-check.tar.gz && gpu-check/gpu-check (see --help), about ten minutes.
BUNDLE = target/gpu-check

gpu-check-bundle: venv
	@test -x target/cuda-tools/bin/python || $(PYTHON) -m venv target/cuda-tools
	@target/cuda-tools/bin/python -m pip install --quiet --disable-pip-version-check \
		-r crates/dotcompute-cuda/tests/requirements.txt
	rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)
	$(CARGO) build --release -p dotcompute-cuda --features gpu-check --bin gpu-check
	cp target/release/gpu-check $(BUNDLE)/
	$(CARGO) test --release -p dotcompute-cuda --no-run \
		--test executor --test conformance --test connected 2>$(BUNDLE)/log || { cat $(BUNDLE)/log; exit 1; }
	sed -n 's|.*Executable tests/\(.*\)\.rs (\(.*\))$$|\2 $(BUNDLE)/\1-tests|p' $(BUNDLE)/log | xargs -n 2 cp
	rm $(BUNDLE)/log
	.venv/bin/maturin build --quiet --release --out $(BUNDLE)
	strip $(BUNDLE)/gpu-check $(BUNDLE)/*-tests
	folder=$$(echo $(CURDIR)/target/cuda-tools/lib/python3*/site-packages/nvidia/cu13); \
		DOTCOMPUTE_CUDA_LIBRARIES=$$folder/lib $(BUNDLE)/gpu-check --build $(BUNDLE)
	tar -C $(BUNDLE)/.. -czf $(BUNDLE).tar.gz gpu-check

gpu-check: gpu-check-bundle
	$(BUNDLE)/gpu-check --results docs/gpu-check.jsonl --table docs/gpu-check.md

# One handler source, interpreted, compiled on a thread and in a process, over a log of a million
# messages; and compiled for sm_90 to PTX, by the compilers that `make cuda-offline` installs.
parity: python
	PARITY_MESSAGES=$(PARITY_MESSAGES) .venv/bin/python -m pytest python/tests/test_handler_parity.py
	@if test -x target/cuda-tools/bin/python; then \
		PYTHONPATH=python:python/tests target/cuda-tools/bin/python python/tests/parity_ptx.py; \
	else \
		echo "not compiled for sm_90: 'make cuda-offline' installs the compilers for that"; \
	fi

fuzz: tools
	cargo fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked --debug cargo-fuzz
	mkdir -p fuzz/corpus/wire_decode
	RUSTC_BOOTSTRAP=1 cargo fuzz run wire_decode fuzz/corpus/wire_decode fuzz/seeds/wire_decode \
		-- -max_total_time=$(FUZZ_SECONDS) -max_len=4096

tools:
	@missing=; \
	rust="install Rust 1.88 or newer (rustup.rs; the one of apt may be older)"; \
	command -v $(CARGO) >/dev/null || { echo "cargo is missing: $$rust"; exit 1; }; \
	version=$$($(CARGO) --version | cut -d " " -f 2); \
	printf '1.88\n%s\n' "$$version" | sort -VC || { echo "cargo $$version is too old: $$rust"; exit 1; }; \
	command -v cc >/dev/null || missing="$$missing build-essential"; \
	$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| missing="$$missing python3 python3-venv"; \
	if [ -n "$$missing" ]; then \
		echo "missing (Python must be 3.11 or newer): sudo apt-get install -y$$missing"; exit 1; \
	fi
