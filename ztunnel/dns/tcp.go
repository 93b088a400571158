package dns

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambitmesh/ambit/ztunnel/live"
)

// ServeTCP answers the connections of ln until it is closed, and returns when
// the last has ended. paused is told of a want of descriptors; may be nil. The
// end of ctx ends connections.
func (s *Server) ServeTCP(ctx context.Context, ln net.Listener, paused func(error)) error {
	own := live.AddrPort(ln.Addr()).Port()
	return live.AcceptLoop(ln, func(c *net.TCPConn) { s.stream(ctx, c, own) }, paused)
}

// stream answers the questions of one connection, several at once and each as
// soon as it can be (RFC 7766 6.2.1.1).
func (s *Server) stream(ctx context.Context, c *net.TCPConn, own uint16) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := s.cfg.Share.Take(live.CostConn); err != nil {
		s.dropped(err)
		return
	}
	defer s.cfg.Share.Give(live.CostConn)
	client, server := live.AddrPort(c.RemoteAddr()), s.cfg.Original(c)
	if toSelf(client, server, own) {
		server = netip.AddrPort{}
	}
	var (
		under atomic.Int32 // questions under way
		wg    sync.WaitGroup
		write sync.Mutex
	)
	defer wg.Wait()
	within := func(b []byte, d time.Duration) error {
		write.Lock()
		defer write.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(d))
		return writeFrame(c, b)
	}
	reply := func(b []byte) {
		if within(b, tcpIdle) != nil {
			c.Close() // ends the reader too
		}
	}
	slots := make(chan struct{}, maxPipelined)
	in := bufio.NewReaderSize(c, 512)
	for {
		raw, err := nextFrame(c, in, &under)
		if err != nil || isResponse(raw) {
			return
		}
		x := &exchange{question: read(raw), raw: raw, protocol: "tcp", limit: maxMessage, client: client, server: server}
		if answer, done := s.local(x); done {
			reply(answer)
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		under.Add(1)
		wg.Go(func() {
			var answer []byte
			if !x.transfer() {
				answer = s.resolve(ctx, x)
			} else if s.transfer(ctx, x, func(b []byte) error { return within(b, transferIdle) }) != nil {
				c.Close() // a zone that is not whole ends with the connection
			}
			under.Add(-1)
			<-slots
			if answer != nil {
				reply(answer)
			}
		})
	}
}

// nextFrame waits for a question, without end while others are under way.
func nextFrame(c *net.TCPConn, in *bufio.Reader, under *atomic.Int32) ([]byte, error) {
	for {
		busy := under.Load() > 0
		_ = c.SetReadDeadline(time.Now().Add(tcpIdle))
		_, err := in.Peek(2)
		if errors.Is(err, os.ErrDeadlineExceeded) && busy && in.Buffered() < 2 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return readFrame(in)
	}
}
