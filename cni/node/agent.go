package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambitmesh/ambit/cni/cri"
	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// Config is what the agent needs. Every path but HostRoot and CRISocket is
// seen from this process.
type Config struct {
	Node         string
	Rules        Rules
	HostRoot     HostRoot
	CRISocket    string // on the host; "" probes cri.Sockets
	PluginSocket string
	ZDSSocket    string
	Intent       string
	// ZtunnelNamespace is where a process must run that may have the pods of
	// this node; "" admits any root process (for tests).
	ZtunnelNamespace string

	// Pod is the agent's own pod; "" when it runs in none. KubeletPort is where
	// the kubelet of the node serves; 0 is DefaultKubeletPort.
	Pod         string
	KubeletPort uint16

	// Service is one that every connection may name, the API server's; it is
	// tried for socket level balancing. Zero tries nothing.
	Service netip.AddrPort
	// Clsact says how Redirector attaches, for the findings about the node.
	Clsact bool

	// DNS captures the pods' DNS queries too; ztunnel must answer them.
	DNS bool

	// AddWait bounds how long one ADD of the plugin may wait; below the
	// plugin's own patience, so that the reason reaches the runtime.
	AddWait time.Duration
	// PeersWait is the time between taking a pod's annotation away and
	// sending its connections direct: peers are to hear of it first.
	PeersWait time.Duration
	// DrainWait is how long captured connections may go on after that; the
	// pod leaves as soon as they have ended.
	DrainWait time.Duration
	// DriftEvery is the pause between two looks at every captured pod.
	DriftEvery time.Duration

	Client     kubernetes.Interface
	Redirector Redirector
	Host       *netns.NS // the node's own namespace
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Redirector is what the agent needs of cni/redirect.
type Redirector interface {
	Set(redirect.Config) error
	Check(redirect.Config) error
	Drain(containerID string) error
	Clear(containerID string, ns *netns.NS) error
	Fill(containerID string, ns *netns.NS, l *redirect.Listeners) error
	Empty(containerID string) error
	Filled(containerID string, addrs []netip.Addr) (bool, error)
	Collect(keep func(containerID string) bool) ([]string, error)
	TrustProxies(cgroups []uint64) error
	TrustProbers(cgroups []uint64) error
	Probing(containerID string, ports []uint16) (redirect.Probing, error)
}

// Validate names every problem at once.
func (c Config) Validate() error {
	var errs []error
	need := func(name, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("%s is empty", name))
		}
	}
	need("node name (NODE_NAME)", c.Node)
	need("own namespace (POD_NAMESPACE)", c.Rules.OwnNamespace)
	need("host root", string(c.HostRoot))
	need("plugin socket", c.PluginSocket)
	need("ZDS socket", c.ZDSSocket)
	need("intent file", c.Intent)
	if c.AddWait <= 0 || c.DriftEvery <= 0 || c.PeersWait < 0 || c.DrainWait < 0 {
		errs = append(errs, errors.New("durations: add wait and drift check must be positive, peers and drain wait not negative"))
	}
	return errors.Join(errs...)
}

// Agent is the node agent.
type Agent struct {
	// immutable after Run has begun
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	boot    string
	kube    *watcher
	zds     *handoff.Server
	events  chan event

	served  served // pods a ztunnel is to serve; has its own lock
	proxies *proxies
	kubelet *kubelet
	older   *older
	kept    atomic.Pointer[[]string]
	claims  claims
	others  atomic.Bool // the ztunnel last known was not ours
	old     recovery
	ready   atomic.Bool
	up      chan struct{} // closed when ready becomes true
	left    chan struct{} // closed by the loop when nothing is captured and nothing will be
	jobs    sync.WaitGroup
	// unreachable is until when, in Unix nanoseconds, the node is taken to have
	// no way to pods whose devices have no end on it.
	unreachable atomic.Int64
	slots       chan struct{} // bounds what jobs ask of the kernel at once
}

// maxLoads at once: a node that boots has all its pods to do, and each needs
// its programs loaded, which takes a processor for some 60 ms.
const maxLoads = 4

// New makes an agent; it touches nothing yet.
func New(cfg Config) *Agent {
	a := &Agent{
		cfg:     cfg,
		log:     cfg.Logger,
		metrics: newMetrics(cfg.Registerer),
		events:  make(chan event),
		slots:   make(chan struct{}, maxLoads),
		up:      make(chan struct{}),
		left:    make(chan struct{}),
		proxies: &proxies{trust: cfg.Redirector.TrustProxies, find: cfg.HostRoot.cgroupOf, log: cfg.Logger},
	}
	a.older = &older{say: a.sayOlder, list: (*netns.NS).Connections, log: cfg.Logger}
	a.kubelet = a.newKubelet()
	a.metrics.watch(cfg.Registerer, a)
	return a
}

// Ready says whether the agent answers the plugin.
func (a *Agent) Ready() bool { return a.ready.Load() }

// Started is closed when the agent answers the plugin for the first time.
func (a *Agent) Started() <-chan struct{} { return a.up }

// Ztunnels lists the connected ztunnels. Only after Started.
func (a *Agent) Ztunnels() []handoff.Client { return a.zds.Clients() }

// Run works, once, until ctx ends and returns when everything it started has.
// Captured pods stay captured.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer a.ready.Store(false)
	defer cancel(nil)
	start := func(what string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", what, err))
			}
		})
	}

	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("boot id: %w", err)
	}
	a.boot = strings.TrimSpace(string(boot))
	before := a.remember()
	a.proxies.begin(before.Proxies)

	a.kube = newWatcher(a.cfg.Client, a.cfg.Node, a.cfg.Rules.OwnNamespace, func(uid string) { a.tell(ctx, event{changed: uid}) })
	start("watch", a.kube.run)
	if !a.kube.wait(ctx) {
		return context.Cause(ctx)
	}
	a.kubelet.begin(before.Probers)
	a.log.Info("pods and namespaces known", "pods", len(a.kube.allPods()), "remembered", len(before.Pods))

	// ztunnel first: what it still serves is where our listeners are.
	a.zds, err = handoff.Listen(a.cfg.ZDSSocket, handoff.ServerConfig{
		Snapshot:  a.served.snapshot,
		Keep:      func() []string { return a.served.missing(a.kept.Load()) },
		Acked:     a.borrow,
		Synced:    func(uids []string) { a.tell(ctx, event{synced: &uids}) },
		Gone:      func() { a.tell(ctx, event{gone: true}) },
		CheckPeer: a.checkPeer,
		Logger:    a.log,
	})
	if err != nil {
		return err
	}
	start("zds", a.zds.Run)
	plugin, err := enroll.Listen(a.cfg.PluginSocket, a.answer, a.log)
	if err != nil {
		return err
	}
	l := newLoop(a, before)
	start("pods", l.run)
	start("plugin", plugin.Run)
	start("older connections", a.older.run)
	start("kubelet", a.kubelet.run)
	start("findings", a.watchFindings)
	a.ready.Store(true)
	close(a.up)
	<-ctx.Done()
	wg.Wait() // the loop, which takes its jobs' results, starts none after that
	a.jobs.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// remember reads what the last agent left. A file that cannot be believed is
// as good as none: the API server and the pins say the rest.
func (a *Agent) remember() enroll.Intent {
	in, err := enroll.ReadIntent(a.cfg.Intent)
	var corrupt *enroll.CorruptError
	switch {
	case errors.Is(err, os.ErrNotExist):
		a.log.Info("no intent file, starting from the API server alone", "path", a.cfg.Intent)
		return enroll.Intent{}
	case errors.As(err, &corrupt):
		a.log.Error("intent file is damaged and not used; it is rebuilt from the API server", "path", a.cfg.Intent, "err", err)
		return enroll.Intent{}
	case err != nil:
		a.log.Error("intent file cannot be read; it is rebuilt from the API server", "path", a.cfg.Intent, "err", err)
		return enroll.Intent{}
	}
	if in.Node != a.cfg.Node {
		a.log.Error("intent file is another node's and not used", "path", a.cfg.Intent, "node", in.Node)
		return enroll.Intent{}
	}
	if in.Boot != a.boot {
		// Every sandbox of the former boot is gone, and with it its namespace.
		a.log.Info("the node was rebooted since the intent file was written", "pods", len(in.Pods))
		in.Pods, in.Proxies, in.Probers = nil, nil, nil
	}
	var uids []string
	for _, p := range in.Pods {
		uids = append(uids, p.UID)
		a.others.Store(p.Foreign)
	}
	a.kept.Store(&uids)
	a.old.expect(in.Pods)
	return in
}

// tell hands an event to the loop.
func (a *Agent) tell(ctx context.Context, e event) {
	select {
	case a.events <- e:
	case <-ctx.Done():
	}
}

// kernel runs what loads or unloads programs.
func (a *Agent) kernel(do func() error) error {
	a.slots <- struct{}{}
	defer func() { <-a.slots }()
	return do()
}

// runtime connects to the container runtime. It is looked for again every
// time: the socket may appear after us, and questions are rare.
func (a *Agent) runtime() (*cri.Client, error) {
	path := string(a.cfg.HostRoot) + a.cfg.CRISocket
	if a.cfg.CRISocket == "" {
		var err error
		if path, err = cri.Probe(string(a.cfg.HostRoot), cri.Sockets()); err != nil {
			return nil, err
		}
	}
	return cri.New(path)
}

// sayOlder writes on a pod how many of its connections are older than capture.
func (a *Agent) sayOlder(ctx context.Context, uid string, count int) error {
	p := a.kube.pod(uid)
	if p == nil {
		return nil
	}
	return a.kube.annotate(ctx, p, map[string]string{annotationOlder: number(count)})
}

// number is empty for none, which removes an annotation.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// podName is how logs and errors name a pod.
func podName(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }
