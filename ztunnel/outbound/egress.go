package outbound

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/egress"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// Egress says what may leave the mesh.
type Egress struct {
	// RegistryOnly says whether only what is registered may; nil leaves it to the
	// mesh's settings.
	RegistryOnly *bool
	Domain       string // of the cluster; "" means cluster.local
}

// registryOnly is asked for every connection to what the mesh does not know, so
// that a change holds for the next one.
func (e Egress) registryOnly(s *mesh.Snapshot) bool {
	if e.RegistryOnly != nil {
		return *e.RegistryOnly
	}
	settings, _ := s.Settings()
	return settings.RegistryOnly
}

// helloTimeout is how long a client may take to say which server it wants.
const helloTimeout = 5 * time.Second

// admit decides about a connection that would be passed through: whether its
// destination is registered. What the mesh knows only by a host name, it admits
// by the name that a TLS client asks for, and says so in r.
func (p *Proxy) admit(c *net.TCPConn, snap *mesh.Snapshot, self *mesh.Workload, r *Route) error {
	if r.Kind != PassThrough || !p.cfg.Egress.registryOnly(snap) {
		return nil
	}
	ip, port := r.Addr.Addr(), r.Addr.Port()
	switch {
	case ip.IsLoopback():
		return nil // does not leave the pod
	case r.Service != nil && egress.Serves(r.Service, port):
		return nil
	case r.Service != nil:
		return live.Errorf(live.NotRegistered, "egress policy REGISTRY_ONLY: service %s has %s but not port %d", r.Service.Key(), ip, port)
	case snap.HostNetworkAt(self.Network, ip):
		return nil
	}
	name, hello := serverName(c)
	if hello != egress.Named {
		return live.Errorf(live.NotRegistered, "egress policy REGISTRY_ONLY: %s is not registered, and the client names no server (%s)", r.Addr, hello)
	}
	domain := p.cfg.Egress.Domain
	if domain == "" {
		domain = "cluster.local"
	}
	if r.Service = egress.ByName(snap, self.Namespace, domain, name, port); r.Service == nil {
		return live.Errorf(live.NotRegistered, "egress policy REGISTRY_ONLY: neither %s nor the host %.253s with TLS on port %d is registered", r.Addr, name, port)
	}
	return nil
}

var helloBuffers = sync.Pool{New: func() any { b := make([]byte, egress.MaxHello); return &b }}

// serverName looks at what a client sends first and leaves it in the socket. It
// waits without a buffer: the poller tells of new data once, whatever of the old
// is still there (epoll's edge-triggered mode).
func serverName(c *net.TCPConn) (name string, hello egress.Hello) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", egress.NotTLS
	}
	_ = c.SetReadDeadline(time.Now().Add(helloTimeout))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	err = raw.Read(func(fd uintptr) bool {
		buf := helloBuffers.Get().(*[]byte)
		defer helloBuffers.Put(buf)
		n, _, err := syscall.Recvfrom(int(fd), *buf, syscall.MSG_PEEK)
		switch {
		case err == syscall.EAGAIN || err == syscall.EINTR:
			return false
		case err != nil || n == 0:
			hello = egress.NotTLS
			return true
		}
		name, hello = egress.ServerName((*buf)[:n])
		if hello == egress.Partial && n == len(*buf) {
			hello = egress.NotTLS
		}
		return hello != egress.Partial
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		hello = egress.NotTLS
	}
	return name, hello
}
