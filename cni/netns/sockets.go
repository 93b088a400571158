package netns

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Socket is one TCP socket of a namespace, as the kernel reports it.
type Socket struct {
	Local, Remote netip.AddrPort // IPv4 as IPv4, also where a dual-stack socket speaks it
	State         uint8          // Established and so on
	Mark          uint32
	Cookie        uint64 // SO_COOKIE: never used again before the next boot
	Inode         uint32 // 0 when no process has it open (any more, or yet)
	Cgroup        uint64 // cgroup v2 id of its maker; 0 where the kernel has none

	family uint8  // of the socket, not of its addresses
	device uint32 // index of the device it is bound to
}

// States of linux/tcp_states.h.
const (
	Established = 1
	SynSent     = 2
	SynRecv     = 3
	FinWait1    = 4
	FinWait2    = 5
	CloseWait   = 8
	LastAck     = 9
	Listening   = 10
	Closing     = 11
)

// liveStates are those of a connection that may still carry data.
const liveStates = 1<<Established | 1<<SynSent | 1<<SynRecv | 1<<FinWait1 | 1<<FinWait2 |
	1<<CloseWait | 1<<LastAck | 1<<Closing

// Connections lists the TCP connections of a namespace; listeners and what is
// left of ended ones (TIME_WAIT) are not among them.
func (n *NS) Connections() ([]Socket, error) { return n.dump(liveStates) }

// Listeners lists the TCP listeners of a namespace.
func (n *NS) Listeners() ([]Socket, error) { return n.dump(1 << Listening) }

// IsProxy reports whether the socket is one of the proxy's. An application that
// sets the mark itself only keeps its pod's drain waiting.
func (s Socket) IsProxy() bool { return s.Mark&MarkMask == Mark }

// Uncaptured returns those connections that bypass the proxy: not the proxy's
// own, not those the proxy is the other end of, and not those between two
// processes of the pod, which nobody would capture. Directly after capture
// began these are the connections that are older than it.
func Uncaptured(all []Socket) []Socket {
	type pair struct{ local, remote netip.AddrPort }
	ends := make(map[pair]bool, len(all))
	for _, s := range all {
		ends[pair{s.Local, s.Remote}] = true
	}
	var out []Socket
	for _, s := range all {
		if s.IsProxy() || s.State == SynSent || s.Remote.Addr().IsLoopback() || ends[pair{s.Remote, s.Local}] {
			continue // a SYN that is sent again will be captured
		}
		if s.Inode == 0 && s.State != SynRecv && s.State != Established {
			continue // no process has it: only the kernel's goodbye is left
		}
		out = append(out, s)
	}
	return out
}

// LocalPorts is the range from which the kernel takes the ports of outgoing
// connections, net.ipv4.ip_local_port_range; it holds for IPv6 as well.
func (n *NS) LocalPorts() (first, last uint16, err error) {
	err = n.Do(func() error {
		// What is below /proc/sys/net depends on the thread that reads it.
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(string(b), &first, &last); err != nil {
			return fmt.Errorf("ip_local_port_range is %q: %w", b, err)
		}
		return nil
	})
	return first, last, err
}

func (n *NS) dump(states uint32) ([]Socket, error) {
	var out []Socket
	err := n.diag(func(fd int) (err error) {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			if out, err = dumpFamily(fd, family, states, out); err != nil {
				return fmt.Errorf("list TCP sockets: %w", err)
			}
		}
		return nil
	})
	return out, err
}

// Connection finds the socket with this pair of addresses.
func (n *NS) Connection(local, remote netip.AddrPort) (Socket, error) {
	var s Socket
	err := n.diag(func(fd int) error {
		family := uint8(unix.AF_INET)
		if local.Addr().Is6() {
			family = unix.AF_INET6
		}
		req := request(unix.NLM_F_REQUEST, sockDiagByFamily, Socket{Local: local, Remote: remote, family: family, Cookie: ^uint64(0)}, ^uint32(0))
		answer, err := ask(fd, req)
		if err != nil {
			return err
		}
		s, err = parseAnswer(answer, local)
		return err
	})
	return s, err
}

// Destroy ends connections as an administrator does: the peer is sent a RST
// (RFC 9293 section 3.10.5), the application's next call fails. The results are
// those of the sockets in turn: nil, ENOENT for one that had ended before,
// EOPNOTSUPP from a kernel without CONFIG_INET_DIAG_DESTROY. The error is for
// when nothing could be tried.
func (n *NS) Destroy(sockets []Socket) ([]error, error) {
	results := make([]error, len(sockets))
	err := n.diag(func(fd int) error {
		for i, s := range sockets {
			answer, err := ask(fd, request(unix.NLM_F_REQUEST|unix.NLM_F_ACK, sockDestroy, s, 1<<s.State))
			if err == nil {
				_, _, err = parseDump(answer, nil)
			}
			results[i] = err
		}
		return nil
	})
	return results, err
}

func (n *NS) diag(f func(fd int) error) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		defer unix.Close(fd)
		return f(fd)
	})
}
