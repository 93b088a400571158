package wire

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// TypeTrust is our own resource type: the roots of the mesh, so that a node
// proxy knows a new one at once and not when its certificates are renewed. Its
// acknowledgement is the report that the proxy has them. It is asked for only
// of a server that says it has it (HeaderTypes).
//
//	message Bundle { bytes roots = 1; }  // PEM
const TypeTrust = "type.googleapis.com/ambit.trust.Bundle"

// TrustName is the name of the one resource of that type.
const TrustName = "roots"

// HeaderTypes is the response header in which a server names the types it
// serves beside Istio's.
const HeaderTypes = "ambit-types"

const trustRoots = 1 // field number

// MarshalTrust encodes roots, in PEM.
func MarshalTrust(roots []byte) []byte {
	b := protowire.AppendTag(nil, trustRoots, protowire.BytesType)
	return protowire.AppendBytes(b, roots)
}

// UnmarshalTrust is the inverse; fields it does not know are skipped.
func UnmarshalTrust(b []byte) ([]byte, error) {
	var roots []byte
	for size := len(b); len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, fmt.Errorf("trust bundle of %d bytes: %w", size, protowire.ParseError(n))
		}
		b = b[n:]
		if number == trustRoots && kind == protowire.BytesType {
			roots, n = protowire.ConsumeBytes(b)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return nil, fmt.Errorf("trust bundle of %d bytes: %w", size, protowire.ParseError(n))
		}
		b = b[n:]
	}
	return roots, nil
}
