package outbound

import (
	"errors"
	"net"
	"sync"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// carrier is the upstream half of a connection that stands.
type carrier interface {
	// relay copies between the application's socket and the upstream until
	// both directions have ended, and closes both.
	relay(*live.Conn, *net.TCPConn) error
	// close gives back what is left after the relay; the connection's record has
	// been closed by then.
	close()
}

type plain struct {
	c     *net.TCPConn
	share *live.Share
}

func (u plain) relay(rec *live.Conn, app *net.TCPConn) error {
	defer u.share.Give(live.CostConn)
	p := live.NewPipe(app, u.c)
	rec.Count(p)
	rec.OnCut(p.Cut)
	return p.Run()
}

func (plain) close() {}

// shared is a tunnel's socket, which gives back what it took when it is closed.
type shared struct {
	*net.TCPConn
	share *live.Share
	once  sync.Once
}

func (c *shared) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() { c.share.Give(live.CostTunnel) })
	return err
}

type tunnelled struct{ s *hbone.Stream }

// Received is client → server: what the tunnel sent.
func (u tunnelled) Received() uint64 { return u.s.Sent() }

// Sent is server → client: what the tunnel received.
func (u tunnelled) Sent() uint64 { return u.s.Received() }

func (tunnelled) close() {}

func (u tunnelled) relay(rec *live.Conn, app *net.TCPConn) error {
	rec.Count(u)
	rec.OnCut(u.s.Abort)
	err := u.s.Relay(app)
	if err == nil {
		return nil
	}
	var (
		conn   *hbone.ConnError
		stream *hbone.StreamError
		known  *live.Error
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, hbone.ErrMemory):
		return &live.Error{Reason: live.MemoryPressure, Err: err}
	case errors.Is(err, hbone.ErrShare):
		return &live.Error{Reason: live.QuotaBacklog, Err: err}
	case errors.As(err, &conn):
		return &live.Error{Reason: live.TunnelLost, Err: err}
	case errors.As(err, &stream) && stream.Remote:
		return &live.Error{Reason: live.ServerReset, Err: err}
	}
	return &live.Error{Reason: live.ClientReset, Err: err}
}
