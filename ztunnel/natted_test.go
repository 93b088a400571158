package ztunnel

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
)

// Under an agent that redirects by NAT, the application's end of a connection
// that we carry is not taken for one that passes us, whatever its port; nor is
// a probe.
//
//ambit:feature dialect-foreign-agent-older
func TestRedirectedIsNotOlder(t *testing.T) {
	socket := func(local, remote string, mark uint32) netns.Socket {
		return netns.Socket{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), State: netns.Established, Mark: mark, Inode: 1}
	}
	for _, c := range []struct {
		name string
		all  []netns.Socket
		want int // that are taken for older ones
	}{
		{"dialled by the pod and redirected, from a port of its own choice", []netns.Socket{
			socket("10.0.0.1:700", "10.96.0.1:80", 0),
			socket("127.0.0.1:15001", "10.0.0.1:700", netns.Mark),
			socket("10.0.0.1:40000", "10.0.0.2:15008", netns.Mark)}, 0},
		{"the same with IPv6", []netns.Socket{
			socket("[fd00::1]:700", "[fd96::1]:80", 0), socket("[::1]:15001", "[fd00::1]:700", netns.Mark)}, 0},
		{"dialled before the redirection", []netns.Socket{
			socket("10.0.0.1:700", "10.96.0.1:80", 0), socket("127.0.0.1:15001", "10.0.0.1:701", netns.Mark)}, 1},
		{"another port of ours tells nothing", []netns.Socket{
			socket("10.0.0.1:700", "10.96.0.1:80", 0), socket("10.0.0.1:15006", "10.0.0.1:700", netns.Mark)}, 1},
		{"a probe", []netns.Socket{socket("10.0.0.1:8080", "169.254.7.127:5000", 0),
			socket("[fd00::1]:8080", "[fd16:9254:7127:1337:ffff:ffff:ffff:ffff]:5000", 0)}, 0},
		{"from elsewhere, older than the redirection", []netns.Socket{socket("10.0.0.1:8080", "10.0.0.9:5000", 0)}, 1},
		{"from elsewhere, carried by us", []netns.Socket{
			socket("10.0.0.1:8080", "10.0.0.9:6000", 0), socket("10.0.0.9:6000", "10.0.0.1:8080", netns.Mark)}, 0},
	} {
		if got := netns.Uncaptured(withoutRedirected(slices.Clone(c.all))); len(got) != c.want {
			t.Errorf("%s: %d are taken for older ones, want %d: %v", c.name, len(got), c.want, got)
		}
	}
}
