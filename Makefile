# Each target does its own setup. The setup is kept in .venv and .cache, so a second run is fast.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/collections
# The tests find llama-server and llama-quantize here.
export MAGI_LLAMA_BIN_DIR := $(CURDIR)/.cache/bin

# uv does not use the machine's certificate store by default; a network with its own certificate authority needs it.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS := true
endif

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# Every package has the version and hash of uv.lock. Packages are looked up by name, so any configured index works.
# uv is installed first, from .config/uv.txt, which is its part of uv.lock.
UV := .cache/uv/bin/uv
.cache/uv/uv.txt: .config/uv.txt
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing python3 and python3-venv"; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3 python3-venv >/dev/null; \
	  else echo "Python 3.11 or newer with its module venv is missing: apt-get install python3 python3-venv"; exit 1; fi; }
	@python3 -m venv --clear .cache/uv
	@.cache/uv/bin/pip install -qq --disable-pip-version-check --require-hashes --requirement $<
	@cp $< $@

# uv.lock must not contain the address of an index that is configured on this machine only.
UV_LOCK = $(UV) lock --quiet --default-index https://pypi.org/simple

# The newest Python that ansible-core and this collection support. uv searches PATH only, so the interpreters of pyenv
# (hidden behind shims) are added to it.
$(VENV)/.ready: pyproject.toml console/pyproject.toml uv.lock .cache/uv/uv.txt
	@$(UV_LOCK) --check --offline 2>/dev/null || { echo "uv.lock does not match pyproject.toml: run make lock"; exit 1; }
	@export PATH="$$PATH:$$(printf '%s:' "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin)"; \
	  python="$${MAGI_PYTHON:-}"; \
	  for version in 3.14 3.13 3.12 3.11; do \
	    test -n "$$python" || python="$$($(UV) python find --no-python-downloads --no-project $$version 2>/dev/null || true)"; \
	  done; \
	  test -n "$$python" || { echo "Python 3.11, 3.12, 3.13 or 3.14 is missing on this machine; an older one will not do"; exit 1; }; \
	  $(UV) venv --quiet --clear --no-python-downloads --python "$$python" $(VENV)
	@$(UV) export --quiet --frozen --group dev --no-emit-workspace --output-file .cache/uv/requirements.txt
	@$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python .cache/uv/requirements.txt
	@# A folder has no hash. uv builds it itself, and fetches nothing.
	@$(UV) pip install --quiet --offline --no-deps --python $(BIN)/python --editable console
	@ln -sf ../../tests/support/molecule.sh $(BIN)/molecule
	@echo "controller: $$($(BIN)/python --version), ansible-core $$($(BIN)/python -c 'import ansible.release as r; print(r.__version__)')"
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## Set up the virtual environment of the controller

.PHONY: lock
lock: .cache/uv/uv.txt ## Write uv.lock after a change of pyproject.toml
	@$(UV_LOCK) $(UV_LOCK_OPTIONS)
	@$(UV) export --quiet --frozen --only-group uv --no-header --no-annotate --output-file .config/uv.txt >/dev/null

.PHONY: update-deps
update-deps: UV_LOCK_OPTIONS = --upgrade
update-deps: lock ## Update all pinned packages to the newest versions that pyproject.toml allows

# The gateway of the demo and of the tests. The distribution's package starts a service of its own, which is not wanted.
.cache/bin/.haproxy: $(VENV)/.ready
	@test -x /usr/sbin/haproxy || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing haproxy"; \
	    apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends haproxy >/dev/null; \
	  else echo "HAProxy is missing, so there is no gateway: apt-get install haproxy"; fi; }
	@mkdir -p $(@D) && touch $@

# The page of the console is built by node, and tested in Debian's browser.
.cache/bin/.node: $(VENV)/.ready
	@missing=""; for program in node npm chromium; do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	  test -z "$$missing" || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    missing="$${missing/ node/ nodejs}"; echo "installing$$missing"; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	  else echo "missing:$$missing. The page of the console is not built and not tested: apt-get install nodejs npm chromium"; fi; }
	@mkdir -p $(@D) && touch $@

console/page/node_modules/.ready: console/page/package-lock.json .cache/bin/.node
	@if ! command -v npm >/dev/null; then :; \
	elif ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(+a > 20 || (+a == 20 && +b >= 19) ? 0 : 1)'; then \
	  echo "the page of the console needs node 20.19 or newer, this is $$(node --version): it is not built and not tested"; \
	else cd console/page && npm ci --silent && touch node_modules/.ready; fi

.PHONY: page
page: console/page/node_modules/.ready ## Build the page of the console; the built files are committed
	@cd console/page && npm run --silent build -- --logLevel warn

# The Redis of the tests, as above.
.cache/bin/.redis: $(VENV)/.ready
	@command -v redis-server valkey-server >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing redis-server"; \
	    apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends redis-server >/dev/null; \
	  else echo "Redis is missing, so its tests are skipped: apt-get install redis-server"; fi; }
	@mkdir -p $(@D) && touch $@

# What reads the files of export.yml in tests: Debian 13's programs, unpacked.
.cache/bin/.export: tools/debian_programs.py $(VENV)/.ready
	@if command -v apt-get >/dev/null && PYTHONPATH=collections $(BIN)/python tools/debian_programs.py trixie .cache/debian kustomize docker-compose podman minisign libsodium23; then \
	  echo "unpacked kustomize, docker-compose, quadlet and minisign of Debian 13"; \
	else echo "kustomize, docker-compose, quadlet or minisign may be missing: tests of exported files and of signatures that need them are skipped"; fi
	@mkdir -p $(@D) && touch $@

# What the rules, alerts and dashboards are tested with: Debian 13's programs, unpacked.
.cache/bin/.monitoring: tools/debian_programs.py $(VENV)/.ready
	@if command -v apt-get >/dev/null && PYTHONPATH=collections $(BIN)/python tools/debian_programs.py trixie .cache/monitoring prometheus promtool prometheus-alertmanager; then \
	  echo "unpacked prometheus and alertmanager of Debian 13"; \
	else echo "Debian's prometheus is missing, so tests of rules, alerts and dashboards are skipped"; fi
	@mkdir -p $(@D) && touch $@

.PHONY: dashboards
dashboards: $(VENV)/.ready ## Write the dashboards of Grafana; the written files are committed
	@$(BIN)/python tools/dashboards.py

# Every view, at three widths and in both themes.
.PHONY: screenshots
screenshots: $(VENV)/.ready console/page/node_modules/.ready ## Screenshots of the console's page in .cache/docs/screenshots
	@mkdir -p .cache/docs/screenshots
	@MAGI_SCREENSHOTS=$(CURDIR)/.cache/docs/screenshots $(BIN)/python -m pytest -n0 tests/console/browser/test_looks.py

# llama-server and llama-quantize from LLAMA_SERVER_PATH, the distribution, or Debian's signed packages (.cache/runtime).
.cache/bin/.ready: $(VENV)/.ready
	@ansible-playbook -i inventories/local tests/support/binaries.yml
	@touch $@

.PHONY: binaries
binaries: .cache/bin/.ready ## Install llama-server and llama-quantize

.cache/models/.ready: .cache/bin/.ready
	@PYTHONPATH=tests $(BIN)/python -m support.demo_models .cache/models .cache/bin/llama-quantize
	@touch $@

.PHONY: demo
demo: .cache/models/.ready .cache/bin/.haproxy ## Run four servers of tiny real models, a gateway and a console on this machine
	@ansible-playbook -i inventories/local site.yml $$(test ! -x /usr/sbin/haproxy || echo playbooks/gateway.yml) -e profile=development
	@ansible-playbook -i inventories/local playbooks/status.yml
	@test ! -x /usr/sbin/haproxy || \
	  echo "gateway for all of them: http://127.0.0.1:8070, with the API key in .cache/demo/gateway.key (docs/gateway.md)"
	@$(BIN)/python tools/demo_console.py start

.PHONY: demo-stop
demo-stop: $(VENV)/.ready ## Stop the demo and remove its files; the cached setup is kept
	@$(BIN)/python tools/demo_console.py stop
	@ansible-playbook -i inventories/local playbooks/teardown.yml
	@ansible-playbook -i inventories/local playbooks/gateway.yml -e gateway_remove=true
	@rm -rf .cache/demo

.PHONY: lint
lint: $(VENV)/.ready ## Check the style of everything
	@$(UV_LOCK) --check --offline
	@ruff check . && ruff format --check --quiet .
	@codespell
	@mypy && mypy --config-file console/pyproject.toml
	@yamllint --strict .
	@ansible-lint --offline
	@antsibull-changelog lint
	@antsibull-docs lint-collection-docs --plugin-docs .
	@$(BIN)/python docs/generate.py --check

.PHONY: reference
reference: $(VENV)/.ready ## Generate the reference of variables and playbooks, and the roles' READMEs
	@$(BIN)/python docs/generate.py

.PHONY: docs
docs: $(VENV)/.ready ## Build the documentation site in .cache/docs/html
	@$(BIN)/python docs/build_site.py

.PHONY: film
film: .cache/models/.ready demo-stop ## Record the demo and render it as docs/demo.svg
	@$(BIN)/python docs/film.py
	@$(MAKE) --no-print-directory demo-stop >/dev/null

.PHONY: sanity
sanity: $(VENV)/.ready ## Run ansible-test sanity on a real copy of the collection
	@$(BIN)/python tests/sanity

.PHONY: unit
unit: .cache/bin/.ready .cache/bin/.redis .cache/bin/.export .cache/bin/.monitoring ## Run the unit tests
	@$(BIN)/python -m pytest tests/unit

# While you work: what finds most mistakes in about a minute on an idle machine with two cores. Tests that take seconds are marked slow.
.PHONY: check
check: .cache/bin/.ready .cache/bin/.redis .cache/bin/.export .cache/bin/.monitoring ## Run the fast checks: style, types, most unit tests
	@ruff check --quiet . && ruff format --check --quiet .
	@mypy | grep --invert-match Success || test "$${PIPESTATUS[0]}" = 0
	@mypy --config-file console/pyproject.toml | grep --invert-match Success || test "$${PIPESTATUS[0]}" = 0
	@yamllint --strict .
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python -m pytest -n 2 --dist loadscope tests/unit -m "not slow"

# Everything except lint and sanity in one run with one summary; two at a time, since most tests wait for servers.
.PHONY: pytest
pytest: .cache/models/.ready .cache/bin/.haproxy .cache/bin/.redis .cache/bin/.export .cache/bin/.monitoring .cache/docker/.ready console/page/node_modules/.ready ## Run scenarios, faults, unit tests, the artifact, every ansible-core and Python
	@$(BIN)/python -m pytest -n 2 --dist loadscope --cov --cov-report=

# The URLs in the artifact derive from REPOSITORY, for example https://example.org/magi/llama.
.PHONY: release
release: $(VENV)/.ready ## Changelog, artifact and checksum in dist (VERSION=0.1.0 REPOSITORY=https://...)
	@$(BIN)/python tools/release.py "$(VERSION)" "$(REPOSITORY)"

# All that role console installs, in dist, for this machine's processor and these versions of Python.
PYTHONS ?= 3.11 3.12 3.13 3.14
.PHONY: console-bundle
console-bundle: $(VENV)/.ready ## Put the console and all its packages in one file (PYTHONS="3.13")
	@$(BIN)/python tools/console_bundle.py $(PYTHONS)

# With Docker or podman. IMAGE_BASE is a Debian image, or packages: then mmdebstrap makes it, as root and without a registry.
# UPDATE=1 takes the newest base and packages; without it what the engine has cached is used again.
IMAGES ?= llama-server magi
IMAGE_BASE ?=
.PHONY: images
images: $(VENV)/.ready ## Build the images (IMAGES="llama-server llama-server-vulkan magi" IMAGE_BASE=packages UPDATE=1)
	@$(BIN)/python tools/images.py $(if $(IMAGE_BASE),--base $(IMAGE_BASE)) $(if $(UPDATE),--update) $(IMAGES)

.PHONY: docker-setup
docker-setup: $(VENV)/.ready ## Check what the containers need, write .env, build their image (IMAGE_BASE=packages UPDATE=1)
	@$(BIN)/python tools/docker_setup.py $(if $(IMAGE_BASE),--base $(IMAGE_BASE)) $(if $(UPDATE),--update)

.PHONY: docker-test
docker-test: $(VENV)/.ready ## Start the containers and test them from outside; they are left running where one fails
	@$(BIN)/python tools/docker_test.py

# Docker Engine for the tests in tests/containers, unpacked from Debian's packages; it is started with files of its own.
.cache/docker/.ready: $(VENV)/.ready tests/containers/docker_engine.py
	@if $(BIN)/python tests/containers/docker_engine.py; then mkdir -p $(@D) && touch $@; else echo "tests/containers are skipped"; fi

.PHONY: fuzz
fuzz: $(VENV)/.ready ## Mutate GGUF headers for ten minutes (FUZZ_SECONDS=600)
	@MAGI_FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/python -m pytest tests/unit/_models/test_gguf_fuzz.py

.PHONY: bench
bench: .cache/models/.ready .cache/bin/.haproxy ## Measure against comparable tools (BENCH="headers runs fleet threads gateway changes")
	@PYTHONPATH=tests:collections $(BIN)/python -m bench $(BENCH)

.PHONY: molecule
molecule: .cache/models/.ready ## Run the molecule scenarios with real servers and real systemd hosts
	@$(BIN)/python -m pytest tests/scenarios

# Systemd nodes in podman for the molecule scenarios of a fleet; needs root on Debian.
NODES ?= forky bookworm python39
.PHONY: nodes
nodes: ## Start systemd nodes in podman (NODES="forky=2 bookworm")
	@python3 tests/nodes/nodes.py up $(NODES)

.PHONY: nodes-down
nodes-down: ## Remove every node of this checkout
	@python3 tests/nodes/nodes.py down --all

.PHONY: test
test: $(VENV)/.ready ## Run all tests
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint sanity
	@$(MAKE) --no-print-directory pytest
