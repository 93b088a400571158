// Package ztunnel owns the node: which pods are served, from the moment the
// node agent hands one over to the end of its last connection, and the
// process's own HTTP interfaces.
package ztunnel
