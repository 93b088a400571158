package hbone_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// The tests in this file have golang.org/x/net/http2 at the other end.

// slowReader pauses now and then, so that windows and backlogs fill up.
type slowReader struct {
	r io.Reader
	n int
}

func (s *slowReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.n += n; s.n > 3<<20 {
		s.n = 0
		pause()
	}
	return n, err
}

// pause is real time on purpose: what it provokes is in the kernel's buffers.
func pause() { <-time.After(20 * time.Millisecond) }

// stdClient is a plain HTTP/2 client of s.
func stdClient(t *testing.T, s *hbonetest.Server) *http2.Transport {
	tc := identity.ClientConfig(s.Source(), hbonetest.ClientID, []identity.ID{hbonetest.ServerID})
	tr := &http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			nc, err := s.DialRaw()
			if err != nil {
				return nil, err
			}
			c := tls.Client(nc, tc)
			return c, c.HandshakeContext(ctx)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func stdConnect(t *testing.T, tr *http2.Transport, authority string) (io.WriteCloser, *http.Response, error) {
	t.Helper()
	pr, pw := io.Pipe()
	req := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Scheme: "https", Host: authority},
		Host:   authority,
		Header: http.Header{"Baggage": {"k8s.namespace.name=x"}},
		Body:   pr,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	res, err := tr.RoundTrip(req.WithContext(ctx))
	if err != nil {
		pw.Close()
		return nil, nil, err
	}
	t.Cleanup(func() { pw.Close(); res.Body.Close() })
	return pw, res, nil
}

//ambit:feature hbone-interoperates
func TestStandardClient(t *testing.T) {
	const size = 15 << 20
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		if in.Authority != "10.0.0.1:80" || in.Get("baggage") != "k8s.namespace.name=x" {
			t.Errorf("request %+v", in.Request)
		}
		s, err := in.Accept(hbone.Header{Name: "baggage", Value: "srv"})
		if err != nil {
			t.Error(err)
			return
		}
		echoByRelay(t, s)
	})
	tr := stdClient(t, s)
	t.Run("echo", func(t *testing.T) {
		for i := range 4 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				w, res, err := stdConnect(t, tr, "10.0.0.1:80")
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != 200 || res.Header.Get("baggage") != "srv" {
					t.Errorf("response %v", res)
				}
				checkEcho(t, uint64(i), size, w, res.Body)
			})
		}
	})
}

// echoByRelay relays s to an application that echoes.
func echoByRelay(t testing.TB, s *hbone.Stream) {
	a, b := tcpPair(t)
	go func() {
		io.Copy(struct{ io.Writer }{b}, struct{ io.Reader }{b})
		b.CloseWrite()
	}()
	if err := s.Relay(a); err != nil {
		t.Errorf("relay: %v", err)
	}
	b.Close()
}

// checkEcho sends random data and expects it back; the reader pauses.
func checkEcho(t *testing.T, seed uint64, size int, w io.WriteCloser, r io.Reader) {
	t.Helper()
	sent := make(chan hash.Hash, 1)
	go func() {
		h, err := random(w, seed, size)
		if err != nil {
			t.Error(err)
		}
		if c, ok := w.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		} else {
			w.Close()
		}
		sent <- h
	}()
	h := sha256.New()
	n, err := io.Copy(h, &slowReader{r: r})
	if err != nil || n != int64(size) {
		t.Errorf("%d bytes came back: %v", n, err)
	}
	if string(h.Sum(nil)) != string((<-sent).Sum(nil)) {
		t.Error("data differ")
	}
}

// stdServer serves plain HTTP/2 with mutual TLS and returns a client connection of ours to it.
func stdServer(t *testing.T, h http.HandlerFunc) *hbone.Conn {
	t.Helper()
	ca := hbonetest.NewCA(t)
	src := ca.Source(hbonetest.ServerID, hbonetest.ClientID)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		c := tls.Server(nc, identity.ServerConfig(src, hbonetest.ServerID))
		if err := c.Handshake(); err != nil {
			t.Error(err)
		}
		(&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: h})
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := hbone.NewClient(context.Background(), nc, identity.ClientConfig(src, hbonetest.ClientID, []identity.ID{hbonetest.ServerID}), hbone.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		ln.Close()
		<-done
	})
	return c
}

//ambit:feature hbone-interoperates
func TestStandardServer(t *testing.T) {
	const size = 15 << 20
	c := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "CONNECT" || r.Host != "10.0.0.1:80" {
			t.Errorf("request %v %v", r.Method, r.Host)
		}
		w.Header().Set("Baggage", "srv")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 50_000)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				if _, err := w.Write(buf[:n]); err != nil {
					t.Error(err)
					return
				}
				w.(http.Flusher).Flush()
			}
			if err != nil {
				return
			}
		}
	})
	t.Run("echo", func(t *testing.T) {
		for i := range 4 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				s := open(t, c, "10.0.0.1:80")
				if v := s.ResponseHeader("baggage"); v != "srv" {
					t.Errorf("baggage %q", v)
				}
				a, b := tcpPair(t)
				relayed := make(chan error, 1)
				go func() { relayed <- s.Relay(b) }()
				checkEcho(t, uint64(i), size, a, a)
				if err := <-relayed; err != nil {
					t.Error(err)
				}
			})
		}
	})
}

//ambit:feature hbone-interoperates
func TestStandardServerRefuses(t *testing.T) {
	c := stdServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	_, err := c.Open(ctx5(t), hbone.Request{Authority: "10.0.0.1:80"})
	if se, ok := err.(*hbone.StreamError); !ok || se.Status != 503 {
		t.Fatalf("error %v", err)
	}
}
