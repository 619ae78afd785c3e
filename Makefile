# `make help` lists the targets. Everything that a clean Debian 12 with Go, Python and root lacks is installed by name.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PYTHONPATH := operator:images/runtime:.
CACHE := $(or $(FINETUNE_CACHE),$(HOME)/.cache/finetune-operator)
PY := .venv/bin/python
DEVCLUSTER := tests/devcluster

##@ Two commands
.PHONY: demo test
demo: venv ## From nothing to a tuned chat answer on a real cluster on this machine
	@hack/stack.sh
	@tests/fixtures/smollm2.sh
	@$(PY) hack/demo.py

test: ## What CI runs: lint, types, layers, generated files, unit, simulation, runtime, integration, crash, end to end; not what CONTRIBUTING.md lists for a release
	@hack/test.sh

##@ Checks one by one
.PHONY: lint types layers generated unit simulate integration test-crash runtime test-kill bench-upload gpu-image gpu bench-gpu prove-gpu prove-real-text e2e e2e-kueue test-rollout
lint: venv ## ruff, shellcheck, hadolint
	@hack/lint.sh
types: venv ## mypy --strict
	@.venv/bin/mypy operator images/runtime hack tests
layers: venv ## The layers that docs/architecture.md shows
	@.venv/bin/lint-imports
generated: venv ## Generated files are up to date
	@$(PY) hack/generate.py --check
unit: venv ## Pure tests, seconds
	@.venv/bin/pytest -n 2 tests/unit
simulate: venv ## The operator in random schedules of faults; SEEDS=, COVERAGE=1; SEED=k replays one with its trace
	@$(PY) -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10000)) $(if $(COVERAGE),--coverage)
integration: venv ## Against a real API server (control plane only)
	@.venv/bin/pytest -n 3 --dist loadfile tests/integration
test-crash: venv ## The operator killed at 50 random moments: every job ends as it would have; KILLS=, SEED=
	@.venv/bin/pytest -q -s tests/crash --kills $(or $(KILLS),50) --seed $(or $(SEED),1)
runtime: venv ## The data plane with real ms-swift and a real S3 server, inside the trainer image; RUNTIME= arguments for pytest
	@hack/runtime-tests.sh -n 2 --dist loadfile $(RUNTIME) --ignore tests/runtime/test_serve_vllm.py --ignore tests/runtime/test_serve_live.py --ignore tests/runtime/test_serve_smollm2.py tests/runtime
	@hack/runtime-tests.sh tests/kill
	@.venv/bin/pytest -c tests/runtime/pytest.ini --rootdir . tests/runtime/test_serve_vllm.py tests/runtime/test_serve_live.py tests/runtime/test_serve_smollm2.py
test-kill: venv ## 40 training pods killed at any moment finish alike; KILLS=, SEED=, ONLY=k
	@hack/runtime-tests.sh -s tests/kill --kills $(or $(KILLS),40) --seed $(or $(SEED),1) $(if $(ONLY),--only $(ONLY))
bench-upload: venv ## Our upload beside s5cmd and boto3, and what it costs a training; SIZE= in GiB
	@hack/bench/upload.sh
gpu-image: ## 20 steps of training in the image that ships
	@hack/gpu-image.sh
gpu: ## The data plane on a CUDA GPU; needs the trainer's packages and VERSITYGW, see CONTRIBUTING.md
	@python3 -m pytest -c tests/runtime/pytest.ini --rootdir . tests/gpu
bench-gpu: ## Training speed and memory beside plain ms-swift and Unsloth, on a CUDA GPU; BENCH='--cards 8 12 24', see docs/benchmarks.md
	@python3 -m hack.bench.gpu $(BENCH)
prove-gpu: ## On a CUDA GPU: the fast path is exact, learns and fits; PROOFS='exactness learning predictions step-down shutdown', or two-gpus
	@python3 -m hack.bench.gpu.prove $(or $(PROOFS),exactness learning predictions step-down shutdown)
prove-real-text: venv ## On the CPU, half an hour or more: SmolLM2-135M on real text ends at the same loss on the fast path and without
	@hack/bench/real-text.sh
e2e: venv ## The whole system on the development cluster; E2E= arguments for pytest
	@hack/stack.sh
	@.venv/bin/pytest tests/e2e --ignore tests/e2e/test_kueue.py $(E2E)
e2e-kueue: venv ## The same with the real Kueue: quota, preemption, suspension
	@hack/stack.sh
	@.venv/bin/pytest tests/e2e/test_kueue.py
test-rollout: venv ## An endpoint rolls forward and back under traffic on the development cluster: no request fails; REPLICAS=
	@hack/stack.sh
	@.venv/bin/pytest -q -s tests/rollout --replicas $(or $(REPLICAS),2)

##@ Development cluster
.PHONY: cluster-up cluster-down cluster-status kubeconfig stack demo-down
cluster-up: ## Start a single-node Kubernetes on this machine
	@$(DEVCLUSTER)/install && $(DEVCLUSTER)/build && $(DEVCLUSTER)/up
cluster-down: ## Stop it: no process, mount or namespace stays; images and caches stay in ~/.cache/finetune-operator
	@$(DEVCLUSTER)/down
cluster-status: ## What runs in it
	@$(DEVCLUSTER)/status
kubeconfig: ## Path for KUBECONFIG
	@$(DEVCLUSTER)/kubeconfig
stack: venv ## Cluster, images, S3 server and operator, brought up to date
	@hack/stack.sh
demo-down: cluster-down ## End the demo: the cluster and everything in it; images and caches stay, as with cluster-down

##@ Making things
.PHONY: venv images generate lock format clean-cache
venv: ## Development environment in .venv
	@hack/venv.sh
images: ## The images of the development cluster
	@images/build.sh
generate: venv ## CRDs, chart CRDs, install.yaml, API reference
	@$(PY) hack/generate.py
lock: venv ## Lock files anew
	@hack/lock.sh
format: venv ## Format the code
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix --quiet .
clean-cache: ## Drop old images
	@images/prune.sh

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
