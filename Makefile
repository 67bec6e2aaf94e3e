# Sidestream. `make` lists the targets; every target sets itself up.

GO      ?= go
TOOL     = $(GO) tool -modfile=go.tool.mod
# The race detector needs a C compiler.
RACE     = $(if $(shell command -v $(or $(CC),gcc) 2>/dev/null),-race)
# The wire format that nodes out there speak; committed, so that the check needs no history and no network.
WIRE     = sidecar/proto/sidestream.binpb
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILD    = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.DEFAULT_GOAL := help
.PHONY: demo test check bench experiment bench-sfu bench-failover bench-hop soak soak-sfu sim bench-mesh bed e2e interop image generate build help clean fuzz vuln

##@ Try it
demo: build ## three regions on this machine; ARGS="-loss 1" for more (see bin/sidestream demo -h)
	@exec bin/sidestream demo $(ARGS)

##@ Work on it
build: ## bin/sidestream
	@test -x bin/sidestream || echo 'Building; the first time takes a minute or two ...'
	@$(BUILD) -o bin/sidestream ./sidecar
test: ## every test, with the race detector where there is a C compiler
	$(GO) test $(RACE) -timeout 8m ./...
	cd charts && $(GO) test -timeout 8m ./...
	$(GO) test -run TestHistories ./sidecar/relay/sim # all 10,000: with the race detector it is a tenth of them
check: ## format, vet, staticcheck, go.mod, generated code fresh, wire format compatible, import arrows
	@test -z "$$($(TOOL) gofumpt -l . | tee /dev/stderr)" || { echo 'not formatted: run "$(TOOL) gofumpt -w ."'; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(GO) mod tidy -diff
	cd charts && $(GO) vet ./... && $(GO) mod tidy -diff
	$(TOOL) buf lint
	$(TOOL) buf breaking --against $(WIRE)
	@rm -rf bin/_generated && $(TOOL) buf generate --output bin/_generated && \
		mkdir -p bin/_generated/$(dir $(WIRE)) && $(TOOL) buf build --exclude-source-info -o bin/_generated/$(WIRE) && for f in $$(cd bin/_generated && find . -type f); do \
		cmp bin/_generated/$$f $$f || { echo "not fresh: run make generate"; exit 1; }; done
	$(GO) test -run TestImports ./e2e
fuzz: ## what reads foreign bytes, a minute each; ARGS="-time 10m -only gateway"
	@$(GO) run ./e2e/fuzz $(ARGS)
vuln: ## known faults of what the programs are built of, by Go's database where that can be reached
	@$(TOOL) govulncheck ./sidecar ./injector; code=$$?; test $$code != 1 || \
		{ echo 'nothing was checked: https://vuln.go.dev must be reachable'; exit 0; }; exit $$code
generate: ## protobuf code from sidecar/proto, and the image of the wire format that check compares with
	@test ! -e $(WIRE) || $(TOOL) buf breaking --against $(WIRE)
	$(TOOL) buf generate
	$(TOOL) buf build --exclude-source-info -o $(WIRE)
bench: ## the relay's hot path beside a bare pion loop, in one run
	@$(GO) run ./sidecar/relay/bench $(ARGS)
sim: ## whole meshes in virtual time: how soon the nodes know, and what that costs: three minutes
	@$(GO) run ./sidecar/relay/sim $(ARGS)
bench-mesh: ## what meshes of 50, 100 and 300 nodes cost a sidecar, and how fast news travels: three minutes
	@$(GO) run ./sidecar/mesh/bench $(ARGS)
bench-hop: ## what a viewer sees behind a long path that loses packets: MEDIAMTX_BIN=... for a real MediaMTX too
	@$(GO) run ./e2e/hop $(ARGS)
bench-sfu: ## what a viewer of the built-in SFU costs, beside bare pion and, by MEDIAMTX_BIN, MediaMTX: two minutes
	@$(GO) run ./e2e/sfubench $(ARGS)
experiment: build ## a viewer far from the origin, directly and from the nearest edge: player and browser, three seeds; as root
	@$(GO) run ./e2e/experiment $(ARGS)
bench-failover: build ## how long a viewer's picture stands still when a node is killed; as root
	@$(GO) run ./e2e/failover $(ARGS)

soak: build ## kills parents, sidecars, servers and the publisher at random; ARGS="-duration 30m -seed 1"
	@$(GO) run ./e2e/soak $(ARGS)
soak-sfu: ## viewers of the built-in SFU come, go and are killed at random, its memory is looked at; ARGS="-soak 30m -seed 1"
	@$(GO) run ./e2e/sfubench -soak 10m $(ARGS)

##@ Try it whole
bed: ## control planes for the end-to-end tests, built once into the user's cache: some ten minutes
	@$(GO) run ./e2e/bed/build
e2e: build bed ## the demo as a user has it, with a real browser where there is one; real clusters, joined
	E2E=1 $(GO) test -count=1 -p 1 -timeout 20m $(ARGS) ./e2e/...
	cd charts && E2E=1 $(GO) test -count=1 -timeout 10m -run TestInstall ./...
interop: build ## every make of server at the origin and every make at the edge: those that are found here; some minutes
	@E2E=1 $(GO) test -count=1 -timeout 20m -run '^TestInterop$$' -v ./e2e
image: ## container images of the sidecar and the injector, as tarballs in bin/; ARGS="-arch arm64"
	@$(GO) run ./e2e/image -version $(VERSION) $(ARGS)

##@ Help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
clean: ## what the other targets left behind
	rm -rf bin
