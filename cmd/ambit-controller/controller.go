package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	istioclient "istio.io/client-go/pkg/clientset/versioned"

	"github.com/ambitmesh/ambit/cni/enablement"
	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/kube"
	"github.com/ambitmesh/ambit/controller/translate"
	xds "github.com/ambitmesh/ambit/controller/xds/server"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// drain is how long streams may take to end when the controller stops.
const drain = 5 * time.Second

// controller is the wired program.
type controller struct {
	cfg      *config
	log      *slog.Logger
	registry *prometheus.Registry
	client   kubernetes.Interface
	reviews  kubernetes.Interface
	istio    istioclient.Interface
	gateway  gatewayclient.Interface
	dynamic  dynamic.Interface
	monitor  *monitor
	// listen is net.Listen; tests keep a port over a restart with it.
	listen func(network, address string) (net.Listener, error)
}

// newController reads the kubeconfig; nothing is contacted before run.
func newController(cfg *config, log *slog.Logger) (*controller, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %q: %w", cfg.kubeconfig, err)
	}
	rc.UserAgent = "ambit-controller/" + version
	rc.QPS, rc.Burst = 50, 100 // a first start writes a ConfigMap per namespace
	c := &controller{cfg: cfg, log: log, registry: prometheus.NewRegistry(), listen: net.Listen}
	if c.client, err = kubernetes.NewForConfig(rc); err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	// Anybody can make the controller ask about a token. That must not take
	// the watches' and the Lease's share of requests.
	if c.reviews, err = kubernetes.NewForConfig(rest.CopyConfig(rc)); err != nil {
		return nil, fmt.Errorf("kubernetes client for token reviews: %w", err)
	}
	if c.istio, err = istioclient.NewForConfig(rc); err != nil {
		return nil, fmt.Errorf("istio client: %w", err)
	}
	if c.gateway, err = gatewayclient.NewForConfig(rc); err != nil {
		return nil, fmt.Errorf("gateway client: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfig(rc); err != nil {
		return nil, fmt.Errorf("dynamic client: %w", err)
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "ambit_build",
		Help:        "1, with the version as a label.",
		ConstLabels: prometheus.Labels{"component": "controller", "tag": version},
	})
	build.Set(1)
	pilot := prometheus.NewGauge(prometheus.GaugeOpts{ // dashboards of Istio's control plane ask for it
		Name: "istio_build", Help: "Istio component build info", ConstLabels: prometheus.Labels{"component": "pilot", "tag": version},
	})
	pilot.Set(1)
	c.registry.MustRegister(build, pilot, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	c.monitor = newMonitor(c.registry)
	return c, nil
}

// run serves until ctx ends or a part fails; it returns when every part has
// ended, with the first failure.
func (c *controller) run(ctx context.Context) error {
	running, fail := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	start := func(what string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(running); err != nil && running.Err() == nil {
				fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	start("monitoring", func(ctx context.Context) error {
		l, err := c.listen("tcp", c.cfg.monitoring)
		if err != nil {
			return err
		}
		c.log.Info("serving", "what", "monitoring", "address", l.Addr().String())
		return c.monitor.serve(ctx, l)
	})
	if err := c.serve(running, start); err != nil {
		fail(err)
	}
	<-running.Done()
	wg.Wait()
	if ctx.Err() != nil {
		return nil // asked to stop
	}
	return context.Cause(running)
}

// serve brings the parts up in the order they need one another.
func (c *controller) serve(ctx context.Context, start func(string, func(context.Context) error)) error {
	if err := c.settleTrustDomain(ctx); err != nil {
		return err
	}
	generate := func() (map[string][]byte, error) {
		a, err := ca.NewSelfSigned(c.cfg.trustDomain, c.cfg.selfSignedLife)
		if err != nil {
			return nil, err
		}
		return a.SecretData(), nil
	}
	ring := ca.NewKeyring(c.cfg.certificateTTL)
	record, err := kube.NewCASecrets(kube.SecretConfig{
		Client: c.client, Namespace: c.cfg.namespace, Generate: generate, TTL: ring.TTL(), Logger: c.log,
	}).Load(ctx)
	if err != nil {
		return err
	}
	var k *kube.Controller
	rotation, err := kube.NewRotation(kube.RotationConfig{
		Client: c.client, Namespace: c.cfg.namespace, Replica: c.cfg.replica, Ring: ring, Generate: generate, Timeout: c.cfg.rotationWait,
		Holders: c.monitor.rootsOfClients,
		Lacking: func(has func(string) bool) []string { return k.Lacking(has) }, // asked by the leader, which k makes us
		Logger:  c.log, Registerer: c.registry,
	}, record)
	if err != nil {
		return err
	}
	c.log.Info("certificates are signed with", "secret", record.Source, "signer", record.Signer.Fingerprint(), "phase", record.Phase())
	start("keys of the CA", rotation.Run)

	enrolment := translate.Enrolment{Excluded: c.cfg.excluded, SystemNamespace: c.cfg.namespace}
	if c.cfg.enablement != "" {
		if enrolment.Selectors, err = enablement.Parse(c.cfg.enablement); err != nil {
			return err
		}
	}
	k, err = kube.New(kube.Config{
		Client:  c.client,
		Istio:   c.istio,
		Gateway: c.gateway,
		Dynamic: c.dynamic,
		Translate: translate.Config{
			ClusterID: c.cfg.clusterID, ClusterDomain: c.cfg.clusterDomain, TrustDomain: c.cfg.trustDomain,
			RootNamespace: c.cfg.rootNamespace, Revision: c.cfg.revision, Beside: c.cfg.besideIstio,
			Network: c.cfg.network, NetworkPolicies: c.cfg.netPolicies,
		},
		Enrolment:    enrolment,
		Untaint:      c.cfg.untaintKey(),
		Namespace:    c.cfg.namespace,
		Replica:      c.cfg.replica,
		Roots:        ring,
		AllocateFrom: c.cfg.allocateFrom(),
		ConfigMaps:   c.cfg.configMaps(),
		Leading:      rotation.Lead,
		Logger:       c.log,
		Registerer:   c.registry,
	})
	if err != nil {
		return err
	}
	start("watching the API server", k.Run)
	select {
	case <-k.Synced():
	case <-ctx.Done():
		return nil
	}
	c.log.Info("the cluster is known", "version", k.Store().Load().Version())
	return c.answer(start, k, ring)
}

// answer starts the gRPC servers; from here on clients are served.
func (c *controller) answer(start func(string, func(context.Context) error), k *kube.Controller, ring *ca.Keyring) error {
	reviewer := ca.NewReviewer(c.reviews, func(pod ca.Caller) (string, bool) {
		return k.PodNode(pod.Namespace, pod.PodName, pod.PodUID, pod.ServiceAccount)
	})
	signer := ca.NewServer(ca.ServerConfig{
		Authority:           ring,
		Authenticate:        reviewer.Authenticate,
		TrustDomain:         c.cfg.trustDomain,
		TrustedNodeAccounts: c.cfg.nodeAccounts,
		Hosts:               k.Hosts,
		Logger:              c.log,
		Registerer:          c.registry,
	})
	ads := xds.New(xds.Config{
		Store:        k.Store(),
		Trust:        ring,
		WholeUpTo:    c.cfg.onDemandAbove,
		Authenticate: func(ctx context.Context) (xds.Caller, error) { return c.reader(reviewer.Authenticate(ctx)) },
		Logger:       c.log,
		Registerer:   c.registry,
	})
	c.monitor.clients.Store(ads)
	names := c.cfg.serverNames()
	if _, err := ring.ServerCertificate(names...); err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	listen := func(what, address string, opts ...grpc.ServerOption) error {
		if address == "" {
			return nil
		}
		l, err := c.listen("tcp", address)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		g := grpc.NewServer(append(xds.Options(), opts...)...)
		ads.Register(g)
		signer.Register(g)
		start(what, func(ctx context.Context) error { return serveGRPC(ctx, g, ads, l) })
		c.log.Info("serving", "what", what, "address", l.Addr().String())
		return nil
	}
	secure := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return ring.ServerCertificate(names...) },
	}
	(&identity.Terms{Compliance: identity.Compliance(c.cfg.compliance)}).Restrict(secure)
	if err := listen("xDS and CA", c.cfg.address, grpc.Creds(credentials.NewTLS(secure))); err != nil {
		return err
	}
	if err := listen("plaintext xDS and CA", c.cfg.plaintext); err != nil {
		return err
	}
	c.monitor.ready.Store(true)
	return nil
}

// reader is who may read the mesh over xDS: the node proxies. Any pod can mount
// a token for our audience, and the addresses and policies of all namespaces
// are not for any pod.
func (c *controller) reader(caller ca.Caller, err error) (xds.Caller, error) {
	switch {
	case err != nil:
		return xds.Caller{}, status.Errorf(ca.Code(err), "xds client refused: %v", err)
	case !slices.Contains(c.cfg.nodeAccounts, caller.Account()):
		return xds.Caller{}, status.Errorf(codes.PermissionDenied, "xds client refused: %s is not one of --trusted-node-accounts", caller.Account())
	}
	return xds.Caller(caller), nil
}

// serveGRPC serves until ctx ends, then sends clients to another replica.
func serveGRPC(ctx context.Context, g *grpc.Server, ads *xds.Server, l net.Listener) error {
	serving, end := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-serving.Done()
		ads.Stop()
		force := time.AfterFunc(drain, g.Stop)
		g.GracefulStop()
		force.Stop()
	}()
	err := g.Serve(l)
	asked := ctx.Err() != nil
	end()
	<-stopped
	ads.Wait()
	if asked {
		return nil
	}
	return err
}
