package redirect

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
)

func cookies(t testing.TB, ns *netns.NS) []Socket {
	t.Helper()
	all, err := Connections(ns)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// left counts those of want that still live.
func left(all []Socket, want []uint64) int {
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
	older := Uncaptured(cookies(t, c.pod))
	if len(older) != 4 {
		t.Fatalf("%d connections are older than capture, want 4: %+v", len(older), cookies(t, c.pod))
	}
	if n := Proxied(cookies(t, c.pod)); n != 0 {
		t.Errorf("%d connections count as the proxy's before there is one", n)
	}
	// New ones in both directions are the proxy's.
	out := dial(t, c.pod, at(peerAddr4, 8080))
	out.expect(t, "outbound", podAddr4, at(peerAddr4, 8080))
	in := dial(t, c.peer, at(podAddr6, 8080))
	in.expect(t, "inbound", peerAddr6, at(podAddr6, 8080))
	in.expect(t, "app", peerAddr6, at(podAddr6, 8080))
	all := cookies(t, c.pod)
	if now := Uncaptured(all); !slices.Equal(sorted(now), sorted(older)) {
		t.Errorf("after captured connections %v bypass the proxy, want %v", now, older)
	}
	if n := Proxied(all); n < 2 {
		t.Errorf("%d connections are the proxy's, want those of both", n)
	}
	for i, o := range old {
		o.ping(t, "older connections go on")
		o.Close()
		eventually(t, "an ended connection is not counted", func() bool { return left(cookies(t, c.pod), older) == len(old)-1-i })
	}
	out.Close()
	in.Close()
	eventually(t, "nothing is left to the proxy", func() bool { return Proxied(cookies(t, c.pod)) == 0 })
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
		s    Socket
		want int
	}{
		{"the proxy's with the application", Socket{Local: peer, Remote: pod, State: tcpEstablished, Mark: netns.Mark, Inode: 1}, 1},
		{"accepted by nobody yet", Socket{Local: peer, Remote: pod, State: tcpEstablished, Mark: netns.Mark}, 1},
		{"half made", Socket{Local: peer, Remote: pod, State: tcpSynRecv, Mark: netns.Mark}, 1},
		{"bytes still to be acknowledged", Socket{Local: peer, Remote: pod, State: tcpFinWait1, Mark: netns.Mark}, 1},
		{"half closed, still open", Socket{Local: peer, Remote: pod, State: tcpFinWait2, Mark: netns.Mark, Inode: 1}, 1},
		{"closed by the proxy", Socket{Local: peer, Remote: pod, State: tcpFinWait2, Mark: netns.Mark}, 0},
		{"a pooled tunnel", Socket{Local: pod, Remote: tunnel, State: tcpEstablished, Mark: netns.Mark, Inode: 1}, 0},
		{"a peer's tunnel", Socket{Local: tunnel, Remote: pod, State: tcpEstablished, Mark: netns.Mark, Inode: 1}, 0},
		{"the application's", Socket{Local: pod, Remote: peer, State: tcpEstablished, Inode: 1}, 0},
	} {
		if got := Proxied([]Socket{c.s}); got != c.want {
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
	all, err := Listening(ns)
	if err != nil || len(all) != 4 { // three of any port and HBONE
		t.Fatalf("%v, %v; want 4 listeners", all, err)
	}
	for _, s := range all {
		if s.Cgroup != all[0].Cgroup || !s.isProxy() {
			t.Errorf("one maker, different sockets: %+v", all)
		}
	}
}

func dumpAnswer(messages ...[]byte) []byte {
	var out []byte
	for _, m := range messages {
		b := make([]byte, netlinkHeader, netlinkHeader+len(m))
		binary.NativeEndian.PutUint32(b, uint32(netlinkHeader+len(m)))
		binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
		out = append(out, append(b, m...)...)
	}
	return out
}

func TestParseDump(t *testing.T) {
	one := diagAnswer(tcpEstablished, netns.Mark)[netlinkHeader:]
	whole := dumpAnswer(one, one)
	got, done, err := parseDump(whole, nil)
	if len(got) != 2 || done || err != nil || !got[0].isProxy() || got[0].Local.Port() != 80 {
		t.Fatalf("%+v, %v, %v", got, done, err)
	}
	for n := range whole {
		if got, _, _ := parseDump(whole[:n], nil); len(got) > 1 {
			t.Errorf("%d of %d bytes gave %d sockets", n, len(whole), len(got))
		}
	}
}

func FuzzParseDump(f *testing.F) {
	one := diagAnswer(tcpEstablished, netns.Mark)[netlinkHeader:]
	f.Add(dumpAnswer(one, one))
	f.Add(dumpAnswer(one[:40]))
	f.Add([]byte{20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = parseDump(b, nil) })
}
