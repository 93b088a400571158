package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Server serves connections. Its fields must not be changed once it is used.
type Server struct {
	TLS    *tls.Config // see identity.ServerConfig
	Config Config
	// Handler is called for every request, on a goroutine of its own. It must
	// answer by Accept or Reject; the stream of an Accept it must bring to an end.
	Handler func(*Incoming)
	// OnHandshake, if not nil, is called when the TLS handshake of a connection is
	// over, however it ended.
	OnHandshake func()
	// OnHandshakeError, if not nil, is told of connections that never got as far as a
	// request. The error wraps *identity.VerifyError if the peer's
	// certificate was refused.
	OnHandshakeError func(remote netip.AddrPort, err error)
	// OnRefused, if not nil, is told of requests that Handler does not get to
	// see because they are malformed, have too large a header or are too many at
	// once. The error wraps a *StreamError, and ErrFull in the last case.
	OnRefused func(remote netip.AddrPort, err error)
}

// Serve serves one connection, which it owns, until it has ended and all
// handlers have returned. When ctx ends it sends GOAWAY and waits for the open
// streams, however long they last; aborting them is up to the handlers. The
// error is nil if the connection ended in order, with no stream open.
func (s *Server) Serve(ctx context.Context, nc net.Conn) error {
	// A drain must not break a handshake: its client is told by GOAWAY like any other.
	c, err := handshake(context.WithoutCancel(ctx), nc, s.TLS, s.Config.filled(false), false)
	if s.OnHandshake != nil {
		s.OnHandshake()
	}
	if err != nil {
		if s.OnHandshakeError != nil {
			s.OnHandshakeError(addrPort(nc.RemoteAddr()), err)
		}
		return err
	}
	c.serve, c.refused = s.Handler, s.OnRefused
	c.start()
	stop := context.AfterFunc(ctx, c.GoAway)
	c.running.Wait()
	stop()
	c.handlers.Wait()
	err = c.Err()
	c.mu.Lock()
	cut := c.cut
	c.mu.Unlock()
	if errors.Is(err, ErrPeerClosed) && c.in.settled && !cut || errors.Is(err, ErrClosed) {
		return nil
	}
	// After our GOAWAY a client may well leave before it has said a word.
	if !c.in.settled && ctx.Err() == nil && s.OnHandshakeError != nil {
		s.OnHandshakeError(c.remote, err)
	}
	return err
}

// Incoming is a request a server has received.
type Incoming struct {
	Request
	Method string // CONNECT, unless the peer wants something else

	s *Stream

	mu       sync.Mutex
	answered bool
	ctx      context.Context // made when first asked for
	stop     context.CancelCauseFunc
	gone     error // why ctx has ended, or would have
}

// Peer is the verified identity of the client.
func (in *Incoming) Peer() identity.ID { return in.s.c.peer }

// RemoteAddr and LocalAddr are those of the connection.
func (in *Incoming) RemoteAddr() netip.AddrPort { return in.s.c.remote }
func (in *Incoming) LocalAddr() netip.AddrPort  { return in.s.c.local }

// Context ends when the stream or its connection has failed or ended.
func (in *Incoming) Context() context.Context {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ctx == nil {
		in.ctx, in.stop = context.WithCancelCause(context.Background())
		if in.gone != nil {
			in.stop(in.gone)
		}
	}
	return in.ctx
}

func (in *Incoming) cancel(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.gone == nil {
		in.gone = err
		if in.stop != nil {
			in.stop(err)
		}
	}
}

// pending reports whether there is no answer yet.
func (in *Incoming) pending() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return !in.answered
}

// answer reports whether this is the first answer.
func (in *Incoming) answer() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	first := !in.answered
	in.answered = true
	return first
}

// Accept answers 200 with the given headers.
func (in *Incoming) Accept(h ...Header) (*Stream, error) {
	if err := checkHeaders(h); err != nil {
		return nil, &StreamError{Code: http2.ErrCodeInternal, Err: err}
	}
	if !in.answer() {
		return nil, &StreamError{Code: http2.ErrCodeInternal, Err: errors.New("already answered")}
	}
	s := in.s
	in.mu.Lock()
	err := in.gone
	in.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var space [256]byte
	s.c.out.response(s, appendResponse(space[:0], 200, h), false)
	return s, nil
}

// Reject answers with status and nothing else. A second answer is ignored.
func (in *Incoming) Reject(status int) {
	if !in.answer() {
		return
	}
	s := in.s
	s.send.mu.Lock()
	dead := s.send.err != nil || s.send.closed
	s.send.closed = true
	s.send.mu.Unlock()
	if dead {
		return
	}
	var space [16]byte
	s.c.out.response(s, appendResponse(space[:0], status, nil), true)
	s.ended(sendEnded)
	// RFC 9113 8.1: the rest of the request is not wanted, which is no error.
	s.refuse(http2.ErrCodeNo, fmt.Errorf("rejected with status %d", status))
}

// refuse answers a request that no handler gets to see.
func (r *reader) refuse(id uint32, code http2.ErrCode, why error) error {
	if c := r.c; c.refused != nil {
		// Not here: whoever is told may have to wait, for a log to be written.
		c.handlers.Go(func() { c.refused(c.remote, &StreamError{Code: code, Err: why}) })
	}
	return r.answerReset(id, code)
}

// incoming handles the header block of a new stream.
func (r *reader) incoming(h *block) error {
	c := r.c
	if c.out.unread() > maxUnread {
		return protocolError(http2.ErrCodeEnhanceYourCalm, "peer does not read the answers to its requests")
	}
	c.mu.Lock()
	// Room for twice as many as were announced: the peer knows of the end of a
	// stream before its handler has returned here, and may open the next.
	full := c.active >= 2*int(c.cfg.MaxStreams)
	swamped := error(nil)
	if h.size > minAsked {
		swamped = c.cfg.Budget.swamped()
	}
	switch why := h.request(); {
	case c.err != nil || c.draining: // the peer may repeat it elsewhere
		c.mu.Unlock()
		return r.answerReset(h.id, http2.ErrCodeRefusedStream)
	case full:
		c.mu.Unlock()
		return r.refuse(h.id, http2.ErrCodeRefusedStream, fmt.Errorf("%w: %d are open", ErrFull, c.cfg.MaxStreams*2))
	case swamped != nil:
		c.mu.Unlock()
		return r.refuse(h.id, http2.ErrCodeEnhanceYourCalm, swamped)
	case h.tooBig:
		c.mu.Unlock()
		return r.refuse(h.id, http2.ErrCodeEnhanceYourCalm, fmt.Errorf("header over %d bytes", c.cfg.MaxHeaderList))
	case why != "":
		c.mu.Unlock()
		return r.refuse(h.id, http2.ErrCodeProtocol, fmt.Errorf("malformed request: %s", why))
	}
	s := newStream(c, h.id, c.peerWindow)
	// The slot is held until the handler has returned as well, or a peer that
	// opens and resets at once would have any number of handlers running.
	s.refs.Add(1)
	s.ask(h.size)
	s.in = &Incoming{Request: Request{Authority: h.authority, Header: h.fields}, Method: h.method, s: s}
	c.active++
	c.streams[h.id] = s
	c.handlers.Add(1)
	c.mu.Unlock()
	c.cfg.Budget.enforce()
	if h.end {
		s.receiveEnd()
	}
	go func() {
		defer c.handlers.Done()
		defer s.unref()
		c.serve(s.in)
		if s.in.answer() {
			s.refuse(http2.ErrCodeInternal, errors.New("handler gave no answer"))
		}
	}()
	return nil
}
