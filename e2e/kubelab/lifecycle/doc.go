// Package lifecycle owns the tests of how Ambit comes to a cluster and leaves
// it, and of what its parts may do there, on a real Kubernetes.
package lifecycle
