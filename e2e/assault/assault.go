// Package assault owns peers with good certificates and bad intentions: what they do
// to an HBONE port, so that tests and benchmarks do the same.
package assault

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// Assault is on one pod's HBONE port.
type Assault struct {
	TLS    *tls.Config // of a client that the mesh knows
	Sink   string      // authority of an application that reads nothing
	Source string      // of one that writes without end

	done map[string]*atomic.Int64 // immutable; how often each kind came as far as it wants to
}

// New makes an Assault.
func New(tc *tls.Config, sink, source string) *Assault {
	a := &Assault{TLS: tc, Sink: sink, Source: source, done: map[string]*atomic.Int64{}}
	for kind := range attacks {
		a.done[kind] = &atomic.Int64{}
	}
	return a
}

// Run has n connections of every kind at once until ctx ends. Who was thrown out is
// back after pace: memory is what is attacked, not the CPU that both sides share
// where this is used.
func (a *Assault) Run(ctx context.Context, n int, pace time.Duration, dial func(context.Context) (net.Conn, error)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for kind, attack := range attacks {
		for range n {
			wg.Go(func() {
				for ctx.Err() == nil {
					if nc, err := dial(ctx); err == nil {
						attack(ctx, a, nc, a.done[kind])
						nc.Close()
					}
					select {
					case <-ctx.Done():
					case <-time.After(pace):
					}
				}
			})
		}
	}
}

// Came reports whether every kind of attack came as far as it wants n times.
func (a *Assault) Came(n int64) bool {
	for _, d := range a.done {
		if d.Load() < n {
			return false
		}
	}
	return true
}

// Began reports whether any kind of attack came as far as it wants.
func (a *Assault) Began() bool {
	for _, d := range a.done {
		if d.Load() > 0 {
			return true
		}
	}
	return false
}

func (a *Assault) String() string {
	var parts []string
	for kind, d := range a.done {
		parts = append(parts, fmt.Sprintf("%s %d", kind, d.Load()))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// Client is the TLS of a client with the identity id, which the mesh's own key has
// signed: a workload that was taken over.
func Client(issuer tls.Certificate, id identity.ID) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{id.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, err := x509.ParseCertificate(issuer.Certificate[0])
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, issuer.PrivateKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

// attacks are the kinds. Each is one connection, which the attack closes.
var attacks = map[string]func(context.Context, *Assault, net.Conn, *atomic.Int64){
	"half handshake": func(ctx context.Context, a *Assault, nc net.Conn, done *atomic.Int64) {
		if _, err := nc.Write([]byte{0x16, 3, 1, 2, 0, 1}); err != nil {
			return
		}
		done.Add(1)
		UntilGone(ctx, nc)
	},
	"half record": func(ctx context.Context, a *Assault, nc net.Conn, done *atomic.Int64) {
		if _, ok := a.hello(ctx, nc); ok {
			if _, err := nc.Write(append([]byte{0x17, 3, 3, 0x40, 0}, make([]byte, 100)...)); err != nil {
				return
			}
			done.Add(1)
			UntilGone(ctx, nc)
		}
	},
	"header flood": func(ctx context.Context, a *Assault, nc net.Conn, done *atomic.Int64) {
		c, ok := a.hello(ctx, nc)
		if !ok {
			return
		}
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, nc) // not to be taken for one that does not read
		}()
		defer func() { nc.Close(); <-read }()
		fr := http2.NewFramer(c, nil)
		value := strings.Repeat("v", 7000)
		for id := uint32(1); ctx.Err() == nil; id += 2 {
			block := fields(":method", "CONNECT", ":authority", a.Sink, "a", value, "b", value, "c", value, "d", value, "e", value, "f", value)
			first := true
			for len(block) > 0 {
				n := min(len(block), 16000)
				var err error
				if first {
					err = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n], EndHeaders: n == len(block)})
				} else {
					err = fr.WriteContinuation(id, n == len(block), block[:n])
				}
				if err != nil {
					return
				}
				block, first = block[n:], false
			}
			if done.Add(1); id > 300 {
				UntilGone(ctx, nc)
			}
		}
	},
	"never reads": func(ctx context.Context, a *Assault, nc net.Conn, done *atomic.Int64) {
		_ = nc.(*net.TCPConn).SetReadBuffer(4096) // the less the kernel takes, the sooner it shows
		c, ok := a.hello(ctx, nc)
		if !ok {
			return
		}
		fr := http2.NewFramer(c, nil)
		if fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}) != nil || fr.WriteWindowUpdate(0, 1<<30) != nil {
			return
		}
		for i := range 100 {
			if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), EndHeaders: true,
				BlockFragment: fields(":method", "CONNECT", ":authority", a.Source)}) != nil {
				return
			}
		}
		done.Add(1)
		UntilGone(ctx, nc)
	},
	"full windows": func(ctx context.Context, a *Assault, nc net.Conn, done *atomic.Int64) {
		c, err := hbone.NewClient(ctx, nc, a.TLS, hbone.Config{})
		if err != nil {
			return
		}
		defer c.Close()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				s, err := c.Open(ctx, hbone.Request{Authority: a.Sink})
				if err != nil {
					return
				}
				defer s.Close()
				stop := context.AfterFunc(ctx, s.Cancel)
				defer stop()
				for sent := 0; sent < 32<<20; sent += 1 << 16 {
					if _, err := s.Write(make([]byte, 1<<16)); err != nil {
						break
					}
				}
				done.Add(1) // it was reset, or everything is somewhere
			})
		}
		wg.Wait()
	},
}

func fields(kv ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(kv); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1], Sensitive: true}) // so that nothing is kept for the next; a Buffer takes all
	}
	return b.Bytes()
}

// hello does what a well-behaved client does first.
func (a *Assault) hello(ctx context.Context, nc net.Conn) (*tls.Conn, bool) {
	c := tls.Client(nc, a.TLS)
	if c.HandshakeContext(ctx) != nil {
		return nil, false
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return nil, false
	}
	return c, http2.NewFramer(c, nil).WriteSettings() == nil
}

// UntilGone waits, without reading, for the other side to end the connection: so that
// has to be looked for.
func UntilGone(ctx context.Context, nc net.Conn) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !gone(nc) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// gone reports whether the other side has ended the connection.
func gone(nc net.Conn) bool {
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	over := true
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		over = err != nil || info.State != unix.BPF_TCP_ESTABLISHED
	})
	return err != nil || over
}
