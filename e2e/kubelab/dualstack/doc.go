// Package dualstack owns the tests of Ambit on a cluster with both IP families,
// over IPv6 throughout.
package dualstack
