package egress

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// hello is what crypto/tls sends first.
func hello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		cfg.InsecureSkipVerify = true
		_ = tls.Client(client, cfg).Handshake() // the other end goes away
	}()
	header := make([]byte, recordHeader)
	if _, err := io.ReadFull(server, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	server.Close()
	client.Close()
	<-done
	return append(header, body...)
}

// split puts the handshake message of one record into records of n bytes.
func split(record []byte, n int) []byte {
	var out []byte
	for body := record[recordHeader:]; len(body) > 0; {
		m := min(n, len(body))
		out = append(out, typeHandshake, 3, 1, byte(m>>8), byte(m))
		out = append(out, body[:m]...)
		body = body[m:]
	}
	return out
}

// withName is a ClientHello with an extension server_name of this body.
func withName(body ...byte) []byte {
	ext := append([]byte{0, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return rawHello(ext)
}

func rawHello(ext []byte) []byte {
	h := append(make([]byte, 34), 0, 0, 2, 0x13, 0x01, 1, 0)
	h = append(h, byte(len(ext)>>8), byte(len(ext)))
	h = append(h, ext...)
	m := append([]byte{typeClientHello, 0, byte(len(h) >> 8), byte(len(h))}, h...)
	return append([]byte{typeHandshake, 3, 1, byte(len(m) >> 8), byte(len(m))}, m...)
}

// name is the body of the extension.
func name(host string) []byte {
	n := len(host)
	return append([]byte{byte((n + 3) >> 8), byte(n + 3), 0, byte(n >> 8), byte(n)}, host...)
}

// TestServerName: the name is found in what clients send, whole and in parts, and
// in nothing that a server would not take.
//
//ambit:feature egress-sni
func TestServerName(t *testing.T) {
	plain := hello(t, &tls.Config{ServerName: "API.Example.com"})
	big := hello(t, &tls.Config{ServerName: "big.example.com", NextProtos: strings.Split(strings.Repeat("proto,", 1000)+"x", ",")})
	for _, c := range []struct {
		name string
		in   []byte
		want string
		h    Hello
	}{
		{"a client", plain, "api.example.com", Named},
		{"TLS 1.2", hello(t, &tls.Config{ServerName: "old.example.com", MaxVersion: tls.VersionTLS12}), "old.example.com", Named},
		{"a long one", big, "big.example.com", Named},
		{"and what follows", append(bytes.Clone(plain), "early data"...), "api.example.com", Named},
		{"records of one byte", split(plain, 1), "api.example.com", Named},
		{"records of 100", split(plain, 100), "api.example.com", Named},
		{"no name", hello(t, &tls.Config{}), "", Nameless},
		{"an address is no name", hello(t, &tls.Config{ServerName: "10.0.0.1"}), "", Nameless},
		{"nothing", nil, "", Partial},
		{"one byte", []byte{22}, "", Partial},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), "", NotTLS},
		{"one byte of SSH", []byte("S"), "", NotTLS},
		{"an alert", []byte{21, 3, 3, 0, 2, 1, 0}, "", NotTLS},
		{"SSL 2", []byte{0x80, 0x2e, 1, 3, 1}, "", NotTLS},
		{"a ServerHello", []byte{22, 3, 3, 0, 4, 2, 0, 0, 0}, "", NotTLS},
		{"an empty record", []byte{22, 3, 3, 0, 0}, "", NotTLS},
		{"too long a record", []byte{22, 3, 3, 0xff, 0xff, 1}, "", NotTLS},
		{"too long a message", []byte{22, 3, 3, 0, 4, 1, 0xff, 0xff, 0xff}, "", NotTLS},
		{"hand made", withName(name("a.b")...), "a.b", Named},
		{"two extensions", rawHello(append(append([]byte{0, 0, 0, 8}, name("a.b")...), append([]byte{0, 0, 0, 8}, name("c.d")...)...)), "", NotTLS},
		{"two names", withName(append([]byte{0, 12}, append(name("a.b")[2:], name("c.d")[2:]...)...)...), "", NotTLS},
		{"an address all the same", withName(name("10.0.0.1")...), "", NotTLS},
		{"a NUL in it", withName(name("a\x00.b")...), "", NotTLS},
		{"a dot at its end", withName(name("a.b.")...), "", NotTLS},
		{"two dots", withName(name("a..b")...), "", NotTLS},
		{"no bytes", withName(name("")...), "", NotTLS},
		{"more than the list", withName(append(name("a.b"), 0)...), "", NotTLS},
		{"extensions that are cut", rawHello([]byte{0, 0, 0, 99, 0}), "", NotTLS},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, h := ServerName(c.in); got != c.want || h != c.h {
				t.Errorf("%q, %s; want %q, %s", got, h, c.want, c.h)
			}
		})
	}
	// Whatever arrives first, nothing is decided before the name is there.
	for _, whole := range [][]byte{plain, split(plain, 7)} {
		for n := range whole {
			if got, h := ServerName(whole[:n]); h != Partial {
				t.Fatalf("%d of %d bytes: %q, %s", n, len(whole), got, h)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { ServerName(plain) }); n > 2 {
		t.Errorf("%v allocations for a name", n)
	}
}

func FuzzServerName(f *testing.F) {
	f.Add(hello(f, &tls.Config{ServerName: "api.example.com"}))
	f.Add(split(withName(name("a.b")...), 5))
	f.Add([]byte("GET / HTTP/1.1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, h := ServerName(b)
		if (got != "") != (h == Named) || len(got) > 253 || strings.ToLower(got) != got {
			t.Fatalf("%q, %s", got, h)
		}
		// More bytes never change what was decided.
		if more, again := ServerName(append(bytes.Clone(b), 0, 1, 2)); h != Partial && (more != got || again != h) {
			t.Fatalf("%q, %s; with more bytes %q, %s", got, h, more, again)
		}
	})
}

// TestByName: the most specific host wins; visibility, port and protocol count,
// and no name stands for a service of the cluster.
//
//ambit:feature egress-sni
func TestByName(t *testing.T) {
	svc := func(ns, host string, change func(*mesh.Service)) *mesh.Service {
		v := &mesh.Service{Name: host, Namespace: ns, Hostname: host, Ports: []mesh.Port{{ServicePort: 443, AppProtocol: mesh.AppTLS}, {ServicePort: 80, AppProtocol: mesh.AppHTTP11}}}
		if change != nil {
			change(v)
		}
		return v
	}
	b := mesh.NewBuilder(nil)
	b.Apply(mesh.Delta{Services: []*mesh.Service{
		svc("a", "api.example.com", nil), svc("a", "*.example.com", nil), svc("a", "*.sub.example.com", nil),
		svc("a", "own.example.org", func(v *mesh.Service) { v.NamespaceOnly = true }),
		svc("a", "two.example.org", nil), svc("b", "two.example.org", nil), svc("c", "two.example.org", func(v *mesh.Service) { v.Canonical = true }),
		svc("a", "web.demo.svc.cluster.local", nil), svc("a", "*.local", nil),
	}})
	s := b.Build()
	for _, c := range []struct {
		ns, name string
		port     uint16
		want     string
	}{
		{"x", "api.example.com", 443, "a/api.example.com"},
		{"x", "other.example.com", 443, "a/*.example.com"},
		{"x", "deep.sub.example.com", 443, "a/*.sub.example.com"},
		{"x", "a.b.c.example.com", 443, "a/*.example.com"},
		{"x", "example.com", 443, ""},
		{"x", "api.example.com", 80, ""},
		{"x", "api.example.com", 8443, ""},
		{"a", "own.example.org", 443, "a/own.example.org"},
		{"x", "own.example.org", 443, ""},
		{"b", "two.example.org", 443, "b/two.example.org"},
		{"x", "two.example.org", 443, "c/two.example.org"},
		{"x", "web.demo.svc.cluster.local", 443, ""},
		{"x", "web.local", 443, "a/*.local"},
		{"x", "unknown.example.net", 443, ""},
	} {
		got := ""
		if v := ByName(s, c.ns, "cluster.local", c.name, c.port); v != nil {
			got = v.Key()
		}
		if got != c.want {
			t.Errorf("%s asks for %s:%d: %q, want %q", c.ns, c.name, c.port, got, c.want)
		}
	}
}

func BenchmarkServerName(b *testing.B) {
	in := hello(b, &tls.Config{ServerName: "api.example.com"})
	b.ReportAllocs()
	for b.Loop() {
		ServerName(in)
	}
}
