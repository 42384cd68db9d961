.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH := $(CURDIR):$(CURDIR)/protos

PROTOS := $(sort $(wildcard protos/coupon/v1/*.proto))
CODE := services migrations stack checker demo bench tests

$(VENV)/.ready: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "firstcome needs Python 3.11 or later; set PYTHON=python3.x")'
	@echo "installing into $(VENV) …" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	@touch $@

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: proto
proto: $(VENV)/.ready ## generate the code beside the .proto files again
	@$(BIN)/python -m grpc_tools.protoc -Iprotos -I$$(echo $(VENV)/lib/python3*/site-packages) --python_out=protos --pyi_out=protos --grpc_python_out=protos $(PROTOS)

.PHONY: requirements
requirements: ## pin requirements*.in again, with hashes (needs uv)
	@for f in requirements requirements-dev; do uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make requirements" --quiet $$f.in -o $$f.txt; done
