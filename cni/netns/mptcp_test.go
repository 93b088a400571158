package netns

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMultipathConnections: what an application listens on and has open with
// Multipath TCP is listed as TCP, and can be ended: Go's servers listen so since
// 1.24. For a client without it the connection is plain TCP.
func TestMultipathConnections(t *testing.T) {
	ns := fresh(t)
	for _, c := range []struct {
		name   string
		client bool
	}{{"a client without", false}, {"a client with", true}} {
		t.Run(c.name, func(t *testing.T) {
			var ln net.Listener
			var client net.Conn
			dialer := net.Dialer{}
			dialer.SetMultipathTCP(c.client)
			err := ns.Do(func() error {
				var lc net.ListenConfig
				lc.SetMultipathTCP(true)
				var err error
				if ln, err = lc.Listen(context.Background(), "tcp4", "127.0.0.1:0"); err != nil {
					return err
				}
				client, err = dialer.Dial("tcp4", ln.Addr().String())
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			defer client.Close()
			s, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			server := s.(*net.TCPConn)
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if multi, err := server.MultipathTCP(); err != nil || multi != c.client {
				t.Skipf("multipath is %t here: %v", multi, err)
			}
			ls, err := ns.Listeners()
			if err != nil || len(ls) != 1 || ls[0].Local.String() != ln.Addr().String() {
				t.Errorf("listeners %+v, %v; want one at %s", ls, err, ln.Addr())
			}
			results, err := ns.Destroy([]Socket{end(t, ns, server)})
			if err == nil && errors.Is(results[0], unix.EOPNOTSUPP) {
				t.Skip("the kernel has no CONFIG_INET_DIAG_DESTROY")
			}
			if err != nil || results[0] != nil {
				t.Fatal(results, err)
			}
			// The other end has got the reset: no path is left for a byte. That
			// is all that is promised; a multipath connection without a path is
			// over for its two ends when they give up.
			deadline := time.Now().Add(time.Minute)
			for {
				all, err := ns.Connections()
				if err != nil {
					t.Fatal(err)
				}
				if len(all) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("left: %+v", all)
				}
				<-time.After(10 * time.Millisecond)
			}
		})
	}
}
