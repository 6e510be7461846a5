# make run     build and start all roles on loopback
# make deb     a Debian package of it, in bin/
# make test    install what is missing, then every check and every test
# make check   the gates alone: format, lint, vet, walls, web/dist, race detector
# make web     rebuild the page into web/dist (needs Node)
# make fuzz    every fuzz target for FUZZTIME each (default 1m)
# make bench-turn  measure the TURN server beside coturn and pion/turn, as root, 12 minutes (BENCH=-quick: 2)
# make flood   relay loss while the TURN server is flooded (half a minute, both processors)
# make soak    ten million allocations of the TURN server in virtual time (an hour; SOAK=n for n)
# make clean   remove what was built

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GOLANGCI := v2.15.0
FUZZTIME ?= 1m
SOAK     ?= 10000000
# Of wwsf; they run the page in Chromium for two minutes: once is enough, and the race detector sees no TypeScript. No
# other test may have such a name.
PAGE_TESTS := ^(TestPage|TestPageMedia|TestAccessible)$$
# In these some tests need a run without the race detector: pages, long ones, allocations that are counted.
AGAIN    := ./turn/... ./internal/wire/... ./wwsf
MEASURE  := /test/\(browser\|e2e\)$$
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# Without a tag it begins with the day, so that a later package is a newer one.
DEB_VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//' | grep . || git log -1 --format=0~%cd.%h --date=format:%Y%m%d.%H%M)
# Behind go test -json: prints what go test prints, then what was skipped and why.
TALLY    := go run ./test/tally
STEP      = @printf '\n== %s\n'

.PHONY: help
help:
	@sed -n 's/^# \(make .*\)/  \1/p' Makefile

.PHONY: build
build: bin/wicgate

.PHONY: bin/wicgate
bin/wicgate:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/wicgate ./cmd/wicgate

.PHONY: deb
deb: build
	@deploy/deb/build.sh bin/wicgate "$(DEB_VERSION)" "bin/wicgate_$(DEB_VERSION).deb"

.PHONY: run
run: build
	@exec bin/wicgate run

# ---- gates

.PHONY: check
check: tools format vet lint walls page race
	$(STEP) "all gates passed"

.PHONY: tools
tools: bin/tools/golangci-lint-$(GOLANGCI)
bin/tools/golangci-lint-$(GOLANGCI):
	$(STEP) "install golangci-lint $(GOLANGCI) into bin/tools (once; some minutes)"
	GOBIN=$(CURDIR)/bin/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv bin/tools/golangci-lint $@

.PHONY: format
format:
	$(STEP) "format: gofmt"
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "not gofmt-ed: $$bad"; exit 1; }

.PHONY: vet
vet:
	$(STEP) "vet"
	go vet ./...

.PHONY: lint
lint: tools
	$(STEP) "lint"
	bin/tools/golangci-lint-$(GOLANGCI) run ./...

.PHONY: walls
walls:
	$(STEP) "walls: who may import whom"
	go test -count=1 .

.PHONY: page
page:
	$(STEP) "page: web/dist is what web/ builds"
	web/check.sh

.PHONY: race
race:
	$(STEP) "race detector"
	@mkdir -p bin && rm -f bin/ran.txt
	go test -json -race $(COUNT) -timeout 10m -skip '$(PAGE_TESTS)' $$(go list ./... | grep -v '/test/') | $(TALLY) bin/ran.txt

# ---- tests

.PHONY: test
test: COUNT := -count=1
test: setup check
	$(STEP) "tests with other programs, and those that the race detector's run leaves out or cuts short"
	go test -json -count=1 -timeout 15m $$(go list ./test/... | grep -v '$(MEASURE)') $(AGAIN) | $(TALLY) bin/ran.txt
	$(STEP) "tests that measure, one after the other"
	@rm -f bin/figures.txt
	WICGATE_FIGURES=$(CURDIR)/bin/figures.txt go test -json -p 1 -count=1 -timeout 20m $$(go list ./test/... | grep '$(MEASURE)') | $(TALLY) bin/ran.txt
	$(STEP) "figures of this run"
	@cat bin/figures.txt
	$(STEP) "docs/turn.md says what this run has shown"
	WICGATE_RAN=$(CURDIR)/bin/ran.txt go test -count=1 -run '^TestFeatureTable$$' .

.PHONY: setup
setup:
	@test/setup.sh

.PHONY: fuzz
fuzz:
	@test/fuzz.sh $(FUZZTIME)

# It needs root for namespaces; BENCH are its options, COTURN names a second turnserver to measure.
.PHONY: bench-turn
bench-turn: build
	@bench/turn/setup.sh
	go build -o bin/bench-turn ./bench/turn
	go build -o bin/pionserver ./bench/turn/pionserver
	@if [ "$$(id -u)" = 0 ]; then exec bin/bench-turn $(BENCH); else exec sudo -n COTURN="$${COTURN:-}" bin/bench-turn $(BENCH); fi

.PHONY: flood
flood:
	go test -tags flood -count=1 -timeout 5m -v ./test/flood

.PHONY: soak
soak:
	WICGATE_SOAK=$(SOAK) go test -run '^TestSoak$$' -count=1 -timeout 0 -v ./turn/internal/core

.PHONY: web
web:
	web/build.sh

.PHONY: clean
clean:
	rm -rf bin
