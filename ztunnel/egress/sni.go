package egress

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// Hello is what the first bytes of a connection are.
type Hello uint8

const (
	// Partial: a TLS ClientHello that is not all there yet, or nothing at all.
	Partial Hello = iota
	// Named: a ClientHello that names its server.
	Named
	// Nameless: a ClientHello that does not.
	Nameless
	// NotTLS: anything else, a ClientHello that no server would take included.
	NotTLS
)

func (h Hello) String() string {
	return [...]string{"no complete TLS ClientHello", "TLS with a name", "TLS without a server name", "not TLS"}[h]
}

// MaxHello is how much of a connection is looked at: a record of the largest size
// and what TLS puts around it. What does not name its server within that names
// none.
const MaxHello = recordHeader + maxRecord

// Numbers of RFC 8446 and RFC 6066.
const (
	recordHeader    = 5
	maxRecord       = 1 << 14
	typeHandshake   = 22
	handshakeHeader = 4
	typeClientHello = 1
	extServerName   = 0
	nameTypeHost    = 0
)

// ServerName reads the server name out of the first bytes of a connection, in
// lower case. It holds nothing of b.
//
// With Encrypted Client Hello it is the name of the server that decrypts it: the
// inner one is not for us to see.
func ServerName(b []byte) (string, Hello) {
	hello, h := clientHello(b)
	if h != Named {
		return "", h
	}
	return serverName(hello)
}

// clientHello gives the body of the handshake message, Named if it is whole.
// Usually it is part of b; one that was split over several records is put
// together (RFC 8446 5.1).
func clientHello(b []byte) ([]byte, Hello) {
	var joined []byte
	for records := 0; ; records++ {
		if len(b) > 0 && b[0] != typeHandshake || len(b) > 1 && b[1] != 3 {
			return nil, NotTLS
		}
		if len(b) < recordHeader {
			return nil, Partial
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if n == 0 || n > maxRecord {
			return nil, NotTLS
		}
		body := b[recordHeader:]
		whole := len(body) >= n
		if whole {
			body = body[:n]
		}
		if records > 0 {
			body = append(joined, body...)
		}
		if len(body) > 0 && body[0] != typeClientHello {
			return nil, NotTLS
		}
		if len(body) >= handshakeHeader {
			size := int(body[1])<<16 | int(body[2])<<8 | int(body[3])
			switch {
			case size > maxRecord:
				return nil, NotTLS
			case len(body) >= handshakeHeader+size:
				return body[handshakeHeader : handshakeHeader+size], Named
			}
		}
		if !whole {
			return nil, Partial
		}
		if records == 0 {
			joined = append([]byte(nil), body...)
		} else {
			joined = body
		}
		b = b[recordHeader+n:]
	}
}

// fields reads the parts of a message one after the other. After one that is not
// all there, bad stays set.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || len(f.b) < n {
		f.bad = true
		return nil
	}
	out := f.b[:n]
	f.b = f.b[n:]
	return out
}

// vector reads one whose length is in front of it, in so many bytes.
func (f *fields) vector(size int) []byte {
	n := 0
	for _, b := range f.take(size) {
		n = n<<8 | int(b)
	}
	return f.take(n)
}

func (f *fields) number() int {
	b := f.take(2)
	if b == nil {
		return -1
	}
	return int(binary.BigEndian.Uint16(b))
}

func serverName(hello []byte) (string, Hello) {
	f := fields{b: hello}
	f.take(2 + 32) // version, random
	f.vector(1)    // session
	f.vector(2)    // cipher suites
	f.vector(1)    // compression
	if f.bad {
		return "", NotTLS
	}
	if len(f.b) == 0 {
		return "", Nameless
	}
	ext := fields{b: f.vector(2)}
	if f.bad || len(f.b) > 0 {
		return "", NotTLS
	}
	name, seen := "", false
	for len(ext.b) > 0 {
		kind, body := ext.number(), ext.vector(2)
		if ext.bad {
			return "", NotTLS
		}
		if kind != extServerName {
			continue
		}
		if seen {
			return "", NotTLS // a server might take the other one
		}
		seen = true
		list := fields{b: body}
		names := fields{b: list.vector(2)}
		if list.bad || len(list.b) > 0 {
			return "", NotTLS
		}
		for len(names.b) > 0 {
			kind, value := names.take(1), names.vector(2)
			if names.bad || kind[0] != nameTypeHost || name != "" || !hostname(value) {
				return "", NotTLS
			}
			name = strings.ToLower(string(value))
		}
	}
	if name == "" {
		return "", Nameless
	}
	return name, Named
}

// hostname reports whether b is a name as DNS has them. Addresses are not
// (RFC 6066 3).
func hostname(b []byte) bool {
	if len(b) == 0 || len(b) > 253 || b[0] == '.' || b[len(b)-1] == '.' {
		return false
	}
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		case c == '.' && b[i-1] != '.':
		default:
			return false
		}
	}
	if last := b[len(b)-1]; last < '0' || last > '9' {
		return true
	}
	_, err := netip.ParseAddr(string(b))
	return err != nil
}
