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

func getHeader(hs []Header, name string) string {
	for _, h := range hs {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

// NetworkHeader says on the inner CONNECT of double HBONE which network the client
// is in, as Istio's ztunnel does.
const NetworkHeader = "x-forwarded-network"
