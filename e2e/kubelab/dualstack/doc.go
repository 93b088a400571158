// Package dualstack owns the tests of Ambit on a cluster with both IP families,
// over IPv6 throughout:
// it is the first family, so probes and the control plane use it too.
package dualstack
