package hbone

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// headerBlock collects one header block at a time, bounded in every way a peer
// could stretch it. Owned by the connection reader.
type headerBlock struct {
	dec   *hpack.Decoder
	limit uint32

	stream    uint32 // 0: no block begun
	fragments int
	wire      int
	size      uint32 // RFC 9113 6.5.2: names, values and 32 for each
	h         *block
}

// block is a decoded header block.
type block struct {
	id                                       uint32
	end                                      bool
	method, scheme, path, authority, status  string
	hasScheme, hasPath, hasAuthority, tooBig bool
	malformed                                string // why, if it is (RFC 9113 8.1.1)
	size                                     uint32 // as hb.size
	fields                                   []Header
}

// maxFragments bounds the frames of one header block.
const maxFragments = 32

func (hb *headerBlock) init(dec *hpack.Decoder, limit uint32) {
	hb.dec = dec
	hb.limit = limit
	dec.SetMaxStringLength(int(limit))
	dec.SetEmitFunc(hb.emit)
}

func (hb *headerBlock) begin(id uint32, end bool) {
	hb.stream, hb.fragments, hb.wire, hb.size = id, 0, 0, 0
	hb.h = &block{id: id, end: end}
	hb.dec.SetEmitEnabled(true)
}

func (hb *headerBlock) add(frag []byte) error {
	hb.fragments++
	hb.wire += len(frag)
	if hb.fragments > maxFragments || hb.wire > 2*int(hb.limit) {
		return protocolError(http2.ErrCodeEnhanceYourCalm, "header block of %d bytes in %d frames", hb.wire, hb.fragments)
	}
	return hpackError(hb.write(frag))
}

func (hb *headerBlock) write(frag []byte) error {
	_, err := hb.dec.Write(frag)
	return err
}

// held is the memory of a block that is not whole.
func (hb *headerBlock) held() int64 {
	if hb.stream == 0 {
		return 0
	}
	return int64(min(hb.size, hb.limit))
}

func (hb *headerBlock) finish() (*block, error) {
	hb.stream = 0
	if err := hpackError(hb.dec.Close()); err != nil {
		return nil, err
	}
	h := hb.h
	h.size = min(hb.size, hb.limit)
	hb.h = nil
	return h, nil
}

func hpackError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hpack.ErrStringLength):
		return protocolError(http2.ErrCodeEnhanceYourCalm, "header field too long")
	}
	return protocolError(http2.ErrCodeCompression, "header block: %w", err)
}

func (hb *headerBlock) emit(f hpack.HeaderField) {
	h := hb.h
	hb.size += f.Size()
	if hb.size > hb.limit {
		h.tooBig = true
		h.fields = nil
		hb.dec.SetEmitEnabled(false)
		return
	}
	if h.malformed == "" {
		h.malformed = h.add(f.Name, f.Value)
	}
}

// add takes one field and says what is wrong with it, if anything.
func (h *block) add(name, value string) string {
	if !strings.HasPrefix(name, ":") {
		if why := badField(name, value); why != "" {
			return why
		}
		h.fields = append(h.fields, Header{name, value})
		return ""
	}
	if len(h.fields) > 0 {
		return "pseudo-header behind a field"
	}
	set := func(to *string, have *bool) string {
		if *have || *to != "" {
			return "repeated " + name
		}
		*to, *have = value, true
		if !validValue(value) {
			return "value of " + name
		}
		return ""
	}
	var have bool
	switch name {
	case ":method":
		return set(&h.method, &have)
	case ":status":
		return set(&h.status, &have)
	case ":scheme":
		return set(&h.scheme, &h.hasScheme)
	case ":path":
		return set(&h.path, &h.hasPath)
	case ":authority":
		return set(&h.authority, &h.hasAuthority)
	}
	return "unknown pseudo-header"
}

// badField checks what RFC 9113 8.2 asks of a field.
func badField(name, value string) string {
	if name == "" {
		return "empty field name"
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' || 'A' <= c && c <= 'Z' {
			return "field name"
		}
	}
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return "connection-specific field " + name
	case "te":
		if value != "trailers" {
			return "field te"
		}
	}
	if !validValue(value) {
		return "value of " + name
	}
	return ""
}

func validValue(v string) bool { return strings.IndexByte(v, 0) < 0 && !strings.ContainsAny(v, "\r\n") }

// request checks a request's pseudo-headers (RFC 9113 8.3.1, 8.5) and returns why
// it is malformed, or "".
func (h *block) request() string {
	switch {
	case h.malformed != "":
		return h.malformed
	case h.method == "" || h.status != "":
		return "pseudo-headers of a request"
	case h.method == "CONNECT":
		if h.hasScheme || h.hasPath || h.authority == "" {
			return "pseudo-headers of a CONNECT"
		}
	case h.scheme == "" || h.path == "":
		return "pseudo-headers of a request"
	}
	return ""
}

// responseStatus returns the status of a response block.
func (h *block) responseStatus() (int, error) {
	if h.malformed != "" {
		return 0, errors.New(h.malformed)
	}
	n, err := strconv.Atoi(h.status)
	if err != nil || n < 100 || n > 999 || h.method != "" || h.hasScheme || h.hasPath || h.hasAuthority {
		return 0, fmt.Errorf("response with status %q", h.status)
	}
	return n, nil
}

// Header blocks we send are literals without indexing (RFC 7541 6.2.2), so no
// encoder state ties the order of blocks to the order of writing.
const (
	staticAuthority = 1 // RFC 7541 appendix A
	staticMethod    = 2
	staticStatus    = 8
	status200       = 0x88 // indexed field 8
)

func appendRequest(b []byte, method string, r Request) []byte {
	b = appendIndexed(b, staticMethod, method)
	b = appendIndexed(b, staticAuthority, r.Authority)
	return appendFields(b, r.Header)
}

func appendResponse(b []byte, status int, hs []Header) []byte {
	if status == 200 {
		b = append(b, status200)
	} else {
		b = appendIndexed(b, staticStatus, strconv.Itoa(status))
	}
	return appendFields(b, hs)
}

func appendFields(b []byte, hs []Header) []byte {
	for _, h := range hs {
		b = appendString(append(b, 0), strings.ToLower(h.Name))
		b = appendString(b, h.Value)
	}
	return b
}

func appendIndexed(b []byte, index byte, value string) []byte {
	return appendString(append(b, index), value)
}

// appendString appends a string literal, not Huffman coded: shorter blocks are
// not worth the CPU here.
func appendString(b []byte, s string) []byte {
	n := len(s)
	if n < 127 {
		return append(append(b, byte(n)), s...)
	}
	b = append(b, 127)
	for n -= 127; n >= 128; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(append(b, byte(n)), s...)
}

// checkSend refuses what a peer would call malformed.
func checkSend(r Request) error {
	if r.Authority == "" || !validValue(r.Authority) {
		return fmt.Errorf("authority %q", r.Authority)
	}
	return checkHeaders(r.Header)
}

func checkHeaders(hs []Header) error {
	for _, h := range hs {
		if why := badField(strings.ToLower(h.Name), h.Value); why != "" {
			return fmt.Errorf("header %q: %s", h.Name, why)
		}
	}
	return nil
}
