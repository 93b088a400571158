package hbone

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// ConnError says that the whole connection is gone: every stream on it has
// ended, and a pool must drop it.
type ConnError struct {
	Op   string        // what was being done: "tls handshake", "read", "write", "ping", "close" ...
	Code http2.ErrCode // the HTTP/2 code sent or received; ErrCodeNo when none was
	Err  error
}

func (e *ConnError) Error() string {
	if e.Code == http2.ErrCodeNo {
		return fmt.Sprintf("hbone connection: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("hbone connection: %s: %v (%v)", e.Op, e.Err, e.Code)
}

func (e *ConnError) Unwrap() error { return e.Err }

// StreamError says that one stream ended other than in order; the connection
// and its other streams are not affected.
type StreamError struct {
	Status int           // HTTP status when the peer answered CONNECT with something other than 200
	Code   http2.ErrCode // code of the RST_STREAM
	Remote bool          // the peer said so, not we
	Err    error
}

func (e *StreamError) Error() string {
	side := "local"
	if e.Remote {
		side = "peer"
	}
	switch {
	case e.Status != 0:
		return fmt.Sprintf("hbone stream: %s answered CONNECT with status %d", side, e.Status)
	case e.Err != nil:
		return fmt.Sprintf("hbone stream: reset by %s: %v (%v)", side, e.Err, e.Code)
	}
	return fmt.Sprintf("hbone stream: reset by %s (%v)", side, e.Code)
}

func (e *StreamError) Unwrap() error { return e.Err }

var (
	// ErrClosed is the cause inside a ConnError or StreamError after our own Close.
	ErrClosed = errors.New("closed locally")
	// ErrFull is the cause when a connection takes no further stream: it is at
	// its stream limit, draining, or has encrypted all it should.
	ErrFull = errors.New("connection takes no more streams")
	// ErrPeerClosed is the cause when the peer ended the connection in order.
	ErrPeerClosed = errors.New("closed by the peer")
)
