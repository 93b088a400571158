// Package ca owns signing: the authority that holds the mesh's key, the
// review of the tokens callers present, and the certificate service that
// answers them.
package ca
