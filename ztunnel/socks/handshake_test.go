package socks

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
)

// half is a connection of which one direction is given and the other kept.
type half struct {
	io.Reader
	bytes.Buffer
}

func (h *half) Read(p []byte) (int, error) { return h.Reader.Read(p) }

func run(in string) (Request, string, string, error) {
	r := strings.NewReader(in)
	h := &half{Reader: r}
	req, err := Read(h)
	rest, _ := io.ReadAll(r)
	return req, h.String(), string(rest), err
}

// TestRead: what is asked for, and with which code everything else is refused.
//
//ambit:feature socks-handshake
func TestRead(t *testing.T) {
	const hello, accepted = "\x05\x01\x00", "\x05\x00"
	for _, c := range []struct {
		name, in string
		want     Request
		said     string
		code     byte
	}{
		{"IPv4", hello + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, accepted, Granted},
		{"several methods", "\x05\x03\x02\x01\x00" + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, accepted, Granted},
		{"IPv6", hello + "\x05\x01\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x01\xbb", Request{Addr: netip.MustParseAddr("fd00::2"), Port: 443}, accepted, Granted},
		{"IPv4 in IPv6", hello + "\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01\x01\xbb", Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 443}, accepted, Granted},
		{"name", hello + "\x05\x01\x00\x03\x0bexample.com\x00\x50", Request{Host: "example.com", Port: 80}, accepted, Granted},
		{"name with a dot", hello + "\x05\x01\x00\x03\x0cexample.com.\x00\x50", Request{Host: "example.com", Port: 80}, accepted, Granted},
		{"address as a name", hello + "\x05\x01\x00\x03\x0810.0.0.1\x00\x50", Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, accepted, Granted},
		{"longest name", hello + "\x05\x01\x00\x03\xff" + strings.Repeat("a", 255) + "\x00\x50", Request{Host: strings.Repeat("a", 255), Port: 80}, accepted, Granted},

		{"SOCKS4", "\x04\x01\x00\x50", Request{}, "", Unsupported},
		{"HTTP", "GET / HTTP/1.1\r\n", Request{}, "", Unsupported},
		{"password only", "\x05\x01\x02", Request{}, "\x05\xff", Unsupported},
		{"no method", "\x05\x00", Request{}, "\x05\xff", Unsupported},
		{"BIND", hello + "\x05\x02\x00\x01\x0a\x00\x00\x01\x00\x50", Request{}, accepted, Unsupported},
		{"UDP", hello + "\x05\x03\x00\x01\x0a\x00\x00\x01\x00\x50", Request{}, accepted, Unsupported},
		{"other version", hello + "\x04\x01\x00\x01\x0a\x00\x00\x01\x00\x50", Request{}, accepted, Unsupported},
		{"other type", hello + "\x05\x01\x00\x02\x0a\x00\x00\x01\x00\x50", Request{}, accepted, Unsupported},
		{"no name", hello + "\x05\x01\x00\x03\x00\x00\x50", Request{}, accepted, Unsupported},
		{"odd name", hello + "\x05\x01\x00\x03\x03a\nb\x00\x50", Request{}, accepted, Unsupported},
		{"port 0", hello + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x00", Request{}, accepted, Unsupported},
		{"nothing", "", Request{}, "", Failed},
		{"cut in the greeting", "\x05\x02\x00", Request{}, "", Failed},
		{"cut after it", hello, Request{}, accepted, Failed},
		{"cut in the address", hello + "\x05\x01\x00\x01\x0a", Request{}, accepted, Failed},
		{"cut in the port", hello + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00", Request{}, accepted, Failed},
	} {
		t.Run(c.name, func(t *testing.T) {
			const more = "the connection's own"
			in := c.in
			if c.code == Granted {
				in += more
			}
			got, said, rest, err := run(in)
			if got != c.want || said != c.said || Code(err) != c.code || (err == nil) != (c.code == Granted) {
				t.Errorf("%+v, said %q, %v", got, said, err)
			}
			if c.code == Granted && rest != more {
				t.Errorf("%q is left", rest)
			}
		})
	}
}

func TestReply(t *testing.T) {
	var b bytes.Buffer
	if err := Reply(&b, Unreachable); err != nil || b.String() != "\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", "\x05\x01\x00\x05\x01\x00\x03\x0bexample.com\x00\x50", "\x05\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, said, rest, err := run(in)
		if err != nil {
			if r != (Request{}) || Code(err) == Granted {
				t.Fatalf("%+v with %v", r, err)
			}
			return
		}
		if r.Port == 0 || (r.Host == "") == !r.Addr.IsValid() || len(r.Host) > 255 || said != "\x05\x00" || len(rest) > len(in)-10+1 {
			t.Fatalf("%+v, said %q, %d bytes left of %d", r, said, len(rest), len(in))
		}
	})
}
