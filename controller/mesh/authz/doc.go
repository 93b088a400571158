// Package authz owns the decision whether a connection may reach a workload.
// It is pure: the answer depends on a mesh snapshot, the workload and what is
// known of the connection, never on time or network.
package authz
