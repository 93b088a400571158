// Package outbound owns what leaves a captured pod: which way a connection
// takes (Resolve, a pure function of one snapshot), and the accept loop that
// carries it there over HBONE, plain TCP or not at all.
package outbound
