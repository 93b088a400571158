// Package older owns the connections of the node's pods that are older than
// their capture. The proxy does not carry them, but policy holds for them: it is
// asked as about any plaintext connection, again at every change, and the kernel
// is told to end those that it refuses.
//
// Only the connections that enter a pod are asked about. For one that leaves,
// the policy of the other end decides, and if that is in the mesh too, the
// connection enters there.
package older
