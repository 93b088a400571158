package redirect

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
)

func connections(t testing.TB, ns *netns.NS) []netns.Socket {
	t.Helper()
	all, err := ns.Connections()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// left counts those of want that still live.
func left(all []netns.Socket, want []uint64) int {
	n := 0
	for _, s := range all {
		if slices.Contains(want, s.Cookie) {
			n++
		}
	}
	return n
}

// TestConnectionsOlderThanCapture: what was open before is told from what the
// proxy carries, in both directions and both families, and from what the pod
// has with itself.
func TestConnectionsOlderThanCapture(t *testing.T) {
	c := prepareCaptured(t)
	startProxy(t, c.pod, c.cfg.Listeners)
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
	startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
	var old []*client
	for _, f := range bothFamilies {
		in, out := dial(t, c.peer, at(f.pod, 8080)), dial(t, c.pod, at(f.peer, 8080))
		in.expect(t, "app", f.peer, at(f.pod, 8080))
		out.expect(t, "peer", f.pod, at(f.peer, 8080))
		old = append(old, in, out)
	}
	self := dial(t, c.pod, at(podAddr4, 8080))
	self.expect(t, "app", podAddr4, at(podAddr4, 8080))
	loop := dial(t, c.pod, at(netip.MustParseAddr("127.0.0.1"), 8080))
	loop.line(t)

	c.set(t)
	older := uncaptured(connections(t, c.pod))
	if len(older) != 4 {
		t.Fatalf("%d connections are older than capture, want 4: %+v", len(older), connections(t, c.pod))
	}
	if n := Proxied(connections(t, c.pod)); n != 0 {
		t.Errorf("%d connections count as the proxy's before there is one", n)
	}
	// New ones in both directions are the proxy's.
	out := dial(t, c.pod, at(peerAddr4, 8080))
	out.expect(t, "outbound", podAddr4, at(peerAddr4, 8080))
	in := dial(t, c.peer, at(podAddr6, 8080))
	in.expect(t, "inbound", peerAddr6, at(podAddr6, 8080))
	in.expect(t, "app", peerAddr6, at(podAddr6, 8080))
	all := connections(t, c.pod)
	if now := uncaptured(all); !slices.Equal(sorted(now), sorted(older)) {
		t.Errorf("after captured connections %v bypass the proxy, want %v", now, older)
	}
	if n := Proxied(all); n < 2 {
		t.Errorf("%d connections are the proxy's, want those of both", n)
	}
	for i, o := range old {
		o.ping(t, "older connections go on")
		o.Close()
		eventually(t, "an ended connection is not counted", func() bool { return left(connections(t, c.pod), older) == len(old)-1-i })
	}
	out.Close()
	in.Close()
	eventually(t, "nothing is left to the proxy", func() bool { return Proxied(connections(t, c.pod)) == 0 })
}

func uncaptured(all []netns.Socket) []uint64 {
	var cookies []uint64
	for _, s := range netns.Uncaptured(all) {
		cookies = append(cookies, s.Cookie)
	}
	return cookies
}

func sorted(s []uint64) []uint64 {
	out := slices.Clone(s)
	slices.Sort(out)
	return out
}

// TestProxied decides about sockets of all kinds.
func TestProxied(t *testing.T) {
	pod, peer := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:80")
	tunnel := netip.MustParseAddrPort("10.0.0.2:15008")
	for _, c := range []struct {
		name string
		s    netns.Socket
		want int
	}{
		{"the proxy's with the application", netns.Socket{Local: peer, Remote: pod, State: netns.Established, Mark: netns.Mark, Inode: 1}, 1},
		{"accepted by nobody yet", netns.Socket{Local: peer, Remote: pod, State: netns.Established, Mark: netns.Mark}, 1},
		{"half made", netns.Socket{Local: peer, Remote: pod, State: netns.SynRecv, Mark: netns.Mark}, 1},
		{"bytes still to be acknowledged", netns.Socket{Local: peer, Remote: pod, State: netns.FinWait1, Mark: netns.Mark}, 1},
		{"half closed, still open", netns.Socket{Local: peer, Remote: pod, State: netns.FinWait2, Mark: netns.Mark, Inode: 1}, 1},
		{"closed by the proxy", netns.Socket{Local: peer, Remote: pod, State: netns.FinWait2, Mark: netns.Mark}, 0},
		{"a pooled tunnel", netns.Socket{Local: pod, Remote: tunnel, State: netns.Established, Mark: netns.Mark, Inode: 1}, 0},
		{"a peer's tunnel", netns.Socket{Local: tunnel, Remote: pod, State: netns.Established, Mark: netns.Mark, Inode: 1}, 0},
		{"the application's", netns.Socket{Local: pod, Remote: peer, State: netns.Established, Inode: 1}, 0},
	} {
		if got := Proxied([]netns.Socket{c.s}); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestSocketCgroup: what sock_diag says is what the programs compare with.
func TestSocketCgroup(t *testing.T) {
	needRoot(t)
	ns := newNS(t)
	l, err := Listen(ns, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all, err := ns.Listeners()
	if err != nil || len(all) != 4 { // three of any port and HBONE
		t.Fatalf("%v, %v; want 4 listeners", all, err)
	}
	for _, s := range all {
		if s.Cgroup != all[0].Cgroup || !s.IsProxy() {
			t.Errorf("one maker, different sockets: %+v", all)
		}
	}
}

// findSocket is the mark of the socket with this pair of addresses.
func findSocket(ns *netns.NS, local, remote netip.AddrPort) (uint32, error) {
	s, err := ns.Connection(local, remote)
	return s.Mark, err
}
