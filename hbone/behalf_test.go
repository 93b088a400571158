package hbone_test

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// TestReadsClient: a client knows, before it asks for the first time, whether the
// server reads for whom; one that does not know the setting talks on with a
// server that has said so.
//
//ambit:feature waypoint-client-negotiated
func TestReadsClient(t *testing.T) {
	accept := func(in *hbone.Incoming) {
		if s, err := in.Accept(); err == nil {
			s.Close()
		}
	}
	for _, reads := range []bool{true, false} {
		s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{ReadsClient: reads}}, accept)
		c, err := s.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := c.ReadsClient(t.Context()); err != nil || got != reads {
			t.Errorf("%v, %v; want %v", got, err, reads)
		}
		w, resp, err := stdConnect(t, stdClient(t, s), "10.0.0.1:80")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("a client of another make: %v, %v", resp, err)
		}
		w.Close()
		resp.Body.Close()

		// On the wire a server that does not read it is as Istio's.
		p := dialRaw(t, s)
		p.start()
		f := p.await("SETTINGS", func(f http2.Frame) bool { return f.Header().Type == http2.FrameSettings }).(*http2.SettingsFrame)
		if v, there := f.Value(0xf0a1); there != reads || reads && v != 1 {
			t.Errorf("setting %v, %v; want it %v", v, there, reads)
		}
	}
}

// TestClientOf: whom a request is for is said once and in full.
func TestClientOf(t *testing.T) {
	id := identity.ID{TrustDomain: "td", Namespace: "ns", ServiceAccount: "sa"}
	for _, tt := range []struct {
		values []string
		want   identity.ID
		bad    bool
	}{
		{nil, identity.ID{}, false},
		{[]string{id.String()}, id, false},
		{[]string{""}, identity.ID{}, true},
		{[]string{"td/ns/ns/sa/sa"}, identity.ID{}, true},
		{[]string{id.String(), id.String()}, identity.ID{}, true},
	} {
		r := hbone.Request{Header: []hbone.Header{{Name: "other", Value: "x"}}}
		for _, v := range tt.values {
			r.Header = append(r.Header, hbone.Header{Name: strings.ToUpper(hbone.ClientHeader), Value: v})
		}
		if got, err := r.Client(); got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%q: %v, %v", tt.values, got, err)
		}
	}
}
