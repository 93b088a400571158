// Package lab owns what the bench measures in: two nodes and their pods as
// anonymous network namespaces, the real capture and hand-over on each, the
// built ztunnel as a process, and the real xDS server and CA over a mesh the
// bench writes. Nothing has a name, so nothing can be left behind.
//
//	           control plane 10.99.1.1, 10.99.2.1
//	            /                        \
//	node a 192.168.77.1 ---- wire ---- node b 192.168.77.2
//	  |       |                          |
//	pods 10.77.x.x                     pods 10.78.x.x
//
// A node is a router. A pod has one address, and a route to everything
// through its end of a veth pair, as with the ptp CNI.
package lab
