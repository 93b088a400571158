// Package arch owns the rules about the shape of the source tree: which
// package may import which, which libraries may appear where, how large the
// exec'd CNI plugin may grow, which folders exist, and that every package says
// what it owns. It has no production code; its tests are the rules.
package arch
