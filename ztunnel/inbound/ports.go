package inbound

import (
	"math/rand/v2"
	"net/netip"
	"sync"
)

// Connections to the application carry the client's address, so their local
// ports are chosen here and not by the kernel, which would confine itself to
// ip_local_port_range. A (client, port) pair must differ from those we have in
// use and from those of the client's own connections that we hold in the
// pod's namespace: the packets of both arrive at the same sockets.
//
// It must also differ from what the client will choose for its next plaintext
// connection: that SYN would meet the application's socket of ours, and wait
// until ours has ended. So the ports that clients choose by themselves are our
// last choice: Linux does from 32768 on, others from 49152 on.
const (
	firstPort      = 1024
	firstEphemeral = 32768
	quietCount     = firstEphemeral - firstPort
	portCount      = 65536 - firstPort
)

// spoofed holds the (client, port) pairs in use in one pod.
type spoofed struct {
	rand func(n uint32) uint32 // uniform in [0, n); nil means math/rand

	mu   sync.Mutex
	used map[netip.AddrPort]int // guarded by mu; pair to holders
}

// hold marks the client's own port as in use; release undoes it.
func (s *spoofed) hold(client netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == nil {
		s.used = map[netip.AddrPort]int{}
	}
	s.used[client]++
}

// take chooses a free port for client and holds it. The client's own port is
// never chosen, and one that the client may choose next only if any will do. It
// reports false when there is none.
func (s *spoofed) take(client netip.AddrPort, any bool) (netip.AddrPort, bool) {
	r := s.rand
	if r == nil {
		r = rand.Uint32N
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == nil {
		s.used = map[netip.AddrPort]int{}
	}
	count := uint32(quietCount)
	if any {
		count = portCount
	}
	start := r(count)
	for i := range count {
		pair := netip.AddrPortFrom(client.Addr(), uint16(firstPort+(start+i)%count))
		if pair.Port() == client.Port() || s.used[pair] > 0 {
			continue
		}
		s.used[pair] = 1
		return pair, true
	}
	return netip.AddrPort{}, false
}

// release gives a pair back; the zero pair was never held.
func (s *spoofed) release(pair netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[pair] > 1 {
		s.used[pair]--
	} else {
		delete(s.used, pair)
	}
}
