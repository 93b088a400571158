package hbone

import (
	"context"
	"fmt"

	"golang.org/x/net/http2"
)

// Open asks the peer for a tunnel and waits for its answer. A nil error means
// that it said 200. A *StreamError concerns this stream only; a *ConnError says that the
// connection is gone. When ctx ends first the stream is cancelled.
func (c *Conn) Open(ctx context.Context, r Request) (*Stream, error) {
	if !c.Acquire(maxWindow) {
		if err := c.Err(); err != nil {
			return nil, err
		}
		return nil, &StreamError{Code: http2.ErrCodeRefusedStream, Err: ErrFull}
	}
	return c.OpenAcquired(ctx, r)
}

// OpenAcquired is Open for a slot got from Acquire, which it uses up.
func (c *Conn) OpenAcquired(ctx context.Context, r Request) (*Stream, error) {
	if err := checkSend(r); err != nil {
		c.Release()
		return nil, &StreamError{Code: http2.ErrCodeInternal, Err: fmt.Errorf("request: %w", err)}
	}
	if ctx.Err() != nil {
		c.Release()
		return nil, &StreamError{Code: http2.ErrCodeCancel, Err: context.Cause(ctx)}
	}
	var space [512]byte
	fields := appendRequest(space[:0], "CONNECT", r)
	s := newStream(c, 0, 0)

	// Numbers must appear on the wire in rising order (RFC 9113 5.1.1), so the
	// number is taken and the frame queued in one critical section.
	w := &c.out
	w.mu.Lock()
	c.mu.Lock()
	if c.err != nil || c.nextID > maxWindow {
		err := c.err
		c.mu.Unlock()
		w.mu.Unlock()
		c.Release()
		if err == nil {
			err = &StreamError{Code: http2.ErrCodeRefusedStream, Err: ErrFull}
		}
		return nil, err
	}
	s.id = c.nextID
	c.nextID += 2
	s.send.window = c.peerWindow
	c.streams[s.id] = s
	c.mu.Unlock()
	w.headersLocked(s.id, fields, false)
	w.kick(true)

	return s.awaitResponse(ctx)
}

func (s *Stream) awaitResponse(ctx context.Context) (*Stream, error) {
	r := &s.recv
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() {
			r.mu.Lock()
			r.changed.Broadcast()
			r.mu.Unlock()
		})
		defer stop()
	}
	r.mu.Lock()
	for !r.answered && r.err == nil && ctx.Err() == nil {
		r.changed.Wait()
	}
	answered, status, err := r.answered, r.status, r.err
	r.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case !answered:
		err := &StreamError{Code: http2.ErrCodeCancel, Err: context.Cause(ctx)}
		s.refuse(http2.ErrCodeCancel, err.Err)
		return nil, err
	case status != 200:
		s.refuse(http2.ErrCodeCancel, ErrClosed)
		return nil, &StreamError{Status: status, Code: http2.ErrCodeCancel, Remote: true}
	}
	return s, nil
}
