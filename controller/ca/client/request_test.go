package client

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// TestSilentReplicaIsLeft: requests do not follow one another onto a
// connection that brought no answer, however much they overlap.
//
//ambit:feature identity-replicas
func TestSilentReplicaIsLeft(t *testing.T) {
	c := &caller{config: Config{Address: "127.0.0.1:1"}} // connections are made when they are used
	acquire := func() *sharedConn {
		t.Helper()
		conn, err := c.acquire()
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	first := acquire()
	second := acquire()
	if second != first {
		t.Error("requests under way do not share")
	}
	c.release(first, status.Error(codes.DeadlineExceeded, "no answer"))
	third := acquire()
	if third == first {
		t.Error("the silent connection is used again")
	}
	if first.GetState() == connectivity.Shutdown {
		t.Error("closed under a request")
	}
	c.release(second, nil)
	fourth := acquire()
	c.release(third, status.Error(codes.Unauthenticated, "refused")) // that is an answer
	if fourth != third || acquire() != third {
		t.Error("a connection that answers is left")
	}
	c.release(third, nil)
	c.release(fourth, nil)
	if first.GetState() != connectivity.Shutdown || third.GetState() != connectivity.Shutdown || c.current != nil {
		t.Errorf("left open: %v %v", first.GetState(), third.GetState())
	}
}
