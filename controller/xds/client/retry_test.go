package client

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

//ambit:feature xds-conversation
func TestDelays(t *testing.T) {
	cases := []struct {
		name   string
		out    outcome
		last   time.Duration
		reason string
		want   time.Duration
	}{
		{"cannot connect", outcome{err: errors.New("refused")}, 10 * time.Millisecond, "ConnectionError", 20 * time.Millisecond},
		{"still cannot", outcome{err: errors.New("refused")}, 10 * time.Second, "ConnectionError", 15 * time.Second},
		{"clean end", outcome{established: true}, 10 * time.Second, "Complete", 10 * time.Millisecond},
		{"unknown", outcome{established: true, err: status.Error(codes.Unknown, "")}, 10 * time.Second, "Reconnect", 10 * time.Millisecond},
		{"cancelled", outcome{established: true, err: status.Error(codes.Canceled, "")}, 10 * time.Second, "Reconnect", 10 * time.Millisecond},
		{"deadline", outcome{established: true, err: status.Error(codes.DeadlineExceeded, "")}, 10 * time.Second, "Reconnect", 10 * time.Millisecond},
		{"closing", outcome{established: true, err: status.Error(codes.Unavailable, "transport is closing")}, 10 * time.Second, "Reconnect", 10 * time.Millisecond},
		{"goaway", outcome{established: true, err: status.Error(codes.Unavailable, "closing transport due to: received prior goaway: code: NO_ERROR")}, 10 * time.Second, "Reconnect", 10 * time.Millisecond},
		{"unavailable", outcome{established: true, err: status.Error(codes.Unavailable, "overloaded")}, time.Second, "Error", 2 * time.Second},
		{"unauthenticated", outcome{established: true, err: status.Error(codes.Unauthenticated, "")}, 10 * time.Millisecond, "Error", 20 * time.Millisecond},
		{"garbage", outcome{established: true, err: status.Error(codes.Internal, "grpc: failed to unmarshal")}, 14 * time.Second, "Error", 15 * time.Second},
		{"error after a good time", outcome{established: true, spoke: true, err: status.Error(codes.Internal, "")}, 14 * time.Second, "Error", 20 * time.Millisecond},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := c.out.reason(); got != c.reason {
				t.Errorf("reason %s, want %s", got, c.reason)
			}
			if got := nextDelay(c.last, c.out); got != c.want {
				t.Errorf("delay %v, want %v", got, c.want)
			}
		})
	}
}
