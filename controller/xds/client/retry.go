package client

import (
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	firstDelay = 10 * time.Millisecond
	maxDelay   = 15 * time.Second
)

// outcome is how one stream ended.
type outcome struct {
	err         error
	established bool // the stream was opened
	spoke       bool // the server sent at least one response
}

// reason is the metric label, as Istio's data plane names them.
func (o outcome) reason() string {
	switch {
	case !o.established:
		return "ConnectionError"
	case o.err == nil:
		return "Complete"
	case o.routine():
		return "Reconnect"
	}
	return "Error"
}

// routine reports an end that belongs to normal life: the server went away or
// limits the age of connections.
func (o outcome) routine() bool {
	s, ok := status.FromError(o.err)
	if !ok {
		return false
	}
	switch s.Code() {
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		m := s.Message()
		// The first two are the words of other gRPC stacks, the rest grpc-go's.
		return strings.Contains(m, "transport is closing") || strings.Contains(m, "received prior goaway") ||
			strings.Contains(m, "error reading from server: EOF") || strings.Contains(m, "connection is draining")
	}
	return false
}

// nextDelay doubles while attempts fail. A routine or clean end retries at
// once, but never without any pause: a server that ends every stream at once
// must not be hammered.
func nextDelay(last time.Duration, o outcome) time.Duration {
	if o.established && (o.err == nil || o.routine()) {
		return firstDelay
	}
	if o.spoke {
		last = firstDelay
	}
	return min(maxDelay, 2*last)
}
