package lab

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
	"sync/atomic"
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

// Control is the real xDS server and CA over a mesh the bench writes. A token
// is the name of a node: who calls is not what is measured.
type Control struct {
	mu    sync.Mutex // held for a change
	store *mesh.Store
	root  string // file
	ca    *ca.Authority
	grpc  *grpc.Server
	xds   *server.Server
	done  chan struct{}
	asked atomic.Int64 // for certificates
}

func newControl(ns *netns.NS, root string) (*Control, error) {
	authority, err := ca.NewSelfSigned(identity.DefaultTrustDomain, time.Hour)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(root, authority.RootPEM(), 0o600); err != nil {
		return nil, err
	}
	f, err := ns.ListenTCP(netip.MustParseAddrPort("[::]:15012"), netns.SocketOptions{})
	if err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	c := &Control{store: mesh.NewStore(), root: root, ca: authority, done: make(chan struct{})}
	log := slog.New(slog.DiscardHandler)
	c.xds = server.New(server.Config{Store: c.store, Logger: log, Authenticate: func(ctx context.Context) (server.Caller, error) {
		who, err := caller(ctx)
		return server.Caller(who), err
	}})
	signer := ca.NewServer(ca.ServerConfig{Authority: authority, Authenticate: caller, Logger: log,
		TrustedNodeAccounts: []string{"ambit-system/ztunnel"}, Hosts: c.hosts})
	c.grpc = grpc.NewServer(append(server.Options(), grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return authority.ServerCertificate(controllerName)
		}})))...)
	c.xds.Register(c.grpc)
	signer.Register(c.grpc)
	go func() {
		defer close(c.done)
		// Ends with Stop; an earlier end shows as clients that are not current.
		_ = c.grpc.Serve(ln)
	}()
	return c, nil
}

// Issuer is the mesh's signing key, for whoever plays a workload that was taken over.
func (c *Control) Issuer() (cert, key []byte) {
	data := c.ca.SecretData()
	return data["ca-cert.pem"], data["ca-key.pem"]
}

func (c *Control) stop() {
	c.grpc.Stop()
	<-c.done
	c.xds.Wait()
}

func caller(ctx context.Context) (ca.Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if node, ok := strings.CutPrefix(v, "Bearer "); ok && strings.HasPrefix(node, "node-") {
			return ca.Caller{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "ztunnel-" + node, PodUID: "uid-" + node, Node: node}, nil
		}
	}
	return ca.Caller{}, errors.New("no token")
}

// hosts says that an identity's pod is on a node. The bench announces pods
// after enrolling them, so being known is enough.
func (c *Control) hosts(node string, id identity.ID) bool {
	c.asked.Add(1)
	for w := range c.store.Load().AllWorkloads() {
		if w.Node == node && w.Identity() == id {
			return true
		}
	}
	return false
}

// Certificates is how many ztunnels have asked for.
func (c *Control) Certificates() int { return int(c.asked.Load()) }

// Apply changes the mesh.
func (c *Control) Apply(d mesh.Delta) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := mesh.NewBuilder(c.store.Load())
	b.Apply(d)
	c.store.Swap(b.Build())
}

// Settled waits until both ztunnels have acknowledged the current mesh.
func (c *Control) Settled(ctx context.Context) error {
	want := c.store.Load().Version()
	return Eventually(ctx, func() error {
		clients := c.xds.Clients()
		if len(clients) != 2 {
			return fmt.Errorf("%d ztunnels are connected, want 2", len(clients))
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

// Fill puts n further workloads into the mesh, on nodes that do not exist.
// They have names from first upwards.
func (c *Control) Fill(first, n int) {
	d := mesh.Delta{}
	for i := first; i < first+n; i++ {
		name := fmt.Sprintf("fill-%05d", i)
		d.Workloads = append(d.Workloads, &mesh.Workload{
			UID: fillUID(i), Name: name, Namespace: fmt.Sprintf("ns-%d", i%50),
			Addresses:      []netip.Addr{netip.AddrFrom4([4]byte{10, 200 + byte(i>>16), byte(i >> 8), byte(i)})},
			ServiceAccount: fmt.Sprintf("sa-%d", i%500), Node: fmt.Sprintf("far-%d", i%100), WorkloadName: name[:8], CanonicalName: name[:8],
			CanonicalRevision: "v1", ClusterID: "bench", Type: mesh.TypePod, Protocol: mesh.ProtocolHBONE,
		})
	}
	c.Apply(d)
}

// Unfill takes them out again.
func (c *Control) Unfill(first, n int) {
	d := mesh.Delta{}
	for i := first; i < first+n; i++ {
		d.RemovedWorkloads = append(d.RemovedWorkloads, fillUID(i))
	}
	c.Apply(d)
}

func fillUID(i int) string { return fmt.Sprintf("bench//Pod/fill/fill-%05d", i) }
