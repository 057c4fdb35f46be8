# Sworn: the commands a person or CI runs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Shared by checkouts and CI: the GPU crates take minutes to build once.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sworn/target
export SWORN_ROOT := $(CURDIR)

FORGE := node_modules/.bin/forge
# Arguments for `sworn demo`: DEMO_ARGS="--lie MIX --seed 3", DEMO_ARGS=--json
DEMO_ARGS ?=
# Arguments for `sworn bench`: BENCH_ARGS=--quick
BENCH_ARGS ?=
# Arguments for nextest: TEST_ARGS="-p sworn-isa"
TEST_ARGS ?=

.PHONY: help
help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Honest answers paid, by job and by receipt, lies proven wrong on chain (DEMO_ARGS="--lie MIX --seed 3", --json)
	@script/demo $(DEMO_ARGS)

.PHONY: test
test: ## Every test: contracts, Rust, end to end
	@script/test $(TEST_ARGS)

.PHONY: test-long
test-long: ## The same, with far more of everything that is random (an hour or more)
	@SWORN_LONG=1 script/test $(TEST_ARGS)

.PHONY: bench
bench: ## Measure this machine beside llama.cpp, rewrite docs/benchmarks.md (BENCH_ARGS="--quick")
	@script/bench $(BENCH_ARGS)

.PHONY: setup
setup: ## Install what is missing (npm packages, cargo-nextest, software Vulkan)
	@script/setup --test

.PHONY: build
build: ## Build the page, contracts and programs
	@script/setup
	$(FORGE) build
	cargo build --locked --workspace --bins

.PHONY: lint
lint: node_modules/.sworn-lock ## Formatting and lints, as CI expects them
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	node_modules/.bin/svelte-check --tsconfig page/tsconfig.json
	$(FORGE) fmt --check

.PHONY: analyse
analyse: node_modules/.sworn-lock ## Static analysis (slither) and proofs for every input (halmos) of the contracts
	script/analyse slither
	script/analyse halmos

.PHONY: fuzz
fuzz: ## Decoders under libFuzzer, a minute each (script/fuzz SECONDS TARGET for one)
	script/fuzz

.PHONY: deny
deny: ## Licences, sources and known faults of every dependency (cargo-deny)
	@cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny --version 0.20.2
	cargo deny check

.PHONY: fmt
fmt: node_modules/.sworn-lock ## Format everything
	cargo fmt --all
	$(FORGE) fmt

.PHONY: gas
gas: node_modules/.sworn-lock ## Compare gas with the committed snapshot
	FORGE_SNAPSHOT_CHECK=true $(FORGE) test

.PHONY: gas-update
gas-update: node_modules/.sworn-lock ## Rewrite the gas snapshot
	$(FORGE) test

.PHONY: clean
clean: ## Remove what forge built (Rust's target directory is shared: cargo clean removes it)
	rm -rf out cache broadcast

node_modules/.sworn-lock: package-lock.json
	script/setup
