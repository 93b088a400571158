package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/client"
	"github.com/ambitmesh/ambit/hbone/identity"
)

const patience = 20 * time.Second // only ever spent when a test fails

var (
	web = identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	db  = identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "db"}
)

// serve runs a CA over TLS on loopback, on whose node only web has a pod.
func serve(t *testing.T, a *ca.Authority, seen func(metadata.MD)) string {
	t.Helper()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.ServerCertificate("ca.test") },
	})))
	ca.NewServer(ca.ServerConfig{
		Authority: a,
		Authenticate: func(ctx context.Context) (ca.Caller, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			seen(md)
			if got := md.Get("authorization"); len(got) != 1 || !strings.HasPrefix(got[0], "Bearer token-") {
				return ca.Caller{}, errors.New("token has expired")
			}
			return ca.Caller{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "z", PodUID: "u", Node: "n1"}, nil
		},
		TrustedNodeAccounts: []string{"ambit-system/ztunnel"},
		Hosts:               func(node string, id identity.ID) bool { return node == "n1" && id == web },
	}).Register(g)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(ln) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return ln.Addr().String()
}

func start(t *testing.T, c client.Config) *client.Source {
	t.Helper()
	s := client.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func trust(a *ca.Authority) func() (*tls.Config, error) {
	return func() (*tls.Config, error) {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(a.RootPEM())
		return &tls.Config{RootCAs: pool, ServerName: "ca.test"}, nil
	}
}

func TestNodeProxyGetsCertificatesOfItsNodeOnly(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("lab", func(t *testing.T) {
		a, err := ca.NewSelfSigned("cluster.local", ca.RootTTL)
		if err != nil {
			t.Fatal(err)
		}
		var cluster atomic.Value
		addr := serve(t, a, func(md metadata.MD) { cluster.Store(strings.Join(md.Get("clusterid"), ",")) })
		s := start(t, client.Config{Address: "https://" + addr, TLS: trust(a), Impersonate: true, ClusterID: "Kubernetes",
			Token: func() (string, error) { return "token-1", nil }})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()

		c, err := s.Certificate(ctx, web)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: s.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
		if cluster.Load() != "Kubernetes" {
			t.Errorf("clusterid %q", cluster.Load())
		}
		var e *client.Error
		if _, err := s.Certificate(ctx, db); !errors.As(err, &e) || !e.Denied || !strings.Contains(err.Error(), "no enrolled pod of spiffe://cluster.local/ns/shop/sa/db on node n1") {
			t.Errorf("error %v", err)
		}
	})
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

func TestFailuresNameTheirCause(t *testing.T) {
	a, err := ca.NewSelfSigned("cluster.local", ca.RootTTL)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ca.NewSelfSigned("cluster.local", ca.RootTTL)
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, a, func(metadata.MD) {})
	good := func() (string, error) { return "token-1", nil }
	cases := []struct {
		name   string
		config client.Config
		denied bool
		want   string
	}{
		{"no token", client.Config{Address: addr, TLS: trust(a)}, true, "token has expired"},
		{"token file gone", client.Config{Address: addr, TLS: trust(a), Token: func() (string, error) { return "", errors.New("no such file") }}, false, "token: no such file"},
		{"roots gone", client.Config{Address: addr, TLS: func() (*tls.Config, error) { return nil, errors.New("no such file") }, Token: good}, false, "no such file"},
		{"server of another CA", client.Config{Address: addr, TLS: trust(foreign), Token: good}, false, "certificate"},
		{"nobody there", client.Config{Address: "127.0.0.1:1", TLS: trust(a), Token: good}, false, "refused"},
		{"not impersonating", client.Config{Address: addr, TLS: trust(a), Token: good}, false, "leaf is for"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, c.config)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var e *client.Error
			if _, err := s.Certificate(ctx, web); !errors.As(err, &e) || e.Denied != c.denied || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v", err)
			}
		})
	}
}
