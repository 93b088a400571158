package socks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Reply codes, of those that RFC 1928 has.
const (
	Granted byte = 0
	// Failed: reading the request failed.
	Failed byte = 1
	// Unreachable: its host name has no address.
	Unreachable byte = 4
	// Unsupported: it asks for what there is not, or is no SOCKS5.
	Unsupported byte = 7
)

const (
	version = 5
	noAuth  = 0
	// noMethod refuses all methods that a client offers.
	noMethod = 0xff
	connect  = 1

	typeIPv4   = 1
	typeDomain = 3
	typeIPv6   = 4
)

// Error is a handshake that cannot go on, with the code to reply.
type Error struct {
	Code byte
	Err  error
}

func (e *Error) Error() string { return "socks: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

func unsupported(format string, args ...any) error {
	return &Error{Unsupported, fmt.Errorf(format, args...)}
}

// Request is what a client asks for: a host name or an address, and a port.
type Request struct {
	Host string // "" when it is an address
	Addr netip.Addr
	Port uint16
}

// Read reads a client's greeting and request, and answers the greeting. It takes
// no byte more than these from c, so that what follows is the connection's. The
// caller replies to the request.
func Read(c io.ReadWriter) (Request, error) {
	var buf [256]byte
	read := func(n int) ([]byte, error) {
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, &Error{Failed, err}
		}
		return buf[:n], nil
	}
	b, err := read(2)
	if err != nil {
		return Request{}, err
	}
	if b[0] != version {
		return Request{}, unsupported("version %d", b[0])
	}
	if b, err = read(int(b[1])); err != nil {
		return Request{}, err
	}
	method := byte(noMethod)
	for _, m := range b {
		if m == noAuth {
			method = noAuth
		}
	}
	if _, err := c.Write([]byte{version, method}); err != nil {
		return Request{}, &Error{Failed, err}
	}
	if method != noAuth {
		return Request{}, unsupported("the client offers no method without authentication")
	}
	if b, err = read(4); err != nil {
		return Request{}, err
	}
	// The third byte is reserved.
	v, command, kind := b[0], b[1], b[3]
	switch {
	case v != version:
		return Request{}, unsupported("version %d", v)
	case command != connect:
		return Request{}, unsupported("command %d", command)
	}
	var r Request
	switch kind {
	case typeIPv4, typeIPv6:
		n := 4
		if kind == typeIPv6 {
			n = 16
		}
		if b, err = read(n); err != nil {
			return Request{}, err
		}
		r.Addr, _ = netip.AddrFromSlice(b)
		r.Addr = r.Addr.Unmap()
	case typeDomain:
		if b, err = read(1); err != nil {
			return Request{}, err
		}
		if b, err = read(int(b[0])); err != nil {
			return Request{}, err
		}
		// An address as text is one, not a name.
		if r.Addr, err = netip.ParseAddr(string(b)); err == nil && r.Addr.Zone() == "" {
			r.Addr = r.Addr.Unmap()
			break
		}
		r.Addr = netip.Addr{}
		if r.Host = strings.TrimSuffix(string(b), "."); r.Host == "" || strings.ContainsFunc(r.Host, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return Request{}, unsupported("host name %q", b)
		}
	default:
		return Request{}, unsupported("address type %d", kind)
	}
	if b, err = read(2); err != nil {
		return Request{}, err
	}
	r.Port = binary.BigEndian.Uint16(b)
	if r.Port == 0 {
		return Request{}, unsupported("port 0")
	}
	return r, nil
}

// Reply answers a request. The address we connect from is not told, as by others.
func Reply(w io.Writer, code byte) error {
	_, err := w.Write([]byte{version, code, 0, typeIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

// Code is the reply that goes with an error of Read or of what came after it.
func Code(err error) byte {
	var e *Error
	switch {
	case err == nil:
		return Granted
	case errors.As(err, &e):
		return e.Code
	}
	return Failed
}
