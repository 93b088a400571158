package wire

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambitmesh/ambit/controller/mesh"
)

func TestSettings(t *testing.T) {
	for _, want := range []mesh.Settings{
		{},
		{RegistryOnly: true},
		{TrustDomainAliases: []string{"old.example", "older.example"}},
		{RegistryOnly: true, TrustDomainAliases: []string{"old.example"}},
	} {
		b := MarshalSettings(want)
		got, err := UnmarshalSettings(b)
		if err != nil || !got.Equal(want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		// What a newer server says besides is skipped.
		more := protowire.AppendTag(b, 77, protowire.BytesType)
		more = protowire.AppendBytes(more, []byte("new"))
		if got, err = UnmarshalSettings(more); err != nil || !got.Equal(want) {
			t.Errorf("%+v with a new field became %+v, %v", want, got, err)
		}
	}
	if _, err := UnmarshalSettings([]byte{0x08}); err == nil {
		t.Error("a tag without its value was read")
	}
}

func FuzzSettings(f *testing.F) {
	f.Add(MarshalSettings(mesh.Settings{RegistryOnly: true, TrustDomainAliases: []string{"old.example"}}))
	f.Add([]byte{0x08})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := UnmarshalSettings(b)
		if err != nil {
			return
		}
		again, err := UnmarshalSettings(MarshalSettings(s))
		if err != nil || !again.Equal(s) {
			t.Errorf("%+v became %+v, %v", s, again, err)
		}
	})
}
