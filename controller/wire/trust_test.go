package wire

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestTrustIsProtobuf: the same bytes as a message of one bytes field.
func TestTrustIsProtobuf(t *testing.T) {
	for _, roots := range [][]byte{[]byte("x"), bytes.Repeat([]byte("root"), 1000)} {
		want, err := proto.Marshal(wrapperspb.Bytes(roots))
		if err != nil {
			t.Fatal(err)
		}
		if got := MarshalTrust(roots); !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d", len(got), len(want))
		}
		later := append([]byte{0x12, 1, 'y', 0x18, 7}, want...) // fields of a version to come
		if got, err := UnmarshalTrust(later); err != nil || !bytes.Equal(got, roots) {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func FuzzUnmarshalTrust(f *testing.F) {
	f.Add(MarshalTrust([]byte("root")))
	f.Add([]byte{0x0a, 0xff})
	f.Add([]byte{0x12, 1, 'y'})
	f.Fuzz(func(t *testing.T, b []byte) {
		roots, err := UnmarshalTrust(b)
		if err != nil {
			return
		}
		again, err := UnmarshalTrust(MarshalTrust(roots))
		if err != nil || !bytes.Equal(again, roots) {
			t.Errorf("%q, %v", again, err)
		}
	})
}
