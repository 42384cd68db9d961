.DEFAULT_GOAL := help
SHELL := bash
# The python3 on the path, unless that one is slow and the distribution's will do.
PYTHON ?= $(or $(shell python3 -I stack/interpreter.py),python3)
VENV := .venv
BIN := $(VENV)/bin
# How many test files run at once: much of a test is waiting.
WORKERS ?= 2
export PYTHONPATH := $(CURDIR):$(CURDIR)/protos

PROTOS := $(sort $(wildcard protos/coupon/v1/*.proto))
# Those of the code folders that have code.
CODE := $(patsubst %/,%,$(sort $(dir $(wildcard $(addsuffix /*.py,services migrations stack checker demo bench chaos firstcome baseline examples deploy/image deploy/observability tests)))))
GOOGLE_PROTOS = $$(echo $(CURDIR)/$(VENV)/lib/python3*/site-packages)
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iprotos -I$(GOOGLE_PROTOS)
# What lint-contract checks, and what that must not break: the contract as the last release had it.
CONTRACT ?= protos
RELEASED := released/protos
# $(call image,ROOT,FILE): the contract under ROOT, compiled.
image = (cd $(1) && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I. -I$(GOOGLE_PROTOS) \
  --include_imports --include_source_info --descriptor_set_out=$(2) coupon/v1/*.proto)

$(VENV)/.ready: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "firstcome needs Python 3.11 or later; set PYTHON=python3.x")'
	@echo "installing into $(VENV), with $(PYTHON) …" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	@touch $@

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: $(VENV)/.ready ## the whole path on real Kafka and PostgreSQL, then a verification
	@$(BIN)/python -m demo $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.ready ## faults in the middle of a rush, and the checker's verdict on each (ARGS="--seed 7 ledger-killed")
	@$(BIN)/python -m chaos $(ARGS)

.PHONY: up
up: $(VENV)/.ready ## start everything in the background on the usual ports (KEEP=1: with the data of last time; OBSERVE=1: Prometheus, too; ARGS=--free-ports: on others)
	@$(BIN)/python -m stack up $(ARGS)

.PHONY: down
down: $(VENV)/.ready ## stop what `make up` started
	@$(BIN)/python -m stack down

.PHONY: cli
cli: $(VENV)/.ready ## make .venv/bin/firstcome, the operators' command line
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m firstcome "$$@"\n' "$$PYTHONPATH" "$(CURDIR)/$(BIN)/python" > $(BIN)/firstcome
	@chmod +x $(BIN)/firstcome

.PHONY: test
test: $(VENV)/.ready ## all tests, or those in ARGS="tests/unit -k name"; two at a time, each with a stack of its own
	@$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0 $(ARGS)

.PHONY: lint
lint: $(VENV)/.ready lint-contract ## style, types, who may import whom, the contract, generated code, deploy/k8s
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(CODE)
	@$(BIN)/lint-imports
	@$(BIN)/python -m deploy.observability.dashboards --check
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	  $(PROTOC) --python_out="$$fresh" --pyi_out="$$fresh" --grpc_python_out="$$fresh" $(PROTOS) && \
	  diff --recursive --brief --exclude='*.proto' --exclude=__pycache__ "$$fresh" protos || \
	  { echo "the code beside the .proto files is stale: run make proto" >&2; exit 1; }
	@$(BIN)/pytest --quiet tests/deploy

.PHONY: image
image: ## the image of all services, localhost/firstcome:dev, by docker or buildah (IMAGE_ARGS="--build-arg …")
	@if command -v docker >/dev/null && docker info >/dev/null 2>&1; then docker build $(IMAGE_ARGS) -t localhost/firstcome:dev .; \
	  else buildah bud $(IMAGE_ARGS) -t localhost/firstcome:dev .; fi

.PHONY: lint-contract
lint-contract: $(VENV)/.ready ## the contract's style, and that it breaks no client of the last release
	@images=$$(mktemp -d) && trap 'rm -rf "$$images"' EXIT && \
	  $(call image,$(CONTRACT),$$images/now.binpb) && $(call image,$(RELEASED),$$images/released.binpb) && \
	  $(BIN)/buf lint $$images/now.binpb && \
	  { $(BIN)/buf breaking $$images/now.binpb --against $$images/released.binpb || \
	    { echo "this breaks clients of the last release, whose contract is in $(RELEASED)" >&2; exit 1; }; }

.PHONY: release-proto
release-proto: ## at a release: from now on protos/ and what HEAD does are what later changes must not break
	@rm -rf $(RELEASED) && mkdir -p $(RELEASED)/coupon/v1 && cp $(PROTOS) $(RELEASED)/coupon/v1/
	@git rev-parse HEAD >released/VERSION

.PHONY: bench
bench: $(VENV)/.ready ## measure both systems, each figure beside its limit: build/bench (20 min; ARGS=--update-docs)
	@$(BIN)/python -m bench $(ARGS)

.PHONY: bench-ledger
bench-ledger: $(VENV)/.ready ## of these, how fast the ledger drains a backlog
	@$(BIN)/python -m bench --only ledger $(ARGS)

.PHONY: bench-unary
bench-unary: $(VENV)/.ready ## of these, how fast unary IssueCoupon is
	@$(BIN)/python -m bench --only unary $(ARGS)

.PHONY: dashboards
dashboards: $(VENV)/.ready ## write what is generated of deploy/observability again: Grafana dashboards, PrometheusRule
	@$(BIN)/python -m deploy.observability.dashboards
	@$(BIN)/python -m deploy.observability.prometheusrule

.PHONY: proto
proto: $(VENV)/.ready ## generate the code beside the .proto files again
	@$(PROTOC) --python_out=protos --pyi_out=protos --grpc_python_out=protos $(PROTOS)

docs/errors.md: $(VENV)/.ready services/runtime/rpc_errors.py
	@$(BIN)/python -m services.runtime.rpc_errors >$@

docs/metrics.md: $(VENV)/.ready services/runtime/metrics.py
	@$(BIN)/python -m services.runtime.metrics >$@

.PHONY: requirements
requirements: ## pin requirements*.in again, with hashes (needs uv)
	@for f in requirements requirements-dev; do uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make requirements" --quiet $$f.in -o $$f.txt; done
