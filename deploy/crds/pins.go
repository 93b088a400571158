//go:build tools

package main

// The definitions are data of this module, so nothing imports it yet: this
// keeps its version in go.mod, where download looks for it.
import _ "sigs.k8s.io/gateway-api/apis/v1"
