package netns_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

// Connections to addresses that the mesh does not know pass as plain TCP, with
// the pod's own address, and end as they would without a mesh.
//
//ambit:feature traffic-external
func TestExternal(t *testing.T) { each(t, external) }

func external(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client := w.newPod(w.a, "client")
	ext := w.outside(t)
	ext.serveHTTP(8080)
	ext.listen(9003, func(c *net.TCPConn) { // answers after the client has ended
		b, _ := io.ReadAll(c)
		c.Write(append([]byte("got "), b...))
	})
	rest := make(chan string, 1)
	ext.listen(9004, func(c *net.TCPConn) { // ends first, then listens
		c.Write([]byte("over"))
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		rest <- string(b)
	})
	seen := make(chan error, 1)
	ext.listen(9005, func(c *net.TCPConn) {
		c.Write([]byte("ready"))
		io.ReadFull(c, make([]byte, 5))
		_, err := c.Read(make([]byte, 1))
		seen <- err
	})
	ext.listen(9006, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		c.SetLinger(0)
	})
	w.enrol(client)

	t.Run("HTTP", func(t *testing.T) {
		if body := client.mustCurl(t, ext.at(8080), "token-external"); !client.sent(body) {
			t.Errorf("the server sees %q, not the pod's address", body)
		}
		w.a.zt.wantLog(t, "connection complete", "dst.addr="+ext.at(8080), `direction="outbound"`)
	})
	t.Run("half-close, client first", func(t *testing.T) {
		c := client.mustDial(t, ext.at(9003))
		c.Write([]byte("question"))
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "got question" {
			t.Fatalf("%q: %v", b, err)
		}
	})
	t.Run("half-close, server first", func(t *testing.T) {
		c := client.mustDial(t, ext.at(9004))
		if b, err := io.ReadAll(c); err != nil || string(b) != "over" {
			t.Fatalf("%q: %v", b, err)
		}
		c.Write([]byte("the rest"))
		c.CloseWrite()
		if got := <-rest; got != "the rest" {
			t.Errorf("the server read %q after its own end", got)
		}
	})
	t.Run("reset by the client", func(t *testing.T) {
		c := client.mustDial(t, ext.at(9005))
		io.ReadFull(c, make([]byte, 5))
		c.Write([]byte("hello"))
		c.SetLinger(0)
		c.Close()
		select {
		case err := <-seen:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server read %v, not a reset", err)
			}
		case <-time.After(patience):
			t.Error("the server saw nothing")
		}
		w.a.zt.wantLog(t, "dst.addr="+ext.at(9005), `reason="client_reset"`)
	})
	t.Run("reset by the server", func(t *testing.T) {
		c := client.mustDial(t, ext.at(9006))
		c.Write([]byte("hello"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client read %v, not a reset", err)
		}
		w.a.zt.wantLog(t, "dst.addr="+ext.at(9006), `reason="server_reset"`)
	})
	t.Run("nobody listens", func(t *testing.T) {
		refused(t, client, ext.at(9999))
		w.a.zt.wantLog(t, "dst.addr="+ext.at(9999), `reason="connect_refused"`)
	})
	t.Run("no such host", func(t *testing.T) {
		// The node asks three times for its link layer address.
		within(t, w.a.ns, func() error {
			return errors.Join(os.WriteFile("/proc/sys/net/ipv4/neigh/ext0/retrans_time_ms", []byte("50"), 0o644),
				os.WriteFile("/proc/sys/net/ipv6/neigh/ext0/retrans_time_ms", []byte("50"), 0o644))
		})
		to := netip.AddrPortFrom(f.used().beyond(77), 80).String()
		refused(t, client, to)
		w.a.zt.wantLog(t, "dst.addr="+to, `reason="connect_unreachable"`)
	})
	t.Run("no route", func(t *testing.T) {
		to := netip.AddrPortFrom(f.used().nowhere(), 80).String()
		refused(t, client, to)
		w.a.zt.wantLog(t, "dst.addr="+to, `reason="connect_unreachable"`)
	})
}

// refused wants a connection that stands, since it is ztunnel that accepts,
// and is then reset.
func refused(t *testing.T, p *pod, to string) {
	t.Helper()
	c, err := p.dial(to)
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection to %s: %v, not a reset", to, err)
	}
}
