# What one does here. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help run demo build test test-all race bench bench-publish bench-probe soak fuzz sim lint fmt generate package install clean

TOOL    := go tool -modfile=tools/go.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
ARCH    ?= $(shell go env GOARCH)
CONFIG  ?= rota.yaml
COUNT   ?= 1
SECONDS ?= 10
NIGHTS  ?= 400
PREFIX  ?= /usr
DESTDIR ?=
BINARY  ?= bin/rota

help: ## list what one does here
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

run: ## run rota in the foreground with CONFIG=rota.yaml
	go run ./cmd/rota run --config $(CONFIG)

demo: ## show the main job: no set-up, ends by ctrl-c
	go run ./cmd/rota demo

build: ## build ./bin/rota
	CGO_ENABLED=0 go build -trimpath -o bin/rota ./cmd/rota

test: ## the tests, without the race detector
	go test ./...

test-all: ## everything that CI runs: packages, lint, race, fuzz, documents, demo (as root on Debian)
	./test/all

race: ## the tests under the race detector
	go test -race ./...

bench: ## every benchmark, COUNT=1 times, with allocations
	./test/bench $(COUNT)

bench-publish: ## a site of 10,000 services dies, and one verdict: until BIND, Knot and PowerDNS have it
	go test ./internal/publish -run='^$$' -bench='Change10000|OnWire' -benchmem -benchtime=5x -count=$(COUNT) -timeout=30m

bench-probe: ## probes a second, memory a target and 100,000 targets beside HAProxy, gdnsd, blackbox_exporter and fping (as root, 6 minutes)
	go test ./test/probing -run='^$$' -bench=Beside -benchtime=1x -full -timeout=30m

soak: ## 24 virtual hours of 10,000 targets every 10 s with all kinds of faults (`make test` has a shorter one)
	go test ./internal/probe -run=TestSoak -soak=10s -timeout=60m -v

fuzz: ## every fuzz target for SECONDS=10
	./test/fuzz $(SECONDS)

sim: ## simulated nights of a cluster with all kinds of faults, NIGHTS=400 of them (`make test` has 30)
	go test ./internal/sim -seeds $(NIGHTS) -timeout 60m

lint: ## gofumpt, go vet, staticcheck
	./test/lint

fmt: ## format the code
	$(TOOL) gofumpt -w .

generate: ## write generated files again
	go generate ./...

package: ## a tarball in dist/ with a static binary, the unit file, examples and the schema
	./test/package '$(VERSION)' '$(ARCH)'

install: ## put what `make build` built below DESTDIR and PREFIX=/usr: binary, systemd unit, documents
	@test -x '$(BINARY)' || { echo 'there is no $(BINARY): run make build first' >&2; exit 1; }
	install -D -m 0755 -t '$(DESTDIR)$(PREFIX)/bin' '$(BINARY)'
	install -d '$(DESTDIR)$(PREFIX)/lib/systemd/system'
	sed 's|=/usr/bin/|=$(PREFIX)/bin/|; s|:/usr/share/|:$(PREFIX)/share/|' config/rota.service >'$(DESTDIR)$(PREFIX)/lib/systemd/system/rota.service'
	chmod 0644 '$(DESTDIR)$(PREFIX)/lib/systemd/system/rota.service'
	install -D -m 0644 -t '$(DESTDIR)$(PREFIX)/share/doc/rota' README.md CHANGELOG.md LICENSE docs/*.md
	install -D -m 0755 -t '$(DESTDIR)$(PREFIX)/share/doc/rota/examples' docs/examples/*

clean: ## remove what was built
	rm -rf bin dist
