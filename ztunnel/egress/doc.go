// Package egress owns the question whether a destination that the mesh does not
// know by its address is registered all the same: by the name that a TLS client
// asks for (SNI). It reads that name and compares it with the mesh's hosts.
package egress
