package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambitmesh/ambit/cni/netns"
)

// foreignVariable makes a copy of the test program a ztunnel that is not ours:
// it knows the protocol as documented and nothing of our extensions, and shares
// no code with our end of it.
const (
	foreignVariable = "AMBIT_TEST_FOREIGN_ZTUNNEL" // the agent's socket
	foreignName     = "AMBIT_TEST_FOREIGN_NAME"    // what it says first on every connection
)

// foreignZtunnel is that process.
type foreignZtunnel struct {
	name  string
	pods  map[string]*foreignPod // by uid
	named map[string]bool        // on this connection, before the snapshot's end
	open  sync.WaitGroup
}

type foreignPod struct {
	ns        *netns.NS
	listeners []net.Listener
}

func (p *foreignPod) stop() {
	for _, l := range p.listeners {
		l.Close()
	}
}

func foreignMain(socket, name string) error {
	z := &foreignZtunnel{name: name, pods: map[string]*foreignPod{}}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	requests := make(chan func())
	agents := make(chan int, 1)
	go func() {
		for {
			fd, err := greetAgent(socket)
			if err != nil {
				<-time.After(20 * time.Millisecond) // the agent is away
				continue
			}
			requests <- func() { z.named = map[string]bool{}; agents <- fd }
			for z.receive(fd, requests) == nil {
			}
			requests <- func() { unix.Close(<-agents) }
		}
	}()
	for {
		select {
		case f := <-requests:
			f()
		case <-terminated:
			unix.Shutdown(<-agents, unix.SHUT_RDWR)
			for _, p := range z.pods {
				p.stop()
			}
			fmt.Println("draining")
			z.open.Wait()
			return nil
		}
	}
}

func greetAgent(socket string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
	if err == nil {
		err = unix.Sendmsg(fd, []byte{0x08, 0x01}, nil, nil, 0)
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// receive takes one message and answers it.
func (z *foreignZtunnel) receive(fd int, requests chan<- func()) error {
	b, oob := make([]byte, 1024), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return errors.New("truncated")
	}
	var fds []int
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return err
		}
		if fds, err = unix.ParseUnixRights(&messages[0]); err != nil {
			return err
		}
	}
	done := make(chan error)
	requests <- func() { done <- z.handle(b[:n], fds) }
	answer := []byte{0x0a, 0x00}
	if err := <-done; err != nil {
		text := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "failure to start proxy : "+err.Error())
		answer = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), text)
	}
	return unix.Sendmsg(fd, answer, nil, nil, 0)
}

// field finds a length-delimited field.
func field(b []byte, want protowire.Number) []byte {
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		if num == want && kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			if v == nil {
				v = []byte{}
			}
			return v
		}
		b = b[protowire.ConsumeFieldValue(num, kind, b):]
	}
	return nil
}

func (z *foreignZtunnel) handle(b []byte, fds []int) error {
	switch {
	case field(b, 1) != nil: // AddWorkload
		add := field(b, 1)
		if len(fds) != 1 {
			return fmt.Errorf("expected one descriptor, have %d", len(fds))
		}
		if field(add, 2) == nil {
			return errors.New("no workload_info")
		}
		return z.add(string(field(add, 1)), fds[0])
	case field(b, 2) != nil: // DelWorkload
		uid := string(field(field(b, 2), 2))
		if p := z.pods[uid]; p != nil {
			p.stop()
			delete(z.pods, uid)
		}
	case field(b, 3) != nil: // SnapshotSent
		for uid, p := range z.pods {
			if !z.named[uid] {
				p.stop()
				delete(z.pods, uid)
			}
		}
		fmt.Println("ready")
	case field(b, 5) != nil: // KeepWorkload
		z.named[string(field(field(b, 5), 1))] = true
	}
	return nil
}

func (z *foreignZtunnel) add(uid string, fd int) error {
	z.named[uid] = true
	ns, err := netns.FromFile(os.NewFile(uintptr(fd), "netns"))
	if err != nil {
		return err
	}
	if old := z.pods[uid]; old != nil {
		if old.ns.ID() == ns.ID() {
			return ns.Close()
		}
		old.stop()
	}
	p := &foreignPod{ns: ns}
	for _, l := range []struct {
		port  string
		serve func(*netns.NS, *net.TCPConn)
	}{{"15001", z.outbound}, {"15006", z.inbound}, {"15008", z.hbone}} {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var inner error
			err := c.Control(func(fd uintptr) {
				inner = errors.Join(
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 1337),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
					// Not what the others do: Go sets it by itself, they do not.
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0))
			})
			return errors.Join(err, inner)
		}}
		lc.SetMultipathTCP(false)
		err := ns.Do(func() error {
			ln, err := lc.Listen(context.Background(), "tcp", "[::]:"+l.port)
			if err != nil {
				return err
			}
			p.listeners = append(p.listeners, ln)
			// After listen, as they do.
			raw, err := ln.(*net.TCPListener).SyscallConn()
			if err != nil {
				return err
			}
			var inner error
			err = raw.Control(func(fd uintptr) {
				inner = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			})
			return errors.Join(err, inner)
		})
		if err != nil {
			p.stop()
			return err
		}
		ln := p.listeners[len(p.listeners)-1]
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				z.open.Go(func() { defer c.Close(); l.serve(ns, c.(*net.TCPConn)) })
			}
		}()
	}
	z.pods[uid] = p
	return nil
}

// original is where a connection was going: conntrack's word, else its own
// address.
func original(c *net.TCPConn) netip.AddrPort {
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	raw, err := c.SyscallConn()
	if err != nil {
		return local
	}
	_ = raw.Control(func(fd uintptr) {
		if m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); err == nil {
			b := m.Multiaddr
			local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
		}
	})
	return local
}

func (z *foreignZtunnel) outbound(ns *netns.NS, c *net.TCPConn) {
	z.relay(ns, c, "outbound", netip.AddrPort{}, original(c))
}

func (z *foreignZtunnel) inbound(ns *netns.NS, c *net.TCPConn) {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	z.relay(ns, c, "inbound", netip.AddrPortFrom(from, 0), original(c))
}

func (z *foreignZtunnel) hbone(_ *netns.NS, c *net.TCPConn) {
	fmt.Fprintln(c, z.name, "hbone", c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
	_, _ = io.Copy(c, c)
}

func (z *foreignZtunnel) relay(ns *netns.NS, c *net.TCPConn, way string, from, to netip.AddrPort) {
	fmt.Fprintln(c, z.name, way, to)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	up, err := ns.DialTCP(ctx, from, to, netns.SocketOptions{Mark: 1337, Transparent: from.IsValid()})
	if err != nil {
		fmt.Fprintln(os.Stderr, z.name, way, to, err)
		return
	}
	defer up.Close()
	go func() { _, _ = io.Copy(up, c); _ = up.CloseWrite() }()
	_, _ = io.Copy(c, up)
}

// process is a foreign ztunnel of the test's.
type foreignProcess struct {
	*exec.Cmd
	out  *bufio.Reader
	done chan struct{}
}

// foreignZtunnel starts one and waits until it has its snapshot.
func (b *bench) foreignZtunnel(name string) *foreignProcess {
	b.t.Helper()
	p := b.startForeign(name)
	p.says(b.t, "ready")
	return p
}

func (b *bench) startForeign(name string) *foreignProcess {
	b.t.Helper()
	p := &foreignProcess{Cmd: exec.Command("/proc/self/exe"), done: make(chan struct{})}
	p.Env = []string{foreignVariable + "=" + b.cfg.ZDSSocket, foreignName + "=" + name}
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(p.kill)
	return p
}

func (p *foreignProcess) says(t testing.TB, want string) {
	t.Helper()
	if line, err := p.out.ReadString('\n'); err != nil || line != want+"\n" {
		t.Fatalf("the foreign ztunnel said %q, %v", line, err)
	}
}

func (p *foreignProcess) kill() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.Process.Kill()
	_ = p.Wait()
	close(p.done)
}
