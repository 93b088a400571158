package main

import (
	"net/netip"
	"testing"
)

// TestAdminStaysOnTheNode: the agent shares the node's network, so what it
// serves anywhere else is served to the node's neighbours.
func TestAdminStaysOnTheNode(t *testing.T) {
	o, err := parse(nil, func(name string) string {
		return map[string]string{"NODE_NAME": "node1", "POD_NAMESPACE": "ambit-system"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := netip.ParseAddrPort(o.adminAddress); err != nil || !a.Addr().IsLoopback() {
		t.Errorf("admin address %q, %v", o.adminAddress, err)
	}
}
