package live

import (
	"net"
	"syscall"
	"time"
)

// KeepAlive is how the silent end of a peer is noticed on a TCP connection. The
// zero KeepAlive is the reference's: first probe after 3 minutes, then every 3, 9
// times.
type KeepAlive struct {
	Off            bool
	Idle, Interval time.Duration
	Count          int
	// UserTimeout also ends a connection whose data nobody acknowledges for as
	// long as the probes would take in all (TCP_USER_TIMEOUT, RFC 5482).
	UserTimeout bool
}

const tcpUserTimeout = 18 // linux/tcp.h

func (k KeepAlive) filled() KeepAlive {
	if k.Idle <= 0 {
		k.Idle = 180 * time.Second
	}
	if k.Interval <= 0 {
		k.Interval = 180 * time.Second
	}
	if k.Count <= 0 {
		k.Count = 9
	}
	return k
}

// limit is when a connection is given up whose peer says nothing.
func (k KeepAlive) limit() time.Duration { return k.Idle + time.Duration(k.Count)*k.Interval }

// Set applies k to c. An error means c is closed already, which its next use
// tells better.
func (k KeepAlive) Set(c *net.TCPConn) {
	k = k.filled()
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: !k.Off, Idle: k.Idle, Interval: k.Interval, Count: k.Count})
	if !k.UserTimeout {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(k.limit().Milliseconds()))
		})
	}
}
