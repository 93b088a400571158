package redirect

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// diagAnswer is a well-formed answer for a socket on port 80 with a mark.
func diagAnswer(state byte, mark uint32) []byte {
	b := make([]byte, netlinkHeader+diagMessageSize+8)
	ne := binary.NativeEndian
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], sockDiagByFamily)
	body := b[netlinkHeader:]
	body[1] = state
	binary.BigEndian.PutUint16(body[4:], 80)
	attr := body[diagMessageSize:]
	ne.PutUint16(attr, 8)
	ne.PutUint16(attr[2:], diagMark)
	ne.PutUint32(attr[4:], mark)
	return b
}

func TestParseDiag(t *testing.T) {
	local := netip.MustParseAddrPort("10.0.0.1:80")
	good := diagAnswer(1, 0x539)
	if mark, err := parseDiag(good, local); err != nil || mark != 0x539 {
		t.Errorf("mark %#x, error %v", mark, err)
	}
	if _, err := parseDiag(diagAnswer(10, 0x539), local); err == nil {
		t.Error("a listener was taken for a connection")
	}
	if _, err := parseDiag(good, netip.MustParseAddrPort("10.0.0.1:81")); err == nil {
		t.Error("a socket on another port was taken")
	}
	for n := range good {
		if mark, err := parseDiag(good[:n], local); err == nil && mark != 0 {
			t.Errorf("%d of %d bytes: mark %#x", n, len(good), mark)
		}
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(diagAnswer(1, 0x539))
	f.Add(diagAnswer(10, 0)[:80])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseDiag(b, netip.MustParseAddrPort("10.0.0.1:80"))
	})
}
