# Development tasks: `make help` lists them. Every task installs the project into .venv first, once.
#
# PYTHON=path   another Python (3.11 or later) for .venv
# TORCH='...'   pip's requirement for torch, e.g. TORCH='torch==2.13.0 --index-url URL' for a CPU or another CUDA build

SHELL := /bin/bash -euo pipefail
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
TORCH ?= torch==2.13.0
OUT ?= out/train
LOGDIR ?= out
# of make reproduce
REPRODUCED = $(if $(filter file,$(origin OUT)),out/reproduce,$(OUT))
SEED ?= 1
WORDS ?= 30000
MODEL ?= imdb
PORT ?= 8000
PROMETHEUS_PORT ?= 9090
GRAFANA_PORT ?= 3000
READY := .venv/.installed
RUN := .venv/bin/python
BIN := .venv/bin
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet
# test splits in DATA, if it has any
TEST_SPLIT = $(wildcard $(addprefix $(DATA)/,test test.* test-* *[-_.]test.*)) $(filter imdb %.tar.gz,$(DATA))
TESTS_OF_SERVING := tests/serve
TESTS_WITHOUT_RAY := tests $(addprefix --ignore=,tests/on_ray tests/chaos $(TESTS_OF_SERVING))

CLUSTER ?= cluster.yaml
NODES ?= 3
CPUS ?= 2
# exports for the cluster: RAY_API_SERVER_ADDRESS if it is set, else the cluster on this machine, else the one that `make attach` forwards
CLUSTER_ENV = eval "$$($(RUN) -m deploy env)"

.PHONY: help setup check format test everyday demo train reproduce serve watch tensorboard jupyter wheel check-wheel numbers reference \
	clean chaos-batch chaos-serve chaos-tune chaos-cluster chaos-watch soak bench bench-online bench-scaling \
	cluster cluster-down doctor up down attach status submit logs stop-job

help: ## List all tasks
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | while IFS='|' read -r task help; do printf '%-18s %s\n' "$$task" "$$help"; done

setup: $(READY) ## Create .venv and install everything into it; PYTHON=... and TORCH=... choose other builds

# torch alone first, so that no open range of another package brings a different one
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later on the path: install one, or give PYTHON=path" >&2; exit 2; }
	@echo "Installing into .venv (a few minutes, once)"
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) -c constraints.txt -e '.[dev]'
	@echo "Compiling the kernels (half a minute, once)"
	@$(RUN) -c "import han; han.load('imdb').score(['It works.'])"
	@touch $@

check: $(READY) ## Check the code: ruff, its formatter, mypy, and the imports between packages
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(BIN)/lint-imports --no-cache

format: $(READY) ## Format the code and fix what ruff can fix
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

test: $(READY) ## Run all tests: without Ray (a minute), the API and its page in a browser (a minute), on Ray (minutes)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --durations=5 $(TESTS_WITHOUT_RAY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --durations=5 $(TESTS_OF_SERVING)
	$(RUN) -m pytest -q --timeout 600 --durations=5 tests/on_ray

everyday: $(READY) ## Run the everyday steps and typical errors of five kinds of user, some minutes [ARGS='--only score']
	$(RUN) -m tests.everyday $(ARGS)

demo: $(READY) ## Try it in two minutes: train on generated reviews, score the bundled ones, write attention.html
	$(RUN) -m jobs.demo

train: $(READY) ## Train and evaluate a model from raw reviews: DATA=path [OUT=out/train] [WORKERS=2] [PREPARE='--flags'] [ARGS='--train flags']
	@test -n "$(DATA)" || { echo "make train needs DATA: a folder, a file or an archive of reviews, e.g. make train DATA=sample" >&2; exit 2; }
	$(RUN) -m jobs.prepare --input "$(DATA)" --out "$(OUT)/data" $(PREPARE)
	$(RUN) -m jobs.train --data "$(OUT)/data" --out "$(OUT)/run" $(if $(WORKERS),--train.num-workers $(WORKERS)) $(ARGS)
	$(if $(strip $(TEST_SPLIT)),$(RUN) -m jobs.evaluate --model "$(OUT)/run" --data "$(DATA)" --out "$(OUT)/evaluation",@echo \
	"no test split in $(DATA); with labelled reviews kept apart: $(RUN) -m jobs.evaluate --model $(OUT)/run --data REVIEWS --out $(OUT)/evaluation")

reproduce: $(READY) ## Train the shipped model from raw reviews, resumable, about an hour on 2 cores: DATA=path [OUT=out/reproduce] [SEED=1] [WORKERS=2] [WORDS=30000]
	@test -n "$(DATA)" || { echo "make reproduce needs DATA: a folder or an archive of reviews, e.g. make reproduce DATA=imdb" >&2; exit 2; }
	$(RUN) -m jobs.prepare --input "$(DATA)" --out "$(REPRODUCED)/data"
	$(RUN) -m jobs.train --data "$(REPRODUCED)/data" --out "$(REPRODUCED)/run-$(SEED)" --train.semi-supervised --train.seed $(SEED) \
	$(if $(WORKERS),--train.num-workers $(WORKERS)) --semi-supervised.stages "$(REPRODUCED)/stages"
	@test -e "$(REPRODUCED)/artifact-$(SEED)" || $(RUN) -m jobs.trim --model "$(REPRODUCED)/run-$(SEED)" --data "$(REPRODUCED)/data" \
	--out "$(REPRODUCED)/artifact-$(SEED)" --num-words $(WORDS)
	@echo "next, once: $(RUN) -m jobs.evaluate --model $(REPRODUCED)/artifact-$(SEED) --data TEST-REVIEWS --out $(REPRODUCED)/evaluation-$(SEED)"

serve: $(READY) ## Serve a model on http://127.0.0.1:8000, page and API: [MODEL=imdb] [PORT=8000] [ARGS='--num-replicas 2']
	$(RUN) -m jobs.serve --model "$(MODEL)" --port $(PORT) $(ARGS)

watch: $(READY) ## Start Prometheus and Grafana for Ray and the service on this machine: [PROMETHEUS_PORT=9090 GRAFANA_PORT=3000 ARGS='--service HOST:PORT']
	$(RUN) -m deploy.watch --prometheus-port $(PROMETHEUS_PORT) --grafana-port $(GRAFANA_PORT) $(ARGS)

tensorboard: $(READY) ## Show the training curves of all runs under out/, or LOGDIR=path
	$(RUN) -m tensorboard.main --logdir "$(LOGDIR)"

jupyter: $(READY) ## Open the notebook that draws attention on a review
	$(RUN) -m jupyter lab notebooks/explore.ipynb

wheel: $(READY) ## Build the wheel into dist/
	$(RUN) -m build --wheel --outdir dist .

check-wheel: $(READY) ## Build the wheel, install it in an empty environment and score a review there, a minute
	$(RUN) -m tests.everyday.wheel

numbers: $(READY) ## Render docs/numbers.md from docs/numbers/*.json
	$(RUN) -m benchmarks.numbers

reference: $(READY) ## Render docs/reference.md from the code
	$(RUN) -m benchmarks.reference

chaos-batch: $(READY) ## Test the guarantees of batch scoring by killing its processes, about 12 minutes [ARGS='--seed N --only D1']
	$(RUN) -m tests.chaos.readers
	$(RUN) -m tests.chaos.batch $(ARGS)

chaos-serve: $(READY) ## Test the guarantees of the service by killing its replicas [ARGS='--only R1']
	$(RUN) -m tests.chaos.serve $(ARGS)

chaos-tune: $(READY) ## Test the guarantees of sweeps: killed drivers, failing trials, two nodes [ARGS='--seed N --only kills']
	$(RUN) -m tests.chaos.tune $(ARGS)

chaos-watch: $(READY) ## Test with a real Prometheus (must be installed) that every panel of the dashboard shows data
	$(RUN) -m tests.chaos.watch

chaos-cluster: $(READY) ## Kill one of three nodes during training, a sweep, scoring and serving, about 7 minutes [ARGS='--seed N --only C1 C2']
	$(RUN) -m tests.chaos.cluster $(ARGS)

soak: $(READY) ## Score 200,000 reviews and check that memory and speed stay constant [ARGS='--data FILE']
	$(RUN) -m benchmarks.soak $(ARGS)

bench: $(READY) ## Measure the speed of every step beside baselines, about 10 minutes on an idle machine: DATA=file.parquet [ARGS=--record]
	@test -n "$(DATA)" || { echo "make bench needs DATA: Parquet with a column text, such as IMDB's test split" >&2; exit 2; }
	$(PIP) -c constraints.txt onnx onnxruntime
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.speed --data "$(DATA)" $(ARGS)

bench-online: $(READY) ## Measure requests/s and latency of the service beside a no-op [ARGS='--data FILE']
	$(RUN) -m benchmarks.online $(ARGS)

bench-scaling: $(READY) ## Measure scoring and training on 1, 2 and 4 processes and write docs/scale.md, 8 minutes on an idle machine [ARGS='--data FILE']
	$(RUN) -m benchmarks.scaling $(ARGS)

cluster: $(READY) ## Start a cluster of several nodes on this machine: [NODES=3] [CPUS=2] for each node
	$(RUN) -m deploy up --nodes $(NODES) --cpus $(CPUS)

cluster-down: $(READY) ## Stop the cluster on this machine
	$(RUN) -m deploy down

up: $(READY) ## Start or update a remote cluster: [CLUSTER=cluster.yaml]
	@! grep -Hn SET-ME $(CLUSTER) || { echo "fill in what is marked SET-ME" >&2; exit 2; }
	@test -s ~/.ray/auth_token || $(BIN)/ray get-auth-token --generate >/dev/null
	@chmod 600 ~/.ray/auth_token
	$(BIN)/ray up $(CLUSTER) --yes

down: $(READY) ## Stop the remote cluster and all its machines: [CLUSTER=...]
	$(BIN)/ray down $(CLUSTER) --yes

attach: $(READY) ## Open a shell on the remote head and forward its dashboard to http://127.0.0.1:8265: [CLUSTER=...]
	RAY_AUTH_MODE=token $(BIN)/ray attach $(CLUSTER) --port-forward 8265

doctor: $(READY) ## Check whether jobs fit the cluster: [ARGS='--data path --train.num-workers 8']
	@$(CLUSTER_ENV) && $(RUN) -m deploy reach && $(BIN)/ray job submit --working-dir . -- python -m jobs.doctor $(ARGS)

submit: $(READY) ## Run a job on the cluster: JOB=train ARGS='--data path --out path' [WAIT=--no-wait]
	@test -n "$(JOB)" || { echo "make submit needs JOB: prepare, train, tune, evaluate, score, verify, doctor, e.g. make submit JOB=doctor" >&2; exit 2; }
	@$(CLUSTER_ENV) && $(RUN) -m deploy reach && $(BIN)/ray job submit --working-dir . $(WAIT) -- python -m jobs.$(JOB) $(ARGS)

status: $(READY) ## Show the nodes and jobs of the cluster
	@$(CLUSTER_ENV) && $(RUN) -m deploy reach && $(BIN)/ray list nodes --address "$$RAY_API_SERVER_ADDRESS" && $(BIN)/ray job list

logs: $(READY) ## Follow the output of a submitted job: ID=raysubmit_...
	@test -n "$(ID)" || { echo "make logs needs ID: make status lists them" >&2; exit 2; }
	@$(CLUSTER_ENV) && $(RUN) -m deploy reach --job-id "$(ID)" && $(BIN)/ray job logs --follow $(ID)

stop-job: $(READY) ## Stop a submitted job; the same command resumes it: ID=raysubmit_...
	@test -n "$(ID)" || { echo "make stop-job needs ID: make status lists them" >&2; exit 2; }
	@$(CLUSTER_ENV) && $(RUN) -m deploy reach --job-id "$(ID)" && $(BIN)/ray job stop $(ID)

clean: ## Remove .venv, caches and builds; trained models in out/ are kept
	if [ -e $(READY) ]; then rm -rf .venv; fi
	rm -rf build dist han_on_ray.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find han jobs serve tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
