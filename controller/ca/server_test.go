package ca

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/ambitmesh/ambit/hbone/identity"
)

//ambit:feature identity-scope
func TestWhoMayHaveWhichIdentity(t *testing.T) {
	ztunnel := Caller{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "z", PodUID: "u", Node: "node-1"}
	but := func(change func(*Caller)) Caller {
		c := ztunnel
		change(&c)
		return c
	}
	cases := []struct {
		name   string
		caller Caller
		asks   string // ImpersonatedIdentity
		want   string // identity, when granted
		code   codes.Code
		text   string
	}{
		{"own", Caller{Namespace: "shop", ServiceAccount: "web"}, "", "spiffe://cluster.local/ns/shop/sa/web", codes.OK, ""},
		{"its own, by name", ztunnel, "spiffe://cluster.local/ns/ambit-system/sa/ztunnel", "spiffe://cluster.local/ns/ambit-system/sa/ztunnel", codes.OK, ""},
		{"pod on the node", ztunnel, web.String(), web.String(), codes.OK, ""},
		{"no such pod on the node", ztunnel, "spiffe://cluster.local/ns/shop/sa/db", "", codes.Unauthenticated, "no enrolled pod of spiffe://cluster.local/ns/shop/sa/db on node node-1"},
		{"another node", but(func(c *Caller) { c.Node = "node-2" }), web.String(), "", codes.Unauthenticated, "on node node-2"},
		{"not a node proxy", but(func(c *Caller) { c.Namespace = "shop" }), web.String(), "", codes.Unauthenticated, "shop/ztunnel may not ask"},
		{"token of no pod", but(func(c *Caller) { c.PodName = "" }), web.String(), "", codes.Unauthenticated, "not bound to a pod"},
		{"pod unknown", but(func(c *Caller) { c.Node = "" }), web.String(), "", codes.Unauthenticated, "is not known"},
		{"other trust domain", ztunnel, "spiffe://evil/ns/shop/sa/web", "", codes.Unauthenticated, "trust domain cluster.local"},
		{"no SPIFFE", ztunnel, "https://cluster.local/ns/shop/sa/web", "", codes.InvalidArgument, "scheme is not spiffe"},
		{"trailing part", ztunnel, web.String() + "/x", "", codes.InvalidArgument, "not of the form"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			s := NewServer(ServerConfig{
				Authority:           newAuthority(t, RootTTL),
				Authenticate:        func(context.Context) (Caller, error) { return c.caller, nil },
				TrustedNodeAccounts: []string{"ambit-system/ztunnel"},
				Hosts:               func(node string, id identity.ID) bool { return node == "node-1" && id == web },
				Registerer:          reg,
			})
			r := &pb.IstioCertificateRequest{Csr: string(newCSR(t))}
			if c.asks != "" {
				r.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(c.asks)}}
			}
			answer, err := s.CreateCertificate(t.Context(), r)
			if status.Code(err) != c.code || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v", err)
			}
			if err == nil && leafOf(t, answer.CertChain).URIs[0].String() != c.want {
				t.Fatalf("signed for %v", leafOf(t, answer.CertChain).URIs)
			}
			want := "citadel_server_success_cert_issuance_count"
			if err != nil {
				want = "citadel_server_id_extraction_err_count"
			}
			if n := counted(t, reg, want); n != 1 {
				t.Errorf("%s = %v", want, n)
			}
		})
	}
}

func TestRefusalsAreCountedByKind(t *testing.T) {
	cases := []struct {
		name    string
		request *pb.IstioCertificateRequest
		auth    error
		code    codes.Code
		metric  string
	}{
		{"token", &pb.IstioCertificateRequest{}, errors.New("token has expired"), codes.Unauthenticated, "citadel_server_authentication_failure_count"},
		{"csr", &pb.IstioCertificateRequest{Csr: "x"}, nil, codes.InvalidArgument, "citadel_server_csr_parsing_err_count"},
		{"ttl", &pb.IstioCertificateRequest{Csr: string(newCSR(t)), ValidityDuration: 86401}, nil, codes.InvalidArgument, "citadel_server_csr_sign_err_count"},
		{"endless ttl", &pb.IstioCertificateRequest{Csr: string(newCSR(t)), ValidityDuration: 1 << 62}, nil, codes.InvalidArgument, "citadel_server_csr_sign_err_count"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			s := NewServer(ServerConfig{
				Authority:    newAuthority(t, RootTTL),
				Authenticate: func(context.Context) (Caller, error) { return Caller{Namespace: "shop", ServiceAccount: "web"}, c.auth },
				Hosts:        func(string, identity.ID) bool { return false },
				Registerer:   reg,
			})
			if _, err := s.CreateCertificate(t.Context(), c.request); status.Code(err) != c.code {
				t.Fatalf("error %v", err)
			}
			if n := counted(t, reg, c.metric); n != 1 {
				t.Errorf("%s = %v", c.metric, n)
			}
		})
	}
}

func counted(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// A caller without a valid token learns so before a byte of its request is
// read, and an ordinary unary client is served.
func TestNothingIsReadOfStrangers(t *testing.T) {
	var known atomic.Bool
	s := NewServer(ServerConfig{Authority: newAuthority(t, time.Hour), Authenticate: func(context.Context) (Caller, error) {
		if !known.Load() {
			return Caller{}, errors.New("token refused")
		}
		return Caller{Namespace: "prod", ServiceAccount: "web"}, nil
	}})
	g := grpc.NewServer()
	s.Register(g)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	defer func() { g.Stop(); <-done }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/istio.v1.auth.IstioCertificateService/CreateCertificate")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(new(pb.IstioCertificateResponse)); status.Code(err) != codes.Unauthenticated { // nothing was sent
		t.Errorf("error %v", err)
	}
	known.Store(true)
	answer, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(t.Context(), &pb.IstioCertificateRequest{Csr: string(newCSR(t))})
	if err != nil || len(answer.GetCertChain()) != 2 {
		t.Errorf("%d certificates, %v", len(answer.GetCertChain()), err)
	}
}
