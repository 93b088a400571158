package netns_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/xds/server"
	"github.com/ambitmesh/ambit/hbone/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

const controllerName = "ambit-controller.ambit-system.svc"

// control is the real xDS server and CA over a mesh the tests write. A token
// is the name of a node: who calls is not what these tests are about.
type control struct {
	t         testing.TB
	ns        *netns.NS
	store     *mesh.Store
	authority *ca.Authority
	root      string // file

	mu     sync.Mutex
	denied map[identity.ID]bool // guarded by mu
	grpc   *grpc.Server         // guarded by mu; nil while away
	xds    *server.Server       // guarded by mu
	done   chan struct{}        // guarded by mu
}

func newControl(t testing.TB, ns *netns.NS) *control {
	t.Helper()
	a, err := ca.NewSelfSigned(identity.DefaultTrustDomain, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := &control{t: t, ns: ns, store: mesh.NewStore(), authority: a, root: t.TempDir() + "/root-cert.pem"}
	if err := os.WriteFile(c.root, a.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start()
	t.Cleanup(c.stop)
	return c
}

func (c *control) start() {
	c.t.Helper()
	f, err := c.ns.ListenTCP(netip.MustParseAddrPort("[::]:15012"), netns.SocketOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	ln, err := net.FileListener(f)
	f.Close()
	if err != nil {
		c.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	x := server.New(server.Config{Store: c.store, Logger: log, Authenticate: func(ctx context.Context) (server.Caller, error) {
		caller, err := c.caller(ctx)
		return server.Caller(caller), err
	}})
	signer := ca.NewServer(ca.ServerConfig{
		Authority: c.authority, Authenticate: c.caller, Logger: log,
		TrustedNodeAccounts: []string{"ambit-system/ztunnel"}, Hosts: c.hosts,
	})
	creds := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.authority.ServerCertificate(controllerName)
		}})
	g := grpc.NewServer(append(server.Options(), grpc.Creds(creds))...)
	x.Register(g)
	signer.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(ln) }()
	c.mu.Lock()
	c.grpc, c.xds, c.done = g, x, done
	c.mu.Unlock()
}

// stop is the controller going away without a word.
func (c *control) stop() {
	c.mu.Lock()
	g, x, done := c.grpc, c.xds, c.done
	c.grpc = nil
	c.mu.Unlock()
	if g == nil {
		return
	}
	g.Stop()
	<-done
	x.Wait()
}

func (c *control) caller(ctx context.Context) (ca.Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if node, ok := strings.CutPrefix(v, "Bearer "); ok && strings.HasPrefix(node, "node-") {
			return ca.Caller{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "ztunnel-" + node, PodUID: "uid-" + node, Node: node}, nil
		}
	}
	return ca.Caller{}, errors.New("no token")
}

// hosts says that an identity has an enrolled pod on a node.
func (c *control) hosts(node string, id identity.ID) bool {
	c.mu.Lock()
	denied := c.denied[id]
	c.mu.Unlock()
	if denied {
		return false
	}
	for w := range c.store.Load().AllWorkloads() {
		if w.Node == node && w.Protocol == mesh.ProtocolHBONE && w.Identity() == id {
			return true
		}
	}
	return false
}

// deny makes the CA see no pod of id on any node.
func (c *control) deny(id identity.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denied = map[identity.ID]bool{id: true}
}

func (c *control) apply(d mesh.Delta) {
	b := mesh.NewBuilder(c.store.Load())
	b.Apply(d)
	c.store.Swap(b.Build())
}

// settled waits until every ztunnel has acknowledged the current snapshot.
func (c *control) settled(t testing.TB) {
	t.Helper()
	want := c.store.Load().Version()
	eventually(t, "all ztunnels are current", func() error {
		c.mu.Lock()
		x := c.xds
		c.mu.Unlock()
		clients := x.Clients()
		if len(clients) < 2 {
			return fmt.Errorf("%d clients", len(clients))
		}
		for _, cl := range clients {
			for _, ty := range cl.Types {
				if ty.Acked < want {
					return fmt.Errorf("%s: %s at %d of %d %s", cl.NodeID, ty.TypeURL, ty.Acked, want, ty.LastNACK)
				}
			}
		}
		return nil
	})
}
