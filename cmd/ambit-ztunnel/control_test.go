package main

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	ca "github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/mesh"
	xds "github.com/ambitmesh/ambit/controller/xds/client"
	"github.com/ambitmesh/ambit/hbone/identity"
)

func configOf(t *testing.T, environ map[string]string) *config {
	t.Helper()
	c := readConfig(environ, func(string) ([]byte, error) { return nil, os.ErrNotExist })
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// listener keeps the first request of every type that a client sends.
type listener struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	requests chan *discovery.DeltaDiscoveryRequest
	headers  chan metadata.MD
}

func (l *listener) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	l.headers <- md
	for range 2 {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		l.requests <- r
	}
	<-s.Context().Done()
	return nil
}

// The first requests of a stream, byte for byte: what a control plane of Istio
// reads. A difference in the golden file is a change of the wire.
//
//ambit:feature xds-node-metadata
func TestFirstRequests(t *testing.T) {
	for _, c := range []struct {
		name    string
		environ map[string]string
	}{
		{"plain", nil},
		{"ondemand", map[string]string{"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"}},
		{"metadata", map[string]string{
			"ISTIO_META_CLUSTER_ID": "east", "ISTIO_META_NETWORK": "one", "ISTIO_META_ISTIO_VERSION": "1.31.1",
			"ISTIO_METAJSON_LABELS": `{"app":"ztunnel","n":1,"deep":{"list":[true,null]}}`, "ISTIO_METAJSON_BAD": "{",
			"XDS_HEADER_x-tenant": "blue",
			"PROXY_CONFIG":        `{"proxyMetadata":{"ISTIO_META_NETWORK":"overridden","PLAIN":"kept"}}`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l := &listener{requests: make(chan *discovery.DeltaDiscoveryRequest, 2), headers: make(chan metadata.MD, 1)}
			g := grpc.NewServer()
			discovery.RegisterAggregatedDiscoveryServiceServer(g, l)
			go func() { _ = g.Serve(ln) }()
			defer g.Stop()
			environ := map[string]string{
				"NODE_NAME": "node-1", "POD_NAME": "ztunnel-abcde", "POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel",
				"INSTANCE_IP": "10.244.1.7", "CLUSTER_ID": "Kubernetes", "XDS_ADDRESS": "http://" + ln.Addr().String(), "AUTH_TOKEN": "secret",
			}
			for k, v := range c.environ {
				environ[k] = v
			}
			cfg := configOf(t, environ)
			client := xds.New(cfg.xds(nil, mesh.NewStore()))
			done := make(chan error, 1)
			go func() { done <- client.Run(t.Context()) }()
			md := <-l.headers
			if got := md.Get("authorization"); !slices.Equal(got, []string{"Bearer secret"}) {
				t.Errorf("authorization %v", got)
			}
			if want := environ["XDS_HEADER_x-tenant"]; want != "" && !slices.Equal(md.Get("x-tenant"), []string{want}) {
				t.Errorf("x-tenant %v", md.Get("x-tenant"))
			}
			if got := md.Get("clusterid"); !slices.Equal(got, []string{cfg.ClusterID}) {
				t.Errorf("clusterid %v", got)
			}
			var wire bytes.Buffer
			for range 2 {
				r := <-l.requests
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				wire.Write(pem.EncodeToMemory(&pem.Block{Type: "DELTA DISCOVERY REQUEST", Bytes: b}))
			}
			path := "testdata/first-" + c.name + ".pem"
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(path, wire.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, wire.Bytes()) {
				t.Errorf("first requests differ from %s:\n%s\nwant\n%s", path, words(t, wire.Bytes()), words(t, want))
			}
		})
	}
}

// words is a golden file to be read.
func words(t *testing.T, text []byte) string {
	var out []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var r discovery.DeltaDiscoveryRequest
		if err := proto.Unmarshal(block.Bytes, &r); err != nil {
			t.Fatal(err)
		}
		out = append(out, r.String())
	}
	return strings.Join(out, "\n")
}

// A server whose certificate has the address's name, the other one, or neither.
//
//ambit:feature xds-other-name certificates-compliance
func TestOtherName(t *testing.T) {
	a, err := ca.NewSelfSigned("cluster.local", 240*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	roots := string(a.SecretData()[ca.KeyCACert])
	for _, c := range []struct {
		name, other string
		host        string // "" for localhost
		has         string // the certificate's name
		terms       *identity.Terms
		server      func(*tls.Config)
		ok          bool
	}{
		{name: "the address's", has: "localhost", ok: true},
		{name: "another", has: "istiod.istio-system.svc"},
		{name: "the other one", other: "istiod.istio-system.svc", has: "istiod.istio-system.svc", ok: true},
		{name: "the address's, although there is another", other: "istiod.istio-system.svc", has: "localhost", ok: true},
		{name: "neither", other: "istiod.istio-system.svc", has: "elsewhere"},
		{name: "neither at an address", host: "127.0.0.1", other: "istiod.istio-system.svc", has: "elsewhere"},
		{name: "the other one at an address", host: "127.0.0.1", other: "istiod.istio-system.svc", has: "istiod.istio-system.svc", ok: true},
		{name: "a server without post-quantum key exchange", has: "localhost", terms: &identity.Terms{Compliance: identity.PQC},
			server: func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} }},
		{name: "a server with it", has: "localhost", terms: &identity.Terms{Compliance: identity.PQC}, ok: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := cmp.Or(c.host, "localhost")
			cert, err := a.ServerCertificate(c.has)
			if err != nil {
				t.Fatal(err)
			}
			sc := &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2"}}
			if c.server != nil {
				c.server(sc)
			}
			ln, err := tls.Listen("tcp", "127.0.0.1:0", sc)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				if nc, err := ln.Accept(); err == nil {
					_ = nc.(*tls.Conn).Handshake()
					nc.Close()
				}
			}()
			cfg, err := rootsTLS(true, net.JoinHostPort(host, "15012"), roots, c.other, c.terms)()
			if err != nil {
				t.Fatal(err)
			}
			cfg.ServerName = host
			conn, err := tls.Dial("tcp", ln.Addr().String(), cfg)
			if err == nil {
				conn.Close()
			}
			if (err == nil) != c.ok {
				t.Errorf("error %v", err)
			}
			var unknown x509.UnknownAuthorityError
			if errors.As(err, &unknown) {
				t.Error("for the wrong reason")
			}
		})
	}
}

func TestOnDemandAndDNS(t *testing.T) {
	c := readConfig(map[string]string{"XDS_ON_DEMAND": "true"}, func(string) ([]byte, error) { return nil, os.ErrNotExist })
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "DNS_CAPTURE") {
		t.Errorf("error %v", err)
	}
	configOf(t, map[string]string{"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"})
}
