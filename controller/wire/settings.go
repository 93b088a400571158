package wire

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// TypeSettings is our own resource type: those of the mesh's settings that node
// proxies act on. Like TypeTrust it is asked for only of a server that names it
// (HeaderTypes); towards any other the proxy's environment decides.
//
//	message Settings {
//	  bool registry_only = 1;
//	  repeated string trust_domain_aliases = 2;
//	}
const TypeSettings = "type.googleapis.com/ambit.mesh.Settings"

// SettingsName is the name of the one resource of that type.
const SettingsName = "settings"

// HeaderSettings is the response header by which a server says that it has
// settings to send, so that a client can wait for them before it lets anybody
// out.
const HeaderSettings = "ambit-settings"

// SettingsKnown is its value.
const SettingsKnown = "known"

const ( // field numbers
	settingsRegistryOnly = 1
	settingsAliases      = 2
)

// MarshalSettings encodes s; equal settings have equal bytes.
func MarshalSettings(s mesh.Settings) []byte {
	var b []byte
	if s.RegistryOnly {
		b = protowire.AppendTag(b, settingsRegistryOnly, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	for _, a := range s.TrustDomainAliases {
		b = protowire.AppendTag(b, settingsAliases, protowire.BytesType)
		b = protowire.AppendString(b, a)
	}
	return b
}

// UnmarshalSettings is the inverse; fields it does not know are skipped, so
// that a newer server can say more.
func UnmarshalSettings(b []byte) (mesh.Settings, error) {
	var s mesh.Settings
	for size := len(b); len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return mesh.Settings{}, fmt.Errorf("settings of %d bytes: %w", size, protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case number == settingsRegistryOnly && kind == protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				s.RegistryOnly = v != 0
			}
		case number == settingsAliases && kind == protowire.BytesType:
			var v string
			if v, n = protowire.ConsumeString(b); n >= 0 {
				s.TrustDomainAliases = append(s.TrustDomainAliases, v)
			}
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return mesh.Settings{}, fmt.Errorf("settings of %d bytes: %w", size, protowire.ParseError(n))
		}
		b = b[n:]
	}
	return s, nil
}
