package live

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Pipe copies between two plain TCP connections, half-close and reset
// included. It is the Counter of its record.
type Pipe struct {
	client, server *net.TCPConn
	received, sent atomic.Uint64 // client → server, server → client

	mu    sync.Mutex
	cause error // guarded by mu; why both ends were reset
	once  sync.Once
}

// NewPipe joins client and server; it owns both from now on.
func NewPipe(client, server *net.TCPConn) *Pipe {
	return &Pipe{client: client, server: server}
}

// Received counts client → server.
func (p *Pipe) Received() uint64 { return p.received.Load() }

// Sent counts server → client.
func (p *Pipe) Sent() uint64 { return p.sent.Load() }

// Run copies until both directions have ended. nil means both ends closed in
// order.
func (p *Pipe) Run() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.direction(p.server, p.client, &p.received, ClientReset, ServerReset)
	}()
	p.direction(p.client, p.server, &p.sent, ServerReset, ClientReset)
	<-done
	p.mu.Lock()
	err := p.cause
	p.mu.Unlock()
	if err == nil {
		p.once.Do(func() {
			p.client.Close()
			p.server.Close()
		})
	}
	return err
}

// Cut resets both ends; Run returns err.
func (p *Pipe) Cut(err error) { p.fail(err) }

func (p *Pipe) fail(err error) {
	p.mu.Lock()
	if p.cause == nil {
		p.cause = err
	}
	p.mu.Unlock()
	p.once.Do(func() {
		Reset(p.client)
		Reset(p.server)
	})
}

// copySize is what one read takes; see the performance notes on 64 KiB
// buffers.
const copySize = 60000

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

// direction copies src to dst. Reads wait without a buffer, so that an idle
// connection holds none.
func (p *Pipe) direction(dst, src *net.TCPConn, n *atomic.Uint64, srcReset, dstReset Reason) {
	raw, err := src.SyscallConn()
	if err != nil {
		p.fail(&Error{srcReset, err})
		return
	}
	var (
		buf  *[]byte
		size int
		rerr error
	)
	read := func(fd uintptr) bool {
		buf = copyBuffers.Get().(*[]byte)
		for {
			size, rerr = syscall.Read(int(fd), *buf)
			if rerr != syscall.EINTR {
				break
			}
		}
		if rerr == syscall.EAGAIN {
			copyBuffers.Put(buf)
			buf = nil
			return false
		}
		return true
	}
	for {
		err := raw.Read(read)
		if err == nil {
			err = rerr
		}
		if err == nil && size == 0 {
			err = io.EOF
		}
		if err != nil {
			if buf != nil {
				copyBuffers.Put(buf)
			}
			if err != io.EOF {
				p.fail(&Error{srcReset, err})
				return
			}
			if err := dst.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
				p.fail(&Error{dstReset, err})
			}
			return
		}
		_, err = dst.Write((*buf)[:size])
		copyBuffers.Put(buf)
		buf = nil
		if err != nil {
			p.fail(&Error{dstReset, err})
			return
		}
		n.Add(uint64(size))
	}
}

// Reset closes c with a RST instead of a FIN.
func Reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
