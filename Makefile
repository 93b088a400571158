# Ambit. A target is one or two commands; whatever needs more is a program.
#
#   make build    the binaries, for this machine, in out/bin
#   make unit     the quick tests
#   make test     every test this machine can run; says what it skipped and why
#   make soak     mixed load for DURATION, and whether anything grows (root)
#   make demo     a two-node Kubernetes here, with Ambit on it (root)
#   make image    out/image/ambit.tar, one OCI image with all binaries

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
IMAGE     ?= ambit.local/ambit
TAG       ?= dev
PLATFORMS ?= linux/amd64,linux/arm64
BENCHTIME ?= 1s
DURATION  ?= 5m
LINT      := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

export CGO_ENABLED := 0
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.release=$(VERSION)

.PHONY: build
build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o out/bin/ ./cmd/...

.PHONY: unit
unit:
	$(GO) vet ./...
	$(GO) test -short ./...

.PHONY: test
test:
	$(GO) run ./e2e/layers

.PHONY: bench
bench:
	$(GO) run ./e2e/bench $(BENCHFLAGS)
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) ./...

# make soak DURATION=8h SOAKFLAGS=-alone
.PHONY: soak
soak:
	$(GO) run ./e2e/bench -soak $(DURATION) $(SOAKFLAGS)

# make scale AMBIT_KUBELAB=... SCALEFLAGS='-nodes 200'; without a kubelab the ztunnel alone
.PHONY: scale
scale:
	$(GO) run ./e2e/bench/scale $(SCALEFLAGS)

# Kubernetes is compiled once (about five minutes on two cores), then kept.
.PHONY: demo
demo:
	$(GO) run ./e2e/demo

.PHONY: demo-down
demo-down:
	$(GO) run ./e2e/demo down

# Everything generated is committed; CI runs this and fails on a difference.
.PHONY: generate
generate:
	$(GO) generate ./...

.PHONY: lint
lint:
	$(GO) run $(LINT) run ./...

.PHONY: image
image:
	$(GO) run ./deploy/image -version '$(VERSION)' -name '$(IMAGE):$(TAG)' -platforms '$(PLATFORMS)' -o out/image/ambit.tar

# make push REPO=registry.example.com/mesh/ambit TAG=v0.1.0
.PHONY: push
push: image
	$(GO) run ./deploy/image -push '$(REPO):$(TAG)' -o out/image/ambit.tar
