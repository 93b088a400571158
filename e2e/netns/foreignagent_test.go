package netns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// foreignAgent is a node agent that is not ours: it speaks the protocol as
// documented, knows no extension, and redirects by NAT. It shares no code with
// our end.
type foreignAgent struct {
	t  testing.TB
	n  *node
	ln *net.UnixListener

	mu    sync.Mutex // serializes the conversation
	conns []*net.UnixConn
	pods  []*pod
	lost  []*pod // enrolled, but their namespaces cannot be opened
}

func newForeignAgent(t testing.TB, n *node) *foreignAgent {
	t.Helper()
	a := &foreignAgent{t: t, n: n}
	a.start()
	t.Cleanup(a.stop)
	return a
}

func (a *foreignAgent) start() {
	a.t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: a.n.socket(), Net: "unixpacket"})
	if err != nil {
		a.t.Fatal(err)
	}
	a.ln = ln
	go func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			go a.serve(c)
		}
	}()
}

func (a *foreignAgent) stop() {
	a.ln.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		c.Close()
	}
	a.conns = nil
}

// serve gives a ztunnel its snapshot. From then on live messages go to it.
func (a *foreignAgent) serve(c *net.UnixConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	hello := make([]byte, 1024)
	n, err := c.Read(hello)
	if err != nil || n < 2 || hello[0] != 0x08 || hello[1] != 0x01 {
		a.t.Errorf("hello % x, %v", hello[:n], err)
		return
	}
	for _, p := range a.pods {
		if err := a.say(c, addMessage(p), p); err != nil {
			a.t.Logf("snapshot: %s: %v", p.name, err)
		}
	}
	for _, p := range a.lost {
		if err := a.say(c, message(5, text(1, p.uid)), nil); err != nil {
			a.t.Logf("snapshot: keep %s: %v", p.name, err)
		}
	}
	if err := a.say(c, message(3, nil), nil); err != nil {
		c.Close()
		return
	}
	a.conns = append(a.conns, c)
}

// say sends one message and waits for its answer, as Istio's agent does.
func (a *foreignAgent) say(c *net.UnixConn, b []byte, p *pod) error {
	var oob []byte
	if p != nil {
		err := withFD(p.ns.File(), func(fd int) error {
			oob = unix.UnixRights(fd)
			_, _, err := c.WriteMsgUnix(b, oob, nil)
			return err
		})
		if err != nil {
			return err
		}
	} else if _, err := c.Write(b); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	answer := make([]byte, 1024)
	n, err := c.Read(answer)
	if err != nil {
		return err
	}
	if !bytes.Equal(answer[:n], []byte{0x0a, 0x00}) {
		return fmt.Errorf("refused: %q", answer[:n])
	}
	return nil
}

func message(num protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
}

func text(num protowire.Number, s string) []byte { return message(num, []byte(s)) }

func addMessage(p *pod) []byte {
	info := append(append(text(1, p.name), text(2, "demo")...), text(3, p.sa)...)
	return message(1, append(text(1, p.uid), message(2, info)...))
}

// enrol programs the pod's namespace, then tells the newest ztunnel.
func (a *foreignAgent) enrol(p *pod) {
	t := a.t
	t.Helper()
	natRedirect(t, p)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods = append(a.pods, p)
	if n := len(a.conns); n > 0 {
		if err := a.say(a.conns[n-1], addMessage(p), p); err != nil {
			t.Fatalf("add %s: %v", p.name, err)
		}
	}
}

// remove tells every ztunnel that the pod is gone.
func (a *foreignAgent) remove(p *pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	told := 0
	for _, c := range a.conns {
		if a.say(c, message(2, text(2, p.uid)), nil) == nil {
			told++ // the others have been killed
		}
	}
	if told != 1 {
		a.t.Errorf("delete %s: %d ztunnels confirmed, want 1", p.name, told)
	}
}

// lose makes later snapshots keep the pod instead of handing it over.
func (a *foreignAgent) lose(p *pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, q := range a.pods {
		if q == p {
			a.pods = append(a.pods[:i:i], a.pods[i+1:]...)
			a.lost = append(a.lost, p)
		}
	}
}

// connected is how many ztunnels have had their snapshot.
func (a *foreignAgent) connected() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.conns)
}

// What Istio's agent puts into a pod, in its order, for both families; the
// probes of the node come from the address it gives them.
const natRules = `
table inet istio-ambient-raw {
	chain prerouting { type filter hook prerouting priority -300; jump istio-prerouting; }
	chain output { type filter hook output priority -300; jump istio-output; }
	chain istio-prerouting { meta l4proto udp mark and 0xfff != 0x539 udp sport 53 ct zone set 1; }
	chain istio-output { meta l4proto udp mark and 0xfff == 0x539 udp dport 53 ct zone set 1; }
}
table inet istio-ambient-mangle {
	chain prerouting { type filter hook prerouting priority -150; jump istio-prerouting; }
	chain output { type route hook output priority -150; jump istio-output; }
	chain istio-prerouting { mark and 0xfff == 0x539 ct mark set ct mark and 0xfffff000 or 0x111; }
	chain istio-output { ct mark and 0xfff == 0x111 meta mark set ct mark; }
}
table inet istio-ambient-nat {
	chain prerouting { type nat hook prerouting priority -100; jump istio-prerouting; }
	chain output { type nat hook output priority -100; jump istio-output; }
	chain istio-prerouting {
		meta l4proto tcp ip saddr 169.254.7.127 accept
		meta l4proto tcp ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff accept
		ip daddr != 127.0.0.1 tcp dport != 15008 mark and 0xfff != 0x539 redirect to :15006
		ip6 daddr != ::1 tcp dport != 15008 mark and 0xfff != 0x539 redirect to :15006
	}
	chain istio-output {
		meta l4proto tcp ip daddr 169.254.7.127 accept
		meta l4proto tcp ip6 daddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff accept
		oifname != "lo" udp dport 53 mark and 0xfff != 0x539 redirect to :15053
		ip daddr != 127.0.0.1 tcp dport 53 mark and 0xfff != 0x539 redirect to :15053
		ip6 daddr != ::1 tcp dport 53 mark and 0xfff != 0x539 redirect to :15053
		meta l4proto tcp mark and 0xfff == 0x111 accept
		ip daddr != 127.0.0.1 oifname "lo" accept
		ip6 daddr != ::1 oifname "lo" accept
		ip daddr != 127.0.0.1 meta l4proto tcp mark and 0xfff != 0x539 redirect to :15001
		ip6 daddr != ::1 meta l4proto tcp mark and 0xfff != 0x539 redirect to :15001
	}
}
`

func natRedirect(t testing.TB, p *pod) {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs the Debian package nftables")
	}
	within(t, p.ns, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, nft, "-f", "-")
		cmd.Stdin = strings.NewReader(natRules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
			mask := uint32(0xfff)
			r := netlink.NewRule()
			r.Family, r.Priority, r.Mark, r.Mask, r.Table = f, 32764, 0x111, &mask, 100
			route := &netlink.Route{LinkIndex: 1, Table: 100, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Dst: everything(f)}
			if err := errors.Join(netlink.RuleAdd(r), netlink.RouteAdd(route)); err != nil {
				return err
			}
		}
		return nil
	})
}

func everything(family int) *net.IPNet {
	if family == unix.AF_INET {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}
