# Every command a person needs. `make help` lists them.
# An interpreter from 3.11 to 3.13; setup.sh finds one by itself.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
# vLLM for the machine: with an NVIDIA driver the one that needs a GPU.
SERVE ?= $(if $(shell command -v nvidia-smi),serve,serve-cpu)
RELEASES ?= runs/vllm-releases

.DEFAULT_GOAL := help
.PHONY: help demo install serve chat test test-slow test-full-size test-gpu test-tpu test-tpu-small compat compat-engines lint ablate bench bench-data bench-labels \
  bench-serving bench-training bench-signals bench-random-labels bench-variants bench-certificate bench-families bench-field \
  bench-full-size continuation soak layouts features plan-all docs figures tiny-reasoner tiny-mixed format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo-ready  ## Run the whole pipeline on the tiny reasoner (QUICK=1 for a smaller one)
	@$(BIN)/specexit demo quick=$(if $(filter-out 0 no false,$(QUICK)),true,false)

install: $(VENV)/.demo-ready  ## Set up .venv for every command; `. .venv/bin/activate` then puts specexit on the path

serve: $(VENV)/.demo-ready  ## Serve the draft of `make demo` on port 8000
	@SPECEXIT_SERVING='{"routes": ["reports", "interrupt"]}' $(BIN)/specexit serve draft=runs/demo/draft

chat: $(VENV)/.demo-ready  ## Ask the server of `make serve`, and watch it think
	@$(BIN)/specexit chat

test: $(VENV)/.dev-ready  ## Run the tests, real vLLM engines included (test-slow: what it leaves out)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(VENV)/.dev-ready  ## Run what `make test` leaves out of pairs of tests that start engines, 20 kills of a `collect`, and `make soak`
	@SPECEXIT_SLOW=1 SPECEXIT_KILLS=1 SPECEXIT_SOAK=$${SPECEXIT_SOAK:-1200} OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/test_schedulers.py tests/serving/test_faults.py \
	  tests/serving/test_server.py tests/serving/test_kubernetes.py tests/serving/test_bench_serving.py \
	  tests/serving/test_starting.py tests/serving/test_engine.py tests/serving/test_corners.py \
	  tests/serving/test_kernel.py tests/torch/test_collect.py tests/torch/test_collecting_faults.py \
	  tests/serving/test_engine_v2.py tests/shared/test_memory.py tests/shared/answers/test_any_text.py \
	  tests/parity/test_tiny_mixed.py tests/parity/test_bench_training.py tests/jax/test_train.py tests/jax/test_jobs.py \
	  tests/serving/test_soak.py $(ARGS)

test-full-size: $(VENV)/.dev-ready  ## Run every command on a stand-in of the size of Qwen3-0.6B, and convert at 8B's size (minutes, 10 GB)
	@SPECEXIT_FULL_SIZE=1 $(BIN)/python -m pytest tests/e2e/test_stand_in.py tests/torch/test_stand_in.py \
	  tests/serving/test_bench_full_size.py tests/shared/test_full_size.py $(ARGS)

test-gpu: $(VENV)/.dev-ready  ## Run the tests that need an NVIDIA GPU
	@$(BIN)/python -m pytest -m gpu $(ARGS)

compat: $(VENV)/.dev-ready  ## Check the hooks against the sources of released vLLM versions (downloads 0.9 GB)
	@$(BIN)/python tests/serving/fetch_releases.py $(RELEASES)
	@SPECEXIT_RELEASES=$(RELEASES) $(BIN)/python -m pytest tests/serving/test_releases.py

compat-engines: $(VENV)/.dev-ready  ## Run engines of other vLLM versions (two environments of 3 GB, and sources)
	@$(BIN)/python -m tests.serving.release_engines runs/vllm-engines

lint: $(VENV)/.dev-ready  ## Check style (ruff), types (pyright) and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT=1 $(BIN)/pyright
	@$(BIN)/python -m pytest -q tests/shared/test_imports.py

docs: $(VENV)/.dev-ready  ## Build the documentation as a site in runs/site, its links checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean -f configs/site/mkdocs.yml

figures: $(VENV)/.demo-ready  ## Write README's and the docs' tables and pictures anew from the results in runs; says what is absent
	@$(BIN)/python -m specexit.report.regenerate

format: $(VENV)/.dev-ready  ## Format the code and apply safe fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.demo-ready  ## Measure the methods again on the draft that `make demo` trained
	@$(BIN)/specexit bench configs/bench/tiny-reasoner.yaml out=runs/bench-$$(date +%Y%m%d-%H%M%S)

bench-serving: $(VENV)/.demo-ready  ## Measure what the plug-in costs where no exit fires, at 0.6B, after `make demo` (TINY=1: in the tiny reasoner)
ifneq ($(filter-out 0 no false,$(TINY)),)
	@$(BIN)/specexit bench-serving configs/bench/serving-tiny.yaml
else
	@rm -rf runs/stand-in/serving # may be of an earlier demo's draft
	@$(BIN)/specexit stand-in target=tiny-reasoner shape=qwen3-0.6b draft=runs/demo/draft out=runs/stand-in/serving
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} $(BIN)/specexit bench-serving configs/bench/serving.yaml
endif

bench-data: $(VENV)/.demo-ready  ## Measure annotate and pack on a generated corpus (TRACES=20000 for the large one)
	@$(BIN)/specexit bench-data configs/bench/data.yaml $(if $(TRACES),traces=$(TRACES))

bench-labels: $(VENV)/.demo-ready  ## Measure trials at boundaries against one prefix at a time
	@$(BIN)/specexit bench-labels configs/bench/labels.yaml
	@$(BIN)/specexit bench-labels configs/bench/labels-short-steps.yaml

bench-training: $(VENV)/.dev-ready  ## Measure a training step against speculators, and the memory of the attention
	@$(BIN)/specexit bench-training configs/bench/training.yaml
	@! grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo || \
	  $(BIN)/specexit bench-training configs/bench/training.yaml dtype=bfloat16 length=4096 loss_chunk=32 \
	  out=runs/bench/training-bfloat16.json

SAMPLED := temperature=0.6 top_p=0.95 top_k=20

CERTIFICATE := runs/certificate
bench-certificate: $(VENV)/.demo-ready  ## How often certificates are broken, drawn from 2 x 2,600 problems (needs `make demo`)
	@$(BIN)/specexit collect target=tiny-reasoner split=test n=2600 temperature=0 out=$(CERTIFICATE)/greedy
	@$(BIN)/specexit collect target=tiny-reasoner split=test n=2600 seed=1 $(SAMPLED) \
	  out=$(CERTIFICATE)/sampled
	@for traces in greedy sampled; do for draft in draft draft-fc; do \
	  $(BIN)/specexit score draft=runs/demo/$$draft traces=$(CERTIFICATE)/$$traces \
	    out=$(CERTIFICATE)/scores-$$traces-$$draft || exit 1; \
	done; done
	@$(BIN)/specexit bench-certificate configs/bench/certificate.yaml

# A training step of the demo's recipes is of one row, which several chips could not share; as in `make demo`.
ON_CPU := JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu}

bench-signals: $(VENV)/.demo-ready  ## Train the demo's draft with and without signals, three seeds (needs `make demo`)
	@$(ON_CPU) $(BIN)/specexit bench-recipe configs/bench/signals.yaml

bench-random-labels: $(VENV)/.demo-ready  ## The same on labels that cannot be learned, three seeds (needs `make demo`)
	@$(ON_CPU) $(BIN)/specexit bench-recipe configs/bench/random-labels.yaml

bench-variants: $(VENV)/.demo-ready  ## Train the demo's draft in bfloat16, from an int8 target, ...: three seeds (hours; needs `make demo`)
	@$(ON_CPU) $(BIN)/specexit bench-recipe configs/bench/variants.yaml
	@$(ON_CPU) $(BIN)/specexit bench-recipe configs/bench/unknown.yaml

ABLATE := runs/ablate
CONNECTORS := $(ABLATE)/connectors
ablate: $(VENV)/.demo-ready  ## What each choice of the method is worth, by replay and by training (two hours; needs `make demo`)
	@test -e $(ABLATE)/packed-truncated || $(BIN)/specexit pack traces=runs/demo/labelled/draft length=768 \
	  truncate=true out=$(ABLATE)/packed-truncated
	@test -e $(ABLATE)/packed-stable || $(BIN)/specexit pack traces=runs/demo/labelled/draft length=768 \
	  exit_point=stable out=$(ABLATE)/packed-stable
	@for n in 350 700; do test -e $(ABLATE)/packed-$$n || $(BIN)/specexit pack traces=runs/demo/labelled/draft length=768 \
	  n=$$n out=$(ABLATE)/packed-$$n || exit 1; done
	@$(BIN)/specexit collect target=tiny-connectors out=$(CONNECTORS)/traces parts.draft.split=draft parts.draft.n=1400 \
	  parts.calibration.split=calibration parts.calibration.n=800
	@for split in draft calibration; do test -e $(CONNECTORS)/labelled/$$split || $(BIN)/specexit annotate \
	  traces=$(CONNECTORS)/traces/$$split out=$(CONNECTORS)/labelled/$$split || exit 1; done
	@test -e $(CONNECTORS)/packed || $(BIN)/specexit pack traces=$(CONNECTORS)/labelled/draft length=768 \
	  out=$(CONNECTORS)/packed
	@$(ON_CPU) $(BIN)/specexit ablate configs/bench/ablate.yaml

bench-field: $(VENV)/.demo-ready  ## Measure every method, greedy and sampled; goes on where it stopped (hours; needs `make demo`)
	@$(BIN)/specexit collect target=tiny-reasoner split=test n=1000 out=runs/field/traces
	@$(BIN)/specexit score draft=runs/demo/draft traces=runs/field/traces out=runs/field/scores
	@$(BIN)/specexit collect target=tiny-reasoner split=calibration n=2000 $(SAMPLED) out=runs/field/calibration
	@for at in draft:0.01 draft-fc:0.03; do draft=$${at%:*}; $(BIN)/specexit score draft=runs/demo/$$draft \
	  traces=runs/field/calibration out=runs/field/calibration-scores/$$draft && \
	  rm -rf runs/field/$$draft && cp -r runs/demo/$$draft runs/field && \
	  $(BIN)/specexit calibrate draft=runs/field/$$draft traces=runs/field/calibration \
	  scores=runs/field/calibration-scores/$$draft risk=accuracy_lost epsilon=$${at#*:} || exit 1; done
	@$(BIN)/specexit bench configs/bench/field.yaml
	@$(BIN)/specexit bench configs/bench/field-sampled.yaml
	@$(BIN)/specexit bench-replay bench=runs/field/greedy traces=runs/field/traces draft=runs/demo/draft \
	  scores=runs/field/scores out=runs/field/replay.json
	@$(BIN)/specexit ablate traces=runs/field/traces scores.draft=runs/field/scores out=runs/field/ablations
	@$(FIELD_REPORT) bench=runs/field/greedy draft=runs/demo/draft replay=runs/field/replay.json \
	  $(addprefix full_size=,$(wildcard runs/bench/full-size.json)) out=runs/field/greedy.html
	@$(FIELD_REPORT) bench=runs/field/sampled draft=runs/field/draft out=runs/field/sampled.html

FIELD_REPORT = $(BIN)/specexit report traces=runs/field/traces scores=runs/field/scores \
  simulation=runs/field/greedy/simulation.json ablations=runs/field/ablations/ablations.json

bench-families: $(VENV)/.demo-ready  ## The demo on tiny-mixed: results by family, on one of which nothing can be cut
	@$(BIN)/specexit demo target=tiny-mixed out=runs/families quick=$(if $(filter-out 0 no false,$(QUICK)),true,false)

bench-full-size: $(VENV)/.demo-ready  ## Measure at the size of Qwen3-0.6B, on a stand-in (SHAPE=... for another; needs `make demo`)
	@$(BIN)/specexit bench-full-size configs/bench/full-size.yaml $(if $(SHAPE),shape=$(SHAPE)) $(ARGS)

soak: $(VENV)/.dev-ready  ## A server for twenty minutes under load, reloads, weight updates and preemption
	@SPECEXIT_SOAK=$${SPECEXIT_SOAK:-1200} OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/test_load.py \
	  tests/serving/test_soak.py -s $(ARGS)

continuation: $(VENV)/.dev-ready  ## 1,500 exits on every runner and scheduler, each checked against plain vLLM
	@SPECEXIT_CONTINUATION=1 $(BIN)/python -m pytest tests/serving/test_continuation.py -s $(ARGS)

layouts: $(VENV)/.dev-ready  ## A draft of every published layout in vLLM, against JAX and PyTorch (half an hour)
	@SPECEXIT_LAYOUTS=1 $(BIN)/python -m pytest tests/serving/test_layouts_in_vllm.py -s $(ARGS)

features: $(VENV)/.dev-ready  ## Train on stored features against online ones: what each storage type changes (minutes)
	@SPECEXIT_FEATURES=1 $(BIN)/python -m pytest tests/parity/test_features.py -s $(ARGS)

WITH_TPU = PYTHONPATH="$(abspath $(VENV)-tpu)$${PYTHONPATH:+:$$PYTHONPATH}" $(BIN)/python

test-tpu-small: $(VENV)-tpu/.ready  ## Compile the programs of a small model for a TPU slice, no TPU needed (minutes)
	@$(WITH_TPU) -m pytest tests/jax/test_plan.py -m small -n logical $(ARGS)

test-tpu: $(VENV)-tpu/.ready  ## Compile small and middling programs for TPU slices, no TPU needed (minutes)
	@$(WITH_TPU) -m pytest tests/jax/test_plan.py $(ARGS)

plan-all: $(VENV)-tpu/.ready  ## Compile every full-size recipe for its TPU slice, no TPU needed; writes the docs' table (minutes each)
	@SPECEXIT_PLAN_ALL=1 $(WITH_TPU) -m pytest tests/jax/test_plan.py -k every -s $(ARGS)
	@$(BIN)/python -m jax_specexit.planning.page docs/planning.md runs/plans/*/plan.json

# As `specexit demo` sets it, and says why.
ALLOCATOR := MALLOC_MMAP_THRESHOLD_=100000000000 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=500000000

tiny-reasoner: $(VENV)/.demo-ready  ## Train the embedded target again from nothing (about 15 minutes)
	@$(ALLOCATOR) $(BIN)/python -m jax_specexit.tiny_reasoner

TRAIN_MIXED = $(ALLOCATOR) \
  $(BIN)/python -m jax_specexit.tiny_reasoner problems=mixed optimizer.muon_rate=0.01 optimizer.adam_rate=0.0015

tiny-mixed: $(VENV)/.demo-ready  ## Train the second embedded target, on from the first, in three stages (15 minutes)
	@$(TRAIN_MIXED) init_from=shared/specexit/tiny/model out=runs/tiny-mixed tokens=1670000 curriculum=0 \
	  optimizer.warmup=0.1 optimizer.decay=0.002
	@$(TRAIN_MIXED) init_from=runs/tiny-mixed out=runs/tiny-mixed tokens=1000000 curriculum=0 batch_tokens=2048 seed=1 \
	  optimizer.warmup=0 optimizer.decay=1
	@$(TRAIN_MIXED) init_from=runs/tiny-mixed out=shared/specexit/tiny/mixed tokens=700000 curriculum=0.4 \
	  batch_tokens=1536 bucket=96 seed=2 optimizer.warmup=0.03 optimizer.decay=0.7

clean:  ## Remove the virtual environments; runs are kept
	rm -rf $(VENV) $(VENV)-tpu

# Stamps: the demo needs no linters and no independent peers. The TPU compiler (0.7 GB) has a folder of its own, because
# vLLM finds two platforms and starts on neither where libtpu is installed beside it.
$(VENV)/.demo-ready: pyproject.toml constraints.txt setup.sh
	@PYTHON="$(PYTHON)" ./setup.sh $(VENV) train,$(SERVE)
	@touch $@

$(VENV)/.dev-ready: pyproject.toml constraints.txt setup.sh
	@PYTHON="$(PYTHON)" ./setup.sh $(VENV) train,$(SERVE),dev
	@touch $(VENV)/.demo-ready $@

$(VENV)-tpu/.ready: $(VENV)/.dev-ready
	@rm -rf $(VENV)-tpu
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt \
	  --target $(VENV)-tpu libtpu
	@touch $@
