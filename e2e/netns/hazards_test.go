package netns_test

import (
	be "encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What networks do to connections: lose packets, forget connections, bring packets
// of nobody.
//
//ambit:feature traffic-lossy-path traffic-forgotten-connection security-syn-flood
func TestHazards(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, onlyIPv4)
	client, server, other := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.b, "other")
	stranger := w.newPod(w.a, "stranger")
	for _, p := range []*pod{server, other} {
		p.listen(9000, echo)
	}
	w.impatient(t)
	w.enrol(client, server, other)
	t.Run("lossy path", func(t *testing.T) { lossyPath(t, w, client, server) })
	t.Run("forgotten connections", func(t *testing.T) { forgottenConnections(t, w, client, server) })
	t.Run("SYN flood", func(t *testing.T) { synFlood(t, w, client, server, other, stranger) })
}

// Every twentieth packet is lost on the way between the nodes, in each direction.
// Everything arrives and is what it was, and nothing is given up.
func lossyPath(t *testing.T, w *world, client, server *pod) {
	nat(t, w.b.ns, `table inet loss {
	counter lost { }
	chain in { type filter hook prerouting priority raw; iifname "wire0" tcp dport 15008 numgen inc mod 20 == 0 counter name lost drop; }
	chain out { type filter hook postrouting priority raw; oifname "wire0" tcp sport 15008 numgen inc mod 20 == 0 counter name lost drop; }
}`)
	defer nat(t, w.b.ns, "delete table inet loss")
	var all sync.WaitGroup
	errs := make(chan error, 16)
	for i := range cap(errs) {
		all.Go(func() {
			errs <- func() error {
				c, err := client.dial(server.at(9000))
				if err != nil {
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(4 * patience))
				for round := range 4 {
					if err := exchange(c, strings.Repeat(fmt.Sprintf("connection %d round %d ", i, round), 3000)); err != nil {
						return fmt.Errorf("connection %d, round %d: %w", i, round, err)
					}
				}
				return nil
			}()
		})
	}
	all.Wait()
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	within(t, w.b.ns, func() error {
		out, err := exec.Command("nft", "list", "counter", "inet", "loss", "lost").CombinedOutput()
		if err != nil || strings.Contains(string(out), "packets 0 ") || !strings.Contains(string(out), "packets ") {
			return fmt.Errorf("nothing was lost? %w: %s", err, out)
		}
		return nil
	})
}

// snmp is one counter of a namespace.
func snmp(t *testing.T, p *pod, group, name string) int {
	t.Helper()
	n := -1
	within(t, p.ns, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) == 0 || f[0] != group {
				continue
			}
			if names == nil {
				names = f
				continue
			}
			for i := range names {
				if names[i] == name {
					n, err = strconv.Atoi(f[i])
				}
			}
		}
		return err
	})
	if n < 0 {
		t.Fatalf("no counter %s of %s", name, group)
	}
	return n
}

// Something on the way forgets the connection between the nodes and drops what
// belongs to it from then on, as firewalls and NAT do after silence. New
// connections are not concerned but for the old tunnel: it is found dead within the
// keepalive's time, what it carries ends with a reason, and everything goes on
// over another one.
func forgottenConnections(t *testing.T, w *world, client, server *pod) {
	c := client.mustDial(t, server.at(9000))
	pingPong(t, c, "before")
	ports := tunnelPorts(t, client)
	if len(ports) == 0 {
		t.Fatal("no tunnel")
	}
	nat(t, w.b.ns, fmt.Sprintf(`table inet forget {
	chain in { type filter hook prerouting priority raw; tcp dport 15008 tcp sport { %[1]s } drop; }
	chain out { type filter hook prerouting priority raw; tcp sport 15008 tcp dport { %[1]s } drop; }
}`, strings.Join(ports, ",")))
	defer nat(t, w.b.ns, "delete table inet forget")
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %v, not a reset", err)
	}
	w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr="+server.at(9000), "no answer from", `reason="tunnel_lost"`)
	again := client.mustDial(t, server.at(9000))
	pingPong(t, again, "by another tunnel")
	again.Close()
	for _, p := range tunnelPorts(t, client) {
		for _, old := range ports {
			if p == old {
				t.Errorf("the dead tunnel from port %s is still there", p)
			}
		}
	}
}

// tunnelPorts are the local ports of a pod's HBONE connections.
func tunnelPorts(t *testing.T, p *pod) (ports []string) {
	t.Helper()
	within(t, p.ns, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 4 || !strings.HasSuffix(f[2], ":3AA0") || f[3] != "01" { // to 15008, established
				continue
			}
			port, err := strconv.ParseUint(f[1][strings.IndexByte(f[1], ':')+1:], 16, 16)
			if err != nil {
				return err
			}
			ports = append(ports, strconv.FormatUint(port, 10))
		}
		return nil
	})
	return ports
}

// synFloodSize is how many SYNs come.
const synFloodSize = 60_000

// A stranger sends SYNs from addresses that nobody has to both captured ports of a
// pod. It costs ztunnel no memory, the pod goes on being served, and so do others.
func synFlood(t *testing.T, w *world, client, server, other, stranger *pod) {
	before, heard := w.b.zt.memory(t, "VmRSS"), snmp(t, server, "Tcp:", "InSegs")
	flooded := make(chan error, 1)
	go func() { flooded <- flood(stranger, server.addr, []uint16{9000, 15008}, synFloodSize) }()
	served := 0
	for done := false; !done; {
		select {
		case err := <-flooded:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		for _, p := range []*pod{server, other} {
			c, err := client.dial(p.at(9000))
			if err == nil {
				c.SetDeadline(time.Now().Add(patience))
				err = exchange(c, fmt.Sprint("beside the flood ", served))
				c.Close()
			}
			if err != nil {
				t.Fatalf("%s after %d connections: %v", p.name, served, err)
			}
			served++
		}
	}
	eventually(t, "the flood has arrived", func() error {
		if n := snmp(t, server, "Tcp:", "InSegs") - heard; n < synFloodSize*9/10 {
			return fmt.Errorf("%d segments", n)
		}
		return nil
	})
	after := w.b.zt.memory(t, "VmRSS")
	t.Logf("%d SYNs; %d connections beside them; ztunnel %d KB before, %d KB after", synFloodSize, served, before>>10, after>>10)
	if after > before+16<<20 {
		t.Errorf("ztunnel grew from %d to %d MB", before>>20, after>>20)
	}
	// A stranger's own plaintext connection, too.
	c := stranger.mustDial(t, server.at(9000))
	c.SetDeadline(time.Now().Add(patience))
	if err := exchange(c, "and the stranger itself"); err != nil {
		t.Error(err)
	}
	c.Close()
}

// flood sends n SYNs to the ports of a pod, each from another address of the range
// for benchmarks (RFC 2544).
func flood(from *pod, to netip.Addr, ports []uint16, n int) error {
	return from.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dst := to.As4()
		for i := range n {
			port := ports[i%len(ports)]
			p := syn(rand.Uint32N(1<<17), dst, port)
			for {
				err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: dst})
				if err == unix.ENOBUFS || err == unix.EAGAIN || err == unix.EINTR {
					continue
				}
				if err != nil {
					return fmt.Errorf("SYN %d: %w", i, err)
				}
				break
			}
		}
		return nil
	})
}

// syn is a TCP SYN in IPv4 from the host-th address of 198.18.0.0/15.
func syn(host uint32, dst [4]byte, port uint16) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
	be.BigEndian.PutUint16(p[2:], 40)
	be.BigEndian.PutUint32(p[12:], 198<<24|18<<16|host)
	copy(p[16:], dst[:])
	tcp := p[20:]
	be.BigEndian.PutUint16(tcp, uint16(1024+rand.N(60000)))
	be.BigEndian.PutUint16(tcp[2:], port)
	be.BigEndian.PutUint32(tcp[4:], rand.Uint32())
	tcp[12], tcp[13] = 5<<4, 0x02
	be.BigEndian.PutUint16(tcp[14:], 64240)
	pseudo := append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_TCP, 0, 20)
	be.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	return p // the kernel makes the header's own checksum
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
