package netns_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
)

// listen runs an application in the pod: every connection gets a goroutine.
func (p *pod) listen(port uint16, serve func(*net.TCPConn)) {
	p.node.w.t.Helper()
	p.serve(p.listener(port), serve)
}

// serve is listen with a listener that is there already.
func (p *pod) serve(ln net.Listener, serve func(*net.TCPConn)) {
	t := p.node.w.t
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = struct{}{}
			mu.Unlock()
			wg.Go(func() {
				serve(c.(*net.TCPConn))
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

func (p *pod) listener(port uint16) net.Listener {
	t := p.node.w.t
	t.Helper()
	f, err := p.ns.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// serveHTTP answers every request with who asks and what was asked.
func (p *pod) serveHTTP(port uint16) {
	ln := p.listener(port)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s to %s: %s", r.RemoteAddr, p.name, r.Header.Get("X-Token"))
	})}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	p.node.w.t.Cleanup(func() { srv.Close(); <-done })
}

// dial connects from the pod as an application does.
func (p *pod) dial(to string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(to), netns.SocketOptions{})
}

func (p *pod) mustDial(t testing.TB, to string) *net.TCPConn {
	t.Helper()
	c, err := p.dial(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(4 * patience))
	return c
}

// curl makes one request on a connection of its own.
func (p *pod) curl(to, token string) (string, error) {
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
			return p.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(a), netns.SocketOptions{})
		}}}
	req, err := http.NewRequest("GET", "http://"+to+"/", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-Token", token)
	r, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

func (p *pod) mustCurl(t testing.TB, to, token string) string {
	t.Helper()
	body, err := p.curl(to, token)
	if err != nil {
		t.Fatalf("%s calls %s: %v", p.name, to, err)
	}
	if !bytes.Contains([]byte(body), []byte(token)) {
		t.Fatalf("%s calls %s: answer %q", p.name, to, body)
	}
	return body
}

// host is the pod's address as logs and authorities have it.
func (p *pod) host() string { return strings.TrimSuffix(p.at(0), ":0") }

// sent reports whether a server's answer says that p asked.
func (p *pod) sent(answer string) bool { return sentFrom(answer, p.addr) }

func sentFrom(answer string, a netip.Addr) bool {
	host := strings.TrimSuffix(netip.AddrPortFrom(a, 0).String(), "0")
	return strings.HasPrefix(answer, host)
}

func (p *pod) at(port uint16) string { return netip.AddrPortFrom(p.addr, port).String() }
