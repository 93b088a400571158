// Package netns owns the tests of the data path on a real kernel: two nodes
// with their pods as network namespaces, a real node agent's capture and
// hand-over, the built ztunnel as a process on each node, and the real
// control plane. They need root and are skipped without it. Nothing they make
// has a name, so nothing can be left behind.
package netns
