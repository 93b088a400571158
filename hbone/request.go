package hbone

import (
	"strings"
)

// Header is one header field; names are lower case on the wire.
type Header struct{ Name, Value string }

// Request is what a CONNECT asks for.
type Request struct {
	Authority string // host:port, taken literally
	Header    []Header
}

// Get is the value of the first header called name, or "".
func (r Request) Get(name string) string { return getHeader(r.Header, name) }

// Values are those of all headers called name, in order.
func (r Request) Values(name string) []string {
	var out []string
	for _, h := range r.Header {
		if strings.EqualFold(h.Name, name) {
			out = append(out, h.Value)
		}
	}
	return out
}

func getHeader(hs []Header, name string) string {
	for _, h := range hs {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}
