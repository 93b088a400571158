#!/bin/sh
# Regenerates the committed protobuf code. Needs protoc (Debian:
# protobuf-compiler); the Go plugin is the one of the module's own
# google.golang.org/protobuf, so code and runtime always agree.
set -eu
cd "$(dirname "$0")/../.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go
PATH="$bin:$PATH" protoc --proto_path=. --go_out=. --go_opt=module=github.com/ambitmesh/ambit \
	controller/wire/workloadapi/workload.proto controller/wire/securityapi/authorization.proto
