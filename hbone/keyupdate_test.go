package hbone_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// wire is a peer's end of a TLS 1.3 connection after the handshake, which crypto/tls
// has done: it has no way to update its keys by itself, and peers do.
type wire struct {
	t       testing.TB
	nc      net.Conn
	in, out traffic
	rest    []byte // application data read and not handed out
	updates int    // of the other end's keys
}

// traffic is one direction's keys (RFC 8446 7.3).
type traffic struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func expand(t testing.TB, secret []byte, label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	b, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (k *traffic) use(t testing.TB, secret []byte) {
	blk, err := aes.NewCipher(expand(t, secret, "key", 16))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(blk)
	if err != nil {
		t.Fatal(err)
	}
	*k = traffic{secret: secret, aead: aead, iv: expand(t, secret, "iv", 12)}
}

func (k *traffic) next(t testing.TB) { k.use(t, expand(t, k.secret, "traffic upd", sha256.Size)) }

func (k *traffic) nonce() []byte {
	n := bytes.Clone(k.iv)
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], k.seq)
	for i, b := range seq {
		n[4+i] ^= b
	}
	k.seq++
	return n
}

// newWire takes over from c, which has just finished its handshake over nc and logged
// its secrets.
func newWire(t testing.TB, nc net.Conn, c *tls.Conn, secrets string, client bool) *wire {
	t.Helper()
	if s := c.ConnectionState().CipherSuite; s != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("cipher suite %s, the test speaks AES-128-GCM only", tls.CipherSuiteName(s))
	}
	w := &wire{t: t, nc: nc}
	find := func(label string) []byte {
		for line := range strings.Lines(secrets) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == label {
				b, err := hex.DecodeString(f[2])
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
		}
		t.Fatalf("no %s", label)
		return nil
	}
	ours, theirs := "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"
	if !client {
		ours, theirs = theirs, ours
	}
	w.out.use(t, find(ours))
	w.in.use(t, find(theirs))
	return w
}

const (
	recordHandshake   = 22
	recordApplication = 23
	keyUpdate         = 24
)

func (w *wire) record(typ byte, p []byte) []byte {
	head := []byte{recordApplication, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(p)+1+16))
	return w.out.aead.Seal(bytes.Clone(head), w.out.nonce(), append(bytes.Clone(p), typ), head)
}

func (w *wire) Write(p []byte) (int, error) {
	_, err := w.nc.Write(w.record(recordApplication, p))
	return len(p), err
}

// update changes the keys we write with, and asks for the same in return or not.
func (w *wire) update(ask bool) error {
	msg := []byte{keyUpdate, 0, 0, 1, 0}
	if ask {
		msg[4] = 1
	}
	_, err := w.nc.Write(w.record(recordHandshake, msg))
	w.out.next(w.t)
	return err
}

func (w *wire) Read(p []byte) (int, error) {
	for len(w.rest) == 0 {
		head := make([]byte, 5)
		if _, err := io.ReadFull(w.nc, head); err != nil {
			return 0, err
		}
		body := make([]byte, binary.BigEndian.Uint16(head[3:]))
		if _, err := io.ReadFull(w.nc, body); err != nil {
			return 0, err
		}
		plain, err := w.in.aead.Open(nil, w.in.nonce(), body, head)
		if err != nil {
			return 0, fmt.Errorf("record %d behind %d updates: %w", w.in.seq, w.updates, err)
		}
		typ := plain[len(plain)-1]
		switch plain = plain[:len(plain)-1]; {
		case typ == recordApplication:
			w.rest = plain
		case typ == recordHandshake && plain[0] == keyUpdate:
			w.updates++
			w.in.next(w.t)
		default:
			return 0, fmt.Errorf("record of type %d: %x", typ, plain)
		}
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

// wireClient is a client of s.
func wireClient(t testing.TB, s *hbonetest.Server) *wire {
	t.Helper()
	nc, err := s.DialRaw()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	var secrets bytes.Buffer
	cfg := identity.ClientConfig(s.Source(), hbonetest.ClientID, []identity.ID{hbonetest.ServerID})
	cfg.KeyLogWriter = &secrets
	c := tls.Client(nc, cfg)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	w := newWire(t, nc, c, secrets.String(), true)
	if _, err := w.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	return w
}

func connectBlock(kv ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(kv); i += 2 {
		e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return b.Bytes()
}

// TestPeerUpdatesItsKeys: as often as it likes, asking for ours or not, before and
// between the records of a stream, whichever end it is.
//
//ambit:feature hbone-key-update
func TestPeerUpdatesItsKeys(t *testing.T) {
	const rounds = 300
	exchange := func(t *testing.T, w *wire, fr *http2.Framer) {
		t.Helper()
		for i := range rounds {
			if err := w.update(i%3 != 0); err != nil {
				t.Fatal(err)
			}
			msg := fmt.Sprintf("message %d", i)
			fr.WriteData(1, false, []byte(msg))
			for got := ""; got != msg; {
				f, err := fr.ReadFrame()
				if err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
				if d, ok := f.(*http2.DataFrame); ok {
					got += string(d.Data())
				}
			}
		}
		if w.updates != rounds*2/3 {
			t.Errorf("our keys were updated %d times for %d requests", w.updates, rounds*2/3)
		}
	}
	t.Run("client", func(t *testing.T) {
		s := hbonetest.NewServer(t, hbonetest.Options{}, echo)
		w := wireClient(t, s)
		fr := http2.NewFramer(w, w)
		if err := w.update(true); err != nil {
			t.Fatal(err)
		}
		fr.WriteSettings()
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connectBlock(":method", "CONNECT", ":authority", "a:1"), EndHeaders: true})
		for answered := false; !answered; {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			answered = f.Header().Type == http2.FrameHeaders
		}
		if w.updates != 1 {
			t.Errorf("%d updates in answer to the first request", w.updates)
		}
		w.updates = 0
		exchange(t, w, fr)
	})
	t.Run("server", func(t *testing.T) {
		near, far := tcpPair(t)
		far.SetDeadline(time.Now().Add(time.Minute))
		src := hbonetest.NewCA(t).Source(hbonetest.ServerID, hbonetest.ClientID)
		var secrets bytes.Buffer
		cfg := identity.ServerConfig(src, hbonetest.ServerID)
		cfg.KeyLogWriter = &secrets
		end := tls.Server(far, cfg)
		shaken := make(chan error, 1)
		go func() { shaken <- end.Handshake() }()
		// Nothing of ours may be read by crypto/tls behind the handshake.
		g := &gate{Conn: near, reading: make(chan struct{}), open: make(chan struct{})}
		close(g.open)
		hold := &holdWrites{Conn: g, release: make(chan struct{})}
		dialled := make(chan *hbone.Conn, 1)
		go func() {
			c, err := hbone.NewClient(context.Background(), hold, identity.ClientConfig(src, hbonetest.ClientID, []identity.ID{hbonetest.ServerID}), hbone.Config{})
			if err != nil {
				t.Error(err)
			}
			dialled <- c
		}()
		c := <-dialled
		if err := <-shaken; err != nil || c == nil {
			t.Fatal(err)
		}
		defer c.Close()
		w := newWire(t, far, end, secrets.String(), false)
		close(hold.release)
		if _, err := io.ReadFull(w, make([]byte, len(http2.ClientPreface))); err != nil {
			t.Fatal(err)
		}
		fr := http2.NewFramer(w, w)
		fr.WriteSettings()
		echoed := make(chan struct{})
		asked := make(chan struct{})
		go func() {
			defer close(echoed)
			st, err := c.Open(ctx5(t), hbone.Request{Authority: "a:1"})
			close(asked)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(st, st)
		}()
		for f, err := fr.ReadFrame(); ; f, err = fr.ReadFrame() {
			if err != nil {
				t.Fatal(err)
			}
			if f.Header().Type == http2.FrameHeaders {
				break
			}
		}
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connectBlock(":status", "200"), EndHeaders: true})
		<-asked
		exchange(t, w, fr)
		c.Close()
		<-echoed
	})
}

// holdWrites passes on what the handshake writes and holds what follows it.
type holdWrites struct {
	net.Conn
	writes  int
	release chan struct{}
}

func (h *holdWrites) Write(p []byte) (int, error) {
	if h.writes++; h.writes > 2 { // hello; certificate, proof and finished
		<-h.release
	}
	return h.Conn.Write(p)
}

// TestKeyUpdateFlood: updates for their own sake end the connection, and so does asking
// for ours without reading them.
//
//ambit:feature hbone-key-update
func TestKeyUpdateFlood(t *testing.T) {
	for _, tc := range []struct {
		name  string
		flood func(w *wire) error
		want  string
	}{
		{"nothing but updates", func(w *wire) error { return w.update(false) }, "too many"},
		{"requests whose answers are not read", func(w *wire) error {
			if err := w.update(true); err != nil {
				return err
			}
			_, err := w.Write([]byte{0, 0, 1, byte(http2.FrameData), 0, 0, 0, 0, 1, 'x'}) // which nobody can object to
			return err
		}, "without reading the answers"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := hbonetest.NewServer(t, hbonetest.Options{Memory: true}, func(in *hbone.Incoming) {
				if st, err := in.Accept(); err == nil {
					io.Copy(io.Discard, st)
					st.Close()
				}
			})
			w := wireClient(t, s)
			fr := http2.NewFramer(w, nil)
			fr.WriteSettings()
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connectBlock(":method", "CONNECT", ":authority", "a:1"), EndHeaders: true})
			sent := 0
			for err := error(nil); err == nil && sent < 100_000; sent++ {
				err = tc.flood(w)
			}
			w.nc.Close()
			s.Close()
			errs := s.Errors()
			var ce *hbone.ConnError
			if len(errs) != 1 || !errors.As(errs[0], &ce) || !strings.Contains(errs[0].Error(), tc.want) {
				t.Errorf("behind %d: %v", sent, errs)
			}
		})
	}
}
