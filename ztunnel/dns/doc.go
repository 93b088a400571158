// Package dns owns the DNS of the node's pods: which names the mesh answers for
// and with what, and the way of all others to the resolver that the pod asked.
// What it has no answer for it forwards byte for byte, so that nothing it does
// not know can be lost: types, options, other operations, whole zone transfers.
//
// It also resolves host names for the proxy itself.
package dns
